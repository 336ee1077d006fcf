"""What loggers are told of a run: its records as plain numbers by name.

They decide nothing: what one raises is a `Notice`, once, and the run goes on without it.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from splitlab.core.contract.errors import FAULTS, Notice, reason
from splitlab.core.contract.logger import LoggedRun, Logger, Option
from splitlab.core.runs.config import LABELS, Config
from splitlab.core.runs.records import EvaluationRecord, StepRecord, Summary

__all__ = ["Loggers", "numbers_of", "options_of"]

_NOT_OPTIONS = {"output", *LABELS}


class Loggers:
    """The loggers of a run, as one.

    Args:
        loggers: by what the user wrote, which messages call them.
    """

    def __init__(self, loggers: Mapping[str, Logger] = MappingProxyType({})) -> None:
        self._loggers = dict(loggers)
        self._open = False

    def begin(self, config: Config, id: str, folder: Path, step: int) -> None:
        """The run begins, or goes on after so many steps."""
        name = config.name or folder.name
        run = LoggedRun(id, name, folder, step, options_of(config), config.tags)
        self._open = True
        self._tell(lambda logger: logger.begin(run), _undisturbed())

    def log(self, record: StepRecord | EvaluationRecord) -> None:
        """Pass on the numbers of a record."""
        if self._loggers:
            numbers = numbers_of(record)
            self._tell(lambda logger: logger.log(record.step, numbers))

    def end(self, state: str, summary: Summary | None = None) -> None:
        """The run is over; before it has begun and a second time, this does nothing."""
        if self._open:
            self._open = False
            found = {} if summary is None else _numbers(vars(summary), "version")
            self._tell(lambda logger: logger.end(state, found), _undisturbed())

    def _tell(
        self,
        told: Callable[[Logger], None],
        around: AbstractContextManager[None] | None = None,
    ) -> None:
        failed = []
        with around or nullcontext():
            for name, logger in [*self._loggers.items()]:
                try:
                    told(logger)
                except FAULTS as error:
                    why = f"the run goes on: {reason(error, logger)}"
                    failed.append(f"logger {name!r} failed and is told no more, {why}")
                    del self._loggers[name]
                    with suppress(*FAULTS):  # it may hold threads and files
                        logger.end("failed", {})
        for notice in failed:
            warnings.warn(notice, Notice, stacklevel=3)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no library warn, which is no business of the user's, or wait for an answer."""
    with warnings.catch_warnings(), open(os.devnull) as nothing:
        warnings.simplefilter("ignore")
        stdin, sys.stdin = sys.stdin, nothing
        try:
            yield
        finally:
            sys.stdin = stdin


def options_of(config: Config) -> dict[str, Option]:
    """Return everything that decides a run, as one value each; what is not given is left out."""
    found: dict[str, Option] = {}
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        if spec.name not in _NOT_OPTIONS and value is not None:
            nothing = spec.metadata.get("unset", "none")  # which is all of it, for --train
            found[spec.name] = " + ".join(value) or nothing if isinstance(value, tuple) else value
    return found


def numbers_of(record: StepRecord | EvaluationRecord) -> dict[str, float]:
    """Return what was counted and measured: ``train/loss``, ``eval/accuracy``, ``LABEL/NAME``."""
    kind = "train" if isinstance(record, StepRecord) else "eval"
    found = {f"{kind}/{name}": number for name, number in _numbers(vars(record), "step").items()}
    if isinstance(record, StepRecord):
        for label, measured in record.metrics.items():
            found |= {f"{label}/{name}": float(number) for name, number in measured.items()}
    return found


def _numbers(values: Mapping[str, Any], but: str) -> dict[str, float]:
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != but
    }
