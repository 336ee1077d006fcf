"""Options made from `Config`: none is missing, each stands in its group, flags beat the file."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core.command.main import main
from splitlab.core.command.options import Parser, add_config, declare, given
from splitlab.core.runs.config import GROUPS, Config, flag


def parsed(*words: str, **choice: Any) -> argparse.Namespace:
    parser = Parser()
    add_config(parser, **choice)
    return parser.parse_args(words)


def test_what_is_not_given_is_not_there() -> None:
    assert given(parsed()) == {}


def test_every_field_has_an_option_of_its_type() -> None:
    values: dict[str, Any] = {}
    words: list[str] = []
    for spec in dataclasses.fields(Config):
        if "tuple" in str(spec.type):
            values[spec.name] = ["a", "b:x=1"]
            words += [flag(spec.name), "a", flag(spec.name), "b:x=1"]
        elif spec.type == "bool":
            values[spec.name] = True
            words += [flag(spec.name)]
        else:
            kind = next(kind for kind in (int, float, str) if kind.__name__ in str(spec.type))
            values[spec.name] = kind(7)
            words += [flag(spec.name), "7"]
    found = given(parsed(*words))
    assert found == values
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in values.items()
    }


def test_options_stand_under_what_they_are_about() -> None:
    parser = Parser()
    add_config(parser)
    text = parser.format_help()
    places = [text.index(f"\n{title}:\n") for title in GROUPS]
    assert places == sorted(places)
    for spec in dataclasses.fields(Config):
        number = GROUPS.index(spec.metadata["group"])
        end = places[number + 1] if number + 1 < len(places) else len(text)
        assert re.search(rf"^  {flag(spec.name)}\b", text[places[number] : end], re.MULTILINE)
    assert text.index("--dataset") < text.index("--augment") < text.index("--mixup")


def test_help_tells_defaults_and_choices() -> None:
    parser = Parser()
    add_config(parser, texts={"device": "mine alone"})
    text = " ".join(parser.format_help().split())
    assert "samples per step (default: 128)" in text
    assert "fixes everything that is random (default: 0)" in text
    assert "weight decay of both parts (default: 0.0)" in text
    assert "(default: the model's own)" in text
    assert "by default" not in text
    assert "(downloads them) --" in text  # no default of what is off
    assert "--optimizer adam|adamw|sgd" in text
    assert "--device DEVICE mine alone --" in text


def test_what_a_command_does_not_take_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    fields = dataclasses.fields(Config)
    stack = [spec.name for spec in fields if spec.metadata["group"] == GROUPS[0]]
    with pytest.raises(SystemExit):
        parsed("--optimizer", "sgd", exclude=[*stack, "optimizer"])
    assert "unrecognized arguments: --optimizer sgd" in capsys.readouterr().err
    parser = Parser()
    add_config(parser, exclude=[*stack, "optimizer"])
    assert f"\n{GROUPS[0]}:" not in parser.format_help()  # nor a group of nothing


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('seed = 1\nlr = 0.5\nplugins = ["a"]\n')
    found = given(parsed("--config", str(file), "--seed", "2"))
    assert found == {"seed": 2, "lr": 0.5, "plugins": ["a"]}


def test_a_command_is_declared(capsys: pytest.CaptureFixture[str]) -> None:
    commands = Parser(prog="splitlab").add_subparsers(prog="splitlab")
    parser = declare(
        commands,
        "walk",
        lambda arguments: 3,
        "put one foot before the other",
        takes="FAR",
        more="Both feet.",
        examples="  splitlab walk 3\n",
    )
    text = parser.format_help()
    assert text.startswith(
        "usage: splitlab walk FAR\n\nPut one foot before the other.\n\nBoth feet.\n\n"
    )
    assert text.endswith("\nexamples:\n  splitlab walk 3\n")
    assert (parser.name, parser.summary) == ("walk", "put one foot before the other")
    arguments = parser.parse_args([])
    assert arguments.command(arguments) == 3
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--fast"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "splitlab: error: unrecognized arguments: --fast; see `splitlab walk --help`\n"
    )


# The same in a run.

FAST = ["--weights", "none", "--threads", "1", "--device", "cpu", "--budget", "steps=1"]


def test_configuration_file_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text('plugins = ["adc:ratio=0.2"]\nseed = 3\nbudget = "steps=9"\n')
    output = tmp_path / "r"
    assert main(["run", "--quiet", "--config", str(file), *FAST, "--output", str(output)]) == 0
    assert capsys.readouterr().out == ""
    written = (output / "config.toml").read_text()
    assert 'plugins = ["adc:ratio=0.2"]' in written
    assert "seed = 3" in written
    assert 'budget = "steps=1"' in written
    assert "output" not in written  # or the file could not be used again
    again = ["run", "--quiet", "--config", str(output / "config.toml")]
    assert main([*again, "--output", str(tmp_path / "s")]) == 0
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in "rs"]
    assert logs[0] == logs[1]


def test_unknown_key_in_the_configuration(tmp_path: Path, fails: Callable[..., str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text("batchsize = 3\n")
    line = fails("run", "--config", str(file))
    assert "unknown key 'batchsize' (did you mean 'batch_size'?)" in line
    file.write_text('batch_size = "3"\n')
    assert "batch_size = '3' is not allowed; it takes int" in fails("run", "--config", str(file))
