"""Train for thousands of steps while the connection fails again and again, and look at both peers.

    python tests/soak.py [--steps N | --seconds S] [--link NAME] [--stack NAME] [--seed N]

Server and client are processes of their own, between which a proxy strikes a frame every few
hundred steps, by chance. At the end the losses, and both peers' last checkpoints, must equal those
of a run to which nothing happened, bit for bit; and memory, threads and open files of both peers
must be what they were after a tenth of the steps. Status 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

import torch
from faulted import LINKS, STACKS, Lab
from proxy import FAULTS, Direction, Fault, FaultProxy
from safetensors.torch import load_file

from splitlab.core import run

_EVERY = 200
"""Steps between two faults, in the mean."""
_LOOK_SECONDS = 0.2
_MEBIBYTES = 8.0
"""How much more memory a peer may have at the end: what allocators and caches do by chance."""
_FILES = _THREADS = 2
"""The same of open files and threads, of which some come and go with a connection."""
_QUICK = {"stall": 0.05, "throttle": 0.05, "away": 0.2}


class Look(NamedTuple):
    """What a process holds.

    Attributes:
        mebibytes: of memory that is its own or shared (RSS).
        threads: of it.
        files: that it has open, sockets among them.
    """

    mebibytes: float
    threads: int
    files: int

    @classmethod
    def at(cls, number: int) -> Look:
        """Look at a process."""
        status = Path(f"/proc/{number}/status").read_text()
        said = dict(line.split(":", 1) for line in status.splitlines())
        files = len(os.listdir(f"/proc/{number}/fd"))
        return cls(int(said["VmRSS"].split()[0]) / 1024, int(said["Threads"]), files)

    def grown(self, since: Look) -> str:
        """Return what there is more of than there may be, or an empty text."""
        return ", ".join(
            name
            for name, now, before, more in zip(
                self._fields, self, since, (_MEBIBYTES, _THREADS, _FILES), strict=True
            )
            if now > before + more
        )


def storm(steps: int, seed: int) -> Iterator[Fault]:
    """Yield faults for so many steps: one every few hundred, at training's frames."""
    draw, done = random.Random(seed), 0
    while True:
        pause = draw.randrange(_EVERY // 2, 3 * _EVERY // 2)
        done += pause + 1
        if done > steps - _EVERY:
            return
        kind = draw.choice([*FAULTS])
        way: Direction = "up" if kind == "late" or draw.random() < 0.5 else "down"
        where, bit = draw.choice([0, 0.5, 1]), draw.randrange(1 << 16)
        yield Fault(kind, way, _FRAMES[way], pause, where=where, bit=bit, **_slow(kind))


_FRAMES: dict[Direction, str] = {"up": "ACTIVATION of training", "down": "GRADIENT"}


def _slow(kind: str) -> dict[str, Any]:
    return {"seconds": _QUICK[kind]} if kind in _QUICK else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the run, and say what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seconds", type=float, help="as many steps as take about so long")
    parser.add_argument("--link", choices=LINKS, default="plain")
    parser.add_argument("--stack", choices=[*STACKS], default="aqsgd")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        steps = chosen.steps
        if chosen.seconds:
            _whole(lab, chosen.stack, 50, Path(folder) / "first")
            began = time.monotonic()
            _whole(lab, chosen.stack, 300, Path(folder) / "rate")
            # Here and over a link, which takes about twice as long.
            steps = max(1000, round(300 * chosen.seconds / (time.monotonic() - began) / 3))
        return _soak(lab, Path(folder), chosen, steps)


def _soak(lab: Lab, folder: Path, chosen: argparse.Namespace, steps: int) -> int:
    faults = [*storm(steps, chosen.seed)]
    if chosen.link == "tls":
        for fault in faults:
            fault.name = None
    print(
        f"{steps:,} steps of {chosen.stack}, {chosen.link}, with {len(faults)} faults", flush=True
    )
    options = {**lab.options(chosen.stack), **_budget(steps), "data_dir": lab.data}
    ours, theirs = lab.access(chosen.link)
    began = time.monotonic()
    server = _started(folder, "serve", "--classes", "2", "--output", "s", **options, **theirs)
    assert server.stdout is not None
    address = server.stdout.readline().split()[-1]
    with FaultProxy(address, faults, seconds=1e6) as proxy:
        join = _started(folder, "join", proxy.address, "--quiet", output="r", **options, **ours)
        peers = {"client": join, "server": server}
        looks = _watch(proxy, peers, steps)
    took = time.monotonic() - began
    status = {name: process.wait(60) for name, process in peers.items()}
    server.stdout.close()
    wrong = [f"the {name} ended with {code}" for name, code in status.items() if code]
    idle = [fault for fault in faults if not fault.over]
    wrong += [f"{len(idle)} faults never struck, first of all {idle[0]}"] if idle else []
    struck = Counter(fault.kind for fault in faults if fault.over)
    print(f"took {took:.0f} s, {proxy.connections} connections; {_counted(struck)}")
    print("          steps      MiB  threads    files")
    for name in peers:
        for at, look in looks[name]:
            print(f"{name}  {at:>7,}  {look.mebibytes:7.1f}  {look.threads:7}  {look.files:7}")
        grown = looks[name][-1][1].grown(looks[name][0][1])
        wrong += [f"the {name} has more {grown} than after a tenth of the steps"] if grown else []
    if not wrong:
        _whole(lab, chosen.stack, steps, folder / "whole")
        wrong = [*_differences(folder, steps)]
    print("\n".join(wrong) or f"losses and checkpoints are bit-identical after {steps:,} steps")
    return bool(wrong)


def _counted(struck: Counter[str]) -> str:
    return ", ".join(f"{kind}: {number}" for kind, number in sorted(struck.items()))


def _budget(steps: int) -> dict[str, Any]:
    return {"budget": f"steps={steps}", "eval_every": 1000, "checkpoint_every": 500}


def _whole(lab: Lab, stack: str, steps: int, folder: Path) -> None:
    """Make a run in this process to which nothing happens."""
    options = {**lab.options(stack), "transport": "inprocess"}
    run(data_dir=lab.data, output=str(folder), **options, **_budget(steps))


def _started(folder: Path, command: str, *words: str, **options: Any) -> subprocess.Popen[str]:
    """Start a peer."""
    client_only = ("budget", "eval_every", "checkpoint_every", "data_dir")
    names = {"plugins": "plugin"}
    flags = [
        text
        for key, value in options.items()
        if command == "join" or key not in client_only
        for one in ([*value] if isinstance(value, tuple) else [value])
        for text in (f"--{names.get(key, key).replace('_', '-')}", str(one))
    ]
    with (folder / f"{command}.log").open("w") as log:
        pipe = subprocess.PIPE if command == "serve" else log
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "splitlab", command, *words, *flags],
            stdout=pipe,
            stderr=log,
            text=True,
            cwd=folder,
        )


