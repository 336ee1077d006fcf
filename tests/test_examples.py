"""The examples run as their first lines say, and README's commands and code are true."""

from __future__ import annotations

import ast
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
import sysconfig
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, ProtocolError, Role, run
from splitlab.core.catalogue.binding import bind, bind_stack
from splitlab.core.catalogue.tables import notices
from splitlab.core.command.main import main, parser
from splitlab.core.command.options import given
from splitlab.core.engine.stack import Stack
from splitlab.core.models.build import describe
from splitlab.core.runs.config import Config
from splitlab.core.runs.plan import Decided
from splitlab.core.runs.records import StepRecord, read_records
from splitlab.core.testing import check_link

pytestmark = pytest.mark.usefixtures("starts_fast")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    " ".join(line.split("#")[0].split())
    for line in re.findall(
        r"^    (?:torchrun .* --no-python )?(splitlab .*)$",
        README.replace("\\\n", " "),
        re.MULTILINE,
    )
]

DELAYED = "examples/delayed_link.py:Delayed"
SMALL_CNN = "examples/small_cnn.py:small_cnn"
SPREAD = "examples/attention_spread.py:AttentionSpread"


def environment() -> dict[str, str]:
    """Return an environment in which `splitlab` is the one under test, and no GPU is seen."""
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("file", sorted(path.name for path in ROOT.glob("examples/*.py")))
def test_an_example_needs_public_names_only(file: str) -> None:
    tree = ast.parse((ROOT / "examples" / file).read_text())
    asked = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {module for module in asked if str(module).startswith("splitlab")} == {"splitlab.core"}


