"""Every plugin and every named stack that ships goes through the conformance kit, on two models.

So do the plugins of the examples, and all probes. The transports:
``tests/transports/test_contract.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from splitlab.core.catalogue.tables import ROOT, catalogue
from splitlab.core.testing import FreshPeers, check_plugin, check_probe, listed

SHIPPED = [*catalogue()["plugins"], *catalogue()["stacks"]]
EXAMPLES = ["half_precision.py:HalfPrecision", "feature_energy.py:FeatureEnergy"]
SPREAD = f"{ROOT}/examples/attention_spread.py:AttentionSpread"

SMALL_CNN = str(Path(__file__).parent / "core/testing/small_cnn.py") + ":small_cnn"
NEED_A_TRANSFORMER = {
    "adc": "needs the attention of a class token",
    "adc-batch-merge": "needs the attention of a class token",
    "adc-token-select": "needs the attention of a class token",
    "adc-q8": "needs the attention of a class token",
    "evit": "needs the attention of a class token",
    "tsflora": "needs the attention of a class token",
    "tome": "needs the attention keys of a transformer's block",
    "random-tokens": "leaves other tokens than the model made",
    "grid-pool": "leaves other tokens than the model made",
}
"""Why a convolutional network refuses these."""

OTHERWISE = [
    *(f"adc:criterion={each}" for each in ("cls_token", "avg_token", "random", "class_label")),
    *(f"adc:select={each}" for each in ("rollout", "norm")),
    *(f"adc-token-select:select={each}" for each in ("rollout", "norm", "random")),
]

MAY_SKIP = {"gradient-as-declared": "gradient='corrected'"}
"""Checks that a plugin of ours may leave out, and how the reason begins."""


def test_nothing_is_forgotten() -> None:
    assert {("plugin", name) for name in SHIPPED} <= set(listed())
    assert {("transport", name) for name in catalogue()["transports"]} <= set(listed())
    links = {name for name, table in catalogue()["links"].items() if "target" in table}
    assert {("link", name) for name in links} <= set(listed())
    assert {("probe", name) for name in catalogue()["probes"]} <= set(listed())


@pytest.mark.parametrize("name", [*catalogue()["probes"], SPREAD])
def test_a_probe_changes_nothing(name: str) -> None:
    check_probe(name).raise_if_failed()


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


@pytest.mark.parametrize(
    "text",
    [
        "adc:criterion=random,select=random",
        *(pytest.param(text, marks=pytest.mark.long) for text in OTHERWISE),
    ],
)
def test_a_plugin_that_chooses_otherwise_holds_it_too(text: str, fresh: FreshPeers) -> None:
    check_plugin(text, fresh=fresh).raise_if_failed()


@pytest.mark.long
@pytest.mark.parametrize("name", SHIPPED)
def test_a_plugin_holds_it_on_a_convolutional_network_too(name: str, fresh: FreshPeers) -> None:
    report = check_plugin(name, fresh=fresh, model=SMALL_CNN)
    if name in NEED_A_TRANSFORMER:
        assert report.failed() == ["fits-the-model"]
        assert NEED_A_TRANSFORMER[name] in report.rows[0].reason
        return
    report.raise_if_failed()
    for row in report.rows:
        if row.outcome == "skipped":
            assert row.reason.startswith(MAY_SKIP.get(row.check, "nothing")), row
