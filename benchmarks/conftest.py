"""Options of the benchmarks: ``--device cuda`` times them on a GPU."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where to compute: cpu, cuda, …")
    parser.addoption(
        "--precision", default="fp32", choices=("fp32", "tf32", "bf16"), help="of both parts"
    )


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))
