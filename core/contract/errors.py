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
    "told",
    "unknown_name",
]


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


def told(error: Exception) -> str:
    """Return what code of somebody's own raised, in one line, with the last line of theirs.

    Such as ``"ValueError: only one image (m.py:12)"``; no place where only torch's code failed.
    """
    text = f"{type(error).__name__}: {error}".split("\n")[0].rstrip(": ")
    theirs = [
        f" ({Path(frame.f_code.co_filename).name}:{line})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _NOT_THEIRS
    ]
    return text + (theirs[-1] if theirs else "")


_NOT_THEIRS = frozenset({"splitlab", "timm", "torch"})


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
