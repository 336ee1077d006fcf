"""``splitlab check``: the table of one report, the lines of many, and the exit status."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from splitlab.core import hookimpl, testing
from splitlab.core.command.main import main


class Boasts:
    """Compresses nothing, and says that it does. A fresh peer finds it in this file, too."""

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return what is not true."""
        return 0.5, 0.0


def test_it_prints_a_table_and_its_status_is_the_verdict(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
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

    assert "exclude each other; give one" in fails("check", "adc", "--transport", "tcp")


def test_without_a_name_it_checks_all_that_is_listed(
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
