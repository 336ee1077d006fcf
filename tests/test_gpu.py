"""What is asked of a GPU: every plugin's promises, the losses of a CPU, runs that repeat.

Other tests see no GPU; ``pytest --gpu`` runs these. ``make gpu`` itself is tried on the CPU.
"""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import _asked, main
from gpu_sections import (
    ENDED,
    GOALS,
    PLAINLY,
    SECTIONS,
    TESTS,
    WITHOUT_TIMEOUT,
    Bench,
    Missing,
    Section,
    about_a_gpu,
    seeing,
)

from splitlab.core import run
from splitlab.core.catalogue.tables import ROOT, catalogue
from splitlab.core.testing import FreshPeers, check_plugin

SHIPPED = [*catalogue()["plugins"], *catalogue()["stacks"]]
SMALL: dict[str, Any] = {
    "model": "vit:image_size=28,patch=7,channels=1,width=32,depth=3,heads=2",
    "weights": "none",
    "batch_size": 16,
    "threads": 1,
}
TOLERANCE = 1e-3
"""Of a loss, relative, in the first steps: sums in another order, and what follows from them."""


def losses(folder: Path, **options: Any) -> list[float]:
    """Return the losses of a run of a few steps, with all their digits."""
    result = run(**{**SMALL, **options}, budget="steps=6", eval_every=3, output=str(folder))
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    found = [re.search(r'"loss": ?([^,}]+)', line) for line in lines if '"step"' in line]
    return [float(match[1]) for match in found if match]


def test_only_tests_about_a_gpu_see_one() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # of what tests start, too
    assert not torch.cuda.is_available()


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHIPPED)
def test_a_plugin_holds_it_on_a_gpu_too(name: str, fresh: FreshPeers) -> None:
    check_plugin(name, fresh=fresh, device="cuda").raise_if_failed()


@pytest.mark.gpu
@pytest.mark.parametrize("plugin", [None, "adc:ratio=0.3", "quantize:bits=8", "topk:ratio=0.2"])
def test_losses_of_cpu_and_gpu_agree(plugin: str | None, tmp_path: Path) -> None:
    stack = [plugin] if plugin else []
    cpu = losses(tmp_path / "cpu", plugins=stack, device="cpu")
    gpu = losses(tmp_path / "gpu", plugins=stack, device="cuda")
    assert len(cpu) == len(gpu) >= 6
    for one, other in zip(cpu, gpu, strict=True):
        assert math.isclose(one, other, rel_tol=TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHIPPED)
