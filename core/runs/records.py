"""What a run leaves in its folder, typed: the only place where records are written and read.

metrics.jsonl         a line that says which version of these records it holds, then one object a
                      training step and one an evaluation, in their order
times.jsonl           an object an evaluation, with the seconds until then; apart, so that the log
                      of a run that was resumed equals that of one that was not
server-metrics.jsonl  the same of the server, if its plugins or probes have numbers to log
ledger.json           bytes by phase, direction and kind
summary.json          what the run ended with; only a run that reached its budget has one
state.json            how the run stands, for who lists runs; a run that was killed still stands as
                      running there

A number that is not finite is written as null, since JSON has no other word for it, and read back
as NaN; a bare NaN, as it was once written, is read as well.

Version 1 had no such line, and no numbers of plugins and probes; version 2 did not count the
samples of an evaluation. Both are read as well.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from splitlab.core.contract.errors import Diverged, Interrupted
from splitlab.core.contract.jsonable import json_text
from splitlab.core.runs.reading import VERSION, check_version, naming, typed, words

if TYPE_CHECKING:  # it imports torch, and a list of runs does not wait for that
    from splitlab.core.wire.ledger import Counts, Ledger

__all__ = [
    "LEDGER",
    "METRICS",
    "SERVER_METRICS",
    "STATE",
    "SUMMARY",
    "TIMES",
    "VERSION",
    "EvaluationRecord",
    "Numbers",
    "State",
    "StepRecord",
    "Summary",
    "TimeRecord",
    "ledger_text",
    "parse_record",
    "read_counts",
    "read_evaluations",
    "read_ledger",
    "read_records",
    "read_state",
    "read_summary",
    "read_times",
    "version_line",
]

METRICS = "metrics.jsonl"
TIMES = "times.jsonl"
SERVER_METRICS = "server-metrics.jsonl"
LEDGER = "ledger.json"
SUMMARY = "summary.json"
STATE = "state.json"

Numbers = Mapping[str, Mapping[str, float]]
"""What plugins and probes measured: numbers by name, by the label of who returned them."""


@dataclass(frozen=True)
class StepRecord:
    """One training step.

    Attributes:
        step: from 1.
        loss: of the batch; at the server, which logs numbers only, None.
        bytes_up: training bytes that the client sent for it; None at the server.
        bytes_down: training bytes that the server sent for it; None at the server.
        metrics: of plugins and probes.
    """

    step: int
    loss: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    metrics: Numbers = field(default_factory=dict)

    def line(self) -> str:
        """Return the line of ``metrics.jsonl``."""
        return _line("train", self)


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation on the test images.

    Attributes:
        step: training steps done before it.
        accuracy: through the stack, if a plugin acts in evaluation and that was asked for.
        loss: mean over the images, as accuracy.
        compressed: whether accuracy and loss are those through the stack.
        bytes_up: bytes of the evaluation that the client sent.
        bytes_down: bytes of the evaluation that the server sent.
        training_bytes: training bytes until then, both directions.
        accuracy_uncompressed: the same without the stack, if both were asked for.
        loss_uncompressed: the same without the stack, if both were asked for.
        samples: how many test images it was on; None in older records, where it is all.
        accuracy_subset: accuracy on the samples of ``--eval-samples``, if all others were asked,
            too: that of the last evaluation, to compare with those before.
    """

    step: int
    accuracy: float
    loss: float
    compressed: bool
    bytes_up: int
    bytes_down: int
    training_bytes: int
    accuracy_uncompressed: float | None = None
    loss_uncompressed: float | None = None
    samples: int | None = None
    accuracy_subset: float | None = None

    @property
    def compared(self) -> float:
        """The accuracy on the same samples at all evaluations of a run: what is best goes by it."""
        return self.accuracy if self.accuracy_subset is None else self.accuracy_subset

    def line(self) -> str:
        """Return the line of ``metrics.jsonl``."""
        return _line("eval", self)


@dataclass(frozen=True)
class TimeRecord:
    """When an evaluation was done.

    Attributes:
        step: training steps done before it.
        seconds: wall time until then, this and all earlier evaluations included.
        training_seconds: of that, what client, server and link took for the training steps.
    """

    step: int
    seconds: float
    training_seconds: float

    def line(self) -> str:
        """Return the line of ``times.jsonl``."""
        return _line("time", self)


