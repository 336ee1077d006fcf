"""Fixtures of all tests: whatever a test leaves behind fails it, and `tiny` makes peers that
train in milliseconds.

Tests see no GPU, nor do the processes that they start: what ``--device auto`` takes must not depend
on the machine. ``pytest --gpu`` runs the tests marked ``gpu``, and only these, which see it.

Test modules are no package (pytest's importlib mode), so helpers come as fixtures. What loads torch
is imported where it is used: not every test needs it.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

# Models this small lose time with more threads, and workers of pytest-xdist share the cores.
_THREADS = int(os.environ.get("SPLITLAB_TEST_THREADS", "1"))
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # of the processes that tests start, too
    os.environ[_variable] = str(_THREADS)
# A hundred processes start: what one of them has compiled, the others read.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Set by pytest, by torch when timm is imported or a GPU is first used, by the command line, by the
# first link over NCCL, and by scikit-learn, which others import where it is.
_NOT_OURS = (
    "PYTEST_CURRENT_TEST",
    "TORCHINDUCTOR_CACHE_DIR",
    "CUDA_MODULE_LOADING",
    "GOMP_SPINCOUNT",
    "KMP_DUPLICATE_LIB_OK",
    "NCCL_MULTI_RANK_GPU_ENABLE",
    "NCCL_RAS_ENABLE",
)
_PATIENCE = 3.0  # seconds that a thread, a child or a socket may take to go


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--gpu", action="store_true", help="run the tests that need a CUDA device, and no others"
    )


def pytest_configure(config: pytest.Config) -> None:
    # A process that has looked for GPUs once sees the same ones to its end, so this is decided for
    # all tests of a process, and before the first imports torch.
    if config.getoption("--gpu"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what repeats itself needs it
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    # A third of the time a test waits: for a process that it started, a deadline, a file.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return cores + (cores + 1) // 2


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    # Thousands of tests and all that they import stay: nobody need look for garbage among them.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--gpu")
    reason = "needs a GPU: run pytest --gpu"
    if wanted:
        others = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item.get_closest_marker("gpu")]
        import torch

        if torch.cuda.is_available():
            return
        reason = "there is no CUDA device"
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Compute with one thread, or as many as ``SPLITLAB_TEST_THREADS`` says."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(_THREADS)
    tqdm.monitor_interval = 0  # its thread would outlive the first test that loads data


@pytest.fixture(scope="session", autouse=True)
def used_gpu(request: pytest.FixtureRequest) -> None:
    """Let what CUDA opens when it is first used be there before the first test."""
    if request.config.getoption("--gpu"):
        import torch

        if torch.cuda.is_available():
            torch.zeros(1, device="cuda", requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that leaves a thread, child process, socket or changed process-wide state.

    Fixtures of a wider scope begin before and end after, so what they hold does not count.
    """
    before = _possessions()
    state = _state()
    yield
    deadline = time.monotonic() + _PATIENCE
    while (left := _possessions() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    after = _state()
    # A test may be the first to import torch.
    keys = {key for key in state.keys() | after.keys() if key in state or key.startswith("$")}
    changed = sorted(key for key in keys if state.get(key) != after.get(key))
    assert not left, f"this test leaves behind: {', '.join(sorted(map(str, left)))}"
    assert not changed, f"this test leaves changed: {', '.join(changed)}"


def _possessions() -> set[object]:
    sockets = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue  # the directory's own descriptor
        if target.startswith("socket:"):
            sockets.add(target)
    # Threads of torch's own that have run Python once: autograd keeps one for each GPU.
    threads = (t for t in threading.enumerate() if not isinstance(t, threading._DummyThread))
    return {*threads, *_children(), *sockets}


def _children() -> set[str]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()  # one system call, and nearly always the end of it
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has ended
        if int(parent) == os.getpid():
            found.add(f"process {stat.parent.name}")
    return found


def _state() -> dict[str, object]:
    state: dict[str, object] = {"the working directory": os.getcwd()}
    state |= {f"${key}": value for key, value in os.environ.items() if key not in _NOT_OURS}
    torch = sys.modules.get("torch")
    if torch is not None:
        state["torch's random state"] = bytes(torch.get_rng_state().numpy())
        state["torch.get_num_threads()"] = torch.get_num_threads()
        state["torch's default dtype"] = torch.get_default_dtype()
        state["torch.is_grad_enabled()"] = torch.is_grad_enabled()
    return state


@pytest.fixture(scope="session")
def tiny() -> Any:
    """Return the maker of tiny things."""
    from splitlab.core.testing import Tiny

    return Tiny()


@pytest.fixture(scope="session")
def fresh() -> Iterator[Any]:
    """Return peers in processes of their own; starting them takes seconds, so all share them."""
    from splitlab.core.testing import FreshPeers

    with FreshPeers() as peers:
        yield peers


@pytest.fixture(scope="session")
def forks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Return a program that starts `splitlab` in milliseconds, or Python itself where none can."""
    from forking import Forks

    if sys.platform != "linux" or request.config.getoption("--gpu"):
        yield sys.executable
        return
    with Forks(str(tmp_path_factory.mktemp("forks"))) as forks:
        yield forks.python


@pytest.fixture(scope="module")
def starts_fast(forks: str) -> Iterator[None]:
    """Let every ``python -m splitlab`` of a module's tests be forked; see `forking`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", forks)
        yield


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of 24 training and 8 test images of 2 classes."""
    from images import write_images

    return write_images(tmp_path_factory.mktemp("idx"), 24, 8, 2)
