"""The engine of splitlab, and the public API of plugin authors and notebooks.

``from splitlab.core import hookimpl, Cut, Message, run``. Names are imported when they are first
used, so that ``splitlab --help`` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splitlab.core.contract.batch import Batch
    from splitlab.core.contract.cut import Cut
    from splitlab.core.contract.errors import (
        ConfigError,
        DamagedError,
        Diverged,
        Interrupted,
        LinkError,
        NetworkError,
        PluginError,
        ProtocolError,
        RefusedError,
        SplitlabError,
        WorkerError,
    )
    from splitlab.core.contract.hooks import hookimpl
    from splitlab.core.contract.link import Link, PeerRole, WrappedLink
    from splitlab.core.contract.logger import LoggedRun, Logger
    from splitlab.core.contract.measure import Attention, HeadAttention, Keys, Measurement
    from splitlab.core.contract.message import Kind, Message, Role
    from splitlab.core.contract.part import Layout
    from splitlab.core.contract.peer import Peer
    from splitlab.core.contract.traits import Traits
    from splitlab.core.contract.transfer import Fetch, at_hand, upload
    from splitlab.core.data.load import load_data
    from splitlab.core.models.build import build_model
    from splitlab.core.models.segments import Segmented, Segments
    from splitlab.core.report.draw_picture import picture
    from splitlab.core.runs.config import Config
    from splitlab.core.runs.listing import Runs, load_runs
    from splitlab.core.runs.plan import Plan
    from splitlab.core.runs.reporter import Result
    from splitlab.core.runs.run import run
    from splitlab.core.studies.conduct import study
    from splitlab.core.studies.study import Study

__all__ = [
    "Attention",
    "Batch",
    "Config",
    "ConfigError",
    "Cut",
    "DamagedError",
    "Diverged",
    "Fetch",
    "HeadAttention",
    "Interrupted",
    "Keys",
    "Kind",
    "Layout",
    "Link",
    "LinkError",
    "LoggedRun",
    "Logger",
    "Measurement",
    "Message",
    "NetworkError",
    "Peer",
    "PeerRole",
    "Plan",
    "PluginError",
    "ProtocolError",
    "RefusedError",
    "Result",
    "Role",
    "Runs",
    "Segmented",
    "Segments",
    "SplitlabError",
    "Study",
    "Traits",
    "WorkerError",
    "WrappedLink",
    "at_hand",
    "build_model",
    "hookimpl",
    "load_data",
    "load_runs",
    "picture",
    "run",
    "study",
    "upload",
]

_HOMES = {
    "Config": "runs.config",
    "Attention": "contract.measure",
    "Batch": "contract.batch",
    "Cut": "contract.cut",
    "HeadAttention": "contract.measure",
    "Keys": "contract.measure",
    "Layout": "contract.part",
    "Link": "contract.link",
    "LoggedRun": "contract.logger",
    "Logger": "contract.logger",
    "Measurement": "contract.measure",
    "PeerRole": "contract.link",
    "Plan": "runs.plan",
    "Segmented": "models.segments",
    "Segments": "models.segments",
    "WrappedLink": "contract.link",
    "build_model": "models.build",
    "load_data": "data.load",
    "Kind": "contract.message",
    "Message": "contract.message",
    "Role": "contract.message",
    "Peer": "contract.peer",
    "Result": "runs.reporter",
    "picture": "report.draw_picture",
    "run": "runs.run",
    "Study": "studies.study",
    "study": "studies.conduct",
    "Runs": "runs.listing",
    "load_runs": "runs.listing",
    "Traits": "contract.traits",
    "Fetch": "contract.transfer",
    "at_hand": "contract.transfer",
    "upload": "contract.transfer",
    "hookimpl": "contract.hooks",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'contract.errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
