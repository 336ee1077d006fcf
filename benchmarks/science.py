"""The studies of ADC's paper, and of what beats it, in its own regime, on one GPU, in slices.

    benchmarks/science.sh --data FOLDER --weights FILE --output OUT
    benchmarks/science.sh --data FOLDER --weights FILE --output OUT --from OUT.tar --minutes 9

DeiT-Tiny from its ImageNet weights, photographs, cut behind the third block, Adam 1e-4, batches of
128; eight runs at a time share the GPU. When the time is up every run stops after its step, with a
checkpoint, and all that the next slice needs is packed into OUT.tar. The next slice goes on from
there, on the same machine or another. What is done and what is left stands at the end, and in
OUT/summary.md. Finished studies become pages with docs/results.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tarfile
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from splitlab.core.contract.errors import ConfigError, Interrupted, Notice, SplitlabError
from splitlab.core.runs.records import SUMMARY
from splitlab.core.studies.conduct import StudyReporter, study
from splitlab.core.studies.definition import Definition
from splitlab.core.studies.find import definition_of
from splitlab.core.studies.job import Job, Outcome
from splitlab.core.studies.study import RECORD, Study

PLACE = Path("/tmp/splitlab-science")
"""Where links to data and weights lie, on every machine alike: paths are part of what a run is."""

REGIME: dict[str, Any] = {
    "model": "deit_tiny_patch16_224",
    "cut": 3,
    "lr": 1e-4,
    "batch_size": 128,
    "threads": 2,
    "eval_points": 10,
    "eval_samples": 200,
}
STUDIES: dict[str, dict[str, list[Any]]] = {
    "adc/ratios": {},
    "adc/ablation": {},
    "adc/criterion": {},
    "adc/allocation": {},
    "adc/balance": {},
    "adc/split-point": {"cut": [2, 3, 5, 6, 10]},
    "adc/batch-size": {},
    "adc/clusters": {},
    "lean/against-adc": {},
    "lean/convergence": {},
}
"""What is run, in this order, and values of axes where the model that ships has others."""

_LEAST_SECONDS = 20.0
"""With less left no further study is begun: its first step alone takes so long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a slice; returns 1 if a run has failed."""
    given = _given(arguments)
    end = time.monotonic() + 60 * given.minutes
    output: Path = given.output
    try:
        if given.resume is not None:
            unpack(given.resume, output)
        options = {**REGIME, "device": given.device, **_linked(given.data, given.weights)}
        if given.model:
            options["model"] = given.model
        for name in given.studies:
            if end - time.monotonic() < _LEAST_SECONDS:
                break
            _slice(name, given, options, end - time.monotonic())
    except Interrupted as reason:
        print(f"science: {reason}", file=sys.stderr)
    except SplitlabError as error:
        print(f"science: {error}", file=sys.stderr)
        return error.status
    report, failed = told(output)
    (output / "summary.md").write_text(report, encoding="utf-8")
    slim(output, given.restart)
    pack(output, output.with_name(f"{output.name}.tar"))
    print(f"\n{report}\npacked: {output}.tar")
    return int(failed)


def _given(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/science.sh", description=__doc__.split("\n")[0]
    )
    paths = {"type": Path, "metavar": "PATH"}
    of = os.environ
    parser.add_argument(
        "--data", **paths, default=of.get("DATA"), help="a folder of photographs; or $DATA"
    )
    parser.add_argument(
        "--weights", **paths, default=of.get("WEIGHTS"), help="of DeiT-Tiny; or $WEIGHTS"
    )
    parser.add_argument(
        "--output", **paths, default=of.get("OUTPUT", "science"), help="or $OUTPUT; or science"
    )
    parser.add_argument(
        "--from", dest="resume", **paths, help="what an earlier slice packed, to go on with"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="default: %(default)g")
    parser.add_argument("--at-once", type=int, default=8, help="runs; default: %(default)d")
    parser.add_argument("--studies", default=",".join(STUDIES), help="default: %(default)s")
    parser.add_argument("--seeds", default=None, help="how many, or a list; default: the study's")
    parser.add_argument(
        "--epochs",
        type=float,
        default=3.0,
        help="of traffic, where a study compares at equal bytes, else of training; the paper has "
        "10; default: %(default)g",
    )
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--model", help="another one, to try the script with")
    parser.add_argument(
        "--restart",
        action="store_true",
        help="pack no checkpoints at all: a small file, and runs that are under way begin anew",
    )
    given = parser.parse_args(arguments)
    given.studies = [name for name in given.studies.split(",") if name]
    if given.data is None or given.weights is None:
        parser.error("say where data and weights are: --data FOLDER --weights FILE")
    for name in ("data", "weights"):
        path = Path(getattr(given, name))
        if not path.exists() and str(path) != "none":
            parser.error(f"--{name} {path} is not there")
    if not 1 <= given.at_once <= 64 or given.minutes <= 0 or given.epochs <= 0:
        parser.error("--at-once is 1 to 64; --minutes and --epochs are more than 0")
    return given


def _linked(data: Path, weights: Path) -> dict[str, str]:
    """Return the options of data and weights, by links that are called alike on every machine."""
    found = {}
    for option, path in (("data_dir", Path(data)), ("weights", Path(weights))):
        found[option] = str(path)
        if str(path) != "none":
            link = PLACE / path.name
            PLACE.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(path.absolute())
            found[option] = str(link)
    return found


def _slice(
    name: str, given: argparse.Namespace, options: Mapping[str, Any], seconds: float
) -> None:
    """Run as much of a study as there is time for."""
    known = definition_of(name)
    over = STUDIES.get(name, {})
    axes = {key for axis in known.axes for key in axis[0]}
    own = {key: value for key, value in options.items() if key not in axes}
    folder = given.output / name.replace("/", "-")
    print(f"{name}: {seconds:.0f} s are left", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        study(
            name,
            over=over,
            seeds=given.seeds,
            output=folder,
            executor="inside" if given.at_once == 1 else f"processes:{given.at_once}",
            seconds=seconds,
            reporter=_Lines(),
            budget=_budget(known, given.epochs),
            **own,
        )


def _budget(known: Definition, epochs: float) -> str:
    """Return the budget: of traffic where the study compares at equal bytes, else of training."""
    unit = str(known.base.get("budget", "nominal=1")).partition("=")[0]
    return f"{unit}={epochs:g}"


class _Lines(StudyReporter):
    """Prints a line for every run that has ended, and how many are left to begin with."""

    def begin(self, study: Study, runs: int, finished: int) -> None:
        print(f"  {finished} of {runs} runs are finished", flush=True)

    def ended(self, job: Job, outcome: Outcome) -> None:
        seen = f"accuracy {outcome.summary.accuracy:.4f}" if outcome.summary else outcome.error
        print(f"  {outcome.state}: {job.title}, seed {job.config.seed}: {seen}", flush=True)


# What the next slice gets.


def told(output: Path) -> tuple[str, bool]:
    """Return what is done and what is left, as a table, and whether a run has failed."""
    lines = ["| study | done | left | failed | diverged | minutes a run |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    failed = 0
    for record in sorted(output.glob(f"*/{RECORD}")):
        found = Study.read(record.parent.absolute())
        assert found is not None
        runs = [run for row in found.results().rows for run in row.runs]
        states = Counter(run.state for run in runs)
        failed += states["failed"]
        ended = [states[state] for state in ("finished", "failed", "diverged")]
        took = [run.summary.seconds / 60 for run in runs if run.summary is not None]
        minutes = f"{statistics.fmean(took):.1f}" if took else "—"
        cells = (ended[0], len(runs) - sum(ended), *ended[1:], minutes)
        lines.append(f"| {found.definition.name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n", bool(failed)


def slim(output: Path, restart: bool) -> None:
    """Delete checkpoints that no run goes on from, or all of them.

    Args:
        output: folder of the studies.
        restart: runs that are under way are to begin anew.
    """
    for folder in output.glob("*/*/seed-*/checkpoints"):
        if restart or (folder.parent / SUMMARY).exists():
            shutil.rmtree(folder)
            continue
        whole = sorted(step.parent for step in folder.glob("step-*/client.safetensors"))
        for step in folder.iterdir():  # the server's is written first: with a client's it is whole
            if step not in whole[-1:]:
                shutil.rmtree(step)


def pack(output: Path, file: Path) -> None:
    """Write the folder of the studies into a tar file, whole or not at all."""
    half = file.with_suffix(".tar.tmp")
    with tarfile.open(half, "w") as tar:
        for path in sorted(output.rglob("*")):
            if path.is_file() and not path.name.endswith((".lock", ".tmp")):
                tar.add(path, path.relative_to(output))
    half.replace(file)


def unpack(file: Path, output: Path) -> None:
    """Put back what `pack` wrote.

    Raises:
        ConfigError: it is no such file, or the folder has studies already.
    """
    if any(output.glob(f"*/{RECORD}")):
        raise ConfigError(f"{output} has studies already, which go on without --from; drop it")
    try:
        with tarfile.open(file) as tar:
            tar.extractall(output, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(f"--from {file} cannot be unpacked: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
