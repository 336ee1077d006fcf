"""A stack of plugins: who is called when, in which order, and who is to blame.

Every plugin has a pluggy manager of its own, which checks its hooks and calls them. The stack goes
through its plugins in the order in which they are written to encode, and in the reverse order to
decode, and looks after every single call: that is how an error names plugin and hook. Probes
have one manager more, around the whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from splitlab.core.contract.cut import Cut
from splitlab.core.contract.errors import FAULTS, PluginError, SplitlabError, reason
from splitlab.core.contract.hooks import DATA_HOOKS, HookSpecs, hookimpl
from splitlab.core.contract.message import Message
from splitlab.core.contract.peer import Peer
from splitlab.core.contract.settings import Bound
from splitlab.core.contract.traits import Ground, Traits, check_order
from splitlab.core.engine.member import Asked, Manager, Member, register
from splitlab.core.engine.piecewise import built, nominal_ratio

__all__ = ["Stack"]

_ENCODING = ("after_client_forward", "before_send")
"""The hooks that go through the stack in its order; the other data hooks go backwards."""


class Stack:
    """The plugin instances of one peer, and what watches them.

    Args:
        plugins: as the user wrote them, first one first; each is built anew here.
        probes: what watches, in the order of its metrics; built anew here, too.
        observers: objects that watch as probes do, but have no name.

    Raises:
        ConfigError: the plugins cannot work together in this order.
        PluginError: a plugin cannot be built, or its hooks are not those of the menu.
    """

    def __init__(
        self,
        plugins: Iterable[Bound],
        probes: Iterable[Bound] = (),
        observers: Sequence[object] = (),
    ) -> None:
        self._members: list[Member] = []
        for label, bound in _labelled(plugins):
            self._members.append(built(label, bound))
        check_order([member.declared for member in self._members])
        self._around = Manager("splitlab")
        self._around.add_hookspecs(HookSpecs)
        chain = _Chain(self._members)
        self._around.register(chain, name="the stack")
        taken = [member.label for member in self._members]
        self._probes = [Asked(label, bound.build()) for label, bound in _labelled(probes, taken)]
        for probe in self._probes:
            register(self._around, f"probe {probe.label!r}", probe.plugin, "probe")
        for i, observer in enumerate(observers):
            register(self._around, f"observer {type(observer).__name__}@{i}", observer, "observer")
        self._role = "client"
        self._measuring = [a for a in (*self._members, *self._probes) if a.has("metrics")]
        if self._around.hook.plugin_ran.get_hookimpls():
            chain.ran = self._around.hook.plugin_ran
        self._idle = {
            hook
            for hook in DATA_HOOKS
            if len(getattr(self._around.hook, hook).get_hookimpls()) == 1 and not chain.acts(hook)
        }

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
        """Tell every plugin where it lives.

        Raises:
            ConfigError: the plugins cannot work on this model.
        """
        self._role = peer.role
        self.check(Ground.of(peer.layout, peer.unable))
        self._call("setup", peer=peer)

    def check(self, ground: Ground) -> None:
        """Raise `ConfigError` if the plugins cannot work on this model, cut where it is."""
        check_order([member.declared for member in self._members], ground)

    def step_begin(self, step: int) -> None:
        """Tell every plugin that a training step begins."""
        self._call("step_begin", step=step)

    def step_end(self, step: int) -> None:
        """Tell every plugin that a training step is over."""
        self._call("step_end", step=step)

    def run_end(self) -> None:
        """Tell every plugin that the run is over."""
        self._call("run_end")

    def state_dict(self) -> dict[str, Mapping[str, Any]]:
        """Return the state of every plugin and probe that keeps one, by label."""
        states = {label: each.ask("state_dict") for label, each in self._keepers().items()}
        return {label: state for label, state in states.items() if state is not None}

    def load_state_dict(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Give every plugin and probe its state back."""
        for label, each in self._keepers().items():
            if label in states:
                each.ask("load_state_dict", state=states[label])

    def _keepers(self) -> dict[str, Asked]:
        plugins: dict[str, Asked] = {member.label: member for member in self._members}
        return plugins | {f"probe {probe.label}": probe for probe in self._probes}

    def metrics(
        self, step: int, losses: Mapping[str, Mapping[str, float]] = MappingProxyType({})
    ) -> dict[str, dict[str, float]]:
        """Return the numbers of every plugin and probe that has some for this step, by label.

        Args:
            step: that is over.
            losses: what plugins added to this peer's backward pass, by label and name.
        """
        found = {label: dict(own) for label, own in losses.items()}
        for each in self._measuring:
            own = found.setdefault(each.label, {})
            for name, value in each.metrics(step).items():
                if name in own:
                    raise PluginError(
                        f"plugin {each.label!r} has a loss and a metric {name!r}; rename one"
                    )
                own[name] = value
        return {label: numbers for label, numbers in found.items() if numbers}

    def report(self, folder: Path) -> dict[str, str]:
        """Let every probe that reports write into a folder of its own.

        Args:
            folder: such as ``RUN/probes``; the server's probes have ``NAME-server`` there.

        Returns:
            What they say to the user, a line each, by label.
        """
        said: dict[str, str] = {}
        role = "" if self._role == "client" else f"-{self._role}"
        for probe in self._probes:
            if probe.has("report"):
                own = folder / f"{probe.label}{role}"
                own.mkdir(parents=True, exist_ok=True)
                try:
                    line = probe.ask("report", folder=own)
                except SplitlabError as error:
                    summary = f"in {folder.parent}" if self._role == "client" else "at the client"
                    raise type(error)(
                        f"{error}; the run is complete, its summary is {summary}"
                    ) from error
                if line:
                    said[probe.label] = str(line)
                    (own / "said.txt").write_text(f"{line}\n", encoding="utf-8")
                if not any(own.iterdir()):
                    own.rmdir()
        return said

    # What the stack says of itself.

    @property
    def charges_by_step(self) -> bool:
        """Whether the nominal ratio of any plugin may differ from step to step."""
        return any(member.charges_by_step for member in self._members)

    @property
    def foreseen(self) -> bool:
        """Whether the nominal ratio of every step is known beforehand."""
        return all(member.foreseen for member in self._members)

    def nominal_ratio(self, step: int | None = None) -> tuple[float, float]:
        """Return the product of the plugins' nominal ratios (up, down).

        Args:
            step: of this one; None for what most steps are charged, or, where settings change
                while a run goes on, the mean over the run.
        """
        return nominal_ratio(self._members, step)

    def acts_in_evaluation(self) -> bool:
        """Return whether any plugin compresses evaluation batches."""
        return any(member.declared.traits.evaluation for member in self._members)

    def traits(self) -> dict[str, Traits]:
        """Return what every plugin declares, by label, in stack order."""
        return {member.label: member.declared.traits for member in self._members}

    def changed_on_graph(self, *, training: bool) -> frozenset[str]:
        """Return what is changed of a cut when its message is decoded, and not yet on the graph."""
        on_graph = (m.declared for m in self._members if m.declared.on_graph)
        acting = (each.traits for each in on_graph if training or each.traits.evaluation)
        return frozenset().union(*(traits.takes_away for traits in acting))

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
        if hook in self._idle:
            return
        try:
            getattr(self._around.hook, hook)(**arguments)
        except SplitlabError:
            raise
        except FAULTS as error:
            who, guilty = self._guilty(error)
            raise PluginError(f"{who} failed in {hook}: {reason(error, guilty)}") from error

    def _guilty(self, error: BaseException) -> tuple[str, object]:
        """Return the probe that stands as ``self`` in the traceback, innermost first."""
        names = {
            id(observer): (name, observer) for name, observer in self._around.list_name_plugin()
        }
        found: tuple[str, object] = ("a probe", None)
        trace = error.__traceback__
        while trace:
            found = names.get(id(trace.tb_frame.f_locals.get("self")), found)
            trace = trace.tb_next
        return found


