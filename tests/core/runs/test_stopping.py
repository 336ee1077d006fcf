"""A server's wish to stop travels with the gradient of a training step, and nobody else sees it."""

from __future__ import annotations

from typing import Any

from splitlab.core.contract.message import Kind, Message
from splitlab.core.runs.stopping import Asking, Heeding
from splitlab.transports.inprocess import InProcess


def test_the_wish_comes_with_the_end_of_a_step() -> None:
    wish = False
    client_end, server_end = InProcess().pair(None)
    client, server = Heeding(client_end), Asking(server_end, lambda: wish)

    def carried(kind: Kind, *, training: bool) -> dict[str, Any]:
        server.send(Message(kind, 3, training=training, meta={"loss": 1.0}), 1.0)
        return dict(client.receive(1.0).meta)

    for wish in (False, True):
        assert carried(Kind.PREDICTION, training=False) == {"loss": 1.0}
        assert carried(Kind.GRADIENT, training=False) == {"loss": 1.0}  # a probe's
        assert not client.asked
        assert carried(Kind.GRADIENT, training=True) == {"loss": 1.0}
        assert client.asked is wish
