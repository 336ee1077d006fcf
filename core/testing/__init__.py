"""The conformance kit: what every plugin, transport, link wrapper and probe must hold.

Three lines of pytest check a method, whether it is installed, registered or just written::

    from splitlab.core.testing import check_plugin

    def test_my_method():
        check_plugin("my-method").raise_if_failed()

``check_plugin`` also takes ``"FILE.py:Class:key=value"`` and a class, and another model to check it
on: ``check_plugin("my-method", model="resnet18")``. ``check_transport`` takes a transport in the
same ways, ``check_link`` a link wrapper, and ``check_probe`` a probe. ``splitlab check`` prints the
same reports. A `Report` has one row for every check; a row that failed says which plugin, which
hook and the way out. A check's name says what holds, and ``only=["bytes-are-real"]`` runs it alone.

`Tiny` makes models, batches and peers that train in milliseconds, for tests of a plugin's own.
Where many plugins are checked, one `FreshPeers` for all of them saves seconds each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

from splitlab.core.catalogue.tables import entries
from splitlab.core.contract.errors import SplitlabError
from splitlab.core.testing.fresh import FreshPeers
from splitlab.core.testing.link_checks import LINK_CHECKS
from splitlab.core.testing.links import joined
from splitlab.core.testing.plugin import PLUGIN_CHECKS, check_plugin
from splitlab.core.testing.probe import PROBE_CHECKS, check_probe
from splitlab.core.testing.report import ConformanceError, Report, Row
from splitlab.core.testing.tiny import Tiny
from splitlab.core.testing.transport import TRANSPORT_CHECKS, check_transport
from splitlab.core.testing.wrapper import check_link

__all__ = [
    "LINK_CHECKS",
    "PLUGIN_CHECKS",
    "PROBE_CHECKS",
    "TRANSPORT_CHECKS",
    "ConformanceError",
    "FreshPeers",
    "Report",
    "Row",
    "Tiny",
    "check_link",
    "check_listed",
    "check_plugin",
    "check_probe",
    "check_transport",
    "joined",
    "listed",
]

Listed = Literal["plugin", "transport", "link", "probe"]
"""What is checked of the catalogue."""


def listed() -> list[tuple[Listed, str]]:
    """Return what is checked: plugins, named stacks, transports, link wrappers and probes."""
    found: list[tuple[Listed, str]] = []
    # A name that is both a plugin's and a stack's is refused wherever it is used: once will do.
    found += [("plugin", name) for name in {**entries("plugins"), **entries("stacks")}]
    found += [("transport", name) for name in entries("transports")]
    # A preset is the link that it names, with settings under which much takes minutes.
    found += [("link", name) for name, e in entries("links").items() if "preset" not in e.facts]
    found += [("probe", name) for name in entries("probes")]
    return found


def check_listed() -> Iterator[tuple[Report, float]]:
    """Check all that is listed, one after another; yields each report, and the seconds it took."""
    with FreshPeers() as fresh:
        checks: dict[Listed, Callable[[str], Report]] = {
            "plugin": partial(check_plugin, fresh=fresh),
            "transport": check_transport,
            "link": check_link,
            "probe": check_probe,
        }
        for kind, name in listed():
            start = time.perf_counter()
            try:
                report = checks[kind](name)
            except SplitlabError as error:
                report = Report(name, (Row("can-be-loaded", "by its name", "failed", str(error)),))
            yield report, time.perf_counter() - start