def test_a_deterministic_run_repeats_itself_bit_for_bit(name: str, tmp_path: Path) -> None:
    logs = []
    for again in ("once", "twice"):
        options: dict[str, Any] = {"device": "cuda", "deterministic": True, "plugins": [name]}
        losses(tmp_path / again, **options)
        logs.append((tmp_path / again / "metrics.jsonl").read_text())
    assert logs[0] == logs[1]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_make_gpu_can_be_tried_on_a_cpu(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    done = subprocess.run(
        [*("benchmarks/gpu.sh", "--device", "cpu", "--output", page, "--logs", tmp_path / "logs")],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    said = page.read_text(encoding="utf-8")
    logs = "\n".join(path.read_text() for path in (tmp_path / "logs").glob("*.log"))
    assert done.returncode == 0, said + done.stdout + done.stderr + logs
    assert "A dry run on the CPU" in said
    assert "failed" not in said, said + logs
    assert "not met" not in said  # nothing is judged
    ended = re.findall(r"^- (\w+): done after", said, re.MULTILINE)
    assert ended == [section.name for section in SECTIONS]
    assert re.search(r"vit-mini, batch 128, fp32: at most 1\.10 \| \d\.\d{3} \(unsplit", said)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--device", "cpu", "--output", f"{ROOT}/docs/gpu.md"], "another file than docs/gpu.md"),
        (["--device", "mps"], "--device mps is not allowed; cuda, cuda:N or cpu, a dry run"),
        (["--only", "step,stpe"], "unknown section stpe; known: step, links, adc"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert told in capsys.readouterr().err


def test_where_there_is_no_gpu_the_dry_run_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu._asked", lambda *_: {"error": "no driver"})
    assert main(["--output", str(tmp_path / "x.md"), "--logs", str(tmp_path / "logs")]) == 1
    assert capsys.readouterr().err.startswith("gpu: no driver; without a GPU: benchmarks/gpu.sh ")


def test_an_interpreter_that_lacks_what_is_needed_is_refused_in_one_line(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    refused = subprocess.run(
        [ROOT / "benchmarks/gpu.sh", "--help"],
        env={**os.environ, "PYTHON": str(bare)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 2
    assert "lacks: torch timm pytest; name one that has them" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_every_kind_of_test_belongs_to_a_goal() -> None:
    def goal(name: str) -> str:
        return next(goal for goal, pattern in TESTS.items() if pattern.search(name))

    assert TESTS.keys() < GOALS.keys()
    here = "tests/test_gpu.py::"
    assert goal(f"{here}test_a_plugin_holds_it_on_a_gpu_too[adc]") == "tests conformance"
    assert goal(f"{here}test_losses_of_cpu_and_gpu_agree[None]") == "tests parity"
    assert goal(f"{here}test_a_deterministic_run_repeats_itself[adc]") == "tests repeat"
    assert goal("tests/transports/test_contract.py::test_the_contract[nccl-x]") == "tests nccl"
    assert goal("tests/plugins/test_adc.py::test_gpu_repeats_itself") == "tests others"


def test_tests_need_no_pytest_timeout() -> None:
    command = [sys.executable, "-m", "pytest", "tests/test_architecture.py", "--collect-only"]
    command += [*PLAINLY, *WITHOUT_TIMEOUT, "-p", "no:timeout"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_tests_that_need_a_gpu_are_found() -> None:
    found = about_a_gpu()
    assert "tests/test_gpu.py" in found
    assert "tests/transports/test_contract.py" in found
    assert "tests/test_architecture.py" not in found


def test_the_end_of_a_test_is_read_from_what_pytest_prints() -> None:
    one = ENDED.match("tests/test_x.py::test_it[a b] PASSED                    [ 10%]")
    many = ENDED.match("[gw3] [ 10%] FAILED tests/test_x.py::test_it[a b] ")
    broken = ENDED.match("ERROR tests/test_x.py - ImportError: no")
    assert one
    assert one.group(3, 4) == ("tests/test_x.py::test_it[a b]", "PASSED")
    assert many
    assert many.group(1, 2) == ("FAILED", "tests/test_x.py::test_it[a b] ")
    assert broken
    assert broken.group(1) == "ERROR"
    assert ENDED.match("    assert 'PASSED' in x") is None


def _dies(bench: Bench) -> None:
    bench.see("adc", "half of it", True)
    os.kill(os.getpid(), signal.SIGKILL)


def _hangs(bench: Bench) -> None:
    subprocess.Popen(["sleep", "100"])
    bench.see("eight", "one of eight")
    time.sleep(100)


def _fails(bench: Bench) -> None:
    with seeing(bench, "methods"):
        raise Missing("there is none")
    with seeing(bench, "nccl", "inprocess"):
        raise ValueError("a | b")
    raise KeyError


def test_a_gpu_that_ends_who_asks_is_told(tmp_path: Path) -> None:
    found = _asked(lambda device: os._exit(3), torch.device("cpu"), tmp_path / "facts.json")
    assert found == {"error": "cpu cannot be used: a process that does so ended or hung"}


def test_a_section_ends_with_who_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu.SECTIONS", [Section(_hangs, 60)])
    page = tmp_path / "new" / "page.md"

    def interrupt() -> None:
        while "one of eight" not in "".join(f.read_text() for f in tmp_path.glob("**/seen.jsonl")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # xdist's workers ignore it
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            main(["--device", "cpu", "--output", str(page), "--logs", str(tmp_path)])
    finally:
        signal.signal(signal.SIGINT, before)
    said = page.read_text(encoding="utf-8")
    assert "| one of eight |" in said
    assert "_hangs: interrupted after" in said


def test_what_was_seen_before_a_section_ends_badly_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = [Section(_dies, 60), Section(_hangs, 1), Section(_fails, 60)]
    monkeypatch.setattr("gpu.SECTIONS", sections)
    page = tmp_path / "page.md"
    assert main(["--device", "cpu", "--output", str(page), "--logs", str(tmp_path)]) == 1
    said = page.read_text(encoding="utf-8")
    assert re.search(r"^- _dies: killed by SIGKILL after", said, re.MULTILINE)
    assert re.search(r"^- _hangs: out of time after \d+ s", said, re.MULTILINE)
    assert re.search(r"^- _fails: failed after", said, re.MULTILINE)
    for seen in ("half of it", "one of eight", "not seen: there is none", r"ValueError: a \| b"):
        assert seen in said
    assert "KeyError" in (tmp_path / "_fails.log").read_text()
