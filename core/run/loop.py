"""A run: the client's loop from the first step to the budget, with everything around it.

`run` joins the parts: data, client, a server (in this process, in a second one, or elsewhere), the
run folder, evaluations, checkpoints, resume.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from splitlab.core.catalogue.links import load_transport
from splitlab.core.catalogue.registry import bind_stack
from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import ConfigError, LinkError, SplitlabError
from splitlab.core.contract.link import PairTransport
from splitlab.core.data.data import Data, Split, load_data
from splitlab.core.models.model import input_shape
from splitlab.core.run.checkpoint import Checkpoints
from splitlab.core.run.config import Budget, Config, flag
from splitlab.core.run.folder import RunFolder
from splitlab.core.run.launch import Launch
from splitlab.core.run.plan import (
    build_client,
    choose_device,
    limited_threads,
    resolve,
)
from splitlab.core.session.session import ClientSession
from splitlab.core.wire.ledger import Ledger

__all__ = ["Interrupted", "Progress", "Reporter", "Result", "load_configured_data", "run"]


class Interrupted(SplitlabError):
    """The run was asked to stop; its checkpoint is written."""


@dataclass
class Progress:
    """How far a run is; kept in its checkpoints.

    Attributes:
        step: training steps done.
        samples: training samples seen.
        nominal: nominal communication so far, in uncompressed samples.
        base_bytes: what uncompressed activations and gradients of the same samples would weigh.
        seconds: wall time, evaluations included; `client_seconds` (with data), `server_seconds`
            and `link_seconds` (with encoding) are the parts of its training steps.
    """

    step: int = 0
    samples: int = 0
    nominal: float = 0.0
    base_bytes: int = 0
    seconds: float = 0.0
    client_seconds: float = 0.0
    server_seconds: float = 0.0
    link_seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """What a run ended with.

    Attributes:
        folder: the run folder.
        summary: the content of ``summary.json``.
        ledger: bytes by phase, direction and kind, as in ``ledger.json``.
    """

    folder: Path
    summary: dict[str, Any]
    ledger: dict[str, dict[str, dict[str, int]]]


class Reporter:
    """Is told how a run goes. This one stays silent; `splitlab.core.command.display` shows."""

    def begin(self, config: Config, folder: Path, stack: str, total: Callable[[], float]) -> None:
        """The run begins; ``total()`` is the share of the budget that is used, 0 to 1."""

    def loading(self, part: str, done: int, total: int) -> None:
        """So many images of a part of the data set are decoded."""

    def step(self, progress: Progress, ledger: Ledger, loss: float) -> None:
        """A training step is done."""

    def evaluating(self, done: int, total: int) -> None:
        """An evaluation has come this far, in samples."""

    def evaluated(self, record: dict[str, Any]) -> None:
        """An evaluation is done; the record as in ``metrics.jsonl``."""

    def end(self, result: Result | None) -> None:
        """The run is over; None if it failed."""


def run(
    config: Config | None = None,
    *,
    resume: str | Path | None = None,
    connect: str | None = None,
    observers: Sequence[object] = (),
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Result:
    """Train a split model and return what came of it.

    Args:
        config: the run; ``run(plugins=["adc"], seed=1)`` is short for
            ``run(Config(plugins=("adc",), seed=1))``.
        resume: go on with the run in this folder; of the options only ``budget`` and ``timeout``
            may be given then.
        connect: address of a server that runs already (``splitlab serve``); by default the
            transport decides whether the server is in this process or in a second one on this
            machine.
        observers: objects with ``@hookimpl(wrapper=True)`` methods that watch the client's hooks,
            and the server's too if it is in this process.
        reporter: is told how the run goes.
        should_stop: asked after every step; True ends the run with a checkpoint and `Interrupted`.
        options: fields of `Config`, instead of ``config`` or on top of it.

    Raises:
        SplitlabError: everything that is wrong with configuration, plugins, data or link.
    """
    reporter = reporter or Reporter()
    result = None
    try:
        config, folder = _settle(config, resume, options)
        with ExitStack() as cleanup:
            cleanup.enter_context(limited_threads(config.threads or 1))
            parts = _Run(config, folder, connect, observers, reporter, should_stop, cleanup)
            result = parts.go()
        return result
    finally:
        reporter.end(result)


def _settle(
    config: Config | None, resume: str | Path | None, options: dict[str, Any]
) -> tuple[Config, RunFolder | None]:
    """Return the configuration of a new run, or that of the run to go on with and its folder."""
    Config.from_mapping(options)  # a key that does not exist is the first thing to say
    folder = RunFolder.open(resume) if resume is not None else None
    if folder is not None:
        fixed = sorted(options.keys() - {"budget", "timeout"})
        if config is not None or fixed:
            what = ", ".join(map(flag, fixed)) or "a configuration"
            raise ConfigError(
                f"{what} cannot be given with --resume: the run goes on as it began; "
                "only --budget and --timeout may change"
            )
        config = folder.read_config()
    known = dataclasses.asdict(config) if config else {}
    return resolve(Config.from_mapping(known | options)), folder


class _Run:
    """The parts of one run, put together in the order in which they may fail."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder | None,
        connect: str | None,
        observers: Sequence[object],
        reporter: Reporter,
        should_stop: Callable[[], bool],
        cleanup: ExitStack,
    ) -> None:
        transport = load_transport(config.transport)
        paired = isinstance(transport, PairTransport)
        device = choose_device(config.device, "client", peers_here=1 if paired or connect else 2)
        data = load_configured_data(config, reporter)
        built = build_client(config, len(data.train.classes), device, observers)
        cleanup.callback(built.worker.stack.run_end)
        steps_per_epoch = -(-len(data.train) // config.batch_size)
        eval_every = config.eval_every or steps_per_epoch
        config = replace(
            config,
            eval_every=eval_every,
            checkpoint_every=config.checkpoint_every or eval_every,
        )
        titles = [str(plugin) for plugin in bind_stack(config.plugins)]
        if folder is None:
            folder = RunFolder.create(config.output, titles)
            folder.write_config(config)
            folder.write_environment(device=str(device), threads=config.threads)
            cleanup.push(_remove_if_unused(folder))
        self.config = config
        self.folder = folder
        self.client = built.worker
        self.data = data
        self.progress = Progress()
        self.ledger = Ledger()
        self._agreement = built.agreement
        self._batch_bytes = built.batch_bytes
        self._steps_per_epoch = steps_per_epoch
        self._titles = titles
        self._budget = Budget.parse(config.budget)
        self._nominal = built.worker.stack.nominal_ratio()
        self._checkpoints = Checkpoints(folder.path, "client")
        self._reporter = reporter
        self._should_stop = should_stop
        self._connect = connect
        launch = Launch(config, len(data.train.classes), folder, device, observers)
        link = cleanup.enter_context(launch.link(transport, connect))
        self._last_words = launch.last_words
        self._session = ClientSession(link, self.ledger, config.timeout)

    def go(self) -> Result:
        """Shake hands, train to the budget, and write the result."""
        try:
            self._restore()
            self._reporter.begin(
                self.config, self.folder.path, " + ".join(self._titles) or "none", self.budget_used
            )
            evaluation = self._train()
            self._session.finish(self.progress.step)
        except LinkError as error:
            raise type(error)(f"{error}{self._last_words()}{self._way_back()}") from error
        except BaseException as error:
            self._session.fail(error)
            raise
        return self._finish(evaluation)

    def budget_used(self) -> float:
        """Return the share of the budget that is used; the run ends at 1."""
        used = {
            "steps": self.progress.step,
            "epochs": self.progress.samples / len(self.data.train),
            "bytes": self.ledger.total("up", "training") + self.ledger.total("down", "training"),
            "nominal": self.progress.nominal / len(self.data.train),
        }[self._budget.unit]
        # A sum of many ratios misses its round value by float error.
        return used / self._budget.amount + 1e-9

    # Training.

    def _train(self) -> dict[str, Any]:
        """Train until the budget is used up; returns the last evaluation."""
        config, progress = self.config, self.progress
        assert config.eval_every
        assert config.checkpoint_every
        evaluation = self.folder.last_evaluation()
        batches = self._batches()
        while self.budget_used() < 1:
            self._step(batches)
            if progress.step % config.eval_every == 0:
                evaluation = self._evaluate()
            stop = self._should_stop()
            if stop or progress.step % config.checkpoint_every == 0:
                self._save()
            if stop:
                raise Interrupted(f"interrupted after step {progress.step}{self._way_back()}")
        if evaluation is None or evaluation["step"] != progress.step:
            evaluation = self._evaluate()
        if progress.step not in self._checkpoints.steps():
            self._save()
        return evaluation

    def _batches(self) -> Iterator[Batch]:
        epoch, skip = divmod(self.progress.step, self._steps_per_epoch)
        while True:
            yield from self.data.train.batches(
                self.config.batch_size, epoch=epoch, skip=skip, shuffle=True
            )
            epoch, skip = epoch + 1, 0

    def _step(self, batches: Iterator[Batch]) -> None:
        progress, session, ledger = self.progress, self._session, self.ledger
        started = time.perf_counter()
        batch = next(batches)
        server, link = session.server_seconds, session.link_seconds
        up, down = ledger.total("up", "training"), ledger.total("down", "training")
        loss = self.client.backward(session.exchange(self.client.forward(batch, progress.step)))
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise SplitlabError(
                f"step {progress.step}: the loss is {loss}; lower --lr, or check the stack"
            )
        progress.step += 1
        progress.samples += len(batch.targets)
        progress.nominal += sum(self._nominal) / 2 * len(batch.targets)
        progress.base_bytes += 2 * self._batch_bytes * len(batch.targets) // self.config.batch_size
        seconds = time.perf_counter() - started
        server, link = session.server_seconds - server, session.link_seconds - link
        progress.seconds += seconds
        progress.server_seconds += server
        progress.link_seconds += link
        progress.client_seconds += seconds - server - link
        self.folder.log(
            {
                "kind": "train",
                "step": progress.step,
                "loss": loss,
                "bytes_up": ledger.total("up", "training") - up,
                "bytes_down": ledger.total("down", "training") - down,
            }
        )
        self._reporter.step(progress, ledger, loss)

    # Evaluation.

    def _evaluate(self) -> dict[str, Any]:
        started = time.perf_counter()
        up, down = self.ledger.total("up", "evaluation"), self.ledger.total("down", "evaluation")
        acts = self.client.stack.acts_in_evaluation() and self.config.evaluate != "uncompressed"
        accuracy, loss = self._score(self.data.test, stacked=acts)
        record: dict[str, Any] = {
            "kind": "eval",
            "step": self.progress.step,
            "accuracy": accuracy,
            "loss": loss,
            "compressed": acts,
        }
        if acts and self.config.evaluate == "both":
            accuracy, loss = self._score(self.data.test, stacked=False)
            record |= {"accuracy_uncompressed": accuracy, "loss_uncompressed": loss}
        record |= {
            "bytes_up": self.ledger.total("up", "evaluation") - up,
            "bytes_down": self.ledger.total("down", "evaluation") - down,
            "training_bytes": self.ledger.total("up", "training")
            + self.ledger.total("down", "training"),
        }
        self.progress.seconds += time.perf_counter() - started
        self.folder.log(record)
        self._reporter.evaluated(record)
        return record

    def _score(self, split: Split, *, stacked: bool) -> tuple[float, float]:
        """Return accuracy and mean loss over the split, every sample weighing the same."""
        right = seen = 0
        loss = 0.0
        for number, batch in enumerate(split.batches(self.config.batch_size)):
            query = self.client.query(batch, number, stacked=stacked)
            ids, loss_sum = self.client.answer(self._session.exchange(query))
            right += int((ids == batch.targets).sum())
            loss += loss_sum
            seen += len(batch.targets)
            self._reporter.evaluating(seen, len(split))
        return right / seen, loss / seen

    # Checkpoints, resume, result.

    def _save(self) -> None:
        step = self.progress.step
        self._session.save(step)
        tensors, values = self.client.state()
        values["run"] = {
            "progress": dataclasses.asdict(self.progress),
            "ledger": self.ledger.counts,
            "metrics_bytes": self.folder.metrics_size(),
        }
        self._checkpoints.save(step, tensors, values)
        self.folder.write_ledger(self.ledger)

    def _restore(self) -> None:
        """Load the newest checkpoint, if any, and shake hands."""
        step = max(self._checkpoints.steps(), default=0)
        metrics_bytes = 0
        if step:
            tensors, values = self._checkpoints.load(step)
            state = values.pop("run")
            self.client.load_state(tensors, values)
            self.progress = Progress(**state["progress"])
            self.ledger.counts = Ledger(state["ledger"]).counts
            metrics_bytes = state["metrics_bytes"]
        self.folder.cut_metrics(metrics_bytes)
        self._session.open(
            self._agreement,
            run=self.folder.path.resolve().name,
            step=step,
            batch_bytes=self._batch_bytes,
        )
        self.folder.write_config(self.config)  # a resumed run may have got another budget
        self.folder.remove_summary()

    def _finish(self, evaluation: dict[str, Any]) -> Result:
        progress, ledger = self.progress, self.ledger
        up, down = ledger.total("up", "training"), ledger.total("down", "training")
        summary = {
            "accuracy": evaluation["accuracy"],
            "loss": evaluation["loss"],
            **{key: evaluation[key] for key in evaluation if key.endswith("_uncompressed")},
            "steps": progress.step,
            "epochs": progress.samples / len(self.data.train),
            "seconds": progress.seconds,
            "client_seconds": progress.client_seconds,
            "server_seconds": progress.server_seconds,
            "link_seconds": progress.link_seconds,
            "ratio_nominal": sum(self._nominal) / 2,
            "ratio_measured": (up + down) / progress.base_bytes,
            "bytes_up": up,
            "bytes_down": down,
            "stack": self._titles,
            "transport": self.config.transport,
            "dataset": self.data.name,
            "model": self.config.model,
            "cut": self.config.cut,
            "seed": self.config.seed,
        }
        self.folder.write_ledger(ledger)
        self.folder.write_summary(summary)
        return Result(self.folder.path, summary, ledger.counts)

    def _way_back(self) -> str:
        step = max(self._checkpoints.steps(), default=0)
        start = f"the checkpoint of step {step}" if step else "the beginning"
        if not self.progress.step:
            return ""
        again = f"join {self._connect}" if self._connect else "run"
        return f"; go on from {start} with: splitlab {again} --resume {self.folder.path}"


def load_configured_data(config: Config, reporter: Reporter | None = None) -> Data:
    """Load the data of a configuration, in the form that its model takes."""
    channels, image_size = input_shape(config.model, config.image_size)
    return load_data(
        config.dataset,
        config.data_dir,
        image_size=image_size,
        channels=channels,
        seed=config.seed,
        augment=config.augment,
        workers=config.workers,
        progress=reporter.loading if reporter else None,
    )


def _remove_if_unused(folder: RunFolder) -> Callable[..., None]:
    """Return an exit callback: a failed run that made no step leaves no folder behind."""

    def leave(kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and not folder.metrics_size():
            folder.remove()

    return leave
