"""What a transport is checked for, and what does not apply to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.testing import LINK_CHECKS, TRANSPORT_CHECKS, check_transport
from splitlab.core.testing.connect_checks import CONNECT_CHECKS
from splitlab.transports.tcp import Tcp


def test_links_are_checked_and_how_they_are_made() -> None:
    assert TRANSPORT_CHECKS == LINK_CHECKS + CONNECT_CHECKS
    for check in TRANSPORT_CHECKS:
        assert check.run.__name__ == check.name.replace("-", "_")


def test_what_does_not_apply_is_skipped_with_a_reason() -> None:
    inside = check_transport("inprocess", only=["default-is-loopback"]).rows[0]
    assert (inside.outcome, inside.reason) == ("skipped", "both ends are made in one process")
    outside = check_transport(Tcp, only=["server-takes-its-turns"]).rows[0]
    assert (outside.outcome, outside.reason) == (
        "skipped",
        "its ends are made by listening and connecting",
    )

    class Missing(Tcp):
        def unavailable(self) -> Any:
            return "it needs a cable"

    [row] = check_transport(Missing, only=["limits-hold"]).rows
    assert (row.outcome, row.reason) == ("skipped", "it needs a cable")


def test_a_transport_is_named_in_many_ways(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text(
        "from splitlab.transports.inprocess import InProcess\n\n\n"
        "class Own(InProcess):\n"
        "    def __init__(self, *, missing: str = '') -> None:\n"
        "        super().__init__()\n"
        "        self._missing = missing\n\n"
        "    def unavailable(self) -> str | None:\n"
        "        return self._missing or None\n"
    )

    def look(transport: str) -> tuple[str, str, str]:
        report = check_transport(transport, only=["arrives-in-order"])
        [row] = report.rows
        return report.subject, row.outcome, row.reason

    assert look("tcp:nodelay=false") == ("tcp:nodelay=false", "passed", "")
    assert look(f"{file}:Own") == (f"{file}:Own", "passed", "")
    assert look(f"{file}:Own:missing=a cable")[1:] == ("skipped", "a cable")
    with pytest.raises(ConfigError, match="unknown parameter 'delay'"):
        look("tcp:delay=1")


def test_an_unknown_name_or_check_is_the_users_fault() -> None:
    with pytest.raises(ConfigError, match="unknown transport 'tpc'"):
        check_transport("tpc")
    with pytest.raises(ConfigError, match=r"unknown check 'limits-hole' .*'limits-hold'"):
        check_transport("tcp", only=["limits-hole"])