def printed(script: str, *arguments: str) -> list[str]:
    """Return the lines that an example prints, run as a program, but in this process."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    return out.getvalue().strip().splitlines()


@pytest.mark.slow
def test_quickstart() -> None:
    lines = printed("quickstart.py", "steps=2")
    assert re.fullmatch(
        r"none  accuracy 0\.\d+ after 2 steps, 6\.6 MB, measured ratio 1\.0\d+", lines[0]
    )
    assert re.fullmatch(
        r"adc   accuracy 0\.\d+ after 2 steps, 0\.6 MB, measured ratio 0\.09\d", lines[1]
    )


@pytest.mark.slow
def test_what_arrives() -> None:
    cast, evit = printed("what_arrives.py", "cast", "evit")[2:]
    assert re.fullmatch(r"\| `cast` \| 0\.500\d \| 0\.0000 \|", cast)
    assert re.fullmatch(r"\| `evit` \| 0\.\d+ \| nan \|", evit), "fewer tokens"


def test_plugin_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = f"{ROOT / 'examples/half_precision.py'}:HalfPrecision"
    arguments = ["--plugin", "adc", "--plugin", f"{plugin}:dtype=bfloat16", "--threads", "1"]
    arguments += ["--device", "cpu"]
    output = ["--output", str(tmp_path / "r"), "--budget", "steps=2"]
    assert main(["run", *arguments, *output]) == 0
    assert "measured 0.047" in capsys.readouterr().out
    assert main(["plugins", plugin]) == 0
    text = capsys.readouterr().out
    assert "float16 | bfloat16" in text
    assert "before_send, after_receive" in text


@pytest.mark.slow
def test_two_processes() -> None:
    done = subprocess.run(
        [str(ROOT / "examples/two_processes.sh"), "steps=2"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=environment(),
    )
    assert "served 2 steps" in done.stdout
    assert re.search(r"accuracy\s+0\.\d{4}", done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_are_accepted(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = parser().parse_args(shlex.split(command)[1:])
    if command.startswith("splitlab compare"):
        for stack in arguments.plugins:
            Stack(bind_stack([stack]))
    elif hasattr(arguments, "config"):
        config = Decided.of(Config.from_mapping(given(arguments))).config
        assert all(f"--plugin {plugin}" in command for plugin in config.plugins)
    assert callable(arguments.command)


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.slow
def test_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, object] = {}
    exec(code.replace("nominal=0.2", "steps=1"), scope)
    assert scope["result"].summary["steps"] == 1  # type: ignore[attr-defined]


def test_the_registry_of_the_readme_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [registry] = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "registry.toml").write_text(registry)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    assert notices() == []
    options = ["--model", "small-cnn", "--link", "slow:ms=3", "--plugin", "quantize"]
    decided = Decided.of(Config.from_mapping(given(parser().parse_args(["run", *options]))))
    config, facts = decided.config, decided.model
    assert config.links == ("slow:ms=3",)
    assert facts.layout.any_tokens is False
    assert [bound.label for bound in bind_stack(["adc-q4"])] == ["adc", "quantize"]


@pytest.mark.slow
def test_a_run_leaves_what_the_readme_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    block = README[README.index("    runs/adc-20261231-235959/\n") :].split("\n\n")[0]
    listed = set(re.findall(r"^        ([\w.-]+)/?  ", block, re.MULTILINE))
    folder = tmp_path / "run"
    common: dict[str, Any] = {"budget": "steps=1", "device": "cpu", "threads": 1}
    probes = ["time", SPREAD]
    run(plugins=["adc"], probes=probes, transport="tcp", output=str(folder), **common)
    assert {path.name for path in folder.iterdir()} == listed


def test_paths_that_the_documents_name_exist() -> None:
    for document in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        named = re.findall(r"`((?:core|plugins|transports|docs|examples|tests)/[\w./]*)`", document)
        named += re.findall(r"\]\(((?!http)[^)]+)\)", document)
        assert named
        missing = [path for path in named if not (ROOT / path).exists()]
        assert not missing


def feature_energy(tiny: Any, **settings: Any) -> Any:
    plugin = bind("plugins", f"{ROOT / 'examples/feature_energy.py'}:FeatureEnergy")
    return tiny.bound(plugin.factory, "feature-energy", **settings)


def test_feature_energy_sends_the_features_with_most_energy(tiny: Any) -> None:
    client, server = tiny.pair([feature_energy(tiny, ratio=0.25)])
    conversation = client.train(tiny.batch(), 0)
    message = next(conversation)
    chosen = message["feature-energy.chosen"].long()
    whole = next(tiny.client().train(tiny.batch(), 0))["activations"]
    energy = whole.square().mean(dim=(0, 1))
    assert sorted(energy.argsort(descending=True)[:4].tolist()) == chosen.tolist()
    torch.testing.assert_close(message["activations"], whole[..., chosen])
    answer = server.handle(tiny.travel(message))
    assert answer["gradient"].shape == (6, 5, 4)
    with pytest.raises(StopIteration):
        conversation.send(tiny.travel(answer))


def test_feature_energy_refuses_numbers_that_do_not_fit(tiny: Any) -> None:
    for wrong in ([0, 1, 2], [0, 1, 2, 99], [0, 1, 2, -1]):
        client, server = tiny.pair([feature_energy(tiny, ratio=0.25)])
        message = next(client.train(tiny.batch(), 0))
        message.put("feature-energy.chosen", torch.tensor(wrong), Role.SIDE)
        with pytest.raises(ProtocolError, match="features' numbers do not fit"):
            server.handle(tiny.travel(message))


# A link wrapper, a model and a probe, each from its file.


@pytest.mark.parametrize("transport", ["inprocess", pytest.param("tcp", marks=pytest.mark.slow)])
def test_a_delayed_link_and_a_model_of_ones_own(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    common: dict[str, Any] = {
        "model": SMALL_CNN,
        "plugins": ["quantize:bits=8"],
        "transport": transport,
        "budget": "steps=2",
        "device": "cpu",
        "threads": 1,
    }
    bare = run(output=str(tmp_path / "bare"), **common)
    late = run(output=str(tmp_path / "late"), links=[f"{DELAYED}:ms=40"], **common)
    assert late.ledger.counts == bare.ledger.counts
    assert late.summary.loss == bare.summary.loss
    assert (late.summary.links, bare.summary.links) == (("Delayed:ms=40.0",), ())
    # Two steps, and in each a message up and one down.
    assert late.summary.link_seconds >= 0.99 * 2 * 2 * 0.040
    # 8 bits for every number of (128, 49, 32).
    assert bare.ledger.counts["training"]["up"]["activation"] == 2 * 128 * 49 * 32


def test_the_delayed_link_holds_what_every_link_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check_link(bind("links", DELAYED).factory(ms=5)).raise_if_failed()
    for wrong in ("-1", "60000", "nan"):
        with pytest.raises(ConfigError, match=r"link 'Delayed': ms=\S+ is refused; allowed"):
            bind("links", f"{DELAYED}:ms={wrong}").build()


def test_the_small_cnn_is_cut_behind_any_of_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    seen = [describe(SMALL_CNN, cut=cut).layout for cut in range(3)]
    assert [(facts.tokens, facts.width) for facts in seen] == [(196, 16), (49, 32), (16, 64)]
    assert describe(f"{SMALL_CNN}:width=8").layout.width == 16
    assert describe(SMALL_CNN).cut == 1
    with pytest.raises(ConfigError, match=r"3 is outside the model; allowed: 0 to 2 \(stages"):
        describe(SMALL_CNN, cut=3)
    with pytest.raises(ConfigError, match="width=0 is not allowed; 1 or more"):
        describe(f"{SMALL_CNN}:width=0")


@pytest.mark.slow
def test_the_probe_measures_what_the_stack_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    common: dict[str, Any] = {
        "plugins": ["adc-token-select:ratio=0.1"],
        "device": "cpu",
        "threads": 1,
    }
    bare = run(output=str(tmp_path / "bare"), budget="steps=2", **common)
    folder = tmp_path / "watched"
    run(output=str(folder), budget="steps=1", probes=[SPREAD], **common)
    watched = run(resume=folder, budget="steps=2")
    assert watched.ledger.counts["training"] == bare.ledger.counts["training"]
    assert watched.summary.loss == bare.summary.loss
    numbers = [
        record.metrics["AttentionSpread"]
        for record in read_records(folder)
        if isinstance(record, StepRecord)
    ]
    assert len(numbers) == 2
    for found in numbers:
        assert 0 < found["entropy"] <= math.log(50) + 1e-5
        assert found["kept"] == pytest.approx(5 / 50)
    header, *rows = (folder / "probes" / "AttentionSpread" / "entropy.csv").read_text().split()
    assert header == "step,entropy"
    assert rows == [f"{i},{found['entropy']:.6f}" for i, found in enumerate(numbers, 1)]


def test_the_probe_of_norms_measures_every_so_many_steps_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    options = {"model": SMALL_CNN, "batch_size": 16, "threads": 1, "device": "cpu"}
    probes = ["examples/norms.py:Norms:every=2", "examples/norms.py:Norms"]
    run(budget="steps=3", probes=probes, output=str(tmp_path / "r"), **options)
    steps = [record for record in read_records(tmp_path / "r") if isinstance(record, StepRecord)]
    assert [record.step for record in steps if "Norms" in record.metrics] == [2]
    for record in steps:
        assert all(norm > 0 for norm in record.metrics["Norms#2"].values())
    with pytest.raises(ConfigError, match="every=0 is not allowed; 1 or more"):
        run(probes=["examples/norms.py:Norms:every=0"], budget="steps=1", **options)


def test_the_probe_of_attention_needs_a_class_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match="the attention of a class token, which this model"):
        run(model=SMALL_CNN, probes=[SPREAD], budget="steps=1", device="cpu")