def _watch(
    proxy: FaultProxy, peers: dict[str, subprocess.Popen[str]], steps: int
) -> dict[str, list[tuple[int, Look]]]:
    """Look at both peers after every tenth of the steps, until one of them ends."""
    looks: dict[str, list[tuple[int, Look]]] = {name: [] for name in peers}
    due, seen, done = steps // 10, 0, 0
    while all(process.poll() is None for process in peers.values()):
        time.sleep(_LOOK_SECONDS)
        done += sum(way == "down" for way, _ in proxy.seen[seen:])
        seen = len(proxy.seen)
        if done >= due:
            for name, process in peers.items():
                try:
                    looks[name].append((done, Look.at(process.pid)))
                except OSError:
                    break  # it has just ended
            due += steps // 10
    for process in peers.values():
        process.wait(60)
    return looks


def _differences(folder: Path, steps: int) -> Iterator[str]:
    """Yield what is otherwise than in the run to which nothing happened."""
    whole = folder / "whole"
    if (folder / "r" / "metrics.jsonl").read_text() != (whole / "metrics.jsonl").read_text():
        yield "the log differs"
    for role, mine in (("client", folder / "r"), ("server", folder / "s")):
        name = f"checkpoints/step-{steps:08}/{role}.safetensors"
        theirs, ours = load_file(whole / name), load_file(mine / name)
        if theirs.keys() != ours.keys() or not all(
            map(torch.equal, ours.values(), theirs.values())
        ):
            yield f"the {role}'s checkpoint differs"


if __name__ == "__main__":
    sys.exit(main())
