"""The kit passes what is right, and takes a plugin in many ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from right import Cast, Corrects, Remembers, Shift

from splitlab.core import ConfigError, hookimpl
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
