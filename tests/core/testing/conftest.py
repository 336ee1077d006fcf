"""Fixtures of the kit's own tests; the modules of this folder can be imported, elsewhere too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Not only here: fresh peers in other processes look for modules where this process does.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def fails_alone(fresh: object) -> Callable[[type, str, str], None]:
    """Return what asserts that a plugin fails this check for this reason, and no other."""
    from right import SMALL

    from splitlab.core.testing import FreshPeers, check_plugin

    assert isinstance(fresh, FreshPeers)

    def look(plugin: type, check: str, reason: str) -> None:
        report = check_plugin(plugin, fresh=fresh, tiny=SMALL)
        assert report.failed() == [check], str(report)
        [row] = [row for row in report.rows if row.outcome == "failed"]
        assert reason in row.reason, row.reason
        assert plugin.__name__ in row.reason

    return look


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the checks of links wait for less, because what they find here is broken."""
    from splitlab.core.testing import links

    monkeypatch.setattr(links, "SOON", 2.0)
    monkeypatch.setattr(links, "LATE", 0.8)
