"""Every plugin alone and every two of them in both orders: a stack trains, or it is refused.

It is refused before training, with a reason and a stack that works. One that trains does so bit for
bit alike in one process and over a real socket.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from splitlab.core import ConfigError, Kind, Message
from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.tables import catalogue
from splitlab.core.engine.conversation import hold
from splitlab.core.testing import joined
from splitlab.core.testing.couple import Couple
from splitlab.core.testing.links import Carry
from splitlab.core.testing.seen import Seen, difference
from splitlab.core.testing.subject import TINY

PLUGINS = [*catalogue()["plugins"], "cast:dtype=fp8_e4m3", "bottlenet:cls_bypass=true"]
"""All that ship, and settings that change what a plugin leaves behind."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def over(transport: str) -> Iterator[Carry]:
    with joined(transport) as carry:
        carry(Message(Kind.CONTROL), True)  # starts the thread, so that it is not a test's
        yield carry


@pytest.fixture(scope="module")
def inside() -> Iterator[Carry]:
    yield from over("inprocess")


@pytest.fixture(scope="module")
def outside() -> Iterator[Carry]:
    yield from over("tcp")


def built(names: list[str], carry: Carry) -> Couple:
    return Couple(TINY, [bind("plugins", name) for name in names], carry=carry)


def trained(couple: Couple) -> list[Seen]:
    """Train two steps and evaluate once; returns the messages."""
    for step in range(2):
        couple.train(TINY.batch(step), step)
    couple.evaluate(TINY.batch(7), 0)
    return couple.arrived


def refusal(names: list[str]) -> str | None:
    """Return why the peers are not even built, or None if they are."""
    try:
        TINY.pair([bind("plugins", name) for name in names])
    except ConfigError as error:
        return str(error)
    return None


def check(names: list[str], inside: Carry, outside: Carry) -> None:
    """Let the stack train over both links, or look at the way out that its refusal names."""
    try:
        couple = built(names, inside)
    except ConfigError as error:
        reason = str(error)
    else:
        one, other = trained(couple), trained(built(names, outside))
        assert len(one) == 6
        assert difference(one, other) is None
        return
    assert len(names) > 1, f"alone it is refused: {reason}"
    proposed = re.search(r"a stack that works: ([^()]+)", reason)
    assert proposed or "use one of them alone" in reason, f"no way out: {reason}"
    if proposed:
        works = [name.strip().partition("#")[0] for name in proposed[1].split(" + ")]
        assert refusal(works) is None, f"what it proposes is refused too: {reason}"


@pytest.mark.parametrize("first", PLUGINS)
def test_a_stack_trains_alike_everywhere_or_is_refused(
    first: str, inside: Carry, outside: Carry
) -> None:
    failures = []
    for second in [None, *PLUGINS]:
        names = [first, second] if second else [first]
        try:
            check(names, inside, outside)
        except Exception as error:  # noqa: BLE001 (the others shall be tried all the same)
            failures.append(f"{' + '.join(names)}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("model", [{}, {"class_token": False, "global_pool": "avg"}])
@pytest.mark.parametrize("name", catalogue()["plugins"])
def test_a_batch_of_one_sample_trains(name: str, model: dict[str, Any]) -> None:
    """The last one of an epoch may be; without a class token it lies channel by channel."""
    try:
        client, server = TINY.pair([bind("plugins", name)], **model)
    except ConfigError as error:
        if not model or "needs the attention of a class token" not in str(error):
            raise
        return

    def ask(message: Message) -> Message:
        return TINY.travel(server.handle(TINY.travel(message)))

    for step, size in enumerate((TINY.samples, 1, 1)):
        ended = hold(client.train(TINY.batch(step, size), step), ask)
        assert math.isfinite(ended.loss)


def test_every_plugin_works_with_another() -> None:
    """A plugin that refuses all others would pass the test above."""
    lonely = [
        name
        for name in PLUGINS
        if all(
            refusal([name, other]) and refusal([other, name]) for other in PLUGINS if other != name
        )
    ]
    assert lonely == []
