"""TensorBoard's event files: the file to copy for a logger of your own.

    splitlab run --plugin adc --log tensorboard
    tensorboard --logdir runs

Every number is a scalar at its step, the options are the run's hyperparameters, and what the run
ends with stands under ``summary/``. Where a run goes on, TensorBoard is told to forget the steps
that come again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitlab.core import LoggedRun, Logger

__all__ = ["TensorBoard"]

_RESULTS = ("accuracy", "loss", "bytes_up", "bytes_down", "ratio_measured")


class TensorBoard(Logger):
    """Event files, which ``tensorboard --logdir runs`` shows while the run trains.

    Args:
        folder: gets a folder of event files for each run; by default they are in ``tensorboard`` of
            the run folder.
    """

    needs = "tensorboard"
    install = "splitlab[tensorboard]"

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._writer: Any = None
        self._step = 0

    def begin(self, run: LoggedRun) -> None:
        """Open an event file; of a run that goes on, beside those that it has."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        again = run.step + 1 if run.step else 0  # the first step that comes again
        self._step = run.step
        self._writer = SummaryWriter(str(self._place(run)), purge_step=again, flush_secs=10)
        options = {**run.options, "tags": " ".join(run.tags)}
        results = dict.fromkeys((f"summary/{name}" for name in _RESULTS), 0.0)
        # Not `add_hparams`: it would make a folder, and so a second run, of its own.
        for part in hparams(options, results):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(part)

    def _place(self, run: LoggedRun) -> Path:
        if self._folder is None:
            return run.folder / "tensorboard"
        folder = Path(self._folder).expanduser()
        name = f"{run.name}-{run.id[:8]}"
        return next(folder.glob(f"*-{run.id[:8]}"), folder / name)  # it may have been renamed

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write every number as a scalar."""
        self._step = step
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def end(self, state: str, summary: Mapping[str, float]) -> None:
        """Write what the run ended with, and close the file."""
        if self._writer is not None:
            self.log(self._step, {f"summary/{name}": number for name, number in summary.items()})
            self._writer.close()
