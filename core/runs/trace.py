"""One training step under the magnifying glass: every tensor, frame and millisecond, in order.

Both peers live in this process and exchange real frames. Observers stand around the hooks and note
what each plugin left and how long it took; they change nothing.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from splitlab.core.catalogue.links import load_transport
from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.link import Link
from splitlab.core.contract.message import Message
from splitlab.core.data.split import Split
from splitlab.core.engine.client import Client
from splitlab.core.engine.conversation import hold
from splitlab.core.engine.server import Server
from splitlab.core.runs.config import Config
from splitlab.core.runs.ends import end
from splitlab.core.runs.plan import Decided, Plan, make
from splitlab.core.runs.precision import products
from splitlab.core.runs.repeating import repeating
from splitlab.core.runs.stages import CLIENT_BACKWARD, FRAME, Recorder, Stage, watcher
from splitlab.core.runs.workers import build_client, build_server, limited_threads
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
        precision: what both peers computed in.
        base_bytes: of the uncompressed float32 activations and gradients of the batch.
        ratio_nominal: what the papers would charge.
        ratio_measured: bytes of both frames over ``base_bytes``.
        stages: in the order in which they happened.
        metrics: numbers of plugins and probes for the step, by peer, label and name.
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
    precision: str
    loss: float
    base_bytes: int
    ratio_nominal: float
    ratio_measured: float
    stages: tuple[Stage, ...]
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    def bytes(self, direction: Literal["up", "down"]) -> int:
        """Return the length of the frame of this direction."""
        return sum(sum(s.frame.values()) for s in self.stages if s.direction == direction)

    def heading(self) -> list[str]:
        """Return what was traced, for display."""
        return [
            f"step {self.step} of {' + '.join(self.stack) or 'the empty stack'}: {self.dataset}, "
            f"{self.model} cut at {self.cut}, {self.rows} samples, {self.device}, "
            f"{self.threads} thread{'s' * (self.threads > 1)}, {self.precision}, "
            f"loss {self.loss:.4f}"
        ]

    def totals(self) -> list[str]:
        """Return the sums, and how to read the numbers, for display."""
        spent: dict[str, float] = defaultdict(float)
        for stage in self.stages:
            kind = (
                "plugins" if stage.plugin else stage.peer if stage.frame else f"{stage.peer} part"
            )
            spent[kind] += stage.milliseconds or 0.0
        said = [
            f"{label} at the {peer}: {', '.join(f'{k} {v:.6g}' for k, v in numbers.items())}"
            for peer, labels in self.metrics.items()
            for label, numbers in labels.items()
        ]
        parts = ", ".join(f"{kind} {ms:.2f}" for kind, ms in spent.items())
        return [
            f"bytes: up {self.bytes('up'):,}, down {self.bytes('down'):,}, uncompressed float32 "
            f"{self.base_bytes:,}; ratio measured {self.ratio_measured:.4f}, nominal ξ "
            f"{self.ratio_nominal:.4f}",
            f"milliseconds: {sum(spent.values()):.2f} ({parts}); medians of {self.repeats} further "
            "steps on the same batch, after one to warm up",
            *said,
        ]

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return dataclasses.asdict(self)


def trace(
    config: Config | None = None, *, step: int = 1, repeats: int = 5, **options: Any
) -> Trace:
    """Trace one training step, both directions, on a batch of the configured data.

    Args:
        config: model, data, stack, probes and link wrappers; what is about the transport and the
            end of a run is not used, and no probe reports.
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
    asked = Config.from_mapping(known | options)
    decided = Decided.of(replace(asked, transport=Config().transport))  # of one process
    for bound in decided.stack:
        bound.check_whole()
    with ExitStack() as cleanup:
        cleanup.enter_context(limited_threads(decided.threads))
        cleanup.enter_context(products(asked.precision))
        cleanup.enter_context(repeating(asked))
        plan, model, data = make(decided)
        cleanup.callback(data.close)
        config = plan.config
        recorder = Recorder(plan.device)
        client = build_client(plan, model, [watcher("client", recorder)])
        server = build_server(plan, model, [watcher("server", recorder)])
        try:
            peers = cleanup.enter_context(closing(_Peers(client, server, recorder, plan)))
            batches = cleanup.enter_context(closing(_batches(data.train, config.batch_size)))
            for number in range(step - 1):
                peers.step(next(batches), number)
            batch = next(batches)
            loss = peers.step(batch, step - 1)
            shown, metrics = recorder.take(), peers.metrics
            peers.step(batch, step)
            recorder.take()
            times: dict[tuple[str, ...], list[float]] = defaultdict(list)
            for number in range(step + 1, step + 1 + repeats):
                peers.step(batch, number)
                for stage in recorder.take():
                    times[_identity(stage)].append(stage.milliseconds or 0.0)
            for worker in (client, server):
                worker.settle()
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
        precision=config.precision,
        loss=loss,
        base_bytes=base_bytes,
        ratio_nominal=sum(plan.nominal) / 2,
        ratio_measured=crossed / base_bytes,
        stages=tuple(
            replace(stage, milliseconds=statistics.median(times[_identity(stage)]))
            for stage in shown
        ),
        metrics=metrics,
    )


def _identity(stage: Stage) -> tuple[str, ...]:
    return stage.peer, stage.what, stage.direction


def _batches(split: Split, batch_size: int) -> Generator[Batch, None, None]:
    epoch = 0
    while True:
        yield from split.batches(batch_size, epoch=epoch, shuffle=True)
        epoch += 1


class _Peers:
    """Client and server, and the link between them.

    Attributes:
        metrics: of the last step, by peer.
    """

    def __init__(self, client: Client, server: Server, recorder: Recorder, plan: Plan) -> None:
        self._client = client
        self._server = server
        self._recorder = recorder
        self._plan = plan
        self._timeout = plan.timeout
        self.metrics: dict[str, Mapping[str, Mapping[str, float]]] = {}
        name = plan.config.transport
        transport = load_transport(name)
        assert transport.place == "inside", name  # `trace` says so
        near, far = transport.pair(self._serve)
        self._near = end(near, name, plan.links, "client")
        self._far = end(far, name, plan.links, "server")

    def close(self) -> None:
        """Close the link, and the wrappers around it."""
        self._near.close()
        self._far.close()

    def step(self, batch: Batch, number: int) -> float:
        """Run one training step; returns the loss."""
        self._recorder.begin()
        mixed = self._plan.mixed(batch, number)
        trained = hold(self._client.train(mixed, number), self._ask)
        self._recorder.note("client", CLIENT_BACKWARD)
        self.metrics = {"client": trained.metrics, "server": self._server.metrics}
        return trained.loss

    def _ask(self, message: Message) -> Message:
        self._recorder.restart()
        self._near.send(message, self._timeout)
        return self._arrived(self._near, "down")

    def _serve(self) -> None:
        answer = self._server.handle(self._arrived(self._far, "up"))
        self._recorder.restart()
        self._far.send(answer, self._timeout)

    def _arrived(self, link: Link, direction: Literal["up", "down"]) -> Message:
        arrived = link.receive(self._timeout).to(self._recorder.device)
        ledger = Ledger()
        ledger.add(arrived, direction)
        counts = ledger.counts["training"][direction]
        shown = {kind: counts[kind] for kind in _BYTES if kind in counts}
        self._recorder.note("link", FRAME, frame=shown)
        return arrived
