"""MLflow's client reads back from a local store what the run logged, each step once."""

from __future__ import annotations

import os
import re
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import LoggedRun
from splitlab.core.contract.errors import Notice

pytest.importorskip("mlflow", exc_type=ImportError)
pytest.importorskip("sqlalchemy")
pytest.importorskip("alembic")
from splitlab.plugins.loggers.mlflow import MLflow

pytestmark = [
    # Of libraries that MLflow uses; in a run they are not shown either.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


def read(store: str, id: str) -> Any:
    """Return the client, and the one run of this id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=store)
        experiments = [each.experiment_id for each in client.search_experiments()]
        [run] = client.search_runs(experiments, f"tags.`splitlab.run` = '{id}'")
    return client, run


def points(client: Any, run: Any) -> dict[str, list[tuple[int, float]]]:
    return {
        name: [
            (point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
    }


def assert_same(found: dict[str, list[tuple[int, float]]], wanted: Any) -> None:
    named = {re.sub(r"[#():%]", "_", name): expected for name, expected in wanted.items()}
    assert found.keys() == named.keys()
    for name, expected in named.items():
        assert sorted(found[name]) == [(step, pytest.approx(n)) for step, n in expected], name


def test_what_a_run_logged_is_read_back_and_each_step_once_when_it_goes_on(
    log: Callable[..., Path],
    again: Callable[..., None],
    logged: Callable[[Path], Any],
    id_of: Callable[[Path], str],
    store: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = log(f"mlflow:experiment=mine,uri={store}")
    client, run = read(store, id_of(folder))
    assert_same(points(client, run), logged(folder))
    assert (run.info.run_name, run.info.status) == ("a run", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "mine"
    known = {"plugins": "quantize", "batch_size": "8", "pretrained": "False", "budget": "steps=4"}
    assert known.items() <= run.data.params.items()
    assert {"a tag", "b"} <= run.data.tags.keys()
    again(folder)
    client, run = read(store, id_of(folder))
    found = points(client, run)
    for name in [name for name in found if name.startswith("summary/")]:
        assert [step for step, _ in found.pop(name)] == [4, 5]  # what it ended with, both times
    wanted = {name: p for name, p in logged(folder).items() if not name.startswith("summary/")}
    assert_same(found, wanted)
    assert run.info.status == "FINISHED"
    assert capfd.readouterr() == ("", "")


def test_a_state_that_is_no_end_of_its_own_is_one_that_mlflow_knows(
    store: str, tmp_path: Path
) -> None:
    for id, state, known in (("a", "interrupted", "KILLED"), ("b", "diverged", "FAILED")):
        logger = MLflow(uri=store)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options, tags = {"long": 1000 * "x"}, ("k=1", "a+b@c")
            logger.begin(LoggedRun(id * 16, "r", tmp_path, 0, options, tags))
        logger.log(1, {"train/loss": float("nan")})
        logger.end(state, {})
        _, run = read(store, id * 16)
        assert run.info.status == known
        assert len(run.data.params["long"]) == 500
        assert {"k_1", "a_b_c"} <= run.data.tags.keys()


def test_a_server_that_does_not_answer_costs_the_log_and_not_the_run(
    log: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = dict(os.environ)
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.warns(Notice, match=f"logger 'mlflow:uri={uri}' failed and is told no more"):
            folder = log(f"mlflow:uri={uri}")
    assert (folder / "summary.json").is_file()
    assert dict(os.environ) == before
    assert capfd.readouterr() == ("", "")
