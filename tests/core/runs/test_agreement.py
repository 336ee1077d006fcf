"""What both peers must agree on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import Config, ProtocolError
from splitlab.core.runs.plan import Decided, make_for_server
from splitlab.core.session.protocol import compare

SMALL = Config(image_size=8, batch_size=6, cut=1, threads=1, seed=3, weights="none", device="cpu")


def agreement(**changes: Any) -> dict[str, str]:
    classes = changes.pop("classes", 4)
    decided = Decided.of(dataclasses.replace(SMALL, **changes))
    plan, _ = make_for_server(decided, classes, peers_here=1)
    return dict(plan.agreement)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("stack", {"plugins": ("adc",)}),
        ("image size", {"image_size": 12}),
        ("cut", {"cut": 2}),
        ("classes", {"classes": 5}),
        ("batch size", {"batch_size": 7}),
        ("optimizer", {"optimizer": "sgd"}),
        ("lr", {"lr": 1e-3}),
        ("weight decay", {"weight_decay": 1e-3}),
        ("seed", {"seed": 4}),
        ("weights", {"weights": "default", "image_size": 28}),
    ],
)
def test_whatever_changes_the_numbers_changes_the_agreement(key: str, changes: Any) -> None:
    base = agreement(image_size=28) if "weights" in changes else agreement()
    changed = agreement(**changes)
    assert changed.keys() >= base.keys()
    assert base[key] != changed[key]


def test_a_setting_that_differs_is_told_alone() -> None:
    for ours, theirs, told in (
        (("adc",), ("adc:ratio=0.5",), "adc's ratio: client 0.1, server 0.5"),
        (
            ("adc-batch-merge:ratio=0.3", "adc-token-select"),
            ("adc-batch-merge:ratio=0.4", "adc-token-select"),
            "plugin 1 (adc-batch-merge)'s ratio: client 0.3, server 0.4",
        ),
    ):
        with pytest.raises(ProtocolError) as caught:
            compare(agreement(plugins=ours), agreement(plugins=theirs))
        assert str(caught.value) == f"the peers differ in {told}; give both the same options"


def test_what_leaves_the_numbers_alone_leaves_the_agreement_alone() -> None:
    assert agreement() == agreement(
        timeout=5.0, workers=2, cache="memory", budget="steps=3", eval_every=1
    )
    assert agreement(plugins=("adc",)) == agreement(plugins=("adc:ratio=0.10",))


def test_peers_whose_presets_of_one_name_differ_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(tmp_path / "registry.toml"))
    sides = []
    for heads in (2, 4):
        preset = f"vit:image_size=28,patch=14,channels=1,width=16,depth=2,heads={heads}"
        (tmp_path / "registry.toml").write_text(f'[models.mine]\npreset = "{preset}"\n')
        sides.append(agreement(model="mine", image_size=28))
    assert sides[0]["weights"] == sides[1]["weights"], "the shapes are the same"
    with pytest.raises(ProtocolError, match="differ in model's heads: client 2, server 4; give"):
        compare(*sides)


def test_the_order_of_the_stack_is_agreed_on() -> None:
    one, two = "evit:ratio=0.5", "adc-token-select"
    assert agreement(plugins=(one, two))["stack"] != agreement(plugins=(two, one))["stack"]
    assert agreement()["stack"] == "none"