class _Chain:
    """All plugins as one, which probes and observers stand around.

    Attributes:
        ran: is told of every call, if anybody listens.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._acting = {
            hook: [m for m in (members if hook in _ENCODING else reversed(members)) if m.has(hook)]
            for hook in DATA_HOOKS
        }
        self.ran: Any = None

    def acts(self, hook: str) -> bool:
        """Return whether any plugin has this data hook."""
        return bool(self._acting[hook])

    def _each(self, hook: str, subject: Cut | Message) -> None:
        for member in self._acting[hook]:
            if self.ran is None:
                member.work(hook, subject)
                continue
            started = time.perf_counter_ns()
            member.work(hook, subject)
            spent = time.perf_counter_ns() - started
            self.ran(label=member.label, hook=hook, subject=subject, nanoseconds=spent)

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        self._each("after_client_forward", cut)

    @hookimpl
    def before_send(self, message: Message) -> None:
        self._each("before_send", message)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        self._each("after_receive", message)

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        self._each("before_server_forward", cut)

    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        self._each("gradient_return", cut)

    @hookimpl
    def setup(self, peer: Peer) -> None:
        for member in self._members:
            member.setup(peer)

    @hookimpl
    def step_begin(self, step: int) -> None:
        for member in self._members:
            member.ask("step_begin", step=step)

    @hookimpl
    def step_end(self, step: int) -> None:
        for member in self._members:
            member.ask("step_end", step=step)

    @hookimpl
    def run_end(self) -> None:
        for member in self._members:
            member.ask("run_end")


def _labelled(bound: Iterable[Bound], taken: Sequence[str] = ()) -> list[tuple[str, Bound]]:
    """Give everyone a label of its own: the second of a name is ``NAME#2``."""
    found: list[tuple[str, Bound]] = []
    names = [label.partition("#")[0] for label in taken]
    for each in bound:
        twins = names.count(each.label)
        names.append(each.label)
        found.append((f"{each.label}#{twins + 1}" if twins else each.label, each))
    return found
