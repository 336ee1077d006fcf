"""Transports and link wrappers, as objects that work here."""

from __future__ import annotations

from splitlab.core.catalogue.registry import entries, load
from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.link import Transport

__all__ = ["load_transport", "working_transports"]


def load_transport(name: str) -> Transport:
    """Return a new transport of that name.

    Raises:
        ConfigError: no such name, or it cannot work on this machine: says what is missing and
            which transports work here.
    """
    transport: Transport = load("transports", name)()
    missing = transport.unavailable()
    if missing:
        works = ", ".join(working_transports()) or "none"
        raise ConfigError(f"transport {name!r} cannot be used here: {missing}; these can: {works}")
    return transport


def working_transports() -> list[str]:
    """Return the names of all transports that work on this machine."""
    found = []
    for name in entries("transports"):
        try:
            if load("transports", name)().unavailable() is None:
                found.append(name)
        except Exception:  # noqa: BLE001 (an outside package that is broken works nowhere)
            continue
    return sorted(found)
