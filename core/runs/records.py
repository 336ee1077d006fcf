"""What a run leaves in its folder, typed: the only place where records are written and read.

metrics.jsonl         a line that says which version of these records it holds, then one object a
                      training step and one an evaluation, in their order
server-metrics.jsonl  the same of the server, if its plugins or probes have numbers to log
ledger.json           bytes by phase, direction and kind
summary.json          what the run ended with; only a run that reached its budget has one
state.json            how the run stands, for who lists runs; a run that was killed still stands as
                      running there

A number that is not finite is written as null, since JSON has no other word for it, and read back
as NaN; a bare NaN, as it was once written, is read as well.

Version 1 had no such line, and no numbers of plugins and probes; it is read as well.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from splitlab.core.contract.errors import ConfigError, Diverged, Interrupted
from splitlab.core.contract.jsonable import json_text

if TYPE_CHECKING:  # it imports torch, and a list of runs does not wait for that
    from splitlab.core.wire.ledger import Counts, Ledger

__all__ = [
    "LEDGER",
    "METRICS",
    "SERVER_METRICS",
    "STATE",
    "SUMMARY",
    "VERSION",
    "EvaluationRecord",
    "Numbers",
    "State",
    "StepRecord",
    "Summary",
    "check_steps",
    "ledger_text",
    "parse_record",
    "read_counts",
    "read_evaluations",
    "read_ledger",
    "read_records",
    "read_state",
    "read_summary",
    "text_until",
    "typed",
    "version_line",
]

VERSION = 2
METRICS = "metrics.jsonl"
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

    def line(self) -> str:
        """Return the line of ``metrics.jsonl``."""
        return _line("eval", self)


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
        version: of this record.
    """

    state: str
    step: int
    error: str = ""
    version: int = VERSION

    @classmethod
    def after(cls, error: BaseException, step: int) -> State:
        """Return that of a run which this error ended."""
        if isinstance(error, Diverged):
            state = "diverged"
        else:
            stops = (Interrupted, KeyboardInterrupt)
            state = "interrupted" if isinstance(error, stops) else "failed"
        return cls(state, step, " ".join(str(error).split()) or type(error).__name__)

    def text(self) -> str:
        """Return the text of ``state.json``."""
        return json_text(dataclasses.asdict(self), indent=2) + "\n"


def _object(record: Any) -> dict[str, Any]:
    """Return the fields of a record that say something: all but optional ones that are empty."""
    found = {}
    for spec in dataclasses.fields(record):
        value = getattr(record, spec.name)
        optional = (spec.default, spec.default_factory) != (dataclasses.MISSING,) * 2
        if not optional or value not in (None, {}, ()):
            found[spec.name] = value
    return found


def _line(kind: str, record: StepRecord | EvaluationRecord) -> str:
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

_DAMAGE = (ValueError, KeyError, TypeError, AttributeError)
"""What reading raises where a file does not hold what was written."""


class _LaterVersionError(Exception):
    """The records are of a later version."""


def read_summary(folder: Path) -> Summary:
    """Return the summary of a run.

    Raises:
        ConfigError: as every reader here: the file is damaged, of a later version, or not there.
    """
    path = folder / SUMMARY
    with _naming(path):
        values = _numbers(path.read_text(encoding="utf-8"))
        _check_version(values.setdefault("version", 1))
        lists = {"stack": values["stack"], "links": values.get("links", ())}
        return typed(Summary, values | {name: _words(items) for name, items in lists.items()})


def read_state(folder: Path) -> State | None:
    """Return how a run stands; None where it was never said, as by older versions."""
    path = folder / STATE
    if not path.exists():
        return None
    with _naming(path):
        values = json.loads(path.read_text(encoding="utf-8"))
        _check_version(values["version"])
        return typed(State, values)


def read_ledger(folder: Path) -> Ledger:
    """Return the ledger of a run."""
    from splitlab.core.wire.ledger import Ledger

    with _naming(folder / LEDGER):
        return Ledger(read_counts(folder))


