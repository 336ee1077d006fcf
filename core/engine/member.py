"""One plugin of a stack: calls its hooks, looks after every call, and says what went wrong."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import pluggy
import torch

from splitlab.core.contract.cut import Cut
from splitlab.core.contract.errors import (
    FAULTS,
    PluginError,
    SplitlabError,
    reason,
    unknown_name,
    where,
)
from splitlab.core.contract.hooks import DATA_HOOKS, HookSpecs
from splitlab.core.contract.marks import HOOKS, forgotten
from splitlab.core.contract.measure import Measured
from splitlab.core.contract.message import Message
from splitlab.core.contract.peer import Peer
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.contract.traits import Declared, Traits

__all__ = ["Asked", "Manager", "Member", "register"]

_WATCHED_CALLS = 2
"""So many calls of every data hook are watched for draws from global random state."""
_EVERYBODYS = frozenset(dir(object))
"""Names that stand in every object, and mean no hook in any."""


class Manager(pluggy.PluginManager):
    """pluggy's, of which older ones read the properties of a plugin that is not set up yet."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """Look for a hook's mark; a property bears none, nor what every object has."""
        if name in _EVERYBODYS:  # most names, and pluggy looks long
            return None
        if isinstance(inspect.getattr_static(plugin, name, None), (property, cached_property)):
            return None
        return super().parse_hookimpl_opts(plugin, name)


class Asked:
    """A plugin or a probe whose hooks are called one by one.

    Attributes:
        label: its name in the stack.
    """

    kind = "probe"

    def __init__(self, label: str, plugin: object) -> None:
        self.label = label
        self.plugin = plugin
        self._manager = Manager("splitlab")
        self._manager.add_hookspecs(HookSpecs)
        register(self._manager, label, plugin, self.kind)

    def has(self, hook: str) -> bool:
        """Return whether it implements the hook."""
        return bool(getattr(self._manager.hook, hook).get_hookimpls())

    def ask(self, hook: str, **arguments: Any) -> Any:
        """Call a hook and return its answer, None if there is none."""
        try:
            answers = getattr(self._manager.hook, hook)(**arguments)
        except PluginError as error:
            if repr(self.label) in str(error) or not where(error, self.plugin):
                raise
            raise self._error(hook, f"{error}{where(error, self.plugin)}") from error
        except SplitlabError:
            raise
        except FAULTS as error:
            raise self._error(hook, reason(error, self.plugin)) from error
        return answers[0] if answers else None

    def metrics(self, step: int) -> dict[str, float]:
        """Return its numbers after this step; none at all if it has none."""
        answer = self.ask("metrics", step=step)
        if answer is None:
            return {}
        if not isinstance(answer, Mapping):
            raise self._error("metrics", f"it returned {answer!r}, not numbers by name")
        for name, value in answer.items():
            if (
                not isinstance(name, str)
                or not isinstance(value, (int, float))
                or isinstance(value, bool)
            ):
                raise self._error("metrics", f"{name!r} is {value!r}, not a number by name")
        return {name: float(value) for name, value in answer.items()}

    def _error(self, hook: str, text: str) -> PluginError:
        return PluginError(f"{self.kind} {self.label!r} failed in {hook}: {text}")


class Member(Asked):
    """One plugin of the stack: calls its hooks, and says what is wrong with them."""

    kind = "plugin"
    pieces = 1

    def __init__(self, label: str, plugin: object) -> None:
        super().__init__(label, plugin)
        self._peer: Peer | None = None
        self._calls: dict[str, int] = {}
        self.declared = Declared(
            label,
            self._traits(),
            on_graph=self.has("after_client_forward"),
            on_message=self.has("before_send"),
        )

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
            subject.owner = self.label
            with self._random(hook, subject.step):
                answer = self.ask(hook, cut=subject)
            subject.owner = ""
            self._check_cut(hook, subject, graph, wanted)
        else:
            answer = self.ask(hook, message=subject)
        if answer is not None:
            raise self._broken(
                hook,
                subject,
                f"it returned a {type(answer).__name__}; a data hook changes the object that it is "
                "given, as in cut.activations = …, and returns nothing",
            )
        if watched and before != _global_draws():
            raise self._broken(
                hook,
                subject,
                "it drew from global random state, so that no run can be repeated; draw from "
                "peer.generator(purpose, step), with the peer that setup was given",
            )

    @cached_property
    def charges_by_step(self) -> bool:
        """Whether the plugin says its nominal ratios of a step."""
        impls = self._manager.hook.nominal_ratio.get_hookimpls()
        return any("step" in impl.argnames for impl in impls)

    @property
    def foreseen(self) -> bool:
        """Whether its nominal ratio of every step is known beforehand."""
        return not self.charges_by_step

    def usual_ratio(self, part: int, parts: int) -> tuple[float, float]:
        """Return the nominal ratios that most steps of this part of a run are charged."""
        return self.nominal_ratio()

    def nominal_ratio(self, step: int | None = None) -> tuple[float, float]:
        """Return the plugin's nominal ratios (up, down) of a step that is done, or of most."""
        answer = self.ask("nominal_ratio", step=step)
        try:
            up, down = (1.0, 1.0) if answer is None else map(float, answer)
        except (TypeError, ValueError):
            raise self._error(
                "nominal_ratio", f"it must return two numbers, (up, down), and returns {answer!r}"
            ) from None
        if not (0 < up <= 1 and 0 < down <= 1):
            raise self._error(
                "nominal_ratio", f"it returns {answer!r}; both must be more than 0, at most 1"
            )
        return up, down

    def _traits(self) -> Traits:
        answer = self.ask("traits")
        if not isinstance(answer, Traits | None):
            raise self._error("traits", f"it must return Traits, and returns {answer!r}")
        return answer or Traits()

    def _check_cut(
        self, hook: str, cut: Cut, graph: bool, gradient_shape: torch.Size | None
    ) -> None:
        if not isinstance(cut.measured, Mapping):
            raise self._broken(
                hook, cut, f"it leaves cut.measured as {type(cut.measured).__name__}, not a mapping"
            )
        if not isinstance(cut.measured, Measured):  # which tells a reader what it lacks
            cut.measured = Measured(cut.measured)
        what = "gradient" if hook == "gradient_return" else "activations"
        value = getattr(cut, what)
        if not isinstance(value, torch.Tensor):
            raise self._broken(
                hook, cut, f"it leaves cut.{what} as {type(value).__name__}, not a tensor"
            )
        if not value.is_floating_point():
            raise self._broken(
                hook,
                cut,
                f"it leaves cut.{what} as {value.dtype}, which has no gradient; a method that "
                "sends codes encodes in before_send and decodes in after_receive",
            )
        if hook == "gradient_return" and value.shape != gradient_shape:
            raise self._broken(
                hook,
                cut,
                f"it changes the gradient's shape from {[*(gradient_shape or ())]} to "
                f"{[*value.shape]}; it must stay that of the activations that were sent",
            )
        if graph and hook != "gradient_return" and not value.requires_grad:
            raise self._broken(
                hook,
                cut,
                "it cuts cut.activations off the autograd graph; replace them by a differentiable "
                "function of what they were, or work in before_send and after_receive",
            )

    def _random(self, hook: str, step: int) -> AbstractContextManager[None]:
        """Seed torch's global generator for this plugin alone."""
        if self._peer is None:
            return nullcontext()
        purpose = ("plugin", self.label, hook, step)
        return isolated_rng(self._peer.seed, *purpose, device=self._peer.device)

    def _broken(self, hook: str, subject: Cut | Message, text: str) -> PluginError:
        return self._error(f"{hook} ({subject.when})", text)


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


