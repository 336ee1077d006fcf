"""What happens in a step, stage by stage, as an observer of both peers notes it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from splitlab.core.contract.cut import Cut
from splitlab.core.contract.hooks import hookimpl
from splitlab.core.contract.message import Kind, Message, Role

__all__ = ["Recorder", "Stage", "TensorFacts", "watcher"]

Direction = Literal["up", "down"]

CLIENT_PART = "client part"
SERVER_PART = "server part: forward, loss, backward, optimizer step"
CLIENT_BACKWARD = "client part: backward, optimizer step"
FRAME = "frame: encode, copy, decode"


@dataclass(frozen=True)
class TensorFacts:
    """A tensor as a stage left it.

    Attributes:
        name: of the field of the cut or of the tensor of the message.
        role: what it is: ``payload``, ``targets``, ``side``, or ``local`` if it does not travel.
        shape: of the tensor.
        dtype: as torch writes it, ``float32``.
        bytes: of its numbers, where it lies.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Stage:
    """What happened between two looks.

    Attributes:
        peer: ``client``, ``server`` or ``link``.
        what: ``PLUGIN HOOK``, or what else was done.
        plugin: label of the plugin, empty if it was none.
        hook: its hook, empty if it was none.
        direction: ``up`` until the server has run its part, ``down`` from then on.
        tensors: what is new or was changed.
        gone: names of tensors that are no longer there.
        frame: of a frame: its bytes by what they are, ``header`` included.
        milliseconds: median of the repeats.
    """

    peer: Literal["client", "server", "link"]
    what: str
    plugin: str
    hook: str
    direction: Direction
    tensors: tuple[TensorFacts, ...] = ()
    gone: tuple[str, ...] = ()
    frame: Mapping[str, int] = dataclasses.field(default_factory=dict)
    milliseconds: float | None = None

    def lines(self) -> list[tuple[str, str, str, str]]:
        """Return tensor, shape, dtype and bytes, a line each, for display."""
        found = [
            (
                t.name if t.role == "payload" else f"{t.name} ({t.role})",
                str(t.shape),
                t.dtype,
                f"{t.bytes:,}",
            )
            for t in self.tensors
        ]
        found += [(name, "gone", "", "") for name in self.gone]
        found += [(kind, "", "", f"{size:,}") for kind, size in self.frame.items()]
        if self.frame:
            found.append((f"sum {self.direction}", "", "", f"{sum(self.frame.values()):,}"))
        return found or [("unchanged" if self.plugin else "", "", "", "")]


_State = dict[str, tuple[str, torch.Tensor]]
"""Role and tensor by name."""


class Recorder:
    """Keeps the stages of one step, and the clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stages: list[Stage] = []
        self._left: _State = {}
        self._versions: dict[str, int] = {}
        self._direction: Direction = "up"
        self._since = 0

    def begin(self) -> None:
        """Start a step."""
        self._stages.clear()
        self._direction = "up"
        self.look({})

    def take(self) -> list[Stage]:
        """Return the stages of the last step."""
        return list(self._stages)

    def restart(self) -> None:
        """Let the clock count from now."""
        self._since = self._now()

    def turn(self) -> None:
        """From here on, what happens is on the way back."""
        self._direction = "down"

    def look(self, state: _State) -> None:
        """Take this state as the one that the next stage begins with."""
        self._left = state
        self._versions = {name: tensor._version for name, (_, tensor) in state.items()}
        self.restart()

    def note(
        self,
        peer: Literal["client", "server", "link"],
        what: str,
        *,
        plugin: str = "",
        hook: str = "",
        state: _State | None = None,
        frame: Mapping[str, int] | None = None,
    ) -> None:
        """End a stage: what changed in ``state`` since the last look is its doing."""
        milliseconds = (self._now() - self._since) / 1e6
        tensors = tuple(
            _facts(n, *pair) for n, pair in (state or {}).items() if self._is_new(n, pair)
        )
        gone = tuple(name for name in self._left if name not in state) if state is not None else ()
        self._stages.append(
            Stage(
                peer,
                what,
                plugin,
                hook,
                self._direction,
                tensors,
                gone,
                dict(frame or {}),
                milliseconds,
            )
        )
        if state is not None:
            self.look(state)

    def _is_new(self, name: str, now: tuple[str, torch.Tensor]) -> bool:
        was = self._left.get(name)
        same = was is not None and was[0] == now[0] and was[1] is now[1]
        return not same or self._versions[name] != now[1]._version

    def _now(self) -> int:
        if self.device.type == "cuda":  # a kernel runs on after the call that starts it
            torch.cuda.synchronize(self.device)
        return time.perf_counter_ns()


def _facts(name: str, role: str, tensor: torch.Tensor) -> TensorFacts:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorFacts(name, role, tuple(tensor.shape), dtype, tensor.nbytes)


_ROLES = {
    "activations": Role.PAYLOAD.value,
    "targets": Role.TARGETS.value,
    "gradient": Role.PAYLOAD.value,
    "weights": "local",
    "token_sizes": "local",
}
"""What the tensors of a cut are; `Cut.side` and `Cut.measured` besides."""


def _state(subject: Cut | Message) -> _State:
    if isinstance(subject, Message):
        return {name: (subject.role(name).value, subject[name]) for name in subject}
    named = {name: getattr(subject, name) for name in _ROLES}
    state = {name: (_ROLES[name], t) for name, t in named.items() if t is not None}
    state |= {str(request): ("local", t) for request, t in subject.measured.items()}
    return state | {name: (Role.SIDE.value, t) for name, t in subject.side.items()}


Wrapper = Generator[None, object, object]


class _Watcher:
    """Observes the hooks of one peer."""

    def __init__(self, peer: Literal["client", "server"], recorder: Recorder) -> None:
        self._peer = peer
        self._recorder = recorder

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Wrapper:
        self._recorder.note("client", CLIENT_PART, state=_state(cut))
        return (yield)

    @hookimpl(wrapper=True)
    def before_send(self, message: Message) -> Wrapper:
        if message.kind is Kind.GRADIENT:
            self._recorder.turn()
            self._recorder.note("server", SERVER_PART, state=_state(message))
        self._recorder.look(_state(message))
        return (yield)

    @hookimpl(wrapper=True)
    def after_receive(self, message: Message) -> Wrapper:
        self._recorder.look(_state(message))
        return (yield)

    @hookimpl(wrapper=True)
    def before_server_forward(self, cut: Cut) -> Wrapper:
        self._recorder.look(_state(cut))
        answer = yield
        self._recorder.look({})
        return answer

    @hookimpl(wrapper=True)
    def gradient_return(self, cut: Cut) -> Wrapper:
        self._recorder.look(_state(cut))
        answer = yield
        self._recorder.restart()
        return answer

    @hookimpl
    def plugin_ran(self, label: str, hook: str, subject: Cut | Message) -> None:
        self._recorder.note(
            self._peer, f"{label} {hook}", plugin=label, hook=hook, state=_state(subject)
        )


def watcher(peer: Literal["client", "server"], recorder: Recorder) -> object:
    """Return an observer of the hooks of one peer, which tells the recorder."""
    return _Watcher(peer, recorder)
