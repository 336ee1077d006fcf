"""Every plugin and every named stack that ships goes through the conformance kit.

So do the plugins of the examples. The transports: ``tests/transports/test_contract.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from splitlab.core.catalogue.tables import ROOT, catalogue
from splitlab.core.testing import FreshPeers, check_plugin, listed

SHIPPED = [*catalogue()["plugins"], *catalogue()["stacks"]]
EXAMPLES = ["half_precision.py:HalfPrecision", "feature_energy.py:FeatureEnergy"]

MAY_SKIP = {"gradient-as-declared": "gradient='corrected'"}
"""Checks that a plugin of ours may leave out, and how the reason begins."""


def test_nothing_is_forgotten() -> None:
    assert {("plugin", name) for name in SHIPPED} <= set(listed())
    assert {("transport", name) for name in catalogue()["transports"]} <= set(listed())


@pytest.mark.parametrize("name", [*SHIPPED, *(f"examples/{file}" for file in EXAMPLES)])
def test_a_plugin_holds_what_every_plugin_must(
    name: str, fresh: FreshPeers, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = str(Path(ROOT, name)) if name.startswith("examples/") else name
    report = check_plugin(text, fresh=fresh)
    report.raise_if_failed()
    for row in report.rows:
        if row.outcome == "skipped":
            assert row.reason.startswith(MAY_SKIP.get(row.check, "nothing")), row