@dataclass(frozen=True)
class Summary:
    """What a run ended with. ``summary["accuracy"]`` is ``summary.accuracy``.

    Attributes:
        accuracy: of the last evaluation; so are the next three, see `EvaluationRecord`.
        loss: see there.
        accuracy_uncompressed: see there.
        loss_uncompressed: see there.
        steps: training steps.
        epochs: training samples over those of one epoch.
        seconds: wall time, evaluations included.
        client_seconds: of the training steps, reading data included; so are the next two.
        server_seconds: what the server computed.
        link_seconds: encoding, waiting and decoding.
        ratio_nominal: what the methods' papers would charge.
        ratio_measured: training bytes over those of uncompressed float32 activations and gradients.
        bytes_up: training bytes that the client sent.
        bytes_down: training bytes that the server sent.
        stack: the plugins, as tables call them.
        transport: of the run, with its settings.
        links: the wrappers around the link, with their settings.
        dataset: name of the data.
        model: name of the model, with its settings.
        cut: where it was cut.
        seed: of everything.
        budget: when the run was to end, as the configuration says it; empty in older records.
        budget_used: of that, in its unit: more than asked for by less than the last step, since a
            step is not divided.
        stopped_early: whether the accuracy no longer got better, as ``--patience`` says, so that
            the run ended before its budget.
        best_step: after which the accuracy was best, of a run with ``--keep best``: its checkpoint
            is there. The untrained model of step 0 does not count; of equal ones it is the first.
        best_accuracy: of that evaluation: on the samples of ``--eval-samples``, if that was given.
        images_per_second: training samples over the seconds of the training steps, in all sessions
            of the run; None in older records.
        data_share: of those seconds, the share in which a step waited for its batch: 0 to 1. What
            is decoded beside the steps counts only where they wait for it. None where an older
            version began the run.
        version: of this record.
    """

    accuracy: float
    loss: float
    steps: int
    epochs: float
    seconds: float
    client_seconds: float
    server_seconds: float
    link_seconds: float
    ratio_nominal: float
    ratio_measured: float
    bytes_up: int
    bytes_down: int
    stack: tuple[str, ...]
    transport: str
    dataset: str
    model: str
    cut: int
    seed: int
    accuracy_uncompressed: float | None = None
    loss_uncompressed: float | None = None
    links: tuple[str, ...] = ()
    budget: str = ""
    budget_used: float = 0.0
    stopped_early: bool = False
    best_step: int | None = None
    best_accuracy: float | None = None
    images_per_second: float | None = None
    data_share: float | None = None
    version: int = VERSION

    def __getitem__(self, name: str) -> Any:
        if name not in self.as_dict():
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in self.as_dict()

    @property
    def finite(self) -> bool:
        """Whether accuracies and losses are numbers, as those of a run that did not diverge."""
        known = (self.accuracy, self.loss, self.accuracy_uncompressed, self.loss_uncompressed)
        return all(math.isfinite(number) for number in known if number is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        return _object(self)

    def text(self) -> str:
        """Return the text of ``summary.json``."""
        return json_text(self.as_dict(), indent=2) + "\n"


@dataclass(frozen=True)
class State:
    """How a run stands.

    Attributes:
        state: ``running``, ``finished``, ``interrupted``, ``failed`` or ``diverged``.
        step: training steps done.
        error: why it failed or diverged, or what interrupted it.
        best_step: as in `Summary`, until then.
        version: of this record.
    """

    state: str
    step: int
    error: str = ""
    best_step: int | None = None
    version: int = VERSION

    @classmethod
    def after(cls, error: BaseException, step: int, best_step: int | None = None) -> State:
        """Return that of a run which this error ended."""
        if isinstance(error, Diverged):
            state = "diverged"
        else:
            stops = (Interrupted, KeyboardInterrupt)
            state = "interrupted" if isinstance(error, stops) else "failed"
        return cls(state, step, " ".join(str(error).split()) or type(error).__name__, best_step)

    def text(self) -> str:
        """Return the text of ``state.json``."""
        return json_text(_object(self), indent=2) + "\n"


def _object(record: Any) -> dict[str, Any]:
    """Return the fields of a record that say something: all but optional ones that are empty."""
    found = {}
    for spec in dataclasses.fields(record):
        value = getattr(record, spec.name)
        optional = (spec.default, spec.default_factory) != (dataclasses.MISSING,) * 2
        if not optional or not (value in (None, {}, ()) or value is False):
            found[spec.name] = value
    return found


def _line(kind: str, record: StepRecord | EvaluationRecord | TimeRecord) -> str:
    return json_text({"kind": kind, **_object(record)}) + "\n"


def _numbers(text: str) -> Any:
    """Read what `json_text` wrote."""
    return json.loads(text, object_hook=_with_nan)


def _with_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in values.items()}


