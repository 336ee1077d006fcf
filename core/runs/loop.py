"""The client's loop: from the first step to the budget, with evaluations and checkpoints."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import Diverged, Interrupted, LinkError, when
from splitlab.core.contract.link import Link
from splitlab.core.data.load import Data
from splitlab.core.data.split import Split
from splitlab.core.engine.client import Client
from splitlab.core.runs.checkpoint import Checkpoints
from splitlab.core.runs.folder import RunFolder
from splitlab.core.runs.plan import Plan
from splitlab.core.runs.records import EvaluationRecord, StepRecord, Summary
from splitlab.core.runs.reporter import Progress, Reporter, Result
from splitlab.core.session.client import ClientSession
from splitlab.core.wire.ledger import Ledger

__all__ = ["Loop"]


class Loop:
    """One client's training.

    Args:
        plan: of the run.
        data: to train on, and to evaluate on.
        client: the peer.
        link: to the server.
        folder: of the run.
        reporter: is told how it goes.
        should_stop: asked before the first step and after every one.
        connect: address of the server, if it was started by somebody else.
    """

    def __init__(
        self,
        plan: Plan,
        data: Data,
        client: Client,
        link: Link,
        folder: RunFolder,
        reporter: Reporter,
        should_stop: Callable[[], bool],
        connect: str | None,
    ) -> None:
        self.plan = plan
        self.data = data
        self.client = client
        self.folder = folder
        self.progress = Progress()
        self.ledger = Ledger()
        self._checkpoints = Checkpoints(folder.path, "client")
        self._reporter = reporter
        self._should_stop = should_stop
        self._connect = connect
        self._session = ClientSession(link, self.ledger, plan.config.timeout)

    def go(self, last_words: Callable[[], str]) -> Result:
        """Shake hands, train to the budget, and write the summary.

        Args:
            last_words: says why the server ended, as the end of an error line, if it did.
        """
        try:
            self._restore()
            self._reporter.begin(self.plan, self.folder.path, self.budget_used)
            evaluation = self._train()
            self._session.finish(self.progress.step)
        except LinkError as error:
            raise type(error)(f"{error}{last_words()}{self._way_back()}") from error
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
        }[self.plan.budget.unit]
        # A sum of many ratios misses its round value by float error.
        return used / self.plan.budget.amount + 1e-9

    # Training.

    def _train(self) -> EvaluationRecord:
        """Train until the budget is used up; returns the last evaluation."""
        plan, progress = self.plan, self.progress
        evaluation = self.folder.last_evaluation()
        batches = self._batches()
        if self._should_stop():
            raise Interrupted(f"interrupted before step {progress.step + 1}{self._way_back()}")
        while self.budget_used() < 1:
            self._step(batches)
            if progress.step % plan.eval_every == 0:
                evaluation = self._evaluate()
            stop = self._should_stop()
            if stop or progress.step % plan.checkpoint_every == 0:
                self._save()
            if stop:
                raise Interrupted(f"interrupted after step {progress.step}{self._way_back()}")
        if evaluation is None or evaluation.step != progress.step:
            evaluation = self._evaluate()
        if progress.step not in self._checkpoints.steps():
            self._save()
        return evaluation

    def _batches(self) -> Iterator[Batch]:
        epoch, skip = divmod(self.progress.step, self.plan.steps_per_epoch)
        while True:
            yield from self.data.train.batches(
                self.plan.config.batch_size, epoch=epoch, skip=skip, shuffle=True
            )
            epoch, skip = epoch + 1, 0

    def _step(self, batches: Iterator[Batch]) -> None:
        progress, session = self.progress, self._session
        started = time.perf_counter()
        batch = next(batches)
        server, link, mark = session.server_seconds, session.link_seconds, self.ledger.mark()
        trained = session.hold(self.client.train(batch, progress.step))
        loss = trained.loss
        if loss != loss or loss in (float("inf"), float("-inf")):
            suspects = "the model and the stack" if self.plan.stack else "the model"
            lower = "lower --lr, or " if progress.step else ""  # at first nothing was learned
            raise Diverged(f"{when(trained.step)}: the loss is {loss}; {lower}check {suspects}")
        size = self.plan.config.batch_size
        progress.step += 1
        progress.samples += trained.samples
        progress.nominal += sum(self.plan.nominal) / 2 * trained.samples
        progress.base_bytes += 2 * self.plan.batch_bytes * trained.samples // size
        seconds = time.perf_counter() - started
        server, link = session.server_seconds - server, session.link_seconds - link
        progress.seconds += seconds
        progress.server_seconds += server
        progress.link_seconds += link
        progress.client_seconds += seconds - server - link
        crossed = self.ledger.since(mark)
        up, down = crossed.total("up", "training"), crossed.total("down", "training")
        self.folder.log(StepRecord(progress.step, loss, up, down, trained.metrics))
        self._reporter.step(progress, self.ledger, loss)

    # Evaluation.

    def _evaluate(self) -> EvaluationRecord:
        started = time.perf_counter()
        mark = self.ledger.mark()
        wanted = self.plan.config.evaluate
        acts = self.client.stack.acts_in_evaluation() and wanted != "uncompressed"
        accuracy, loss = self._score(self.data.test, stacked=acts)
        plain: tuple[float, float] | tuple[None, None] = (None, None)
        if acts and wanted == "both":
            plain = self._score(self.data.test, stacked=False)
        crossed = self.ledger.since(mark)
        record = EvaluationRecord(
            step=self.progress.step,
            accuracy=accuracy,
            loss=loss,
            compressed=acts,
            bytes_up=crossed.total("up", "evaluation"),
            bytes_down=crossed.total("down", "evaluation"),
            training_bytes=self.ledger.total("up", "training")
            + self.ledger.total("down", "training"),
            accuracy_uncompressed=plain[0],
            loss_uncompressed=plain[1],
        )
        self.progress.seconds += time.perf_counter() - started
        self.folder.log(record)
        self._reporter.evaluated(record)
        return record

    def _score(self, split: Split, *, stacked: bool) -> tuple[float, float]:
        """Return accuracy and mean loss over the split, every sample weighing the same."""
        right = seen = 0
        loss = 0.0
        for number, batch in enumerate(split.batches(self.plan.config.batch_size)):
            answer = self._session.hold(self.client.query(batch, number, stacked=stacked))
            right += int((answer.ids == batch.targets).sum())
            loss += answer.loss_sum
            seen += len(batch.targets)
            self._reporter.evaluating(seen, len(split))
        return right / seen, loss / seen

    # Checkpoints, resume, summary.

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
        state: dict[str, Any] = {"metrics_bytes": 0}
        if step:
            tensors, values = self._checkpoints.load(step)
            state = values.pop("run")
            self.client.load_state(tensors, values)
            self.progress = Progress(**state["progress"])
            self.ledger.counts = Ledger(state["ledger"]).counts
        self.folder.cut_metrics(state["metrics_bytes"], step)
        self._session.open(
            dict(self.plan.agreement),
            run=self.folder.path.resolve().name,
            step=step,
            batch_bytes=self.plan.batch_bytes,
            schedule=self.plan.schedule,
        )
        self.folder.write_config(self.plan.config)  # a resumed run may have got another budget
        self.folder.remove_summary()

    def _finish(self, evaluation: EvaluationRecord) -> Result:
        progress, plan = self.progress, self.plan
        up, down = self.ledger.total("up", "training"), self.ledger.total("down", "training")
        summary = Summary(
            accuracy=evaluation.accuracy,
            loss=evaluation.loss,
            accuracy_uncompressed=evaluation.accuracy_uncompressed,
            loss_uncompressed=evaluation.loss_uncompressed,
            steps=progress.step,
            epochs=progress.samples / len(self.data.train),
            seconds=progress.seconds,
            client_seconds=progress.client_seconds,
            server_seconds=progress.server_seconds,
            link_seconds=progress.link_seconds,
            ratio_nominal=sum(plan.nominal) / 2,
            ratio_measured=(up + down) / progress.base_bytes,
            bytes_up=up,
            bytes_down=down,
            stack=tuple(plan.titles),
            transport=plan.config.transport,
            links=plan.config.links,
            dataset=plan.data.name,
            model=plan.config.model,
            cut=plan.model.cut,
            seed=plan.config.seed,
        )
        self.folder.write_ledger(self.ledger)
        self.folder.write_summary(summary)
        self.client.stack.report(self.folder.probes())  # one that fails costs no summary
        return Result(self.folder.path, summary, self.ledger)

    def _way_back(self) -> str:
        step = max(self._checkpoints.steps(), default=0)
        start = f"the checkpoint of step {step}" if step else "the beginning"
        if not self.progress.step:
            return ""
        again = f"join {self._connect}" if self._connect else "run"
        return f"; go on from {start} with: splitlab {again} --resume {self.folder.path}"
