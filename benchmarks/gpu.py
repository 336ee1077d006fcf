"""Every check and figure that needs a GPU, in under eight minutes, in one Markdown file.

    benchmarks/gpu.sh                                     docs/gpu.md, on the machine's GPU
    benchmarks/gpu.sh --only step,links --output x.md     some sections
    benchmarks/gpu.sh --device cpu --output x.md          a dry run: the same path at small sizes

Each section has a process of its own and a share of the time. What it has seen when it fails, dies
or runs out of time stands in the file, which is written anew after each.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from gpu_sections import GOALS, ROOT, SECONDS, SECTIONS, Bench, Section

# Sections are forked off, so that each has what is imported here. Nothing here asks CUDA anything:
# a GPU that a process has used cannot be used by one that is forked off it.
import splitlab
import splitlab.core.runs.workers

_PARTING_SECONDS = 5.0
_DRY_RUN = "without a GPU: benchmarks/gpu.sh --device cpu --output dry.md, a dry run"
_ASKING_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Look at all sections; returns 1 if a goal is not met or a section came to no end."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda; cpu makes a dry run")
    parser.add_argument(
        "--output",
        default=os.environ.get("OUTPUT", str(ROOT / "docs/gpu.md")),
        help="the Markdown file; default: $OUTPUT, or docs/gpu.md",
    )
    parser.add_argument("--only", default="", help="sections, by commas")
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help="of which each section has its share; default: %(default)g",
    )
    parser.add_argument("--logs", default=str(ROOT / "build/gpu"), help="what sections print")
    given = parser.parse_args(arguments)
    only = [name for name in given.only.split(",") if name]
    if unknown := {*only} - {section.name for section in SECTIONS}:
        known = ", ".join(section.name for section in SECTIONS)
        parser.error(f"unknown section {', '.join(sorted(unknown))}; known: {known}")
    sections = [section for section in SECTIONS if not only or section.name in only]
    if given.device != "cpu" and not re.fullmatch(r"cuda(:\d+)?", given.device):
        parser.error(f"--device {given.device} is not allowed; cuda, cuda:N or cpu, a dry run")
    device, output = torch.device(given.device), Path(given.output)
    if device.type == "cpu" and output.resolve() == ROOT / "docs/gpu.md":
        parser.error("--device cpu sees no figure; give --output another file than docs/gpu.md")
    logs = Path(given.logs)
    logs.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + given.seconds
    patience = 3 if device.type == "cpu" else 1  # a dry run times nothing, maybe on a busy machine
    # A section that is killed may leave a process that writes for a moment longer.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        seen = Path(folder) / "seen.jsonl"
        seen.touch()
        notes: list[str] = []
        facts = _asked(_facts, device, Path(folder) / "facts.json")
        if "error" in facts:
            way = "" if device.type == "cpu" else f"; {_DRY_RUN}"
            print(f"gpu: {facts['error']}{way}", file=sys.stderr)
            return 1
        output.parent.mkdir(parents=True, exist_ok=True)
        # Before the first section, which takes minutes: nobody waits for what cannot be written.
        output.write_text(_page(device, facts, (), notes), encoding="utf-8")
        for section in sections:
            started = time.monotonic()
            end = min(until, started + patience * section.seconds * given.seconds / SECONDS)
            room = Path(folder) / section.name
            room.mkdir()
            how = "interrupted"
            try:
                how = _look(section, Bench(device, end, seen, room), logs / f"{section.name}.log")
            finally:
                notes.append(f"{section.name}: {how} after {time.monotonic() - started:.0f} s")
                print(notes[-1], flush=True)
                output.write_text(_page(device, facts, _read(seen), notes), encoding="utf-8")
            shutil.rmtree(room, ignore_errors=True)  # pictures and runs: nobody needs them now
        last = _last(_read(seen))
    print(f"written: {output}")
    unmet = any(line["met"] is False for line in last.values())
    return int(unmet or any(": done" not in note for note in notes))


def _look(section: Section, bench: Bench, log: Path) -> str:
    """Let a process of its own look at a section; returns how it ended."""
    if bench.until - time.monotonic() <= 0:
        return "not begun: the time was up"
    process = _forked(_inside, section, bench, log)
    try:
        process.join(bench.until - time.monotonic())
        status = process.exitcode
    finally:  # also if somebody wants all of this to end
        _end(process)
    if status is None:
        return "out of time"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return "failed" if status else "done"


def _end(process: Any) -> None:
    """End a section with all that it started, whether it has ended or not."""
    for insist in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, insist)
        except ProcessLookupError:  # nobody is left, or it has no session of its own yet
            if process.exitcode is None:
                process.kill()
            break
        process.join(_PARTING_SECONDS if insist is signal.SIGTERM else None)
    process.join()


def _forked(work: Callable[..., None], *arguments: Any) -> Any:
    """Start a process that has all that was imported here."""
    process = get_context("fork").Process(target=work, args=arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # no thread of ours holds a lock
        process.start()
    return process


def _inside(section: Section, bench: Bench, log: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with log.open("w") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
    status = 1
    try:
        section.look(bench)
        status = 0
    except Exception:  # noqa: BLE001 (told by the status)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # whatever still runs in it ends with its session


def _asked(question: Any, device: torch.device, file: Path) -> dict[str, Any]:
    """Return what a process of its own answers, into a file."""

    def answer() -> None:
        try:
            found = question(device)
        except Exception as error:  # noqa: BLE001
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        file.write_text(json.dumps(found))

    process = _forked(answer)
    process.join(_ASKING_SECONDS)
    if process.exitcode != 0:
        process.kill()
        process.join()
        return {"error": f"{device} cannot be used: a process that does so ended or hung"}
    facts: dict[str, Any] = json.loads(file.read_text())
    return facts


def _facts(device: torch.device) -> dict[str, str]:
    """Return what the figures depend on."""
    torch.zeros(1, device=device).item()
    facts = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "splitlab": splitlab.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": str(os.cpu_count()),
    }
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        facts["GPU"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        facts["GPUs"] = str(torch.cuda.device_count())
        facts["CUDA"] = str(torch.version.cuda)
        facts["driver"] = _driver()
        facts["cuDNN"] = str(torch.backends.cudnn.version())
        facts["NCCL (loaded)"] = _nccl()
    return facts


def _driver() -> str:
    """Return the driver's version, as its own tool tells it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"
    return told.stdout.split("\n")[0].strip() or "unknown"


