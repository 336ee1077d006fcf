"""One training step under the magnifying glass: every tensor, frame and millisecond, in order.

Both peers live in this process and exchange real frames. Observers stand around the hooks and note
what each plugin left and how long it took; they change nothing.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.message import Message
from splitlab.core.data.split import Split
from splitlab.core.engine.client import Client
from splitlab.core.engine.conversation import hold
from splitlab.core.engine.server import Server
from splitlab.core.runs.config import Config
from splitlab.core.runs.plan import Decided, make
from splitlab.core.runs.stages import CLIENT_BACKWARD, FRAME, Recorder, Stage, watcher
from splitlab.core.runs.workers import build_client, build_server, limited_threads
from splitlab.core.wire.decode import decode
from splitlab.core.wire.encode import encode
from splitlab.core.wire.ledger import Ledger

__all__ = ["Trace", "trace"]

_BYTES = ("activation", "gradient", "targets", "side", "header")


@dataclass(frozen=True)
class Trace:
    """One training step of a stack.

    Attributes:
        stack: the plugins, as they were given.
        dataset: name of the data.
        model: name of the model.
        cut: behind which segment of the model the cut lies.
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

    def bytes(self, direction: Literal["up", "down"]) -> int:
        """Return the length of the frame of this direction."""
        return sum(sum(s.frame.values()) for s in self.stages if s.direction == direction)

    def heading(self) -> list[str]:
        """Return what was traced, for display."""
        return [
            f"step {self.step} of {' + '.join(self.stack) or 'the empty stack'}: {self.dataset}, "
            f"{self.model} cut at {self.cut}, {self.rows} samples, {self.device}, "
            f"{self.threads} thread{'s' * (self.threads > 1)}, loss {self.loss:.4f}"
        ]

    def totals(self) -> list[str]:
        """Return the sums, and how to read the numbers, for display."""
        spent: dict[str, float] = defaultdict(float)
        for stage in self.stages:
            kind = (
                "plugins" if stage.plugin else stage.peer if stage.frame else f"{stage.peer} part"
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
        config: model, data and stack; what is about the link and the end of a run is not used, and
            of probes nothing is shown.
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
    decided = Decided.of(Config.from_mapping(known | options))
    with limited_threads(decided.threads):
        plan, model, data = make(decided)
        config = plan.config
        recorder = Recorder(plan.device)
        client = build_client(plan, model, [watcher("client", recorder)])
        server = build_server(plan, model, [watcher("server", recorder)])
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
            client.stack.run_end()
            server.stack.run_end()
    rows = len(batch.targets)
    base_bytes = 2 * plan.batch_bytes // config.batch_size * rows
    crossed = sum(sum(stage.frame.values()) for stage in shown)
    return Trace(
        stack=config.plugins,
        dataset=data.name,
        model=config.model,
        cut=plan.model.cut,
        rows=rows,
        step=step,
        repeats=repeats,
        device=str(plan.device),
        threads=plan.threads,
        loss=loss,
        base_bytes=base_bytes,
        ratio_nominal=sum(plan.nominal) / 2,
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

    def __init__(self, client: Client, server: Server, recorder: Recorder) -> None:
        self._client = client
        self._server = server
        self._recorder = recorder

    def step(self, batch: Batch, number: int) -> float:
        """Run one training step; returns the loss."""
        self._recorder.begin()
        trained = hold(self._client.train(batch, number), self._ask)
        self._recorder.note("client", CLIENT_BACKWARD)
        return trained.loss

    def _ask(self, message: Message) -> Message:
        answer = self._server.handle(self._cross(message, "up"))
        return self._cross(answer, "down")

    def _cross(self, message: Message, direction: Literal["up", "down"]) -> Message:
        self._recorder.restart()
        frame = encode(message)
        message.sent(frame.nbytes)
        arrived = decode(frame.head, bytearray().join(frame.buffers()[1:]))
        arrived.to(self._recorder.device)
        ledger = Ledger()
        ledger.add(message, direction)
        counts = ledger.counts["training"][direction]
        shown = {kind: counts[kind] for kind in _BYTES if kind in counts}
        self._recorder.note("link", FRAME, frame=shown)
        return arrived
