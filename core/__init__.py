"""The engine of splitlab, and the public API of plugin authors and notebooks.

``from splitlab.core import hookimpl, Cut, Message, run``. Names are imported when they are first
used, so that ``splitlab --help`` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splitlab.core.config import Config
    from splitlab.core.cut import Cut
    from splitlab.core.errors import (
        ConfigError,
        LinkError,
        NetworkError,
        PluginError,
        ProtocolError,
        SplitlabError,
    )
    from splitlab.core.hooks import hookimpl
    from splitlab.core.message import Kind, Message, Role
    from splitlab.core.peer import Peer
    from splitlab.core.runner import Result, run
    from splitlab.core.traits import Traits

__all__ = [
    "Config",
    "ConfigError",
    "Cut",
    "Kind",
    "LinkError",
    "Message",
    "NetworkError",
    "Peer",
    "PluginError",
    "ProtocolError",
    "Result",
    "Role",
    "SplitlabError",
    "Traits",
    "hookimpl",
    "run",
]

_HOMES = {
    "Config": "config",
    "Cut": "cut",
    "Kind": "message",
    "Message": "message",
    "Role": "message",
    "Peer": "peer",
    "Result": "runner",
    "run": "runner",
    "Traits": "traits",
    "hookimpl": "hooks",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
