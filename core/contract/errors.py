"""Every error that splitlab raises on purpose, told by blame.

    SplitlabError            anything below; the command line prints it as one line, no traceback
    ├── ConfigError          our user's: a name, key, value or file that cannot be used
    ├── Diverged             the training's: a loss, gradient or score that is no finite number
    ├── Interrupted          nobody's: the run was asked to stop, and can go on
    ├── PluginError          a plugin's: it raised, or broke the contract of a hook
    ├── WorkerError          the machine's: a process that decodes has ended, or does not answer
    └── LinkError            the link's
        ├── ProtocolError    the other end's: what it sent breaks the format or the handshake
        │   └── DamagedError the way's: what arrived is not what was sent
        └── NetworkError     the network's: no answer in time, connection lost, address in use
            └── RefusedError our user's or the other's: who asks has not what the other end asks for

Messages name the value that was refused, what is allowed, and the way out. ``status`` of each is
what the command line exits with.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = [
    "FAULTS",
    "ConfigError",
    "DamagedError",
    "Diverged",
    "Interrupted",
    "LinkError",
    "NetworkError",
    "Notice",
    "PluginError",
    "ProtocolError",
    "RefusedError",
    "SplitlabError",
    "WorkerError",
    "reason",
    "unknown_name",
    "when",
    "where",
]

FAULTS: Final = (Exception, SystemExit)
"""What code of the user's may raise that is its own fault; an interrupt is nobody's."""

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


class WorkerError(SplitlabError):
    """A process that works for this one has ended, or does not answer; the run can go on."""


class LinkError(SplitlabError):
    """The link between the peers failed."""


class ProtocolError(LinkError):
    """The other end sent something that the wire format or the handshake does not allow."""


class DamagedError(ProtocolError):
    """What arrived is no frame, or not as it was sent; where the next begins, nobody knows."""


class NetworkError(LinkError):
    """No answer in time, connection lost, address not reachable or in use."""


class RefusedError(NetworkError):
    """The other end lets nobody in who has no other certificate or secret than this one."""


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


def where(error: BaseException, owner: object = None) -> str:
    """Return the line of the user's code that an error left, as " (m.py:8)"; empty if none.

    That is the innermost one in a file of the owner's; if it passed none of them, the innermost one
    of a plugin, a probe, a model or a link: the core, transports, and the libraries that they use
    are not meant. What cannot be parsed is found where it stands.

    Args:
        error: as it was caught.
        owner: a class or function of the user's, an instance of such a class, or the name of a
            module.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f" ({Path(error.filename).name}:{error.lineno})"
    modules = _modules(owner)
    inner = own = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module == "__main__" or not _ours(module):
            inner = f" ({Path(frame.f_code.co_filename).name}:{line})"
            own = inner if module in modules else own
    return own or inner


def reason(error: BaseException, owner: object = None) -> str:
    """Return an error of the user's code in one line: its kind, its text, and the line it left.

    Args:
        error: as it was caught.
        owner: whose code it is, see `where`.
    """
    told = error.msg if isinstance(error, SyntaxError) and where(error) else str(error)
    if torchs := re.match(r"(\S+) does not have a deterministic implementation", told):
        told = (
            f"{torchs[1]} has no deterministic implementation on this device; leave out "
            "--deterministic, or choose --device cpu or another method"
        )
    text = " ".join(told.split())
    return f"{type(error).__name__}{': ' if text else ''}{text}{where(error, owner)}"


def _modules(owner: object) -> set[str]:
    """Return the names of the modules that the code of an owner stands in."""
    if isinstance(owner, str):
        return {owner}
    if inspect.isroutine(owner):
        return {owner.__module__}
    made = owner if isinstance(owner, type) else type(owner)
    return {each.__module__ for each in inspect.getmro(made)}


def _ours(module: str) -> bool:
    outer, _, rest = module.partition(".")
    if outer == "splitlab":
        return rest.partition(".")[0] in ("core", "transports")
    return outer in _LIBRARIES or outer in sys.stdlib_module_names
