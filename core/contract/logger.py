"""What the numbers of a run can be sent to while it trains: TensorBoard, a tracking server, a file.

A logger is a class that the user names with ``--log NAME:key=value,…``; its constructor's
parameters are the settings. One instance is told of one run, in the client's process only, and sees
plain numbers and texts, no records. It imports its library in `begin`, and prints nothing.

Whatever it raises is told the user once, in a line; it is asked to end, and the run goes on without
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, TypeAlias

__all__ = ["LoggedRun", "Logger", "Option"]

Option: TypeAlias = bool | int | float | str
"""What an option of a run is to a logger: a list of texts is one text."""


@dataclass(frozen=True)
class LoggedRun:
    """The run that a logger is told of.

    Attributes:
        id: of the run, 16 hexadecimal digits; a run that goes on has the one that it began with.
        name: as people call it.
        folder: of the run; a logger that writes files writes them there, unless it is told another.
        step: training steps that are done: 0, or where it goes on. Numbers of later steps, which a
            logger may have heard already, come again.
        options: everything that decides the run, by the names of `Config`.
        tags: what else people call it.
    """

    id: str
    name: str
    folder: Path
    step: int
    options: Mapping[str, Option]
    tags: tuple[str, ...] = ()


class Logger:
    """Base of all loggers, which does nothing.

    Attributes:
        needs: the module that it imports, if it needs one.
        install: what pip is to be told where that is not installed; the module itself by default.
    """

    needs: ClassVar[str] = ""
    install: ClassVar[str] = ""

    def unavailable(self) -> str | None:
        """Return why it cannot work on this machine, and the way out, or None if it can.

        It is asked before the run begins, and imports nothing.
        """
        spec = find_spec(self.needs) if self.needs else None
        # A folder of that name, such as wandb itself makes, is a namespace package without origin.
        if not self.needs or (spec is not None and spec.origin is not None):
            return None
        return f"{self.needs} is not installed; pip install '{self.install or self.needs}'"

    def begin(self, run: LoggedRun) -> None:
        """The run begins, or goes on: in what the logger began for the same ``run.id``."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a training step, or of the evaluation after it.

        Args:
            step: from 1; an evaluation before the first step has 0.
            numbers: by name: ``train/loss``, ``eval/accuracy`` and so on as the records of
                ``metrics.jsonl`` call them, and ``LABEL/NAME`` of plugins and probes.
        """

    def end(self, state: str, summary: Mapping[str, float]) -> None:
        """The run has ended, or the logger has failed; release everything that there is.

        Args:
            state: ``finished``, ``interrupted``, ``failed`` or ``diverged``.
            summary: the numbers of ``summary.json``; empty of a run that did not finish.
        """
