"""The check that no step waits for a GPU: tensors are followed; a GPU is asked if there is one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import SplitlabError
from splitlab.core.contract.message import Message
from splitlab.core.contract.transfer import pretending
from splitlab.core.engine.client import Client
from splitlab.core.engine.conversation import hold
from splitlab.core.engine.server import Server
from splitlab.core.testing.report import Warned
from splitlab.core.testing.seen import difference
from splitlab.core.testing.subject import Subject
from splitlab.core.testing.waiting import Lookout, Wait

__all__ = ["steps_do_not_wait", "waits_of_steps", "wants_no_wait"]

_CORE = Path(__file__).parents[1]


def steps_do_not_wait(s: Subject) -> str | None:
    """A step asks no device for a number, unless the method says why it must."""
    here, declared = s.repeating(), s.waits
    found = waits_of_steps(s)
    if not declared and torch.cuda.is_available():
        try:
            wants_no_wait(s)
        except (SplitlabError, RuntimeError) as error:
            raise s.failed(f"on a GPU, {' '.join(str(error).split())}") from error
    if found and not declared:
        others = [f"{Path(wait.file).name}:{wait.line} ({wait.call})" for wait in found[1:]]
        more = f"; so do {', '.join(others)}" if others else ""
        raise s.failed(
            f"{found[0]}{more}; give the result a shape that does not depend on data and tell what "
            "must hold with cut.expect or message.expect, or say in traits why it has to: "
            "waits='…'"
        )
    with pretending():
        there = s.run(s.couple())
    if where := difference(here.arrived, there.arrived):
        raise s.failed(
            f"{where}, if nothing is at hand; what at_hand leaves out must not change the result"
        )
    if declared and not found:
        return Warned(f"it says that it waits ({declared}), and did not here")
    return f"it waits, as it says: {declared}" if declared else None


def waits_of_steps(s: Subject, steps: int = 2) -> list[Wait]:
    """Return who would wait for a GPU in a few training steps behind the first, and evaluations."""
    lookout = Lookout()
    with lookout.watching():
        lookout.noting = False
        client, server = s.tiny.pair(s.stack, device=torch.device("cpu"))
        for worker in (client, server):
            lookout.hold(worker.numbers().values())
        batches = [s.tiny.batch(number) for number in range(steps + 1)]
        for batch in batches:
            lookout.hold((batch.images, batch.targets, batch.sample_ids), device=False)
        _train(client, server, batches[0], 0)
        lookout.noting = True
        for number, batch in enumerate(batches[1:], 1):
            _train(client, server, batch, number)
        lookout.noting = False
    return lookout.waits


def wants_no_wait(s: Subject, device: torch.device | None = None) -> None:
    """Raise if a training step behind the first waits for a GPU, says the GPU.

    Args:
        s: the stack.
        device: the GPU.
    """
    device = device or torch.device("cuda")
    client, server = s.tiny.pair(s.stack, device=device)
    _train(client, server, s.tiny.batch(0), 0)
    for number in (1, 2):
        batch = s.tiny.batch(number)
        with _refused():
            _train(client, server, batch, number)
    client.settle()
    server.settle()


@contextmanager
def _refused() -> Iterator[None]:
    repeats = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        # With it torch itself waits in some operations, such as scatter in two dimensions.
        torch.use_deterministic_algorithms(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says once that it does not find everybody
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(repeats, warn_only=only_warns)


def _train(client: Client, server: Server, batch: Batch, step: int) -> None:
    """Take a step, every message copied where it is."""
    hold(client.train(batch, step), lambda message: _copied(server.handle(_copied(message))))


def _copied(message: Message) -> Message:
    copy = Message(
        message.kind,
        message.step,
        training=message.training,
        stacked=message.stacked,
        meta=message.meta,
    )
    for name in message:
        copy.put(name, message[name].clone(), message.role(name))
    copy.notes = {plugin: [*notes] for plugin, notes in message.notes.items()}
    return copy
