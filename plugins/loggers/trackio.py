"""Trackio: a run of a local project, or of one in a Hugging Face Space.

    splitlab run --plugin adc --log trackio
    trackio show --project splitlab

Trackio knows a run by its name, so that the run's id is part of it; a run that goes on under
another name is another one there. A step is taken twice; steps that a local project has are not
sent again.
"""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from splitlab.core import LoggedRun, Logger

__all__ = ["Trackio"]


class Trackio(Logger):
    """A run of a Trackio project.

    Args:
        project: that it belongs to.
        space: USER/NAME of the Hugging Face Space that it is sent to; kept on this machine, in
            ``$TRACKIO_DIR``, if it is not given.
    """

    needs = "trackio"
    install = "splitlab[trackio]"

    def __init__(self, project: str = "splitlab", space: str | None = None) -> None:
        self._project = project
        self._space = space
        self._run: Any = None
        self._step = 0
        self._last: dict[str, int] = {}

    def begin(self, run: LoggedRun) -> None:
        """Begin a run of this name and id, or go on with it."""
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        name = f"{run.name}-{run.id[:8]}"
        self._step = run.step
        if self._space is None:
            for point in SQLiteStorage.get_logs(self._project, name):
                self._last |= dict.fromkeys(point, point["step"])
        with redirect_stdout(io.StringIO()):
            self._run = trackio.init(
                project=self._project,
                name=name,
                space_id=self._space,
                config={**run.options, "tags": " ".join(run.tags)},
                resume="allow",
                embed=False,  # no dashboard of its own in a notebook
            )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hand the numbers on; Trackio's own thread writes or sends them."""
        self._step = step
        new = {name: value for name, value in numbers.items() if step > self._last.get(name, -1)}
        if new:
            self._run.log(new, step=step)

    def end(self, state: str, summary: Mapping[str, float]) -> None:
        """Log what the run ended with, and wait until all is written or sent."""
        if self._run is not None:
            import trackio

            self.log(self._step, {f"summary/{name}": value for name, value in summary.items()})
            with redirect_stdout(io.StringIO()):
                trackio.finish()  # not the run's own: that would be called again, when Python ends
