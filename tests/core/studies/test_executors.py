"""Executors by their text."""

from __future__ import annotations

import pytest

from splitlab.core import ConfigError
from splitlab.core.studies.executors import executor
from splitlab.core.studies.inside import Inside
from splitlab.core.studies.processes import Processes
from splitlab.core.studies.ray import Ray


def test_executors_by_their_text(with_ray: None) -> None:
    assert isinstance(executor("inside"), Inside)
    processes = executor("processes:3")
    assert isinstance(processes, Processes)
    assert processes.number == 3
    for text, shares in (
        ("ray", (None, None)),
        ("ray:cpus=2", (2, None)),
        ("ray:gpus=0.25", (None, 0.25)),
        ("ray:cpus=0.5,gpus=0", (0.5, 0)),
    ):
        ray = executor(text, "host:6379")
        assert isinstance(ray, Ray)
        assert (ray.cpus, ray.gpus, ray.address) == (*shares, "host:6379")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown executor ''; known: inside, processes:N, ray"),
        ("proceses:2", r"unknown executor 'proceses:2' \(did you mean 'processes:N'\?\)"),
        ("inside:2", "inside takes no settings"),
        ("processes", "as in processes:4"),
        ("processes:", "as in processes:4"),
        ("processes:0", "from 1 to 1024"),
        ("processes:many", "from 1 to 1024"),
        ("processes:-1", "from 1 to 1024"),
        ("ray:cpu=1", r"unknown setting of --executor ray:cpu=1 'cpu' \(did you mean 'cpus'"),
        ("ray:cpus", "a whole number or a share of one, as in ray:"),
        ("ray:cpus=0", "cpus=0 is not allowed"),
        ("ray:gpus=1.5", "gpus=1.5 is not allowed"),
        ("ray:gpus=nan", "gpus=nan is not allowed"),
        ("ray:gpus=-1", "gpus=-1 is not allowed"),
        ("ray:cpus=1,cpus=2", "write each once"),
    ],
)
def test_what_is_no_executor(text: str, message: str, with_ray: None) -> None:
    with pytest.raises(ConfigError, match=message):
        executor(text)


@pytest.mark.parametrize("text", ["inside", "processes:2"])
def test_an_address_is_for_ray(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--ray-address auto goes with .* not {text}"):
        executor(text, "auto")


def test_ray_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitlab.core.studies.ray.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'splitlab\[ray\]'"):
        executor("ray")
