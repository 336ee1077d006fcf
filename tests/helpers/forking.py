"""Processes that need not import torch anew: `splitlab` started by forking a process that has.

Half of what a test of two processes computes is imports. `Forks` starts one process that imports
what a run needs, and no plugin or link, and computes nothing; and it writes a program that stands
in for Python. Started as ``python -m splitlab ...``, or to do a study's jobs or decode images, that
has the process fork and run the module with its own arguments, folder, environment and open files;
it passes signals on, ends as the fork ends, and takes it along when it is killed. Whatever else it
is started for, or in an environment that an import might have read, it becomes Python.

This file is imported by the stand-in, which has to start at once, so it imports little.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from typing import Any

_READ_LATER = ("SPLITLAB_", "PYTEST_", "NCCL_", "OPENBLAS_", "COLUMNS", "LINES", "PWD", "OLDPWD")
"""How variables begin that no import reads: with others changed, a process starts from nothing."""
_READ_LATER += ("TORCHINDUCTOR_CACHE_DIR", "CUDA_MODULE_LOADING", "GOMP_SPINCOUNT", "CUBLAS_")
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_HERE = os.path.dirname(os.path.abspath(__file__))
_MODULES = ("splitlab", "splitlab.core.data.worker", "splitlab.core.studies.worker")
_ROOMS = ("contract", "wire", "engine", "session", "models", "data", "catalogue", "runs", "command")


def _read_early(environment: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in environment.items() if not k.startswith(_READ_LATER)}


class Forks:
    """The process that forks, and the stand-in; used as a context.

    Attributes:
        python: the stand-in's path.
    """

    def __init__(self, folder: str) -> None:
        import subprocess

        self.python = f"{folder}/python"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/socket")
            listener.listen(16)
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(listener.fileno()), self.python],
                stdin=subprocess.PIPE,  # it ends when this does
                pass_fds=(listener.fileno(),),
                start_new_session=True,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # it forks
            )
        known = {"python": sys.executable, "environment": _read_early(dict(os.environ))}
        with open(f"{folder}/known", "w") as file:
            json.dump(known, file)
        with open(self.python, "w") as file:
            file.write(f"#!{sys.executable} -IS\nimport sys\nsys.path.append({_HERE!r})\n")
            file.write(f"import forking\nforking.stand_in({folder!r})\n")
        os.chmod(self.python, 0o755)

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def behind(pid: int) -> int:
    """Return the process that a stand-in stands for; any other process is its own."""
    try:
        with open(f"{os.path.dirname(sys.executable)}/{pid}") as file:
            return int(file.read())
    except (OSError, ValueError):  # it is not there, or is being written
        return pid


# In the stand-in.


def stand_in(folder: str) -> None:
    """Be ``python``; see above."""
    given = [int(name) for name in os.listdir("/proc/self/fd")]
    with open(f"{folder}/known") as file:
        known = json.load(file)
    arguments = sys.argv[1:]
    safe = arguments[:1] == ["-P"]
    called = arguments[safe:]
    ours = called[:1] == ["-m"] and called[1] in _MODULES
    if not ours or _read_early(dict(os.environ)) != known["environment"]:
        os.execv(known["python"], [known["python"], *arguments])
    files = [number for number in given if _is_open(number)]
    request = {
        "module": called[1],
        "arguments": called[2:],
        "safe": safe,
        "folder": os.getcwd(),
        "files": files,
    }
    text = json.dumps({**request, "environment": dict(os.environ), "pid": os.getpid()}).encode()
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    asked = socket.socket(socket.AF_UNIX)
    asked.connect(f"{folder}/socket")
    socket.send_fds(asked, [len(text).to_bytes(4, "big")], files)
    asked.sendall(text)
    for number in files:  # its ends of pipes are the other's now
        os.close(number)
    child = int.from_bytes(_received(asked, 4), "big")
    for which in _PASSED_ON:
        signal.signal(which, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    status = int.from_bytes(_received(asked, 4), "big", signed=True)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False  # of the listing itself
    return True


def _received(connection: socket.socket, size: int) -> bytes:
    """Return so many bytes; end if the other side has."""
    raw = b""
    while len(raw) < size:
        part = connection.recv(size - len(raw))
        if not part:
            raise EOFError
        raw += part
    return raw


# In the process that forks.


def _imports() -> None:
    import importlib
    import pkgutil

    import PIL.Image  # noqa: F401 (not pyarrow, which starts a thread)

    for room in _ROOMS:
        package = importlib.import_module(f"splitlab.core.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"splitlab.core.{room}.{module.name}")
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"a process of {len(threads)} threads cannot fork"


def _forked(listener: socket.socket, python: str) -> dict[str, Any]:
    """Fork for everybody who asks; returns the request, in the new process alone."""
    import select

    asking: dict[int, socket.socket] = {}
    while True:
        waiting = [0, listener, *asking.values()]
        ready = select.select(waiting, [], [], 0.02 if asking else None)[0]
        if 0 in ready:
            for child in asking:
                os.kill(child, signal.SIGKILL)
            sys.exit()
        for child in [child for child, stub in asking.items() if stub in ready]:
            os.kill(child, signal.SIGKILL)  # the stand-in was killed
        while asking and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with asking.pop(ended[0]) as stub:
                status = os.waitstatus_to_exitcode(ended[1])
                with contextlib.suppress(OSError):  # it was killed
                    stub.sendall(status.to_bytes(4, "big", signed=True))
        if listener not in ready:
            continue
        stub, _ = listener.accept()
        try:
            size, files, _, _ = socket.recv_fds(stub, 4, 64)
            request: dict[str, Any] = json.loads(_received(stub, int.from_bytes(size, "big")))
        except (EOFError, OSError, ValueError):  # killed so soon
            stub.close()
            continue
        child = os.fork()
        if not child:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where nohup runs the tests
            for connection in (listener, stub, *asking.values()):
                connection.close()
            return {**request, "arrived": files}
        for number in files:
            os.close(number)
        with open(f"{os.path.dirname(python)}/{request['pid']}", "w") as file:
            file.write(str(child))
        asking[child] = stub
        with contextlib.suppress(OSError):
            stub.sendall(child.to_bytes(4, "big"))


def _become(request: dict[str, Any], python: str) -> None:
    """Take over what the stand-in has, and run the command line."""
    import fcntl
    import runpy

    os.setsid()
    # Out of the way first: an arrived number may be one that another is to have.
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD, 1000) for number in request["arrived"]]
    for number in request["arrived"]:
        os.close(number)
    for number, wanted in zip(moved, request["files"], strict=True):
        os.dup2(number, wanted)
        os.close(number)
    # Whether they are buffered by lines depends on what they are.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = python
    sys.argv = [request["module"], *request["arguments"]]
    if not request["safe"]:
        sys.path.insert(0, request["folder"])
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _listener = socket.socket(fileno=int(sys.argv[1]))
    _python = sys.argv[2]
    _imports()
    _become(_forked(_listener, _python), _python)