def register(
    manager: pluggy.PluginManager, label: str, plugin: object, kind: str = "plugin"
) -> None:
    """Register a plugin, or raise `PluginError` for what can never be called."""
    for name in dir(plugin):
        marks = manager.parse_hookimpl_opts(plugin, name)
        if marks is not None:
            hook = marks.get("specname") or name
            wraps = bool(marks.get("wrapper") or marks.get("hookwrapper"))
            fault = _fault(hook, getattr(plugin, name), wraps, kind)
            if fault:
                raise PluginError(f"{kind} {label!r}: {fault}")
    if fault := forgotten(plugin):
        raise PluginError(f"{kind} {label!r}: {fault}")
    manager.register(plugin, name=label)


def _fault(hook: str, method: Callable[..., Any], wraps: bool, kind: str) -> str:
    """Return why a marked method cannot be called as it should, and the way out; empty if it can.

    pluggy would refuse most of it, too, in words of its own.
    """
    if hook not in HOOKS:
        return str(unknown_name("hook", hook, HOOKS, "; see docs/hooks.md"))
    allowed = [*inspect.signature(getattr(HookSpecs, hook)).parameters][1:]
    for name, argument in inspect.signature(method).parameters.items():
        if argument.kind not in (argument.POSITIONAL_ONLY, argument.POSITIONAL_OR_KEYWORD):
            continue
        if argument.default is not argument.empty:
            return (
                f"argument {name!r} of hook {hook!r} has a default value, so that it would never "
                "be passed; take the default away"
            )
        if name not in allowed:
            unknown = unknown_name("argument", name, allowed, "; see docs/hooks.md")
            return f"hook {hook!r}: {unknown}"
    yields = inspect.isgeneratorfunction(inspect.unwrap(method))
    if wraps and not yields:
        return f"hook {hook!r} is marked wrapper=True and has no yield; put one where plugins run"
    if yields and not wraps:
        return f"hook {hook!r} has a yield and is no wrapper; mark it @hookimpl(wrapper=True)"
    if kind == "probe" and hook in DATA_HOOKS and not wraps:
        return (
            f"data hook {hook!r} of a probe must be a wrapper; mark it @hookimpl(wrapper=True), "
            "and put one yield between what looks before the plugins and what looks behind them"
        )
    return ""
