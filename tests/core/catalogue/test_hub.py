"""Whether the hub can be reached is asked once; who cannot reach it takes from the cache."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import constants

from splitlab.core.catalogue.hub import hub_or_cache


def test_a_hub_that_answers_is_used(hub: Any) -> None:
    hub("")
    with hub_or_cache() as absent:
        assert absent == ""
        assert not constants.HF_HUB_OFFLINE


def test_without_a_hub_the_clients_are_offline_meanwhile(hub: Any) -> None:
    import datasets

    hub("no route\nand more")
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(KeyError), hub_or_cache() as absent:  # noqa: PT012
        assert absent.endswith("cannot be reached: no route; it is not in the cache")
        assert constants.HF_HUB_OFFLINE
        assert datasets.config.HF_HUB_OFFLINE
        raise KeyError
    assert not constants.HF_HUB_OFFLINE
    assert datasets.config.HF_HUB_OFFLINE is before


def test_who_wants_no_hub_is_not_asked(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub("never asked")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub_or_cache() as absent:
        assert absent == "HF_HUB_OFFLINE is set, and it is not in the cache"
    assert constants.HF_HUB_OFFLINE