def read_counts(folder: Path) -> Counts:
    """Return the bytes of a run's ledger, by phase, direction and kind."""
    path = folder / LEDGER
    with _naming(path):
        counts: Counts = json.loads(path.read_text(encoding="utf-8"))
        _check_version(counts.pop("version", 1))
        return counts


def read_records(folder: Path, name: str = METRICS) -> list[StepRecord | EvaluationRecord]:
    """Return all records of a run, in their order."""
    path = folder / name
    with _naming(path):
        found = [parse_record(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [record for record in found if record is not None]


def read_evaluations(folder: Path) -> list[EvaluationRecord]:
    """Return the evaluations of a run, in their order; skips steps without parsing them."""
    path = folder / METRICS
    with _naming(path):
        *lines, _ = path.read_text(encoding="utf-8").split("\n")  # the last may be half written
        found = [parse_record(line) for line in lines if '"train"' not in line[:20]]
        return [record for record in found if isinstance(record, EvaluationRecord)]


def check_steps(path: Path, size: int, step: int) -> None:
    """Check that the first ``size`` bytes of a log hold the training steps 1 to ``step``.

    Raises:
        ConfigError: they do not, for whatever reason.
    """
    with _naming(path):
        text = path.read_bytes()[:size].decode()
        if not text.endswith("\n"):
            raise ValueError("a line begins before its checkpoint and ends behind it")
        records = [parse_record(line) for line in text.splitlines()]
        steps = [record.step for record in records if isinstance(record, StepRecord)]
        if steps != [*range(1, step + 1)]:
            raise ValueError(f"it does not hold the steps 1 to {step}, each once")


def text_until(path: Path, step: int) -> str:
    """Return the text of a log without the records of later steps.

    A last line that is unfinished or cannot be read is left out: who wrote it was killed.
    """
    kept = []
    with _naming(path):
        lines = path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            last = number == len(lines)
            if last and not line.endswith(b"\n"):
                break
            try:
                text = line.decode()
                record = parse_record(text)
            except _DAMAGE:
                if last:
                    break
                raise
            if record is None or record.step <= step:
                kept.append(text)
    return "".join(kept)


def parse_record(line: str) -> StepRecord | EvaluationRecord | None:
    """Return the record of a line; None for the line that tells the version."""
    values = _numbers(line)
    kind = values.pop("kind")
    if kind == "records":
        _check_version(values["version"])
        return None
    kinds: dict[str, type[StepRecord | EvaluationRecord]] = {
        "train": StepRecord,
        "eval": EvaluationRecord,
    }
    return typed(kinds[kind], values)


def typed(kind: type[T], values: dict[str, Any]) -> T:
    """Return the record of these values, each of which must be of its field's type."""
    for name, allowed in _types(typing.cast(Any, kind)).items():
        value = values.get(name)
        if name in values and (
            not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)
        ):
            raise TypeError(f"{name} is {value!r}")
    return kind(**values)


@cache
def _types(kind: type) -> dict[str, tuple[type, ...]]:
    """Return what a value read from JSON may be, by field."""
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        plain = {typing.get_origin(option) or option for option in options}
        found[name] = tuple(plain | ({int} if float in plain else set()))
    return found


def _words(items: Any) -> tuple[str, ...]:
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise TypeError(f"{items!r} is no list of words")
    return tuple(items)


def _check_version(version: object) -> None:
    if type(version) is not int or version < 1:
        raise ValueError(f"its version is {version!r}")
    if version > VERSION:
        raise _LaterVersionError(version)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file names the file, and the way out."""
    try:
        yield
    except _LaterVersionError as error:
        raise ConfigError(
            f"{path} is of version {error}; this splitlab reads 1 to {VERSION}: use a newer one"
        ) from None
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; name the folder of a run, or if the run is not finished go on "
            f"with it: splitlab run --resume {path.parent}"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except _DAMAGE as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{path} is damaged ({reason}); delete the run to run it again") from None