def _nccl() -> str:
    """Return the version of the library that is loaded, which need not be the one of the build."""
    loaded = re.findall(r"\S*/libnccl[^/\s]*$", Path("/proc/self/maps").read_text(), re.MULTILINE)
    for name in (None, *loaded):  # torch has loaded it, or somebody what stands in front of it
        number = ctypes.c_int()
        try:
            failed = ctypes.CDLL(name).ncclGetVersion(ctypes.byref(number))
        except (OSError, AttributeError):
            continue
        if not failed:
            major, rest = divmod(number.value, 10_000)
            return f"{major}.{rest // 100}.{rest % 100}"
    return "none"


def _read(seen: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in seen.read_text(encoding="utf-8").splitlines()]


def _last(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what was seen last of every goal."""
    return {line["goal"]: line for line in found if "goal" in line}


def _page(
    device: torch.device,
    facts: dict[str, str],
    found: Sequence[dict[str, Any]],
    notes: Sequence[str],
) -> str:
    """Return the file: hardware, goals beside what was seen, tables, how the sections ended."""
    dry = device.type == "cpu"
    lines = ["<!-- Written by benchmarks/gpu.sh. -->", "", "# On a GPU", ""]
    if dry:
        lines += ["A dry run on the CPU, at small sizes: no figure in it means anything.", ""]
    else:
        lines += [
            "Seen by `make gpu` in one go. Both sides of a ratio were timed in turn, in one",
            "process; times are medians. Two halves of a model without a laboratory between them",
            "(`halves`) have two passes backward and two optimizers, too.",
            "",
        ]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    last = _last(found)
    lines += ["", "| goal | seen | |", "|---|---|---|"]
    for goal, text in GOALS.items():
        line = last.get(goal, {"seen": "not seen", "met": None})
        verdict = {True: "met", False: "not met", None: ""}[line["met"]]
        cell = line["seen"].replace("|", "\\|")
        lines.append(f"| {text} | {cell} | {verdict} |")
    tables = {line["title"]: line["text"] for line in found if "title" in line}
    for title, text in tables.items():
        lines += ["", f"## {title}", "", text]
    lines += ["", "## How the sections ended", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the section that runs ends, too
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("gpu: interrupted; what was seen until then is written")
