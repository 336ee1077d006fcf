"""Transports as objects that work on this machine, and what users put around their links."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.tables import entries
from splitlab.core.contract.errors import FAULTS, ConfigError, PluginError, SplitlabError, reason
from splitlab.core.contract.settings import Bound

if TYPE_CHECKING:  # it imports torch, which a listing does not wait for
    from splitlab.core.contract.link import Transport

__all__ = ["bind_wrappers", "lacks", "load_transport", "working_transports"]


def load_transport(text: str) -> Transport:
    """Return a new transport: ``NAME[:key=value,…]`` or ``FILE.py:Class[:key=value,…]``.

    Raises:
        ConfigError: no such name or setting, or it cannot work on this machine: says what is
            missing and which transports work here.
        PluginError: it cannot be imported or built.
    """
    transport, missing = _built(text)
    if missing:
        works = ", ".join(working_transports()) or "none"
        raise ConfigError(f"transport {text!r} cannot be used here: {missing}; these can: {works}")
    return transport


def lacks(text: str) -> str | None:
    """Return why this transport cannot be used on this machine, or None if it can."""
    try:
        return _built(text)[1]
    except SplitlabError as error:
        return str(error)


def working_transports() -> list[str]:
    """Return the names of all transports that work on this machine."""
    return sorted(name for name in entries("transports") if lacks(name) is None)


def bind_wrappers(texts: Iterable[str]) -> list[Bound]:
    """Bind link wrappers, in order; each is built anew for every end of a link.

    Raises:
        ConfigError, PluginError: as `bind`.
    """
    return [bind("links", text) for text in texts]


def _built(text: str) -> tuple[Transport, str | None]:
    """Return the transport, and what it lacks here."""
    bound = bind("transports", text)
    transport: Transport = bound.build()
    try:
        return transport, transport.unavailable()
    except SplitlabError:
        raise
    except FAULTS as error:
        raise PluginError(
            f"transport {bound.label!r} cannot say whether it works here: "
            f"{reason(error, transport)}"
        ) from error
