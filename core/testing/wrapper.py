"""The checks of a link wrapper: a link that is wrapped at both ends holds what every link holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from functools import partial

from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.links import load_transport
from splitlab.core.contract.errors import FAULTS, ConfigError, reason
from splitlab.core.contract.link import Link, LinkWrapper, PeerRole
from splitlab.core.testing.link_checks import LARGEST_BYTES, LINK_CHECKS
from splitlab.core.testing.links import Ends, one_of_each_kind
from splitlab.core.testing.report import Check, Failed, Report, Skipped, run_checks

__all__ = ["check_link"]

_SLACK = 10.0
"""Seconds that a wrapper may add to what a link does at once."""

_Roads = dict[str, Ends]
"""The wrapped ends, by the transport inside."""


def check_link(
    wrapper: str | type[LinkWrapper] | LinkWrapper, *, only: Collection[str] | None = None
) -> Report:
    """Check that links hold the contract of `splitlab.core.contract.link` while they are wrapped.

    Both ends are wrapped, of a link inside of one process and of one over a network. What the
    wrapper adds may take time (a second a message is well within the deadlines); the messages
    have to arrive all the same.

    Args:
        wrapper: as users type it (``"NAME:key=value"``, ``"FILE.py:Class"``), or a class, built
            with its defaults, or an object, copied; each end has one of its own.
        only: names of checks, of those in `LINK_CHECKS`; all by default.

    Raises:
        ConfigError: an unknown name of a wrapper, setting or check; or it is too slow for what the
            checks send.
        PluginError: the wrapper cannot be imported.
    """
    build: Callable[[], LinkWrapper]
    if isinstance(wrapper, str):
        name, build = wrapper, bind("links", wrapper).build
        _refuse_slow(name, build())
    elif isinstance(wrapper, type):
        name, build = wrapper.__name__, wrapper
    else:
        name, build = type(wrapper).__name__, partial(copy.deepcopy, wrapper)

    def wrap(link: Link, role: PeerRole) -> Link:
        return build().wrap(link, role)

    roads = {road: Ends(partial(load_transport, road), wrap, _SLACK) for road in one_of_each_kind()}
    checks = [Check(check.name, check.title, _everywhere(check)) for check in LINK_CHECKS]
    return run_checks(name, roads, checks, only)


def _refuse_slow(name: str, wrapper: LinkWrapper) -> None:
    """Refuse a wrapper that takes minutes for the largest message, by its own account."""
    if not callable(tells := getattr(wrapper, "seconds", None)):
        return
    seconds = tells("client", LARGEST_BYTES)
    if seconds > _SLACK:
        raise ConfigError(
            f"link {name!r} takes {seconds:.3g} s for {LARGEST_BYTES:,} bytes, which the checks "
            f"send; check it with settings under which that takes at most {_SLACK:g} s"
        )


def _everywhere(check: Check[Ends]) -> Callable[[_Roads], str]:
    """Return the check of a link as one of the same link over every transport."""

    def run(roads: _Roads) -> str:
        skipped = {}
        for road, ends in roads.items():
            try:
                check.run(ends)
            except Skipped as skip:
                skipped[road] = f"not over {road}: {skip}"
            except Failed as error:
                raise Failed(f"over {road}: {error}") from error
            except FAULTS as error:
                raise Failed(f"over {road}: {reason(error)}") from error
        held = [road for road in roads if road not in skipped]
        if not held:
            raise Skipped("; ".join(skipped.values()) or "no transport works here")
        return "; ".join([f"over {' and '.join(held)}", *skipped.values()])

    return run
