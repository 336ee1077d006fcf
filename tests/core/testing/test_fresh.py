"""Fresh peers in other processes: who is found there, and what is said of who is not."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from right import SMALL, Cast, Remembers, Shift

from splitlab.core import Peer, hookimpl
from splitlab.core.testing import FreshPeers, Tiny, check_plugin


class TakesAnything(Cast):
    def __init__(self, *, value: Any = None) -> None:
        pass


class Dies(Cast):
    @hookimpl
    def setup(self, peer: Peer) -> None:
        if Path(sys.argv[0]).name == "fresh.py":
            os._exit(7)


def test_what_no_other_process_can_find_is_skipped_there(fresh: FreshPeers) -> None:
    class Local(Cast):
        pass

    class Nameless(Cast):
        __module__ = "no_such_module"

    Nameless.__qualname__ = "Nameless"

    def reason(plugin: Any) -> str:
        [row] = check_plugin(plugin, only=["frames-are-enough"], fresh=fresh, tiny=SMALL).rows
        assert row.outcome == "skipped", row
        return row.reason

    assert "not a class at the top of a module" in reason(Local)
    assert "stands in no file" in reason(Nameless)
    bound = Tiny().bound(TakesAnything, value={1, 2})
    assert "a parameter is no JSON value" in reason(bound)
    Shift.__name__, kept = "Hidden", Shift.__name__
    try:
        assert "Hidden" in reason(Shift)
    finally:
        Shift.__name__ = kept


def test_a_class_bound_to_parameters_is_rebuilt_with_them_elsewhere(fresh: FreshPeers) -> None:
    bound = Tiny().bound(Remembers, label="mine", ratio=0.25)
    [row] = check_plugin(bound, only=["frames-are-enough"], fresh=fresh, tiny=SMALL).rows
    assert (row.outcome, row.reason) == ("passed", "")


def test_a_fresh_peer_that_dies_says_so_and_the_next_one_lives(fresh: FreshPeers) -> None:
    [row] = check_plugin(Dies, only=["frames-are-enough"], fresh=fresh, tiny=SMALL).rows
    assert row.outcome == "failed"
    assert "the fresh peer's process died with status" in row.reason
    [row] = check_plugin(Cast, only=["frames-are-enough"], fresh=fresh, tiny=SMALL).rows
    assert row.outcome == "passed"


def test_fresh_peers_that_cannot_be_started_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    [row] = check_plugin(Cast, only=["frames-are-enough"], tiny=SMALL).rows
    assert row.outcome == "failed"
    assert "fresh peers cannot be started: " in row.reason