def version_line() -> str:
    """Return the first line of ``metrics.jsonl``."""
    return json_text({"kind": "records", "version": VERSION}) + "\n"


def ledger_text(ledger: Ledger) -> str:
    """Return the text of ``ledger.json``."""
    return json_text({"version": VERSION, **ledger.counts}, indent=2) + "\n"


# Reading.

T = TypeVar("T")


def read_summary(folder: Path) -> Summary:
    """Return the summary of a run.

    Raises:
        ConfigError: as every reader here: the file is damaged, of a later version, or not there.
    """
    path = folder / SUMMARY
    with naming(path):
        values = _numbers(path.read_text(encoding="utf-8"))
        check_version(values.setdefault("version", 1))
        lists = {"stack": values["stack"], "links": values.get("links", ())}
        return typed(Summary, values | {name: words(items) for name, items in lists.items()})


def read_state(folder: Path) -> State | None:
    """Return how a run stands; None where it was never said, as by older versions."""
    path = folder / STATE
    if not path.exists():
        return None
    with naming(path):
        values = json.loads(path.read_text(encoding="utf-8"))
        check_version(values["version"])
        return typed(State, values)


def read_ledger(folder: Path) -> Ledger:
    """Return the ledger of a run."""
    from splitlab.core.wire.ledger import Ledger

    with naming(folder / LEDGER):
        return Ledger(read_counts(folder))


def read_counts(folder: Path) -> Counts:
    """Return the bytes of a run's ledger, by phase, direction and kind."""
    path = folder / LEDGER
    with naming(path):
        counts: Counts = json.loads(path.read_text(encoding="utf-8"))
        check_version(counts.pop("version", 1))
        return counts


def read_records(folder: Path, name: str = METRICS) -> list[StepRecord | EvaluationRecord]:
    """Return all records of a run, in their order."""
    path = folder / name
    with naming(path):
        found = [parse_record(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [record for record in found if record is not None]


def read_evaluations(folder: Path) -> list[EvaluationRecord]:
    """Return the evaluations of a run, in their order; skips steps without parsing them."""
    path = folder / METRICS
    with naming(path):
        *lines, _ = path.read_text(encoding="utf-8").split("\n")  # the last may be half written
        found = [parse_record(line) for line in lines if '"train"' not in line[:20]]
        return [record for record in found if isinstance(record, EvaluationRecord)]


def read_times(folder: Path) -> list[TimeRecord]:
    """Return when the evaluations of a run were done, in their order.

    Those of a run that an earlier version of splitlab made, or began, are not known.
    """
    path = folder / TIMES
    if not path.exists():
        return []
    with naming(path):
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [_parsed(line, {"time": TimeRecord}) for line in lines]
        return [record for record in found if record is not None]


def parse_record(line: str) -> StepRecord | EvaluationRecord | None:
    """Return the record of a line; None for the line that tells the version."""
    kinds: dict[str, type[StepRecord | EvaluationRecord]] = {
        "train": StepRecord,
        "eval": EvaluationRecord,
    }
    return _parsed(line, kinds)


def _parsed(line: str, kinds: Mapping[str, type[T]]) -> T | None:
    values = _numbers(line)
    kind = values.pop("kind")
    if kind == "records":
        check_version(values["version"])
        return None
    return typed(kinds[kind], values)
