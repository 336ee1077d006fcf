"""Every error that splitlab raises on purpose, told by blame.

    SplitlabError            anything below; the command line prints it as one line, no traceback
    ├── ConfigError          our user's: a name, key, value or file that cannot be used
    ├── PluginError          a plugin's: it raised, or broke the contract of a hook
    └── LinkError            the link's
        ├── ProtocolError    the other end's: what it sent breaks the format or the handshake
        └── NetworkError     the network's: no answer in time, connection lost, address in use

Messages name the value that was refused, what is allowed, and the way out.
"""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "ConfigError",
    "LinkError",
    "NetworkError",
    "PluginError",
    "ProtocolError",
    "SplitlabError",
    "unknown_name",
    "when",
    "where",
]

_CORE = Path(__file__).parents[1]
_OTHERS = (_CORE, _CORE.parent / "transports", Path(sysconfig.get_path("stdlib")))
_INSTALLED = {"site-packages", "dist-packages"}


class SplitlabError(Exception):
    """Base of all errors that splitlab raises on purpose."""


class ConfigError(SplitlabError):
    """A name, key, value or file given by the user cannot be used."""


class PluginError(SplitlabError):
    """A plugin raised, or broke the contract of a hook."""


class LinkError(SplitlabError):
    """The link between the peers failed."""


class ProtocolError(LinkError):
    """The other end sent something that the wire format or the handshake does not allow."""


class NetworkError(LinkError):
    """No answer in time, connection lost, address not reachable or in use."""


def unknown_name(what: str, name: str, known: Iterable[str], remedy: str = "") -> ConfigError:
    """Build the error for a name that is not in a catalogue: the nearest name first, then all.

    >>> str(unknown_name("transport", "tpc", ["gloo", "tcp"]))
    "unknown transport 'tpc' (did you mean 'tcp'?); known: gloo, tcp"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    listing = ", ".join(names) if names else "none"
    return ConfigError(f"unknown {what} {name!r}{hint}; known: {listing}{remedy}")


def when(step: int, training: bool = True) -> str:
    """Return what messages call the step that hooks are given: counted from 1, as logs do.

    >>> when(0), when(2, training=False)
    ('step 1', 'evaluation batch 3')
    """
    return f"step {step + 1}" if training else f"evaluation batch {step + 1}"


def where(error: BaseException) -> str:
    """Return the innermost line of the user's own code that an error passed, as " (m.py:8)".

    It is empty if there is none: core, transports, Python's own modules and what is installed
    beside them are not the user's.
    """
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        if (
            file.is_absolute()
            and _INSTALLED.isdisjoint(file.parts)
            and not any(file.is_relative_to(folder) for folder in _OTHERS)
        ):
            return f" ({file.name}:{line})"
    return ""
