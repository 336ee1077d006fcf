"""A server's wish to stop travels before the gradient of a training step; nobody else sees it."""

from __future__ import annotations

from typing import Any

from splitlab.core.contract.message import Kind, Message
from splitlab.core.runs.stopping import Asking, Heeding
from splitlab.core.wire.ledger import Ledger
from splitlab.transports.inprocess import InProcess


def test_the_wish_comes_once_with_the_end_of_a_step_and_is_no_part_of_it() -> None:
    wish = False
    client_end, server_end = InProcess().pair(None)
    ledger = Ledger()
    client, server = Heeding(client_end, ledger), Asking(server_end, lambda: wish)

    def carried(kind: Kind, *, training: bool) -> tuple[dict[str, Any], int]:
        sent = server.send(Message(kind, 3, training=training, meta={"loss": 1.0}), 1.0)
        message = client.receive(1.0)
        assert message.frame_bytes == sent
        return dict(message.meta), sent

    bytes_of_a_step = set()
    for wish in (False, True):
        assert carried(Kind.PREDICTION, training=False)[0] == {"loss": 1.0}
        assert carried(Kind.GRADIENT, training=False)[0] == {"loss": 1.0}  # a probe's
        assert not client.asked
        meta, size = carried(Kind.GRADIENT, training=True)
        bytes_of_a_step.add(size)
        assert meta == {"loss": 1.0}
        assert client.asked is wish
        assert (ledger.total("down", "control") > 0) is wish
    before = ledger.total("down")
    carried(Kind.GRADIENT, training=True)
    assert ledger.total("down") == before == ledger.total("down", "control")
    assert len(bytes_of_a_step) == 1
