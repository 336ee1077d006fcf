"""Every error that splitlab raises on purpose, told by blame.

    SplitlabError            anything below; the command line prints it as one line, no traceback
    ├── ConfigError          our user's: a name, key, value or file that cannot be used
    ├── Diverged             the training's: a loss, gradient or score that is no finite number
    ├── Interrupted          nobody's: the run was asked to stop, and can go on
    ├── PluginError          a plugin's: it raised, or broke the contract of a hook
    └── LinkError            the link's
        ├── ProtocolError    the other end's: what it sent breaks the format or the handshake
        └── NetworkError     the network's: no answer in time, connection lost, address in use

Messages name the value that was refused, what is allowed, and the way out. ``status`` of each is
what the command line exits with.
"""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "ConfigError",
    "Diverged",
    "Interrupted",
    "LinkError",
    "NetworkError",
    "Notice",
    "PluginError",
    "ProtocolError",
    "SplitlabError",
    "reason",
    "unknown_name",
    "when",
    "where",
]

_LIBRARIES = ("numpy", "pluggy", "timm", "torch", "torchvision")


class SplitlabError(Exception):
    """Base of all errors that splitlab raises on purpose."""

    status = 1


class ConfigError(SplitlabError):
    """A name, key, value or file given by the user cannot be used."""

    status = 2


class Diverged(SplitlabError):
    """A loss, a gradient or an evaluation is no finite number; the run ended there."""

    status = 3


class Interrupted(SplitlabError):
    """The run was asked to stop; its checkpoint is written."""

    status = 130


class PluginError(SplitlabError):
    """A plugin raised, or broke the contract of a hook."""


class LinkError(SplitlabError):
    """The link between the peers failed."""


class ProtocolError(LinkError):
    """The other end sent something that the wire format or the handshake does not allow."""


class NetworkError(LinkError):
    """No answer in time, connection lost, address not reachable or in use."""


class Notice(UserWarning):
    """A word to the user that ends nothing; the command line prints it as one line."""


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
    """Return the innermost line that is not splitlab's that an error passed, as " (m.py:8)".

    That is a line of a plugin, a probe, a model or a link; the text is empty if there is none: the
    core, transports, and the libraries that they use are not meant.
    """
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module == "__main__" or not _ours(module):
            found = f" ({Path(frame.f_code.co_filename).name}:{line})"
    return found


def reason(error: BaseException) -> str:
    """Return an error of the user's code in one line: its kind, its text, and the line it left."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if text else ''}{text}{where(error)}"


def _ours(module: str) -> bool:
    outer, _, rest = module.partition(".")
    if outer == "splitlab":
        return rest.partition(".")[0] in ("core", "transports")
    return outer in _LIBRARIES or outer in sys.stdlib_module_names
