"""The checks of a transport: those of its links, and those of how it makes them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.links import load_transport
from splitlab.core.testing.connect_checks import CONNECT_CHECKS
from splitlab.core.testing.link_checks import LINK_CHECKS
from splitlab.core.testing.links import Ends
from splitlab.core.testing.report import Check, Report, run_checks

__all__ = ["TRANSPORT_CHECKS", "check_transport"]

TRANSPORT_CHECKS: list[Check[Ends]] = [*LINK_CHECKS, *CONNECT_CHECKS]


def check_transport(
    transport: str | type,
    *,
    access: Mapping[str, Any] = MappingProxyType({}),
    only: Collection[str] | None = None,
) -> Report:
    """Check that a transport holds the contract of `splitlab.core.contract.link`.

    Args:
        transport: as users type it (``"NAME:key=value"``, ``"FILE.py:Class"``), or its class.
        access: who may connect, by parameters of the transport, see
            `splitlab.core.contract.settings.ACCESS`.
        only: names of checks; all by default.

    Raises:
        ConfigError: an unknown name of a transport, setting or check.
        PluginError: the transport cannot be imported.
    """
    if isinstance(transport, str):
        if access:
            load_transport(transport, access)  # which says what it cannot do
        name, build = transport, bind("transports", transport).build
    else:
        name, build = transport.__name__, transport
    return run_checks(name, Ends(partial(build, **access)), TRANSPORT_CHECKS, only)
