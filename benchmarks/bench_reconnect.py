"""What a link that outlives its connection costs: all the time, and when the connection is lost.

Both ends are in this process, in a thread each, over loopback, without the engine: exchanges of a
19.4 MB frame and of a small one. Contestants take turns, and their medians are compared:

- ``bare``: the link of `splitlab.transports.tcp` alone;
- ``lasting``: the same, that keeps what it says and listens for its client;
- ``lost``: the same, whose connection is severed before every exchange.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from race import race

from splitlab.core.contract.errors import NetworkError
from splitlab.core.contract.link import Link
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.runs.returning import Returning
from splitlab.core.session.awaiting import Awaiting
from splitlab.core.session.redialling import Redialling
from splitlab.transports.tcp import Tcp

CPU = torch.device("cpu")
WAIT = 20.0
SESSION = "0" * 32
MOST_LOST_SECONDS = 0.5
LARGEST_RATIO = 1.15
"""Of an exchange that outlives its connection to a bare one's, both undisturbed."""


def echo(link: Link) -> None:
    try:
        while True:
            link.send(link.receive(WAIT), WAIT)
    except NetworkError:
        pass


def wrap(size: int) -> Message:
    message = Message(Kind.ACTIVATION)
    message.put("activations", torch.zeros(size // 4), Role.PAYLOAD)
    return message


@contextmanager
def ends(*, lasting: bool) -> Iterator[tuple[Link, Callable[[], object]]]:
    """Yield a client's end of a link, and what severs its connection."""
    with ExitStack() as cleanup:
        listener = Tcp().listen("tcp://127.0.0.1:0", device=CPU)
        returning = Returning(listener.hear, 1.0, lambda line: None)

        def dial(timeout: float) -> Any:
            return Tcp().connect(listener.address, device=CPU, timeout=timeout)

        link: Any = dial(WAIT)
        served: Any = listener.accept(WAIT)
        options: Any = {"timeout": WAIT, "patience": 0.0}
        if lasting:
            options["patience"] = WAIT
            link = Redialling(link, dial, **options)
            served = Awaiting(served, returning, **options)
            link.send(Message(Kind.HELLO, meta={"session": SESSION}), WAIT)
            served.receive(WAIT)
            served.send(Message(Kind.HELLO), WAIT)
            link.receive(WAIT)
            served.keep()
            returning.begin(served, "run")
        thread = threading.Thread(target=echo, args=(served,))
        thread.start()

        def end() -> None:
            served.patience = 0.0
            link.close()
            thread.join()
            served.close()
            returning.end(listener.close)

        cleanup.callback(end)
        yield link, lambda: link.inside.sever()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [64, 19_400_000], ids="{:,} bytes".format)
def test_a_connection_that_is_lost(benchmark: Any, size: int) -> None:
    with ends(lasting=False) as (bare, _), ends(lasting=True) as (lasting, sever):

        def exchange(link: Link) -> object:
            link.send(wrap(size), WAIT)
            return link.receive(WAIT)

        def lost() -> object:
            sever()
            return exchange(lasting)

        rounds = 1000 if size < 1000 else 60

        def undisturbed() -> dict[str, float]:
            both = {"bare": lambda: exchange(bare), "lasting": lambda: exchange(lasting)}
            return race(both, CPU, rounds=rounds, warm_up=5)

        found = benchmark.pedantic(undisturbed, rounds=1)
        disturbed = {"whole": lambda: exchange(lasting), "lost": lost}
        after = race(disturbed, CPU, rounds=rounds // 4)
    ratio, seconds = found["lasting"] / found["bare"], after["lost"] - after["whole"]
    print(
        f"\n{size:,} bytes: bare {found['bare'] * 1e3:.3f} ms, lasting {ratio:.3f} of it; "
        f"a lost connection costs {seconds * 1e3:.1f} ms"
    )
    benchmark.extra_info.update(ratio=ratio, lost_seconds=seconds)
    assert seconds < MOST_LOST_SECONDS
    if size > 1000:
        assert ratio < LARGEST_RATIO
