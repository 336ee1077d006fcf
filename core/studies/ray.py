"""Jobs as tasks of a Ray cluster, whose nodes share no files with this machine.

A run happens in a temporary folder of its node, and comes back as bytes; what there is of it
already goes along, so that it goes on from its checkpoint. A task whose node dies is performed by
another one, from what went along. This process claims the run meanwhile, as whoever performs it
here would.

The nodes need splitlab in the same version, and under the same paths the files that the options
name: data, weights, plugins in files, a registry.
"""

from __future__ import annotations

import gc
import logging
import os
import platform
import signal
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from splitlab import __version__
from splitlab.core.contract.errors import ConfigError, Interrupted, SplitlabError
from splitlab.core.runs.disk import HeldError, hold, write_whole
from splitlab.core.runs.records import STATE, read_state, read_summary
from splitlab.core.studies.job import Job, JobReporter, Outcome, note_failure, told
from splitlab.core.studies.parcel import pack, unpack
from splitlab.core.studies.perform import done_by_another, perform
from splitlab.core.studies.post import Post
from splitlab.core.studies.printed import keep_log, log_file, printing_into
from splitlab.core.studies.remote import Telling, job_from, job_text

__all__ = ["Ray"]

_TICK = 0.25  # seconds between two looks at the cluster, and between two words of a task
_PATIENCE = 10.0  # seconds that the post may take to answer
_RETRIES = 3
"""How often a task is performed again, if its node or process dies."""

_REGISTRY = "SPLITLAB_REGISTRY"


