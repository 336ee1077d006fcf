"""The kit passes what is right, takes a plugin in many ways, and is a command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from right import Cast, Corrects, Remembers, Shift

from splitlab.core import ConfigError, hookimpl, testing
from splitlab.core.command.main import main
from splitlab.core.testing import PLUGIN_CHECKS, FreshPeers, Tiny, check_plugin


@pytest.mark.parametrize("plugin", [Shift, Cast, Remembers, Corrects])
def test_a_plugin_that_is_right_passes(plugin: type, fresh: FreshPeers) -> None:
    report = check_plugin(plugin, fresh=fresh)
    report.raise_if_failed()
    assert report.ok
    assert [row.check for row in report.rows] == [check.name for check in PLUGIN_CHECKS]
    skipped = [row.check for row in report.rows if row.outcome == "skipped"]
    assert skipped == (["gradient-as-declared"] if plugin is Corrects else [])


def test_every_check_stands_in_a_module_with_tests_of_its_own() -> None:
    for check in PLUGIN_CHECKS:
        module = check.run.__module__.rpartition(".")[2]
        assert check.run.__name__ == check.name.replace("-", "_")
        assert Path(__file__).with_name(f"test_{module}.py").is_file()


class Boasts(Cast):
    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        return 0.5, 0.0


def test_a_plugin_is_named_in_many_ways(tmp_path: Path) -> None:
    def outcome(plugin: Any) -> tuple[str, str]:
        report = check_plugin(plugin, only=["bytes-are-real"])
        return report.subject, report.rows[0].outcome

    file = tmp_path / "method.py"
    file.write_text("class Method:\n    def __init__(self, *, bits: int = 8) -> None: ...\n")
    assert outcome("adc-token-select:ratio=0.5") == ("adc-token-select:ratio=0.5", "passed")
    assert outcome("adc-q8") == ("adc-q8", "passed")
    assert outcome(f"{file}:Method:bits=4") == (f"{file}:Method:bits=4", "passed")
    assert outcome(Shift) == ("Shift", "passed")
    assert outcome(Tiny().bound(Shift, label="mine")) == ("mine", "passed")
    with pytest.raises(ConfigError, match="unknown plugin 'ad'"):
        check_plugin("ad")
    with pytest.raises(ConfigError, match=r"unknown check 'bytes-real' .*'bytes-are-real'"):
        check_plugin("adc", only=["bytes-real"])


def test_the_command_prints_a_table_and_its_status_is_the_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["check", "--transport", "inprocess"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("inprocess: 13 passed, 8 skipped\n")
    assert re.search(r"passed +every-kind-arrives +both ways", printed)

    assert main(["check", "inprocess"]) == 0  # a transport goes by its name alone, too
    assert capsys.readouterr().out == printed

    monkeypatch.setattr(testing.plugin, "PLUGIN_CHECKS", testing.plugin.PLUGIN_CHECKS[:2])
    assert main(["check", f"{__file__}:Boasts"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"failed +bytes-are-real +a plain .* +plugin 'Boasts': nominal_ratio", printed)

    assert main(["check", f"{__file__}:Boasts", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [row["outcome"] for row in report["rows"]] == ["passed", "failed"]

    assert main(["check", "adc", "--transport", "tcp"]) == 1
    assert "exclude each other; give one" in capsys.readouterr().err


def test_without_a_name_the_command_checks_all_that_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [("plugin", "adc"), ("plugin", "lost"), ("transport", "inprocess")]
    monkeypatch.setattr(testing, "listed", lambda: few)
    monkeypatch.setattr(testing.plugin, "PLUGIN_CHECKS", testing.plugin.PLUGIN_CHECKS[:2])
    assert main(["check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"  1/3  adc +2 passed +\d", lines[0])
    assert re.match(r"  2/3  lost +1 failed +\d", lines[1])
    assert "unknown plugin 'lost'" in lines[2]
    assert re.match(r"  3/3  inprocess +13 passed, 8 skipped", lines[3])
    monkeypatch.setattr(testing, "listed", lambda: few[::2])
    assert main(["check", "--json"]) == 0
    assert [report["subject"] for report in json.loads(capsys.readouterr().out)] == [
        "adc",
        "inprocess",
    ]
