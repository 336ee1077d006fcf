"""MLflow: a run of an experiment, in a local store or on a tracking server.

    splitlab run --plugin adc --log mlflow
    splitlab run --plugin adc --log mlflow:experiment=mine,uri=sqlite:///runs.db

The run is found again by its tag ``splitlab.run``, so that one that goes on does so there, too.
MLflow takes a step twice; steps that it has are not sent again.
"""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from splitlab.core import LoggedRun, Logger

__all__ = ["MLflow"]

_TAG = "splitlab.run"
_STATES = {"finished": "FINISHED", "interrupted": "KILLED"}
_SECONDS, _NUMBERS = 5.0, 500  # what is held back at most: a server takes 1000 numbers at a time
_CHARACTERS = 500  # of an option, that every version of MLflow takes

_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""Where the user has not said otherwise: MLflow's own is to wait minutes, and training with it."""


def _name(given: str) -> str:
    """Return a name of a number or a tag with the characters that MLflow takes."""
    return re.sub(r"[^\w. /-]", "_", given)


@contextmanager
def _few_tries() -> Iterator[None]:
    ours = {key: value for key, value in _PATIENCE.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            del os.environ[key]


class MLflow(Logger):
    """A run of an MLflow experiment.

    Args:
        experiment: that it belongs to; made if it is not there.
        uri: of the tracking server or store, such as sqlite:///FILE.db; MLflow's own default
            (``$MLFLOW_TRACKING_URI``, or ``mlflow.db`` where splitlab is started) if it is not
            given.
    """

    needs = "mlflow"
    install = "splitlab[mlflow]"

    def __init__(self, experiment: str = "splitlab", uri: str | None = None) -> None:
        self._experiment = experiment
        self._uri = uri
        self._client: Any = None
        self._run = ""
        self._step = 0
        self._goes_on = False
        self._last: dict[str, int] = {}
        self._held: list[Any] = []
        self._sent = 0.0

    @_few_tries()
    def begin(self, run: LoggedRun) -> None:
        """Begin a run with a tag of this id, or go on with it."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        for library in ("mlflow", "alembic"):  # they tell of every table of a new store
            logging.getLogger(library).setLevel(logging.ERROR)
        self._client = MlflowClient(tracking_uri=self._uri)
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = (
            self._client.create_experiment(self._experiment)
            if found is None
            else found.experiment_id
        )
        before = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.id}'")
        tags = {_TAG: run.id, **dict.fromkeys(map(_name, run.tags), "")}
        if before:
            self._run, had = before[0].info.run_id, before[0].data.params
            self._client.update_run(self._run, status="RUNNING", name=run.name)
            for key, value in tags.items():
                self._client.set_tag(self._run, key, value)
        else:
            made = self._client.create_run(experiment, tags=tags, run_name=run.name)
            self._run, had = made.info.run_id, {}
        self._step, self._goes_on = run.step, bool(before)
        # A value that stands there cannot be changed.
        new = [
            Param(key, str(value)[:_CHARACTERS])
            for key, value in run.options.items()
            if key not in had
        ]
        self._client.log_batch(self._run, params=new)

    @_few_tries()
    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hold the numbers back for some seconds: a server is asked rarely."""
        self._hold(step, numbers)
        if len(self._held) >= _NUMBERS or time.time() - self._sent >= _SECONDS:
            self._send()

    def _hold(self, step: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        self._step = step
        for given, number in numbers.items():
            name = _name(given)
            if step > self._known(name):
                self._held.append(Metric(name, number, int(1000 * time.time()), step))

    def _known(self, name: str) -> int:
        """Return the last step of this name that was sent before the run went on."""
        if not self._goes_on:
            return -1
        if name not in self._last:
            history = self._client.get_metric_history(self._run, name)
            self._last[name] = max((point.step for point in history), default=-1)
        return self._last[name]

    def _send(self) -> None:
        held, self._held, self._sent = self._held, [], time.time()
        for first in range(0, len(held), _NUMBERS):
            self._client.log_batch(self._run, metrics=held[first : first + _NUMBERS])

    @_few_tries()
    def end(self, state: str, summary: Mapping[str, float]) -> None:
        """Send the rest and what the run ended with, and say how it ended."""
        if self._run:
            self._hold(self._step, {f"summary/{name}": number for name, number in summary.items()})
            self._send()
            self._client.set_terminated(self._run, _STATES.get(state, "FAILED"))
