"""``splitlab run``: what it prints, and one clear line for every mistake."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from splitlab.core.catalogue.links import load_transport
from splitlab.core.command.main import main
from splitlab.core.command.run import show_result
from splitlab.core.command.show import human_bytes
from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.config import Config
from splitlab.core.runs.folder import RunFolder
from splitlab.core.runs.plan import Plan
from splitlab.core.runs.records import EvaluationRecord, Summary
from splitlab.core.runs.reporter import Result
from splitlab.core.wire.ledger import Ledger

pytestmark = pytest.mark.usefixtures("starts_fast")

HERE = ["--weights", "none", "--threads", "1", "--device", "cpu"]
EXAMPLES = Path(__file__).parents[3] / "examples"
HALF = f"{EXAMPLES}/half_precision.py:HalfPrecision"
DELAYED = f"{EXAMPLES}/delayed_link.py:Delayed"
FAST = [*HERE, "--budget", "steps=1"]


def test_run_prints_accuracy_bytes_and_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--plugin", "adc", *FAST, "--output", str(tmp_path / "r")]) == 0
    text = capsys.readouterr().out
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert f"{summary['accuracy']:.4f}" in text
    assert str(tmp_path / "r") in text
    assert text.startswith("start  importing torch and timm\nstart  reading the data, building")
    for word in ("activation", "gradient", "targets", "side", "header", "measured", "nominal"):
        assert word in text


def test_json_is_all_that_a_run_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refuses: Callable[..., str]
) -> None:
    folder = tmp_path / "r"
    assert main(["run", "--json", *FAST, "--output", str(folder)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {"folder", "summary", "ledger"}
    assert told["folder"] == str(folder)
    assert told["summary"] == json.loads((folder / "summary.json").read_text())
    assert told["ledger"].items() < json.loads((folder / "ledger.json").read_text()).items()
    assert "--dry-run: not allowed with argument --json" in refuses("run", "--json", "--dry-run")


def test_a_dry_run_prints_the_plan_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("splitlab.core.runs.run")
    monkeypatch.setattr(module, "run", lambda **options: pytest.fail("it ran"))
    options = ["--weights", "none", "--threads", "1", "--device", "cpu", "--budget", "steps=7"]
    assert main(["run", "--plugin", "adc:ratio=0.1", "--dry-run", *options]) == 0
    text = "".join(capsys.readouterr().out.split())  # what is too long goes on below
    given = {"plugins": ("adc:ratio=0.1",), "weights": "none", "threads": 1, "device": "cpu"}
    plan = Plan.of(Config.from_mapping({**given, "budget": "steps=7"}))
    assert plan.step_bytes is not None
    up, down = map(human_bytes, plan.step_bytes)
    for words in (
        "model vit-mini, cut 3",
        f"client part {plan.model.client_parameters:,} parameters",
        f"server part {plan.model.server_parameters:,} parameters",
        f"stack {plan.stack[0].agreement()}",
        f"bytes a step about {up} up, {down} down",
        "steps about 7",
        "budget steps=7",
        "device cpu",
    ):
        assert words.replace(" ", "") in text, words
    assert list(tmp_path.iterdir()) == []


def test_what_of_the_data_is_not_read_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog", "eel"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            if name != "eel":
                Image.new("L", (28, 28)).save(tmp_path / "pets" / part / name / "0.png")
    options = [*FAST, "--data-dir", str(tmp_path / "pets"), "--output", str(tmp_path / "r")]
    for more in (["--dry-run"], []):
        assert main(["run", *options, *more]) == 0
        text = "".join(capsys.readouterr().out.split())
        assert "leftout1classwithoutimages(eel)" in text


@pytest.mark.parametrize(
    ("options", "through"),
    [
        (["--plugin", "adc"], "uncompressed: no plugin acts in evaluation"),
        (["--plugin", HALF], "through the stack and without it"),
        (["--plugin", HALF, "--evaluate", "compressed"], "through the stack"),
        (["--plugin", HALF, "--evaluate", "uncompressed"], "without the stack"),
    ],
)
def test_a_dry_run_shows_probes_links_and_rhythms(
    options: list[str], through: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options += ["--probe", "time", "--link", f"{DELAYED}:ms=3", "--link", DELAYED]
    options += ["--eval-every", "5", "--checkpoint-every", "1"]
    assert main(["run", "--dry-run", *FAST, *options]) == 0
    text = "".join(capsys.readouterr().out.split())
    wrappers = f"{re.escape(DELAYED)}:ms=3.0{re.escape(DELAYED)}:ms="
    assert "probestimebytesastep" in text
    assert "@" not in text  # a hash says nothing to a reader
    assert f"evaluationevery5steps,{through.replace(' ', '')}checkpointeverysteplink" in text
    assert re.search(f"linkinprocesslinkwrappers{wrappers}", text)


def test_a_dry_run_shows_points_of_the_budget_and_a_part_of_the_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--eval-points", "20", "--eval-samples", "400", "--patience", "3", "--keep", "best"]
    assert main(["run", "--dry-run", *FAST, *options]) == 0
    text = "".join(capsys.readouterr().out.split())
    for words in (
        "evaluation before the first step and at 20 even shares of the budget, uncompressed",
        "on 400 of 1,000 images, at the end on all",
        "ends the run after 3 in a row without a better accuracy",
        "checkpoint at every evaluation; the best is kept",
    ):
        assert words.replace(" ", "") in text, words


def test_a_dry_run_of_a_run_that_goes_on_takes_what_that_would_take(
    tmp_path: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "r")
    assert main(["run", *FAST, "--quiet", "--output", folder]) == 0
    line = fails("run", "--dry-run", "--resume", folder, "--lr", "0.1")
    assert "--lr cannot be given with --resume" in line
    assert main(["run", "--dry-run", "--resume", folder, "--budget", "steps=7"]) == 0
    assert re.search(r"steps +about 7 ", capsys.readouterr().out)


def test_a_server_that_a_launcher_started_goes_on_in_the_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    folder = str(tmp_path / "r")
    assert main(["run", *FAST, "--quiet", "--output", folder]) == 0
    transport = SimpleNamespace(place="beside", launched=lambda: ("server", "address"))
    monkeypatch.setattr("splitlab.core.catalogue.links.load_transport", lambda *_: transport)
    served: list[tuple[Config, str]] = []

    def serve_config(config: Config, *, address: str, **options: Any) -> int:
        served.append((config, address))
        return 0

    monkeypatch.setattr("splitlab.core.command.run.serve_config", serve_config)
    assert main(["run", "--resume", folder, "--timeout", "5"]) == 0
    [(config, address)] = served
    assert (config.output, config.timeout, address) == (folder, 5, "address")
    assert "--seed cannot be given" in fails("run", "--resume", folder, "--seed", "3")


@pytest.mark.parametrize(
    ("options", "started"),
    [
        (["--transport", "tcp:nodelay=false"], True),
        (["--transport", "gloo"], True),
        (["--transport", "FILE.py:Mine"], True),
        ([], False),
        (["--transport", "inprocess"], False),
        (["--transport", "tcp", "--dry-run"], False),
        (["--resume", "FOLDER"], True),
    ],
)
@pytest.mark.parametrize("launcher", [False, True])
def test_a_process_for_the_server_is_started_before_anything_is_imported(
    options: list[str],
    started: bool,
    launcher: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []

    class Process:
        def __enter__(self) -> str:
            log.append("started")
            return "the process"

        def __exit__(self, *error: object) -> None:
            log.append("ended")

    def train(arguments: Any, connect: str | None, options: Any, server: object) -> int:
        log.append(str(server))
        raise ConfigError("something is wrong")

    (tmp_path / "config.toml").write_text('transport = "tcp"\n')
    module = importlib.import_module("splitlab.core.command.run")
    monkeypatch.setattr(module, "ServerProcess", Process)
    monkeypatch.setattr(module, "_train", train)
    if launcher:
        monkeypatch.setenv("RANK", "0")
    assert main(["run", *[text.replace("FOLDER", str(tmp_path)) for text in options]]) == 2
    waits = started and not launcher
    assert log == (["started", "the process", "ended"] if waits else ["None"])
    log.clear()


def result() -> Result:
    summary = Summary(
        **{"loss": 1.0, "bytes_up": 1540, "bytes_down": 2000, "stack": ("a",), "cut": 3, "seed": 0},
        **{"transport": "link", "dataset": "data", "model": "net"},
        **{"accuracy": 0.75, "accuracy_uncompressed": 0.5, "steps": 1200, "epochs": 2.5},
        **{"ratio_measured": 0.11, "ratio_nominal": 0.1, "seconds": 9.0},
        **{"client_seconds": 4.0, "server_seconds": 3.0, "link_seconds": 2.0},
        **{"images_per_second": 1234.5, "data_share": 0.0625},
        **{"budget": "bytes=50", "budget_used": 3_280_000},
    )
    counts = {
        "training": {"up": {"activation": 1500, "header": 40}, "down": {"gradient": 2000}},
        "control": {"up": {"header": 7}},
    }
    return Result(Path("runs/x"), summary, Ledger(counts))


def test_what_came_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    show_result(result())
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "accuracy 0.7500",
        "uncompressed 0.5000 (evaluated without the stack)",
        "steps 1,200 (2.50 epochs)",
        "budget used 3.28 MB of 50 B: a step is not divided",
        "ratio measured 0.1100 of fp32, nominal ξ 0.1000",
        "time 9.0 s (training: client 4.0 s, server 3.0 s, link 2.0 s)",
        "speed 1,234 images/s, 6.2% waiting for data",
        "run folder runs/x",
        "activation gradient header sum",  # only what there is
        "training up 1.5 kB 40 B 1.54 kB",
        "training down 2 kB 2 kB",
        "control up 7 B 7 B",
    ):
        assert line in lines


def test_what_came_of_a_run_that_ended_early(capsys: pytest.CaptureFixture[str]) -> None:
    whole = result()
    best = {"budget_used": 20.0, "stopped_early": True, "best_step": 1100, "best_accuracy": 0.8}
    show_result(replace(whole, summary=replace(whole.summary, **best)))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "best 0.8000 after step 1,100, checkpoint kept" in lines
    assert "budget used 20 B of 50 B: the accuracy no longer got better, see --patience" in lines


def test_a_best_that_is_told_by_a_part_of_the_images_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = RunFolder.create(str(tmp_path / "r"), ())
    folder.write_config(Config())
    for step, samples in ((0, 40), (5, 400)):
        folder.log(EvaluationRecord(step, 0.5, 1.0, False, 1, 1, 9, samples=samples))
    whole = result()
    summary = replace(whole.summary, best_step=5, best_accuracy=0.8)
    show_result(replace(whole, folder=folder.path, summary=summary))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "best 0.8000 on 40 samples, after step 5, checkpoint kept" in lines


def test_the_bytes_of_a_run_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitlab.core.command.show.width", lambda: 40)
    show_result(result())
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "training up 1.54 kB: activation 1.5 kB, header 40 B" in lines
    assert "control up 7 B: header 7 B" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plugin", "acd"], r"unknown plugin 'acd' \(did you mean 'adc'\?\); known: adc,"),
        (["--plugin", "adc:ratoi=1"], r"plugin 'adc': unknown parameter 'ratoi' .*'ratio'"),
        (["--plugin", "adc:ratio=x"], r"ratio=x is not allowed; ratio takes float"),
        (["--plugin", "adc:ratio"], r"'ratio' is not a setting"),
        (["--plugin", "adc:ratio=0"], r"ratio=0.0 is refused; allowed: more than 0, at most 1"),
        (
            ["--plugin", "adc:ratio=1.5"],
            r"ratio=1.5 is refused; allowed: more than 0, at most 1",
        ),
        (["--plugin", "adc:alloc=cubic"], r"alloc=cubic is not allowed; alloc takes sqrt"),
        (["--plugin", "nowhere.py:X"], r"plugin file 'nowhere.py' does not exist"),
        (["--plugin", "adc", "--batch-size", "1"], r"batch.*1.*2"),
        (["--plugin", "adc", "--cut", "0"], r"--cut 0 leaves the client none"),
        (["--plugin", "adc", "--model", "vit_base_patch16_siglip_224"], r"class token"),
        (["--transport", "tpc"], r"unknown transport 'tpc' \(did you mean 'tcp'\?\)"),
        (["--dataset", "mnist"], r"unknown data set 'mnist'.*fashion-mnist"),
        (["--model", "vit_tiny_patch99"], r"unknown model 'vit_tiny_patch99'"),
        (["--plugin", "adc", "--model", "resnet18"], r"class token"),
        (["--cut", "7"], r"--cut 7 is outside the model; allowed: 0 to 6"),
        (["--lr", "-1"], r"--lr -1.0 is not allowed"),
        (["--budget", "hours=3"], r"unknown budget 'hours'"),
        (["--eval-points", "0"], r"--eval-points 0 is not allowed; from 1 to"),
        (["--eval-points", "9", "--eval-every", "3"], r"--eval-every and --eval-points exclude"),
        (["--eval-points", "9", "--patience", "9"], r"--patience 9 ends no run of 9 evaluations"),
        (["--eval-samples", "9"], r"--eval-samples 9 are not of every class alike; .* least 10"),
        (["--keep", "all"], r"unknown value of --keep 'all'"),
        (["--evaluate", "never"], r"unknown value of --evaluate 'never'"),
        (["--weights", "gone.safetensors"], r"no such file"),
        (["--device", "cuda:99"], r"--device cuda:99 cannot be used here"),
        (["--device", "tpu!"], r"--device tpu! cannot be used here"),
        (["--config", "gone.toml"], r"cannot read the configuration gone.toml"),
        (["--resume", "gone"], r"--resume gone: no run folder"),
        (["--data-dir", "gone"], r"gone.*No such file"),
    ],
)
def test_one_clear_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
) -> None:
    monkeypatch.chdir(tmp_path)
    defaults = [] if "--resume" in arguments else ["--budget", "steps=1", "--threads", "1"]
    if not {"--resume", "--device"} & {*arguments}:
        defaults += ["--device", "cpu"]
    assert re.search(message, fails("run", *defaults, *arguments))
    assert list(tmp_path.iterdir()) == []


def test_data_folders(tmp_path: Path, fails: Callable[..., str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is empty" in fails("run", "--data-dir", str(empty), *FAST)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            (folder / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    line = fails("run", "--data-dir", str(tmp_path / "images"), *FAST)
    assert "x.png: not a readable image" in line


def test_a_transport_that_cannot_work_names_those_that_can(fails: Callable[..., str]) -> None:
    if load_transport_or_none("nccl") is not None:
        pytest.skip("NCCL works here")
    line = fails("run", "--transport", "nccl", *FAST)
    assert re.search(r"'nccl' cannot be used here: .*; these can: gloo, inprocess, tcp", line)


def load_transport_or_none(name: str) -> Any:
    try:
        return load_transport(name)
    except Exception:  # noqa: BLE001 - any reason will do
        return None
