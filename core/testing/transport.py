"""The checks of a transport: those of its links, and those of how it makes them."""

from __future__ import annotations

from collections.abc import Collection

from splitlab.core.catalogue.loading import load
from splitlab.core.testing.connect_checks import CONNECT_CHECKS
from splitlab.core.testing.link_checks import LINK_CHECKS
from splitlab.core.testing.links import Ends
from splitlab.core.testing.report import Check, Report, run_checks

__all__ = ["TRANSPORT_CHECKS", "check_transport"]

TRANSPORT_CHECKS: list[Check[Ends]] = [*LINK_CHECKS, *CONNECT_CHECKS]


def check_transport(transport: str | type, *, only: Collection[str] | None = None) -> Report:
    """Check that a transport holds the contract of `splitlab.core.contract.link`.

    Args:
        transport: its name, or its class.
        only: names of checks; all by default.

    Raises:
        ConfigError: an unknown name of a transport or check.
        PluginError: the transport cannot be imported.
    """
    factory = load("transports", transport) if isinstance(transport, str) else transport
    name = transport if isinstance(transport, str) else transport.__name__
    return run_checks(name, Ends(factory), TRANSPORT_CHECKS, only)
