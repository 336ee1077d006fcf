"""Short runs of both peers in one process, through a proxy, and what came of them.

A cell of the table is a fault, a state (which frame of the conversation is struck), a stack and a
link. What is awaited of every cell is a run that ends as an undisturbed one, bit for bit.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from images import write_images
from proxy import FAULTS, PARTS, Direction, Fault, FaultProxy
from safetensors.torch import load_file

from splitlab.core import SplitlabError, run
from splitlab.core.runs.config import Config
from splitlab.core.runs.plan import Decided
from splitlab.core.runs.serve import serve

__all__ = [
    "IDENTICAL",
    "KINDS",
    "LINKS",
    "STACKS",
    "STATES",
    "TIMEOUT",
    "Cell",
    "Lab",
    "Outcome",
    "State",
    "cells",
]

IDENTICAL = "bit-identical"
TIMEOUT = 1.0
"""Seconds after which a silent peer counts as gone."""
RECONNECT = 8.0
_PARTING = {"CONTROL finished": 3.0, "CONTROL bye": 1.0}
"""The same, where a server waits in vain for a client that has heard all."""
_PATIENCE = 15.0
"""Seconds after which the proxy ends, and with it the run."""

STACKS = {
    "adc": ("adc:ratio=0.4",),
    "aqsgd": ("aqsgd",),
    "powersgd": ("powersgd:rank=2",),
}
"""Without a state, with one at both peers, with error feedback."""

LINKS = ("plain", "secret", "tls")


class State(NamedTuple):
    """Which frame of the conversation is struck.

    Attributes:
        direction: up to the server, or down to the client.
        name: of the frame, as the proxy calls it.
        skip: so many frames of that name pass unharmed before it.
    """

    direction: Direction
    name: str
    skip: int = 0

    def __str__(self) -> str:
        return self.name if not self.skip else f"{self.name}, step {self.skip + 1}"


STATES = (
    State("up", "HELLO"),
    State("down", "HELLO"),
    State("up", "ACTIVATION of training", 2),
    State("down", "GRADIENT", 2),
    State("up", "ACTIVATION of evaluation"),
    State("down", "PREDICTION"),
    State("up", "CONTROL save"),
    State("down", "CONTROL saved"),
    State("up", "CONTROL finish"),
    State("down", "CONTROL finished"),
    State("up", "CONTROL bye"),
)
"""All that is said in a run; of the steps the third, which sees samples for the second time."""

Make = Callable[[Direction, str, int], list[Fault]]


def _one(kind: str, **how: Any) -> Make:
    return lambda way, name, skip: [Fault(kind, way, name, skip, **how)]


def _returning(way: Direction, kind: str) -> Make:
    """A reset, and another fault strikes what is said first on the new connection."""

    def make(struck: Direction, name: str, skip: int) -> list[Fault]:
        return [Fault("reset", struck, name, skip), Fault(kind, way)]

    return make


KINDS: dict[str, Make] = {
    "cut before": _one("cut", where=0),
    "cut amid": _one("cut"),
    "cut behind": _one("cut", where=1),
    "reset before": _one("reset", where=0),
    "reset amid": _one("reset"),
    "reset behind": _one("reset", where=1),
    "reset thrice": _one("reset", times=3),
    "stall": _one("stall", seconds=0.05),
    "stall beyond the timeout": _one("stall", seconds=1.3 * TIMEOUT),
    "silence": _one("silence"),
    "truncate": _one("truncate"),
    **{f"flip in the {part}": _one("flip", part=part) for part in PARTS},
    "flip": _one("flip"),
    "duplicate": _one("duplicate"),
    "drop": _one("drop"),
    "throttle": _one("throttle", seconds=0.05),
    "half-close": _one("half-close"),
    "refuse": _one("refuse"),
    "away": _one("away"),
    "move": _one("move"),
    "forget": _one("forget"),
    "late": _one("late"),
    "late by far": _one("late", count=7),
    "cut, and the return is cut": _returning("up", "cut"),
    "cut, and the answer to the return is cut": _returning("down", "cut"),
    "cut, and the return is flipped": _returning("up", "flip"),
    "cut, and the return comes late": _returning("up", "late"),
}
"""Rows of the table."""

assert {fault.kind for make in KINDS.values() for fault in make("up", "", 0)} == {*FAULTS}


class Cell(NamedTuple):
    """One cell of the table."""

    kind: str
    state: State
    stack: str
    link: str

    def __str__(self) -> str:
        return f"{self.kind} · {self.state.direction} {self.state} · {self.stack} · {self.link}"


def cells(stacks: Sequence[str] = (*STACKS,), links: Sequence[str] = LINKS) -> Iterator[Cell]:
    """Yield every cell that there can be."""
    for link in links:
        for stack in stacks:
            for kind in KINDS:
                for state in STATES:
                    if _possible(kind, state, link):
                        yield Cell(kind, state, stack, link)


def _possible(kind: str, state: State, link: str) -> bool:
    if kind == "move" and sys.platform != "linux":
        return False  # there is one loopback address
    if kind.startswith("flip"):
        if (kind == "flip") is not (link == "tls"):
            return False  # a record has no parts that anybody can see
        if kind == "flip in the tensors":
            return state.name.split()[0] in ("ACTIVATION", "GRADIENT", "PREDICTION")
    if state.name == "CONTROL bye" and (
        kind in ("late", "late by far", "reset thrice") or "," in kind
    ):
        return False  # nobody comes back
    return not (kind in ("late", "late by far") and state.direction == "down")


@dataclass
class Came:
    """What came of a run.

    Attributes:
        log: `metrics.jsonl`: losses, accuracies and bytes, step by step.
        ledger: bytes of training and of evaluations.
        tensors: of the last checkpoint of both peers, by role and name.
        seen: what the proxy saw.
        connections: how many there were.
    """

    log: str
    ledger: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    seen: list[tuple[str, str]]
    connections: int

    def differs(self, other: Came) -> str:
        """Return in what, or an empty text."""
        if self.log != other.log:
            return "the log"
        if self.ledger != other.ledger:
            return "the bytes"
        if self.tensors.keys() != other.tensors.keys():
            return "the names of a checkpoint"
        for name, tensor in self.tensors.items():
            if tensor.dtype is not other.tensors[name].dtype or not torch.equal(
                tensor.reshape(-1).view(torch.uint8),
                other.tensors[name].reshape(-1).view(torch.uint8),
            ):
                return f"{name} of the checkpoint"
        return ""


class Outcome(NamedTuple):
    """What came of a cell.

    Attributes:
        text: `IDENTICAL`, or what was otherwise.
        struck: whether the faults did.
        connections: how many there were.
    """

    text: str
    struck: bool
    connections: int


class Lab:
    """Where runs are made.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "data").mkdir()
        self.data = write_images(folder / "data", 8, 4, 2)
        (folder / "secret").write_text("a secret of these tests")
        (folder / "secret").chmod(0o600)
        self._undisturbed: dict[tuple[str, str], Came] = {}
        self._runs = 0

    def access(self, link: str) -> tuple[dict[str, str], dict[str, str]]:
        """Return the options of the client and of the server that a link takes."""
        if link == "secret":
            return ({"secret_file": str(self._folder / "secret")},) * 2
        if link == "plain":
            return {}, {}
        keys = self._folder / "keys"
        if not keys.is_dir():
            from splitlab.core.command.certs import make

            make(keys, [], [])
        server = {"tls_cert": str(keys / "server.pem"), "tls_key": str(keys / "server.key")}
        return {"tls_ca": str(keys / "ca.pem")}, server

    def options(self, stack: str, **more: Any) -> dict[str, Any]:
        """Return what both peers are told."""
        return {
            "plugins": STACKS[stack],
            "transport": "tcp",
            "model": "vit:image_size=28,channels=1,patch=14,width=8,depth=2,heads=1",
            "weights": "none",
            "device": "cpu",
            "threads": 1,
            "batch_size": 4,
            "timeout": TIMEOUT,
            "reconnect": RECONNECT,
            **more,
        }

    def made(
        self,
        stack: str,
        link: str,
        faults: Sequence[Fault] = (),
        seconds: float = _PATIENCE,
        **more: Any,
    ) -> Came:
        """Make a run of three steps, with evaluations and checkpoints behind steps 2 and 3.

        Args:
            stack: of `STACKS`.
            link: of `LINKS`.
            faults: of the proxy.
            seconds: after which the proxy ends.
            more: options of both peers.

        Raises:
            SplitlabError: a peer ended otherwise than in good order.
        """
        self._runs += 1
        folder = self._folder / str(self._runs)
        ours, theirs = self.access(link)
        said: SimpleQueue[str] = SimpleQueue()
        ended: list[Exception] = []
        failed = threading.Event()
        options = self.options(stack, **more)

        def served() -> None:
            try:
                decided = Decided.of(Config.from_mapping(options | theirs))
                serve(
                    decided,
                    2,
                    say=said.put,
                    output=str(folder / "server"),
                    wait=_PATIENCE,
                    should_stop=failed.is_set,
                )
            except Exception as error:  # noqa: BLE001 - raised below
                ended.append(error)
                said.put("")

        thread = threading.Thread(target=served)
        thread.start()
        try:
            line = said.get(timeout=60)  # the first one imports a lot
            if not line:
                raise ended[0]
            address = line.split()[-1]
            with FaultProxy(address, faults, seconds) as proxy:
                try:
                    run(
                        data_dir=self.data,
                        budget="steps=3",
                        eval_every=2,
                        output=str(folder / "r"),
                        connect=proxy.address,
                        **options,
                        **ours,
                    )
                except BaseException:
                    failed.set()
                    raise
                thread.join(_PATIENCE)
        finally:
            failed.set()
            thread.join(_PATIENCE)
        assert not thread.is_alive(), "the server did not end"
        if ended:
            raise ended[0]
        came = _read(folder, proxy.seen, proxy.connections)
        shutil.rmtree(folder)
        return came

    def undisturbed(self, stack: str, link: str) -> Came:
        """Return what comes of a run to which nothing happens; it is made twice, and kept."""
        if (stack, link) not in self._undisturbed:
            # So patient that a busy machine makes no signs of life, which are records, too.
            first, again = (self.made(stack, link, timeout=20.0) for _ in range(2))
            assert not again.differs(first), "a run does not repeat itself"
            self._undisturbed[stack, link] = again
        return self._undisturbed[stack, link]

    def faults(self, cell: Cell) -> list[Fault]:
        """Return what is to happen in a cell."""
        way, name, skip = cell.state
        if cell.link == "tls":  # every frame is a record here; those of the handshake come first
            plain = self.undisturbed(cell.stack, "plain").seen
            frames = [n for direction, n in plain if direction == way]
            places = [at for at, each in enumerate(frames) if each == name]
            records = [n for d, n in self.undisturbed(cell.stack, "tls").seen if d == way]
            name, skip = "record", len(records) - len(frames) + places[skip]
        return KINDS[cell.kind](way, name, skip)

    def outcome(self, cell: Cell) -> Outcome:
        """Make the run of a cell, and say what came of it."""
        whole = self.undisturbed(cell.stack, cell.link)
        faults = self.faults(cell)
        connections = 0
        try:
            # A server whose client's last word is lost waits for it.
            more = {"reconnect": _PARTING[cell.state.name]} if cell.state.name in _PARTING else {}
            came = self.made(cell.stack, cell.link, faults, **more)
            connections = came.connections
            other = came.differs(whole)
            text = f"{other} differs" if other else IDENTICAL
        except (SplitlabError, AssertionError) as error:
            text = f"{type(error).__name__}: {error}".replace("\n", " ")
        struck = all(fault.over for fault in faults)
        return Outcome(text, struck, connections)


def _read(folder: Path, seen: list[tuple[str, str]], connections: int) -> Came:
    """Read what a run and its server left."""
    ledger = json.loads((folder / "r" / "ledger.json").read_text())
    tensors = {}
    for role, place in (("client", folder / "r"), ("server", folder / "server")):
        last = max((place / "checkpoints").glob("step-*"))
        for name, tensor in load_file(last / f"{role}.safetensors").items():
            tensors[f"{role}: {name}"] = tensor
    assert {name.split(":")[0] for name in tensors} == {"client", "server"}
    log = (folder / "r" / "metrics.jsonl").read_text()
    kept = {k: v for k, v in _phases(ledger).items() if k in ("training", "evaluation")}
    assert len(kept) == 2
    return Came(log, kept, tensors, seen, connections)


def _phases(ledger: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of a ledger file by phase."""
    return next((v for v in ledger.values() if isinstance(v, dict) and "training" in v), ledger)
