"""A log that a run goes on with: whether it holds every step, and what is left before a step."""

from __future__ import annotations

from pathlib import Path

from splitlab.core.runs.reading import DAMAGE, naming
from splitlab.core.runs.records import StepRecord, parse_record

__all__ = ["check_steps", "text_until"]


def check_steps(path: Path, size: int, step: int) -> None:
    """Check that the first ``size`` bytes of a log hold the training steps 1 to ``step``.

    Raises:
        ConfigError: they do not, for whatever reason.
    """
    with naming(path):
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
    with naming(path):
        lines = path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            last = number == len(lines)
            if last and not line.endswith(b"\n"):
                break
            try:
                text = line.decode()
                record = parse_record(text)
            except DAMAGE:
                if last:
                    break
                raise
            if record is None or record.step <= step:
                kept.append(text)
    return "".join(kept)
