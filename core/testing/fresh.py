"""Peers that know nothing but what they are sent: each lives in a new process of its own.

    python -m splitlab.core.testing.fresh

is the process that they come from. It has imported torch and the engine and no plugin, and forks
for every request, so that a fresh peer costs milliseconds. Requests come on its standard input and
answers go to its standard output, both as one line of JSON, which says how long the frames behind
it are. `FreshPeers` starts and asks it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, cast

from splitlab.core.catalogue.binding import bind, bind_stack
from splitlab.core.contract.errors import PluginError, SplitlabError
from splitlab.core.contract.message import Message
from splitlab.core.contract.settings import Bound
from splitlab.core.engine.conversation import hold
from splitlab.core.engine.worker import Worker
from splitlab.core.runs.checkpoint import Checkpoints
from splitlab.core.runs.config import Config
from splitlab.core.runs.repeating import repeating
from splitlab.core.testing.tiny import Tiny, freeze, thaw

__all__ = ["FreshPeers", "Turn", "address"]

_DEADLINE = 120.0  # seconds; importing torch takes long on a busy machine

Turn = tuple[Literal["train", "evaluate"], int]
"""What a peer is asked to do, and the number of the step or batch."""


def address(stack: Sequence[Bound], text: str | None) -> dict[str, Any] | str:
    """Return how a process that starts from nothing finds the stack, or why it cannot.

    Args:
        stack: the plugins; several only if they have a text.
        text: what users type for them, if they were given so.
    """
    if text is not None:
        return {"text": text}
    [bound] = stack
    factory = bound.factory
    if not isinstance(factory, type) or "." in factory.__qualname__:
        return f"{factory!r} is not a class at the top of a module, which another process can find"
    try:
        file = inspect.getsourcefile(factory)
    except (TypeError, OSError):
        file = None
    if file is None or not Path(file).is_file():
        return f"{factory.__name__} stands in no file that another process can read"
    try:
        params = json.loads(json.dumps(dict(bound.params)))
    except (TypeError, ValueError):
        return "a parameter is no JSON value, which another process could read"
    names = {"module": factory.__module__, "name": factory.__name__, "label": bound.label}
    return {"file": str(Path(file).resolve()), "params": params, **names}


class FreshPeers:
    """Starts fresh peers; used as a context, or closed by `close`.

    The process behind it starts at once and is waited for when it is first asked.
    """

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # One thread: it forks, and its numbers are compared with those of one thread.
        lonely = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        # -P: what lies in the working folder must not shadow a module.
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "splitlab.core.testing.fresh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **lonely, "OPENBLAS_NUM_THREADS": "1"},
        )

    def replay(
        self,
        role: Literal["client", "server"],
        tiny: Tiny,
        plugins: Mapping[str, Any],
        turns: Sequence[Turn],
        frames: Sequence[bytes],
    ) -> list[bytes]:
        """Return what a fresh peer sends, if these frames arrive one after another.

        Args:
            role: of the fresh peer.
            tiny: makes it, and the client's batches.
            plugins: where they are, see `address`; besides, ``checkpoint``, a folder and a step,
                if the peer goes on from there.
            turns: what it is asked to do, one for every frame.
            frames: what the other peer sent.

        Raises:
            LookupError: the plugin cannot be found or imported there.
            PluginError: the fresh peer failed; says how.
        """
        request = {
            "role": role,
            "tiny": dataclasses.asdict(tiny),
            "plugins": dict(plugins),
            "turns": [*map(list, turns)],
            "folder": os.getcwd(),
            "path": sys.path,
        }
        if self._process.poll() is not None:  # an earlier plugin was the end of it
            self._end()
            self._process = self._start()
        requests = cast("IO[bytes]", self._process.stdin)  # a pipe, as `_start` says
        try:
            _write(requests, request, frames)
            answer, sent = self._read()
        except (BrokenPipeError, EOFError):
            raise PluginError(f"fresh peers cannot be started: {self._last_words()}") from None
        if "missing" in answer:
            raise LookupError(answer["missing"])
        if "error" in answer:
            raise PluginError(answer["error"])
        return sent

    def close(self) -> None:
        """End the process."""
        self._end()
        self._log.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> FreshPeers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> tuple[dict[str, Any], list[bytes]]:
        stream = cast("IO[bytes]", self._process.stdout)
        watchdog = threading.Timer(_DEADLINE, self._process.kill)
        watchdog.start()
        try:
            line = stream.readline()
            if not line:
                raise EOFError
            answer = json.loads(line)
            return answer, [stream.read(size) for size in answer["frames"]]
        finally:
            watchdog.cancel()
            watchdog.join()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "the process ended and printed nothing"


def _write(stream: Any, head: Mapping[str, Any], frames: Sequence[bytes]) -> None:
    line = json.dumps({**head, "frames": [*map(len, frames)]}).encode()
    stream.write(b"".join([line, b"\n", *frames]))
    stream.flush()


# In the other process.


def main() -> None:
    """Answer requests until the standard input ends."""
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a child that collects need not copy what it shares
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a plugin prints is no answer
    while line := requests.readline():
        request = json.loads(line)
        frames = [requests.read(size) for size in request["frames"]]
        child = os.fork()
        if child == 0:
            _answer(request, frames, answers)
        _, status = os.waitpid(child, 0)
        if status:
            _write(answers, {"error": f"the fresh peer's process died with status {status}"}, [])


def _answer(request: Mapping[str, Any], frames: list[bytes], answers: Any) -> None:
    """Play the peer, answer, and end the process."""
    sent: list[bytes] = []
    said = "missing"
    head = {}
    try:
        os.chdir(request["folder"])
        sys.path += [folder for folder in request["path"] if folder not in sys.path]
        stack = _find(request["plugins"])
        said = "error"
        with repeating(Config(device=request["tiny"]["device"], deterministic=True)):
            sent = _play(request, stack, frames)
    except BaseException as error:  # noqa: BLE001 (whatever it is, the other process shall hear it)
        kind = "" if isinstance(error, SplitlabError) else f"{type(error).__name__}: "
        head, sent = {said: f"{kind}{error}"}, []
    _write(answers, head, sent)
    os._exit(0)


def _play(
    request: Mapping[str, Any], stack: Sequence[Bound], frames: Sequence[bytes]
) -> list[bytes]:
    tiny = Tiny(**request["tiny"])
    checkpoint = request["plugins"].get("checkpoint")

    def resumed(worker: Worker) -> None:
        if checkpoint:
            folder, step = checkpoint
            worker.load_state(*Checkpoints(Path(folder), request["role"]).load(step))

    if request["role"] == "server":
        server = tiny.server(stack)
        resumed(server)
        return [freeze(server.handle(thaw(frame))) for frame in frames]
    sent: list[bytes] = []
    answers = iter(frames)

    def ask(message: Message) -> Message:
        sent.append(freeze(message))
        frame = next(answers, None)
        if frame is None:
            raise PluginError(f"the client sends more than the {len(frames)} messages it sent")
        return thaw(frame)

    client = tiny.client(stack)
    resumed(client)
    for what, number in request["turns"]:
        batch = tiny.batch(number)
        if what == "train":
            hold(client.train(batch, number), ask)
        else:
            hold(client.query(batch, number, stacked=True), ask)
    return sent


def _find(plugins: Mapping[str, Any]) -> list[Bound]:
    if "text" in plugins:
        return bind_stack([plugins["text"]])
    name, file, label = plugins["name"], plugins["file"], plugins["label"]
    factory = None
    with contextlib.suppress(ImportError, ValueError):
        module = importlib.import_module(plugins["module"])
        if Path(module.__file__ or "").resolve() == Path(file):
            factory = getattr(module, name)
    factory = factory or bind("plugins", f"{file}:{name}").factory
    return [Bound(label, label, factory, plugins["params"], plugins["params"])]


if __name__ == "__main__":
    main()
