"""A stack of plugins: who is called when, in which order, and who is to blame.

Every plugin has a pluggy manager of its own, which checks its hooks and calls them. The stack goes
through its plugins in the order in which they are written to encode, and in the reverse order to
decode, and looks after every single call: that is how an error names plugin and hook. Observers
have one manager more, around the whole.
"""

from __future__ import annotations

import functools
import inspect
import math
import random
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pluggy
import torch

from splitlab.core.contract.cut import Cut
from splitlab.core.contract.errors import PluginError, SplitlabError
from splitlab.core.contract.hooks import HookSpecs, hookimpl
from splitlab.core.contract.message import Message
from splitlab.core.contract.peer import Peer
from splitlab.core.catalogue.registry import BoundPlugin
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.contract.traits import Declared, Traits, check_order

__all__ = ["Stack"]

_WATCHED_CALLS = 2
"""So many calls of every data hook are watched for draws from global random state."""


class Stack:
    """The plugin instances of one peer.

    Args:
        plugins: as the user wrote them, first one first; each is built anew here.
        observers: objects with ``@hookimpl(wrapper=True)`` methods; they run outermost.

    Raises:
        ConfigError: the plugins cannot work together in this order.
        PluginError: a plugin cannot be built, or its hooks are not those of the menu.
    """

    def __init__(self, plugins: Iterable[BoundPlugin], observers: Sequence[object] = ()) -> None:
        self._members: list[_Member] = []
        for bound in plugins:
            twins = sum(m.label.partition("#")[0] == bound.label for m in self._members)
            label = f"{bound.label}#{twins + 1}" if twins else bound.label
            self._members.append(_Member(label, bound.build()))
        check_order([member.declared for member in self._members])
        self._around = _Manager("splitlab")
        self._around.add_hookspecs(HookSpecs)
        self._around.register(_Chain(self._members, self._ran), name="the stack")
        for i, observer in enumerate(observers):
            _register(self._around, f"observer {type(observer).__name__}@{i}", observer)

    # Data hooks.

    def after_client_forward(self, cut: Cut) -> None:
        """Encode on the client's graph."""
        self._call("after_client_forward", cut=cut)

    def before_send(self, message: Message) -> None:
        """Encode detached tensors."""
        self._call("before_send", message=message)

    def after_receive(self, message: Message) -> None:
        """Decode detached tensors."""
        self._call("after_receive", message=message)

    def before_server_forward(self, cut: Cut) -> None:
        """Decode on the server's graph."""
        self._call("before_server_forward", cut=cut)

    def gradient_return(self, cut: Cut) -> None:
        """Correct the gradient that came back."""
        self._call("gradient_return", cut=cut)

    # Lifecycle.

    def setup(self, peer: Peer) -> None:
        """Tell every plugin where it lives."""
        self._call("setup", peer=peer)

    def step_end(self, step: int) -> None:
        """Tell every plugin that a training step is over."""
        self._call("step_end", step=step)

    def run_end(self) -> None:
        """Tell every plugin that the run is over."""
        self._call("run_end")

    def state_dict(self) -> dict[str, Mapping[str, Any]]:
        """Return the state of every plugin that keeps one, by label."""
        states = {member.label: member.ask("state_dict") for member in self._members}
        return {label: state for label, state in states.items() if state is not None}

    def load_state_dict(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Give every plugin its state back."""
        for member in self._members:
            if member.label in states:
                member.ask("load_state_dict", state=states[member.label])

    # What the stack says of itself.

    def nominal_ratio(self) -> tuple[float, float]:
        """Return the product of the plugins' nominal ratios (up, down)."""
        ratios = [member.nominal_ratio() for member in self._members]
        return math.prod(up for up, _ in ratios), math.prod(down for _, down in ratios)

    def acts_in_evaluation(self) -> bool:
        """Return whether any plugin compresses evaluation batches."""
        return any(member.declared.traits.evaluation for member in self._members)

    def traits(self) -> dict[str, Traits]:
        """Return what every plugin declares, by label, in stack order."""
        return {member.label: member.declared.traits for member in self._members}

    def one_sided(self) -> list[str]:
        """Return the plugins that encode and have no hook that decodes: suspects, if it fails."""
        pairs = (
            ("before_send", "after_receive"),
            ("after_client_forward", "before_server_forward"),
        )
        return [
            member.label
            for member in self._members
            if any(member.has(encodes) and not member.has(decodes) for encodes, decodes in pairs)
        ]

    def _call(self, hook: str, **arguments: Any) -> None:
        try:
            getattr(self._around.hook, hook)(**arguments)
        except SplitlabError:
            raise
        except Exception as error:
            raise PluginError(
                f"{self._guilty(error)} failed in {hook}: {type(error).__name__}: {error}"
            ) from error

    def _guilty(self, error: Exception) -> str:
        """Return the observer that stands as ``self`` in the traceback, innermost first."""
        names = {id(observer): name for name, observer in self._around.list_name_plugin()}
        found = "an observer"
        trace = error.__traceback__
        while trace:
            found = names.get(id(trace.tb_frame.f_locals.get("self")), found)
            trace = trace.tb_next
        return found

    def _ran(self, label: str, hook: str, subject: Cut | Message, nanoseconds: int) -> None:
        self._around.hook.plugin_ran(
            label=label, hook=hook, subject=subject, nanoseconds=nanoseconds
        )


class _Chain:
    """All plugins as one, which observers stand around."""

    def __init__(self, members: Sequence[_Member], ran: Any) -> None:
        self._members = members
        self._ran = ran

    def _each(self, hook: str, subject: Cut | Message, *, backwards: bool = False) -> None:
        for member in reversed(self._members) if backwards else self._members:
            if member.has(hook):
                started = time.perf_counter_ns()
                member.work(hook, subject)
                self._ran(member.label, hook, subject, time.perf_counter_ns() - started)

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        self._each("after_client_forward", cut)

    @hookimpl
    def before_send(self, message: Message) -> None:
        self._each("before_send", message)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        self._each("after_receive", message, backwards=True)

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        self._each("before_server_forward", cut, backwards=True)

    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        self._each("gradient_return", cut, backwards=True)

    @hookimpl
    def setup(self, peer: Peer) -> None:
        for member in self._members:
            member.setup(peer)

    @hookimpl
    def step_end(self, step: int) -> None:
        for member in self._members:
            member.ask("step_end", step=step)

    @hookimpl
    def run_end(self) -> None:
        for member in self._members:
            member.ask("run_end")


class _Member:
    """One plugin of the stack: calls its hooks, and says what is wrong with them."""

    def __init__(self, label: str, plugin: object) -> None:
        self.label = label
        self._manager = _Manager("splitlab")
        self._manager.add_hookspecs(HookSpecs)
        _register(self._manager, label, plugin)
        self._peer: Peer | None = None
        self._calls: dict[str, int] = {}
        self.declared = Declared(
            label,
            self._traits(),
            on_graph=self.has("after_client_forward"),
            on_message=self.has("before_send"),
        )

    def has(self, hook: str) -> bool:
        """Return whether the plugin implements the hook."""
        return bool(getattr(self._manager.hook, hook).get_hookimpls())

    def ask(self, hook: str, **arguments: Any) -> Any:
        """Call a hook and return its answer, None if the plugin has none."""
        try:
            answers = getattr(self._manager.hook, hook)(**arguments)
        except SplitlabError:
            raise
        except Exception as error:
            raise self._error(hook, f"{type(error).__name__}: {error}") from error
        return answers[0] if answers else None

    def setup(self, peer: Peer) -> None:
        """Tell the plugin where it lives; what it draws comes from the run's seed."""
        self._peer = peer
        with self._random("setup", 0):
            self.ask("setup", peer=peer)

    def work(self, hook: str, subject: Cut | Message) -> None:
        """Call a data hook, and check what the plugin did to the cut or message."""
        watched = self._calls.get(hook, 0) < _WATCHED_CALLS
        self._calls[hook] = self._calls.get(hook, 0) + 1
        before = _global_draws() if watched else None
        if isinstance(subject, Cut):
            graph = subject.activations.requires_grad and torch.is_grad_enabled()
            wanted = subject.gradient.shape if subject.gradient is not None else None
            with self._random(hook, subject.step):
                answer = self.ask(hook, cut=subject)
            self._check_cut(hook, subject, graph, wanted)
        else:
            answer = self.ask(hook, message=subject)
        if answer is not None:
            raise self._broken(
                hook,
                subject.step,
                f"it returned a {type(answer).__name__}; a data hook changes the object that it is "
                "given, as in cut.activations = …, and returns nothing",
            )
        if watched and before != _global_draws():
            raise self._broken(
                hook,
                subject.step,
                "it drew from global random state, so that no run can be repeated; draw from "
                "peer.generator(purpose, step), with the peer that setup was given",
            )

    def nominal_ratio(self) -> tuple[float, float]:
        """Return the plugin's nominal ratios (up, down)."""
        answer = self.ask("nominal_ratio")
        try:
            up, down = (1.0, 1.0) if answer is None else map(float, answer)
        except (TypeError, ValueError):
            raise self._error(
                "nominal_ratio", f"it must return two numbers, (up, down), and returns {answer!r}"
            ) from None
        return up, down

    def _traits(self) -> Traits:
        answer = self.ask("traits")
        if not isinstance(answer, Traits | None):
            raise self._error("traits", f"it must return Traits, and returns {answer!r}")
        return answer or Traits()

    def _check_cut(
        self, hook: str, cut: Cut, graph: bool, gradient_shape: torch.Size | None
    ) -> None:
        what = "gradient" if hook == "gradient_return" else "activations"
        value = getattr(cut, what)
        if not isinstance(value, torch.Tensor):
            raise self._broken(
                hook, cut.step, f"it leaves cut.{what} as {type(value).__name__}, not a tensor"
            )
        if not value.is_floating_point():
            raise self._broken(
                hook,
                cut.step,
                f"it leaves cut.{what} as {value.dtype}, which has no gradient; a method that "
                "sends codes encodes in before_send and decodes in after_receive",
            )
        if hook == "gradient_return" and value.shape != gradient_shape:
            raise self._broken(
                hook,
                cut.step,
                f"it changes the gradient's shape from {[*(gradient_shape or ())]} to "
                f"{[*value.shape]}; it must stay that of the activations that were sent",
            )
        if graph and hook != "gradient_return" and not value.requires_grad:
            raise self._broken(
                hook,
                cut.step,
                "it cuts cut.activations off the autograd graph; replace them by a differentiable "
                "function of what they were, or work in before_send and after_receive",
            )

    def _random(self, hook: str, step: int) -> AbstractContextManager[None]:
        """Seed torch's global generator for this plugin alone."""
        if self._peer is None:
            return nullcontext()
        purpose = ("plugin", self.label, hook, step)
        return isolated_rng(self._peer.seed, *purpose, device=self._peer.device)

    def _broken(self, hook: str, step: int, text: str) -> PluginError:
        return self._error(f"{hook} (step {step})", text)

    def _error(self, hook: str, text: str) -> PluginError:
        return PluginError(f"plugin {self.label!r} failed in {hook}: {text}")


def _global_draws() -> list[Any]:
    """Return the state of every global random generator that a plugin might draw from."""
    states: list[Any] = [random.getstate(), torch.get_rng_state().numpy().tobytes()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        name, keys, *rest = numpy_random.get_state()
        states += [name, keys.tobytes(), *rest]
    return states


class _Manager(pluggy.PluginManager):
    """Registers a plugin without reading its properties: before setup they may have no value."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        if isinstance(
            inspect.getattr_static(plugin, name, None), property | functools.cached_property
        ):
            return None
        return super().parse_hookimpl_opts(plugin, name)


def _register(manager: pluggy.PluginManager, label: str, plugin: object) -> None:
    try:
        manager.register(plugin, name=label)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        reason = str(error).strip().split("\n")[-1]
        raise PluginError(
            f"plugin {label!r}: {reason}; the hooks are in splitlab.core.contract.hooks"
        ) from error
    own = {caller.name for caller in manager.get_hookcallers(plugin) or ()}
    for name in vars(HookSpecs):
        if not name.startswith("_") and name not in own and callable(getattr(plugin, name, None)):
            raise PluginError(
                f"plugin {label!r}: its method {name!r} is called like a hook and not marked as "
                "one, so that it would never be called; put @hookimpl above it"
            )
    for caller in manager.get_hookcallers(plugin) or ():
        for impl in caller.get_hookimpls():
            if impl.plugin is plugin and impl.kwargnames:
                raise PluginError(
                    f"plugin {label!r}: argument {impl.kwargnames[0]!r} of hook {caller.name!r} "
                    "has a default value, so that it would never be passed; take the default away"
                )
