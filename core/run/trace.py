"""One training step under the magnifying glass: every tensor, frame and millisecond, in order.

Both peers live in this process and exchange real frames. Observers stand around the hooks and note
what each plugin left and how long it took; they change nothing.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.cut import Cut
from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.hooks import hookimpl
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.data.data import Split
from splitlab.core.engine.peers import Client, Server
from splitlab.core.run.config import Config
from splitlab.core.run.loop import load_configured_data
from splitlab.core.run.plan import (
    Built,
    build_client,
    build_server,
    choose_device,
    limited_threads,
    resolve,
)
from splitlab.core.wire.decode import decode
from splitlab.core.wire.encode import encode
from splitlab.core.wire.ledger import Ledger

__all__ = ["Stage", "TensorFacts", "Trace", "trace"]

Direction = Literal["up", "down"]

_CLIENT_HALF = "client half"
_SERVER_HALF = "server half: forward, loss, backward, optimizer step"
_CLIENT_BACKWARD = "client half: backward, optimizer step"
_FRAME = "frame: encode, copy, decode"
_BYTES = ("activation", "gradient", "targets", "side", "header")


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
        direction: ``up`` until the server has run its half, ``down`` from then on.
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


@dataclass(frozen=True)
class Trace:
    """One training step of a stack.

    Attributes:
        stack: the plugins, as they were given.
        dataset: name of the data.
        model: name of the model.
        cut: blocks that the client runs.
        rows: samples of the batch.
        step: which training step, from 1.
        repeats: further steps that were timed.
        device: where both peers computed.
        threads: CPU threads of each.
        loss: of the step.
        base_bytes: of the uncompressed float32 activations and gradients of the batch.
        ratio_nominal: what the papers would charge.
        ratio_measured: bytes of both frames over ``base_bytes``.
        stages: in the order in which they happened.
    """

    stack: tuple[str, ...]
    dataset: str
    model: str
    cut: int
    rows: int
    step: int
    repeats: int
    device: str
    threads: int
    loss: float
    base_bytes: int
    ratio_nominal: float
    ratio_measured: float
    stages: tuple[Stage, ...]

    def bytes(self, direction: Direction) -> int:
        """Return the length of the frame of this direction."""
        return sum(sum(s.frame.values()) for s in self.stages if s.direction == direction)

    def heading(self) -> list[str]:
        """Return what was traced, for display."""
        return [
            f"step {self.step} of {' + '.join(self.stack) or 'the empty stack'}: {self.dataset}, "
            f"{self.model} cut after block {self.cut}, {self.rows} samples, {self.device}, "
            f"{self.threads} thread{'s' * (self.threads > 1)}, loss {self.loss:.4f}"
        ]

    def totals(self) -> list[str]:
        """Return the sums, and how to read the numbers, for display."""
        spent: dict[str, float] = defaultdict(float)
        for stage in self.stages:
            kind = (
                "plugins" if stage.plugin else stage.peer if stage.frame else f"{stage.peer} half"
            )
            spent[kind] += stage.milliseconds or 0.0
        parts = ", ".join(f"{kind} {ms:.2f}" for kind, ms in spent.items())
        return [
            f"bytes: up {self.bytes('up'):,}, down {self.bytes('down'):,}, uncompressed "
            f"{self.base_bytes:,}; ratio measured {self.ratio_measured:.4f}, nominal ξ "
            f"{self.ratio_nominal:.4f}",
            f"milliseconds: {sum(spent.values()):.2f} ({parts}); medians of {self.repeats} further "
            "steps on the same batch, after one to warm up",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return dataclasses.asdict(self)


def trace(
    config: Config | None = None, *, step: int = 1, repeats: int = 5, **options: Any
) -> Trace:
    """Trace one training step, both directions, on a batch of the configured data.

    Args:
        config: model, data and stack; what is about the link and the end of a run is not used.
        step: which one, from 1; those before it are trained first, so that plugins that learn or
            remember have something to show.
        repeats: steps that are timed, on the same batch, after the one that is shown and one more.
            They are training steps: what is shown is of the first one, the times are of the later.
        options: fields of `Config`, instead of ``config`` or on top of it.

    Raises:
        SplitlabError: everything that is wrong with configuration, plugins or data.
    """
    if step < 1:
        raise ConfigError(f"--step {step} is not allowed; 1 (the first) or more")
    if not 1 <= repeats <= 1000:
        raise ConfigError(f"--repeats {repeats} is not allowed; from 1 to 1000")
    known = dataclasses.asdict(config) if config else {}
    config = resolve(Config.from_mapping(known | options))
    assert config.threads
    assert config.cut is not None
    device = choose_device(config.device, "client", peers_here=1)
    data = load_configured_data(config)
    classes = len(data.train.classes)
    with limited_threads(config.threads):
        recorder = _Recorder(device)
        client = build_client(config, classes, device, [_Watcher("client", recorder)])
        server = build_server(config, classes, device, [_Watcher("server", recorder)])
        try:
            peers = _Peers(client, server, recorder)
            batches = _batches(data.train, config.batch_size)
            for number in range(step - 1):
                peers.step(next(batches), number)
            batch = next(batches)
            loss = peers.step(batch, step - 1)
            shown = recorder.take()
            peers.step(batch, step)
            recorder.take()
            times: dict[tuple[str, ...], list[float]] = defaultdict(list)
            for number in range(step + 1, step + 1 + repeats):
                peers.step(batch, number)
                for stage in recorder.take():
                    times[_identity(stage)].append(stage.milliseconds or 0.0)
        finally:
            client.worker.stack.run_end()
            server.worker.stack.run_end()
    rows = len(batch.targets)
    base_bytes = 2 * client.batch_bytes // config.batch_size * rows
    crossed = sum(sum(stage.frame.values()) for stage in shown)
    return Trace(
        stack=config.plugins,
        dataset=data.name,
        model=config.model,
        cut=config.cut,
        rows=rows,
        step=step,
        repeats=repeats,
        device=str(device),
        threads=config.threads,
        loss=loss,
        base_bytes=base_bytes,
        ratio_nominal=sum(client.worker.stack.nominal_ratio()) / 2,
        ratio_measured=crossed / base_bytes,
        stages=tuple(
            replace(stage, milliseconds=statistics.median(times[_identity(stage)]))
            for stage in shown
        ),
    )


def _identity(stage: Stage) -> tuple[str, ...]:
    return stage.peer, stage.what, stage.direction


def _batches(split: Split, batch_size: int) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from split.batches(batch_size, epoch=epoch, shuffle=True)
        epoch += 1


class _Peers:
    """Client and server, and the link between them."""

    def __init__(self, client: Built[Client], server: Built[Server], recorder: _Recorder) -> None:
        self._client = client.worker
        self._server = server.worker
        self._recorder = recorder

    def step(self, batch: Batch, number: int) -> float:
        """Run one training step; returns the loss."""
        recorder = self._recorder
        recorder.begin()
        up = self._client.forward(batch, number)
        answer = self._server.handle(self._cross(up, "up"))
        arrived = self._cross(answer, "down")
        loss = self._client.backward(arrived)
        recorder.note("client", _CLIENT_BACKWARD)
        return loss

    def _cross(self, message: Message, direction: Direction) -> Message:
        self._recorder.restart()
        frame = encode(message)
        arrived = decode(frame.head, bytearray().join(frame.buffers()[1:]))
        arrived.to(self._recorder.device)
        ledger = Ledger()
        ledger.add(message, direction)
        counts = ledger.counts["training"][direction]
        shown = {kind: counts[kind] for kind in _BYTES if kind in counts}
        self._recorder.note("link", _FRAME, frame=shown)
        return arrived


_State = dict[str, tuple[str, torch.Tensor]]
"""Role and tensor by name."""


class _Recorder:
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
    "attention": "local",
    "keys": "local",
    "weights": "local",
    "token_sizes": "local",
}
"""What the tensors of a cut are; `Cut.side` besides."""


def _state(subject: Cut | Message) -> _State:
    if isinstance(subject, Message):
        return {name: (subject.role(name).value, subject[name]) for name in subject}
    named = {name: getattr(subject, name) for name in _ROLES}
    state = {name: (_ROLES[name], t) for name, t in named.items() if t is not None}
    return state | {name: (Role.SIDE.value, t) for name, t in subject.side.items()}


Wrapper = Generator[None, object, object]


class _Watcher:
    """Observes the hooks of one peer."""

    def __init__(self, peer: Literal["client", "server"], recorder: _Recorder) -> None:
        self._peer = peer
        self._recorder = recorder

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Wrapper:
        self._recorder.note("client", _CLIENT_HALF, state=_state(cut))
        return (yield)

    @hookimpl(wrapper=True)
    def before_send(self, message: Message) -> Wrapper:
        if message.kind is Kind.GRADIENT:
            self._recorder.turn()
            self._recorder.note("server", _SERVER_HALF, state=_state(message))
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
