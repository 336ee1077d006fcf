"""The engine of splitlab, and the public API of plugin authors and notebooks.

``from splitlab.core import hookimpl, Cut, Message, run``. Names are imported when they are first
used, so that ``splitlab --help`` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splitlab.core.run.config import Config
    from splitlab.core.contract.cut import Cut
    from splitlab.core.contract.errors import (
        ConfigError,
        LinkError,
        NetworkError,
        PluginError,
        ProtocolError,
        SplitlabError,
    )
    from splitlab.core.contract.hooks import hookimpl
    from splitlab.core.contract.message import Kind, Message, Role
    from splitlab.core.contract.peer import Peer
    from splitlab.core.run.loop import Result, run
    from splitlab.core.contract.traits import Traits

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
    "Config": "run.config",
    "Cut": "contract.cut",
    "Kind": "contract.message",
    "Message": "contract.message",
    "Role": "contract.message",
    "Peer": "contract.peer",
    "Result": "run.loop",
    "run": "run.loop",
    "Traits": "contract.traits",
    "hookimpl": "contract.hooks",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'contract.errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


import sys as _s, types as _t
class _C(_t.ModuleType):
    run = property(lambda self: import_module("splitlab.core.run.loop").run, lambda self, v: None)
_s.modules[__name__].__class__ = _C
