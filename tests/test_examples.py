"""The examples run as their first lines say, and README's commands and code are true."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from splitlab.core import ProtocolError, Role
from splitlab.core.catalogue.binding import bind, bind_stack
from splitlab.core.command.main import main, parser
from splitlab.core.command.options import given
from splitlab.core.engine.stack import Stack
from splitlab.core.run.config import Config
from splitlab.core.run.plan import settled
from splitlab.core.study.compare import split_stack

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


def environment() -> dict[str, str]:
    """Return an environment in which `splitlab` is the one under test, and no GPU is seen."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
def test_quickstart() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/quickstart.py"), "steps=2"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=environment(),
    )
    lines = done.stdout.strip().splitlines()
    assert re.fullmatch(
        r"none  accuracy 0\.\d+ after 2 steps, 6\.6 MB, measured ratio 1\.0\d+", lines[0]
    )
    assert re.fullmatch(
        r"adc   accuracy 0\.\d+ after 2 steps, 0\.6 MB, measured ratio 0\.09\d", lines[1]
    )


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
            Stack(bind_stack(split_stack(stack)))
    elif hasattr(arguments, "config"):
        resolved, _ = settled(Config.from_mapping(given(arguments)))
        assert all(f"--plugin {plugin}" in command for plugin in resolved.plugins)
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
