"""A stack of plugins: who is called when, in which order, and who is to blame.

pluggy calls the implementation that was registered last first. So there are two managers: one for
encoding, filled from the end of the stack, and one for decoding, filled from its start; encoding
hooks then run in the order in which the stack is written, decoding hooks in the reverse order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pluggy

from splitlab.core.cut import Cut
from splitlab.core.errors import PluginError, SplitlabError
from splitlab.core.hooks import HookSpecs
from splitlab.core.message import Message
from splitlab.core.peer import Peer
from splitlab.core.registry import BoundPlugin

__all__ = ["Stack"]


class Stack:
    """The plugin instances of one peer.

    Args:
        plugins: as the user wrote them, first one first; each is built anew here.
        observers: objects with ``@hookimpl(wrapper=True)`` methods; they run outermost.
    """

    def __init__(self, plugins: Iterable[BoundPlugin], observers: Sequence[object] = ()) -> None:
        named: list[tuple[str, object]] = []
        for bound in plugins:
            twins = sum(label.partition("#")[0] == bound.label for label, _ in named)
            named.append((f"{bound.label}#{twins + 1}" if twins else bound.label, bound.build()))
        watching = [(f"observer {type(o).__name__}@{i}", o) for i, o in enumerate(observers)]
        self._encoding = _manager([*reversed(named), *watching])
        self._decoding = _manager([*named, *watching])

    # Data hooks.

    def after_client_forward(self, cut: Cut) -> None:
        """Encode on the client's graph."""
        _call(self._encoding, "after_client_forward", cut=cut)

    def before_send(self, message: Message) -> None:
        """Encode detached tensors."""
        _call(self._encoding, "before_send", message=message)

    def after_receive(self, message: Message) -> None:
        """Decode detached tensors."""
        _call(self._decoding, "after_receive", message=message)

    def before_server_forward(self, cut: Cut) -> None:
        """Decode on the server's graph."""
        _call(self._decoding, "before_server_forward", cut=cut)

    def gradient_return(self, cut: Cut) -> None:
        """Correct the gradient that came back."""
        _call(self._decoding, "gradient_return", cut=cut)

    # Lifecycle.

    def setup(self, peer: Peer) -> None:
        """Tell every plugin where it lives."""
        _call(self._encoding, "setup", peer=peer)

    def step_end(self, step: int) -> None:
        """Tell every plugin that a training step is over."""
        _call(self._encoding, "step_end", step=step)

    def run_end(self) -> None:
        """Tell every plugin that the run is over."""
        _call(self._encoding, "run_end")

    def state_dict(self) -> dict[str, Mapping[str, Any]]:
        """Return the state of every plugin that keeps one, by label."""
        return {label: states[0] for label in self._labels if (states := self._ask(label))}

    def load_state_dict(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Give every plugin its state back."""
        for label, state in states.items():
            _call(self._encoding, "load_state_dict", only=label, state=state)

    # What the stack says of itself.

    def nominal_ratio(self) -> tuple[float, float]:
        """Return the product of the plugins' nominal ratios (up, down)."""
        ratios = _call(self._encoding, "nominal_ratio")
        try:
            pairs = [(float(up), float(down)) for up, down in ratios]
        except (TypeError, ValueError):
            raise PluginError(
                f"nominal_ratio must return two numbers, (up, down); the plugins return {ratios}"
            ) from None
        return math.prod(up for up, _ in pairs), math.prod(down for _, down in pairs)

    def acts_in_evaluation(self) -> bool:
        """Return whether any plugin compresses evaluation batches."""
        return any(_call(self._encoding, "acts_in_evaluation"))

    @property
    def _labels(self) -> list[str]:
        return [label for label, _ in self._encoding.list_name_plugin()]

    def _ask(self, label: str) -> list[Any]:
        return _call(self._encoding, "state_dict", only=label)


def _manager(named: Iterable[tuple[str, object]]) -> pluggy.PluginManager:
    manager = pluggy.PluginManager("splitlab")
    manager.add_hookspecs(HookSpecs)
    for label, plugin in named:
        try:
            manager.register(plugin, name=label)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            reason = str(error).strip().split("\n")[-1]
            raise PluginError(
                f"plugin {label!r}: {reason}; the hooks are in splitlab.core.hooks"
            ) from error
    return manager


def _call(
    manager: pluggy.PluginManager, hook: str, only: str | None = None, **kwargs: Any
) -> list[Any]:
    """Call one hook; an error of a plugin becomes a `PluginError` that names plugin and hook."""
    caller: Any = getattr(manager.hook, hook)
    if only is not None:
        others = [plugin for name, plugin in manager.list_name_plugin() if name != only]
        caller = manager.subset_hook_caller(hook, others)
    try:
        answers: list[Any] = caller(**kwargs)
        return answers
    except SplitlabError:
        raise
    except Exception as error:
        raise PluginError(
            f"plugin {_guilty(caller, error)!r} failed in {hook}: {type(error).__name__}: {error}"
        ) from error


def _guilty(caller: pluggy.HookCaller, error: Exception) -> str:
    """Return the label of the plugin that stands as ``self`` in the traceback, innermost first.

    Not by the code of its method: two plugins of a stack may be of one class.
    """
    names = {id(impl.plugin): impl.plugin_name for impl in caller.get_hookimpls()}
    found = "?"
    trace = error.__traceback__
    while trace:
        found = names.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found