class Ray:
    """Performs jobs as tasks.

    Args:
        cpus: that a task takes of its node; as many as the run computes with by default.
        gpus: or a share of one; by default one, if the cluster has any and a run may use it.
        address: of the cluster, as `ray.init` takes it.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(
        self, cpus: float | None = None, gpus: float | None = None, address: str | None = None
    ) -> None:
        if find_spec("ray") is None:
            raise ConfigError(
                "--executor ray needs Ray, which is not installed; get it with: "
                "pip install 'splitlab[ray]'"
            )
        self.cpus = cpus
        self.gpus = gpus
        self.address = address

    def perform(
        self, jobs: Sequence[Job], reporter: JobReporter, should_stop: Callable[[], bool]
    ) -> None:
        """Perform every job, see `Executor`.

        Raises:
            ConfigError: there is no cluster at the address, or a run names a certain GPU.
            Interrupted: see there.
        """
        certain = next((job.config.device for job in jobs if ":" in job.config.device), None)
        if certain is not None:
            raise ConfigError(
                f"--device {certain} is not allowed with --executor ray, which hands the GPUs "
                f"out; give --device {certain.partition(':')[0]}"
            )
        waiting, interrupted, stopping = deque(jobs), 0, False
        with _connected(self.address) as ray, _Tasks(ray, reporter) as tasks:
            while True:
                if not stopping and should_stop():
                    stopping = True
                    tasks.stop()
                has = ray.cluster_resources()
                while waiting and not stopping:
                    needs = self._needs(waiting[0], has)
                    if tasks.out >= _room(needs, has):
                        break
                    tasks.begin(waiting.popleft(), **needs)
                if not tasks.out:
                    break
                interrupted += tasks.look().count("interrupted")
        if waiting or interrupted:
            raise Interrupted(f"interrupted in {interrupted} runs, before {len(waiting)}")

    def sharing(self, jobs: Sequence[Job]) -> str:
        """Return nothing: Ray shares them out."""
        return ""

    def _needs(self, job: Job, has: Mapping[str, float]) -> dict[str, float]:
        """Return what the task of a job takes of its node."""
        cpus, gpus = self.cpus, self.gpus
        if gpus is None:
            gpus = 1 if job.config.device != "cpu" and has.get("GPU") else 0
        return {"cpus": cpus or max(1, job.config.threads or 1), "gpus": gpus}


def _room(needs: Mapping[str, float], has: Mapping[str, float]) -> float:
    """Return how many such tasks may be out: what the cluster has room for, and one that waits.

    The others are not claimed: another study of the same folder may take them.
    """
    room = has.get("CPU", 0) // needs["cpus"]
    if needs["gpus"]:
        room = min(room, has.get("GPU", 0) // needs["gpus"])
    return 1 + room


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Give Ray, connected to its cluster; one that was not connected is not afterwards."""
    import ray

    if ray.is_initialized():
        yield ray
        return
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what its next versions will do
            ray.init(
                address=address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"--ray-address {address}" if address else "--executor ray"
        raise ConfigError(f"{where}: no Ray cluster: {_line(error)}") from None
    finally:
        if main:  # it takes the signal, which is ours to hear
            signal.signal(signal.SIGTERM, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass
class _Out:
    """A job whose task is out, and the claim on its folder."""

    job: Job
    claim: ExitStack
    begun: bool = False


class _Tasks:
    """The tasks that are out.

    Args:
        ray: connected.
        reporter: is told how the jobs go.
    """

    def __init__(self, ray: Any, reporter: JobReporter) -> None:
        self._ray = ray
        self._reporter = reporter
        self._out: dict[Any, _Out] = {}
        self._stopping = False
        # Beside this process, and not where it would die with another node.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        actor = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(Post)
        self._post = actor.remote()
        self._there = ray.remote(max_retries=_RETRIES)(perform_there)
        self._place = {"folder": os.getcwd(), "registry": os.environ.get(_REGISTRY, "")}

    def __enter__(self) -> _Tasks:
        return self

    def __exit__(self, *error: object) -> None:
        """Take back what an error has left out."""
        for ref, out in self._out.items():
            # A TypeError where the task is not known any more: it has ended meanwhile.
            with suppress(self._ray.exceptions.RayError, TypeError):
                self._ray.cancel(ref, force=True)
            out.claim.close()
        self._ray.kill(self._post)

    @property
    def out(self) -> int:
        """How many are out."""
        return len(self._out)

    def begin(self, job: Job, *, cpus: float, gpus: float) -> None:
        """Claim a job and send it out, unless that is done or in hand elsewhere."""
        claim = ExitStack()
        folder = job.folder
        try:
            claim.enter_context(hold(folder.parent, folder.name))
            if folder.is_dir():
                claim.enter_context(hold(folder, "client"))
        except HeldError as error:
            claim.close()
            self._reporter.ended(job, Outcome("busy", str(error)))
            return
        with ExitStack() as undo:
            undo.push(claim)
            if done := done_by_another(job):
                self._reporter.ended(job, done)
                return
            wanted = f"cpus={cpus:g}" + (f",gpus={gpus:g}" if gpus else "")
            self._reporter.progress(job, 0.0, f"waiting for a node with {wanted}")
            task = self._there.options(num_cpus=cpus, num_gpus=gpus)
            ref = task.remote(job_text(job), pack(folder), __version__, self._place, self._post)
            self._out[ref] = _Out(job, claim)
            undo.pop_all()

    def stop(self) -> None:
        """Let all stop after their step, and take back those that have not begun."""
        self._stopping = True
        self._hear()
        for ref, out in self._out.items():
            if not out.begun:
                self._ray.cancel(ref)

    def look(self) -> list[str]:
        """Wait a moment, and tell what is new; returns the states of jobs that ended."""
        ready, _ = self._ray.wait(list(self._out), timeout=_TICK)
        self._hear()
        return [self._take(ref) for ref in ready]

    def _hear(self) -> None:
        news: dict[int, tuple[float, str]] = {}
        with suppress(self._ray.exceptions.RayError):  # it is started anew; the jobs go on
            news = self._ray.get(self._post.news.remote(self._stopping), timeout=_PATIENCE)
        for out in self._out.values():
            if out.job.number in news:
                out.begun = True
                self._reporter.progress(out.job, *news[out.job.number])

    def _take(self, ref: Any) -> str:
        """Take back the job of a task that has ended; returns its state."""
        out = self._out.pop(ref)
        with out.claim:
            outcome = self._outcome(ref, out.job)
            note_failure(out.job, outcome)
        self._reporter.ended(out.job, outcome)
        return outcome.state

    def _outcome(self, ref: Any, job: Job) -> Outcome:
        try:
            state, error, parcel = self._ray.get(ref)
            if parcel:
                unpack(parcel, job.folder)
            return Outcome(state, error, read_summary(job.folder) if state == "finished" else None)
        except self._ray.exceptions.TaskCancelledError:
            return Outcome("interrupted", "interrupted before it began")
        except self._ray.exceptions.RayError as error:
            if "No module named 'splitlab'" in str(error):
                return Outcome(
                    "failed",
                    f"a node of the cluster has no splitlab; install version {__version__} there",
                )
            return Outcome("failed", _line(error))
        except SplitlabError as error:  # it cannot be written here
            return Outcome("failed", str(error))


def _line(error: BaseException) -> str:
    """Return what an error of Ray's says, in one line: theirs are pages, with a traceback."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    cause = getattr(error, "cause", None)
    text = (lines[-1] if cause is not None else lines[0]) if lines else ""
    return f"{type(error).__name__}: {text}"


# What happens on a node.


def perform_there(
    text: str, begun: bytes, version: str, place: dict[str, str], post: Any
) -> tuple[str, str, bytes]:
    """Perform a job on this node.

    Args:
        text: of the job, see `job_text`.
        begun: what there is of its folder, see `pack`.
        version: of splitlab, where the study is.
        place: its working ``folder`` and ``registry``, which hold here if they are here.
        post: the handle of a `Post`.

    Returns:
        State and error of its outcome, and its folder.
    """
    job, node = job_from(text), platform.node()
    if version != __version__:
        error = f"node {node} has splitlab {__version__}, this is {version}; install the same"
        return "failed", error, b""
    with suppress(OSError):
        os.chdir(place["folder"])
    if place["registry"]:
        os.environ[_REGISTRY] = place["registry"]
    with _Line(job.number, post) as line, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, job.folder.name)
        if begun:
            unpack(begun, folder)
        with printing_into(log_file(folder)):
            here = replace(job, config=replace(job.config, output=str(folder)))
            try:
                outcome = perform(here, Telling(line.tell), line.should_stop)
            except Interrupted as reason:
                outcome = Outcome("interrupted", told(reason))
            gc.collect()
        keep_log(folder)
        _place_state(folder, job.folder)
        error = outcome.error.replace(str(folder), str(job.folder))
        if outcome.state == "failed":
            error = f"node {node}: {error}"
        return outcome.state, error, pack(folder)


def _place_state(folder: Path, later: Path) -> None:
    """Let the way to go on that a folder tells of lead to where the folder will be."""
    state = read_state(folder)
    if state is not None:
        text = replace(state, error=state.error.replace(str(folder), str(later))).text()
        write_whole(folder / STATE, text)


class _Line:
    """A task's line to the post, while the block lasts.

    Another thread talks: a task that waits for an answer itself is taken for idle by Ray, which
    then gives its cores to one more.

    Args:
        number: of the job.
        post: the handle of a `Post`.
    """

    def __init__(self, number: int, post: Any) -> None:
        self._number = number
        self._post = post
        self._word = 0.0, "begins"
        self._stopping = False
        self._answered = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)

    def __enter__(self) -> _Line:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def tell(self, share: float, note: str) -> None:
        """Tell how far the job is."""
        self._word = share, note

    def should_stop(self) -> bool:
        """Return whether to stop, as it was heard a moment ago."""
        self._answered.wait()
        return self._stopping

    def _talk(self) -> None:
        import ray

        while True:
            # Without a study there is nobody to stop for: the cluster ends its tasks itself.
            with suppress(ray.exceptions.RayError):
                told = self._post.tell.remote(self._number, *self._word)
                self._stopping = ray.get(told, timeout=_PATIENCE)
            self._answered.set()
            if self._ended.wait(_TICK):
                return
