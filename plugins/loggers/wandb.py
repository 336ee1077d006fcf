"""Weights & Biases: a run of the same id there, online or in files that are sent later.

    splitlab run --plugin adc --log wandb:project=mine
    splitlab run --plugin adc --log wandb:mode=offline
    wandb sync RUN/wandb/offline-run-*

It never asks for a login: log in with ``wandb login`` before. W&B takes no step twice, so of a run
that goes on the steps that come again stay as they are there.
"""

import io
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Literal

from splitlab.core import LoggedRun, Logger

__all__ = ["WandB"]

_SECONDS = 30  # that W&B's server may take to answer, at the beginning and at the end
_EXIT = {"finished": 0, "interrupted": 255}  # W&B calls 255 killed, and any other number failed
_TAG = 64  # characters that W&B takes


class WandB(Logger):
    """A run of a Weights & Biases project.

    Args:
        project: that it belongs to.
        entity: user or team of the project; W&B's default, as you are logged in, if it is not
            given.
        mode: online, offline (files only, for ``wandb sync``) or disabled; ``$WANDB_MODE``, or else
            online, if it is not given.
        folder: where W&B makes its folder ``wandb``; the run folder by default.
    """

    needs = "wandb"
    install = "splitlab[wandb]"

    def __init__(
        self,
        project: str = "splitlab",
        entity: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        folder: str | None = None,
    ) -> None:
        self._project = project
        self._entity = entity
        self._mode = mode
        self._folder = folder
        self._run: Any = None

    def begin(self, run: LoggedRun) -> None:
        """Begin a run of this id, or go on with it."""
        import wandb

        folder = Path(self._folder).expanduser() if self._folder else run.folder
        folder.mkdir(parents=True, exist_ok=True)  # W&B would take a temporary one instead
        # It says where it found a login before it knows that it is to be silent.
        with redirect_stderr(io.StringIO()):
            self._run = wandb.init(
                project=self._project,
                entity=self._entity,
                mode=self._mode,
                dir=str(folder),
                id=run.id,
                name=run.name,
                tags=[tag[:_TAG] for tag in run.tags],
                config=dict(run.options),
                resume="allow",
                reinit="create_new",  # a notebook may have a run of its own
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=_SECONDS,
                    finish_timeout=_SECONDS,
                ),
            )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers; those of an evaluation join those of its step."""
        self._run.log(dict(numbers), step=step)

    def end(self, state: str, summary: Mapping[str, float]) -> None:
        """Put what the run ended with into W&B's summary, and finish."""
        if self._run is not None:
            run, self._run = self._run, None
            run.summary.update(dict(summary))
            run.finish(exit_code=_EXIT.get(state, 1))
