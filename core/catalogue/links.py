"""Transports as objects that work on this machine, and what users put around their links."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.loading import load
from splitlab.core.catalogue.tables import entries
from splitlab.core.contract.errors import FAULTS, ConfigError, PluginError, SplitlabError, reason
from splitlab.core.contract.settings import Bound, parameters

if TYPE_CHECKING:  # it imports torch, which a listing does not wait for
    from splitlab.core.contract.link import Transport

__all__ = ["bind_wrappers", "lacks", "load_transport", "working_transports"]


def load_transport(text: str, access: Mapping[str, Any] = MappingProxyType({})) -> Transport:
    """Return a new transport: ``NAME[:key=value,…]`` or ``FILE.py:Class[:key=value,…]``.

    Args:
        text: as the user wrote it.
        access: who may connect, by the parameters that its constructor has for that; see
            `splitlab.core.contract.settings.ACCESS`.

    Raises:
        ConfigError: no such name or setting, it cannot keep anybody out as it is asked to, or it
            cannot work on this machine: says what is missing and which transports can.
        PluginError: it cannot be imported or built.
    """
    transport, missing = _built(text, access)
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


def _built(
    text: str, access: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Transport, str | None]:
    """Return the transport, and what it lacks here."""
    bound = bind("transports", text)
    for name in access.keys() - parameters(bound.factory).keys():
        able = [each for each in entries("transports") if _takes(each, name)]
        option = "--" + name.replace("_", "-")
        raise ConfigError(
            f"transport {bound.label!r} takes no {option}; these do: {', '.join(able)}; choose one "
            f"of them, or leave {option} out"
        )
    transport: Transport = bound.build(**access)
    try:
        return transport, transport.unavailable()
    except SplitlabError:
        raise
    except FAULTS as error:
        raise PluginError(
            f"transport {bound.label!r} cannot say whether it works here: "
            f"{reason(error, transport)}"
        ) from error


def _takes(name: str, parameter: str) -> bool:
    try:
        return parameter in parameters(load("transports", name))
    except SplitlabError:
        return False
