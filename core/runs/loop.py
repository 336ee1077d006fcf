"""The client's loop: from the first step to the budget, with evaluations and checkpoints."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from typing import Any

import torch

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import (
    ConfigError,
    DamagedError,
    Diverged,
    Interrupted,
    LinkError,
    NetworkError,
    WorkerError,
)
from splitlab.core.contract.link import Link
from splitlab.core.data.load import Data
from splitlab.core.engine.client import Client
from splitlab.core.runs.checkpoint import Checkpoints
from splitlab.core.runs.disk import DiskError, writing
from splitlab.core.runs.evaluation import Evaluations, Standing
from splitlab.core.runs.folder import RunFolder
from splitlab.core.runs.loggers import Loggers
from splitlab.core.runs.origin import Origin
from splitlab.core.runs.plan import Plan
from splitlab.core.runs.records import EvaluationRecord, State, StepRecord, Summary, TimeRecord
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
        ledger: of the link.
        folder: of the run.
        origin: of the run: what its checkpoints belong to.
        reporter: is told how it goes.
        should_stop: asked before the first step and after every one.
        connect: address of the server, if it was started by somebody else.
        loggers: are sent what is logged.
    """

    def __init__(
        self,
        plan: Plan,
        data: Data,
        client: Client,
        link: Link,
        ledger: Ledger,
        folder: RunFolder,
        origin: Origin,
        reporter: Reporter,
        should_stop: Callable[[], bool],
        connect: str | None,
        loggers: Loggers,
    ) -> None:
        self.plan = plan
        self.data = data
        self.client = client
        self.folder = folder
        self.progress = Progress()
        self.ledger = ledger
        self._origin = origin
        seed, plan_now = str(plan.config.seed), origin.plans[-1]
        self._marks = {"run": origin.id, "seed": seed, "plan": plan_now}
        self._checkpoints = Checkpoints(folder.path, "client", self._marks)
        self._reporter = reporter
        self._should_stop = should_stop
        self._connect = connect
        self._loggers = loggers
        self._begun = False
        self._evaluations = Evaluations(plan, data.test)
        self._session = ClientSession(link, self.ledger, plan.timeout)

    def go(self, last_words: Callable[[], str], from_step: int | None = None) -> Result:
        """Shake hands, train to the budget, and write the summary; `report` comes next.

        Args:
            last_words: says why the server ended, as the end of an error line, if it did.
            from_step: of the checkpoint to go on from, the newest by default; 0 is the beginning.
        """
        try:
            result = self._go(last_words, from_step)
            # It is complete by now: a logger that is not waited for costs no summary.
            self._loggers.end("finished", result.summary)
            return result
        except DiskError as error:
            raise DiskError(f"{error}{self._way_back()}") from error

    def report(self) -> None:
        """Let the probes report on a run that has come to its end: one that fails costs nothing."""
        try:
            with writing(self.folder.probes()):
                said = self.client.stack.report(self.folder.probes())
        except DiskError as error:
            raise DiskError(f"{error}{self._way_back()}") from error
        self._reporter.probed(said)

    def _go(self, last_words: Callable[[], str], from_step: int | None) -> Result:
        try:
            self._restore(from_step)
            self._begun = True
            self.folder.write_state(State("running", self.progress.step))
            if self.plan.config.loggers:
                self._reporter.starting("starting the loggers")
            self._loggers.begin(
                self.plan.config, self._origin.id, self.folder.path, self.progress.step
            )
            self._reporter.begin(self.plan, self.folder.path, self.budget_used)
            if self.plan.config.compile != "off":
                self._reporter.starting("compiling the parts in the first steps, which takes long")
            evaluation = self._train()
            self._session.finish(self.progress.step)
            return self._finish(evaluation)
        except LinkError as error:
            told = f"{error}{last_words()}{self._way_back()}"
            # Which is when a lost connection is given up, too.
            stopped = isinstance(error, (NetworkError, DamagedError)) and self._should_stop()
            whole = Interrupted(f"interrupted; {told}") if stopped else type(error)(told)
            self._note_end(whole)
            raise whole from error
        except WorkerError as error:
            self._session.fail(error)
            lost = WorkerError(f"{error}{self._way_back()}")
            self._note_end(lost)
            raise lost from error
        except BaseException as error:
            self._session.fail(error)
            self._note_end(error)
            raise

    def _note_end(self, error: BaseException) -> None:
        """Say in the folder why the run ended; one that never began leaves it as it is."""
        if self._begun:
            with suppress(DiskError):  # the disk may be full, which is what ended it
                step, best = self.progress.step, self._evaluations.best()
                self.folder.write_state(State.after(error, step, best[0] if best else None))
            self._loggers.end(State.after(error, self.progress.step).state)

    def budget_used(self) -> float:
        """Return the share of the budget that is used; the run ends at 1, see `Budget`."""
        # A sum of many ratios misses its round value by float error.
        return self._used() / self.plan.budget.amount + 1e-9

    def _used(self) -> float:
        """Return what is used of the budget, in its unit."""
        used: dict[str, float] = {
            "steps": self.progress.step,
            "epochs": self.progress.samples / len(self.data.train),
            "bytes": self.ledger.total("up", "training") + self.ledger.total("down", "training"),
            "nominal": self.progress.nominal / len(self.data.train),
        }
        return used[self.plan.budget.unit]

    # Training.

    def _train(self) -> EvaluationRecord:
        """Train until the budget is used up; returns the last evaluation."""
        progress, watch, done = self.progress, self._evaluations, self.folder.evaluations()
        watch.standing = Standing(done)
        evaluation = done[-1] if done else None
        if self._should_stop():
            raise Interrupted(f"interrupted before step {progress.step + 1}{self._way_back()}")
        if self.plan.config.eval_points is not None and not progress.step:
            self._evaluate()
        with closing(self._batches()) as batches:
            evaluation = self._steps(batches, evaluation)
        if evaluation is None or not watch.ends(evaluation, progress.step):
            evaluation = self._evaluate()
        if progress.step not in self._checkpoints.steps():
            self._save()
        return evaluation

    def _steps(
        self, batches: Iterator[Batch], evaluation: EvaluationRecord | None
    ) -> EvaluationRecord | None:
        """Step until the budget is used up; returns the last evaluation, if there was any."""
        progress, watch = self.progress, self._evaluations
        while not watch.over(before := self.budget_used()):
            self._step(batches)
            due = watch.due(before, self.budget_used(), progress.step)
            if due:
                evaluation = self._evaluate()
            stop = self._should_stop()
            if stop or watch.checkpoint_due(progress.step, evaluated=due):
                self._save()
            if stop:
                raise Interrupted(f"interrupted after step {progress.step}{self._way_back()}")
        return evaluation

    def _batches(self) -> Generator[Batch, None, None]:
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
        if progress.data_seconds is not None:
            progress.data_seconds += time.perf_counter() - started
        batch = self.plan.mixed(batch, progress.step)
        server, link, mark = session.server_seconds, session.link_seconds, self.ledger.mark()
        trained = session.hold(self.client.train(batch, progress.step))
        size = self.plan.config.batch_size
        progress.step += 1
        progress.samples += trained.samples
        progress.nominal += sum(self._nominal(trained.step)) / 2 * trained.samples
        progress.base_bytes += 2 * self.plan.batch_bytes * trained.samples // size
        seconds = time.perf_counter() - started
        server, link = session.server_seconds - server, session.link_seconds - link
        progress.seconds += seconds
        progress.server_seconds += server
        progress.link_seconds += link
        progress.client_seconds += seconds - server - link
        crossed = self.ledger.since(mark)
        up, down = crossed.total("up", "training"), crossed.total("down", "training")
        self._log(StepRecord(progress.step, trained.loss, up, down, trained.metrics))
        self._reporter.step(progress, self.ledger, trained.loss)

    def _log(self, record: StepRecord | EvaluationRecord) -> None:
        self.folder.log(record)
        self._loggers.log(record)

    def _nominal(self, step: int) -> tuple[float, float]:
        """Return the ratios to charge for a step that is done."""
        stack = self.client.stack
        return stack.nominal_ratio(step) if stack.charges_by_step else self.plan.nominal

    # Evaluation.

    def _evaluate(self) -> EvaluationRecord:
        self.client.settle()
        started = time.perf_counter()
        mark = self.ledger.mark()
        wanted = self.plan.config.evaluate
        acts = self.client.stack.acts_in_evaluation() and wanted != "uncompressed"
        rows, among = self._evaluations.rows, None
        accuracy, loss = self._score(rows, stacked=acts)
        self._evaluations.standing.add(self.progress.step, accuracy)
        if rows is not None and self._evaluations.over(self.budget_used()):
            rows, among = None, accuracy
            accuracy, loss = self._score(rows, stacked=acts)
        plain: tuple[float, float] | tuple[None, None] = (None, None)
        if acts and wanted == "both":
            plain = self._score(rows, stacked=False)
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
            samples=len(self.data.test) if rows is None else len(rows),
            accuracy_subset=among,
        )
        progress = self.progress
        progress.seconds += time.perf_counter() - started
        self._log(record)
        spent = progress.training_seconds
        self.folder.log_time(TimeRecord(progress.step, progress.seconds, spent))
        self._reporter.evaluated(record)
        return record

    def _score(self, rows: torch.Tensor | None, *, stacked: bool) -> tuple[float, float]:
        """Return accuracy and mean loss over rows of the test part, or all; each weighs alike."""
        test, right, seen, loss = self.data.test, 0, 0, 0.0
        total = len(test) if rows is None else len(rows)
        with closing(test.batches(self.plan.config.batch_size, rows=rows)) as batches:
            for number, batch in enumerate(batches):
                try:
                    answer = self._session.hold(self.client.query(batch, number, stacked=stacked))
                except Diverged as error:
                    raise Diverged(f"after step {self.progress.step}: {error}") from error
                right += int((answer.ids == batch.targets).sum())
                loss += answer.loss_sum
                seen += len(batch.targets)
                self._reporter.evaluating(seen, total)
        return right / seen, loss / seen

    # Checkpoints, resume, summary.

    def _save(self) -> None:
        self.client.settle()  # before the server writes a checkpoint of a step that diverged here
        step, logged = self.progress.step, self.folder.metrics_size()
        if step and not logged:
            raise DiskError(f"{self.folder.path} has lost its log")
        keep = self._evaluations.to_keep(max(self._checkpoints.steps(), default=0))
        self._session.save(step, keep)
        tensors, values = self.client.state()
        values["run"] = {
            "progress": dataclasses.asdict(self.progress),
            "ledger": self.ledger.counts,
            "metrics_bytes": logged,
            "times_bytes": self.folder.times_size(),
        }
        self._checkpoints.save(step, tensors, values, keep)
        self.folder.write_ledger(self.ledger)

    def _restore(self, from_step: int | None) -> None:
        """Load a checkpoint, if there is any, and shake hands."""
        kept = self._checkpoints
        step = max(kept.steps(), default=0) if from_step is None else from_step
        marks, logged, times = self._marks, 0, 0
        state = None
        try:
            if step:
                (logged, times), state = self._load(step)
                others = {"steps": " ".join(map(str, kept.steps())), "again": self._again()}
                marks = kept.marks(step) | others
            self.folder.check_metrics(logged, step)
        except DiskError:
            raise
        except ConfigError as error:
            if step and step not in kept.steps():
                raise  # it names those that there are
            older = kept.older(step, self._can_go_on)
            again = f"{self._again()} --from-step {older}"
            raise ConfigError(f"{error}; go on from step {older} with: {again}") from error
        if state is not None:
            with kept.taking(step):
                self.client.load_state(*state)
        self._session.open(
            dict(self.plan.agreement),
            run=self.folder.path.resolve().name,
            step=step,
            marks=marks,
            batch_bytes=self.plan.batch_bytes,
            schedule=self.plan.schedule,
        )
        # Now it goes on: what was given or accepted anew is kept.
        self._origin.write(self.folder.path)
        self.folder.write_config(self.plan.config)
        kept.forget_after(step)
        self.folder.cut_metrics(logged, times)
        self.folder.remove_summary()

    def _load(
        self, step: int
    ) -> tuple[tuple[int, int], tuple[dict[str, torch.Tensor], dict[str, Any]]]:
        """Take back what the loop keeps; returns how long the logs were, and the client's state."""
        tensors, values = self._checkpoints.load(step, self._origin.plans)
        with self._checkpoints.taking(step):
            own = values.pop("run")
            self.progress = Progress.read(own["progress"], step)
            self.ledger.counts = Ledger(own["ledger"]).counts
            logged = own["metrics_bytes"], own.get("times_bytes", 0)  # which older ones lack
            if not all(type(n) is int and n >= 0 for n in (*logged, *self.ledger.numbers())):
                raise ValueError(f"its ledger is {own['ledger']}, its logs {logged!r} bytes long")
        return logged, (tensors, values)

    def _can_go_on(self, step: int) -> bool:
        """Return whether the rest of what a checkpoint needs is whole, as far as it is here."""
        try:
            _, values = self._checkpoints.load(step, self._origin.plans)
            with self._checkpoints.taking(step):
                self.folder.check_metrics(values["run"]["metrics_bytes"], step)
        except ConfigError:
            return False
        servers = Checkpoints(self.folder.path, "server", self._marks)
        return self._connect is not None or servers.whole(step, self._origin.plans)

    def _finish(self, evaluation: EvaluationRecord) -> Result:
        progress, plan, best = self.progress, self.plan, self._evaluations.best()
        up, down = self.ledger.total("up", "training"), self.ledger.total("down", "training")
        waited = progress.data_seconds
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
            ratio_nominal=(
                progress.nominal / progress.samples
                if self.client.stack.charges_by_step
                else sum(plan.nominal) / 2
            ),
            ratio_measured=(up + down) / progress.base_bytes,
            bytes_up=up,
            bytes_down=down,
            stack=tuple(plan.titles),
            transport=plan.config.transport,
            links=tuple(map(str, plan.links)),
            dataset=plan.data.name,
            model=plan.config.model,
            cut=plan.model.cut,
            seed=plan.config.seed,
            budget=plan.config.budget,
            budget_used=self._used(),
            stopped_early=self.budget_used() < 1,
            best_step=best[0] if best else None,
            best_accuracy=best[1] if best else None,
            images_per_second=progress.samples / progress.training_seconds,
            data_share=None if waited is None else waited / progress.training_seconds,
        )
        self.folder.write_ledger(self.ledger)
        self.folder.write_summary(summary)
        self.folder.write_state(State("finished", progress.step, best_step=summary.best_step))
        return Result(self.folder.path, summary, self.ledger)

    def _way_back(self) -> str:
        if not self.progress.step or not self._begun or not self.folder.path.is_dir():
            return ""
        step = max(self._checkpoints.steps(), default=0)
        start = f"the checkpoint of step {step}" if step else "the beginning"
        return f"; go on from {start} with: {self._again()}"

    def _again(self) -> str:
        """Return the command that goes on with the run."""
        again = f"join {self._connect}" if self._connect else "run"
        return f"splitlab {again} --resume {shlex.quote(str(self.folder.path))}"
