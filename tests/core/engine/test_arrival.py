"""What arrives, at either side, and is nothing that the other end of this run sends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from splitlab.core import ProtocolError, Role, hookimpl
from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import Diverged
from splitlab.core.contract.message import Kind
from splitlab.core.contract.transfer import pretending


class Idle:
    """Does nothing."""

    @hookimpl
    def before_send(self, message: Any) -> None:
        pass


def changed(message: Any, name: str, tensor: torch.Tensor) -> Any:
    message.put(name, tensor, message.role(name))
    return message


FLOATS = [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", FLOATS)
def test_activations_of_another_dtype_are_refused(tiny: Any, dtype: torch.dtype) -> None:
    for plugins in ([], [tiny.bound(Idle)]):
        client, server = tiny.pair(plugins)
        batch = tiny.batch()
        for talk in (client.train(batch, 0), client.query(batch, 0, stacked=True)):
            up = tiny.travel(next(talk))
            changed(up, "activations", up["activations"].to(dtype))
            with pytest.raises(ProtocolError, match=f"arrived as {dtype}"):
                server.handle(up)


@pytest.mark.parametrize("shape", [(6, 0, 16), (0, 5, 16), (7, 5, 16), (6, 4, 16), (6, 5, 15)])
def test_activations_of_another_shape_are_refused(tiny: Any, shape: tuple[int, ...]) -> None:
    client, server = tiny.pair()
    up = tiny.travel(next(client.train(tiny.batch(), 0)))
    with pytest.raises(ProtocolError, match=r"allowed: torch.float32 \[1 to 6, 5, 16\]"):
        server.handle(changed(up, "activations", torch.zeros(shape)))


def test_activations_without_tokens_are_refused_before_plugins_see_them(tiny: Any) -> None:
    client, server = tiny.pair([tiny.bound(Idle)])
    up = tiny.travel(next(client.train(tiny.batch(), 0)))
    with pytest.raises(ProtocolError, match="without a number in its payload"):
        server.handle(changed(up, "activations", torch.zeros(6, 0, 16)))


def test_class_probabilities_are_taken_in_training_and_of_every_class(tiny: Any) -> None:
    batch = tiny.batch(0)
    soft = torch.full((6, tiny.classes), 1 / tiny.classes)
    client, server = tiny.pair()
    mixed = next(client.train(Batch(batch.images, soft, batch.sample_ids), 0))
    assert mixed["targets"].dtype is torch.float32
    assert server.handle(tiny.travel(mixed)).kind is Kind.GRADIENT
    query = next(client.query(batch, 0, stacked=True))
    for message, targets in (
        (query, soft),
        (mixed, soft[:, :-1]),
        (mixed, soft.double()),
        (mixed, soft[:5]),
    ):
        with pytest.raises(ProtocolError, match=r"targets arrived as .*in training class prob"):
            tiny.server().handle(changed(tiny.travel(message), "targets", targets))


def test_targets_and_tensors_that_no_client_sends_are_refused(tiny: Any) -> None:
    client, server = tiny.pair()
    up = next(client.train(tiny.batch(), 0))
    for targets in (torch.zeros(5, dtype=torch.uint8), torch.zeros(6)):
        with pytest.raises(ProtocolError, match=r"targets arrived as .*allowed: class ids"):
            server.handle(changed(tiny.travel(up), "targets", targets))
    more = tiny.travel(up)
    more.put("more", torch.zeros(1), Role.SIDE)
    with pytest.raises(ProtocolError, match="side 'more'; allowed without plugins"):
        server.handle(more)
    past = tiny.travel(up)
    past.stacked = False
    with pytest.raises(ProtocolError, match="a training step came past the plugins"):
        server.handle(past)


@pytest.mark.parametrize(
    ("loss", "error"),
    [
        (math.nan, Diverged),
        (math.inf, Diverged),
        (-1.0, ProtocolError),
        (-math.inf, ProtocolError),
        (1e308, ProtocolError),
    ],
)
def test_a_loss_that_no_training_has_is_refused(
    tiny: Any, loss: float, error: type[Exception]
) -> None:
    client, server = tiny.pair()
    for talk, word in (
        (client.train(tiny.batch(), 0), "loss"),
        (client.query(tiny.batch(), 0, stacked=True), "loss_sum"),
    ):
        down = server.handle(tiny.travel(next(talk)))
        down.meta[word] = loss
        with pytest.raises(error, match="loss"):
            talk.send(tiny.travel(down))


def test_answers_of_another_form_are_refused(tiny: Any) -> None:
    client, server = tiny.pair()
    for dtype in FLOATS:
        talk = client.train(tiny.batch(), 0)
        down = tiny.travel(server.handle(tiny.travel(next(talk))))
        with pytest.raises(ProtocolError, match="gradient arrived as"):
            talk.send(changed(down, "gradient", down["gradient"].to(dtype)))
    for wrong in (torch.zeros(6), torch.full((6,), 4, dtype=torch.uint8)):
        query = client.query(tiny.batch(), 0, stacked=True)
        down = tiny.travel(server.handle(tiny.travel(next(query))))
        with pytest.raises(ProtocolError, match=r"predictions arrived as|predicted class is out"):
            query.send(changed(down, "predictions", wrong))


@pytest.mark.parametrize("at", ["client", "server"])
def test_a_gradient_that_is_not_finite_ends_the_step(tiny: Any, at: str) -> None:
    client, server = tiny.pair()
    talk = client.train(tiny.batch(), 3)
    up = tiny.travel(next(talk))
    if at == "server":
        name, parameter = server._trained[-1]
        parameter.register_hook(lambda gradient: gradient * math.nan)
        with pytest.raises(Diverged, match=rf"step 4: the gradient of {name} is not finite; lower"):
            server.handle(up)
        return
    down = tiny.travel(server.handle(up))
    down["gradient"].fill_(math.nan)
    with pytest.raises(Diverged, match=r"step 4: the gradient at the cut, as it came back, is not"):
        talk.send(down)


def test_where_nothing_is_at_hand_a_class_id_is_clamped_and_refused_with_the_loss(
    tiny: Any,
) -> None:
    client, server = tiny.pair()
    up = tiny.travel(next(client.train(tiny.batch(), 2)))
    ids = up["targets"].clone()
    ids[1] = 200
    with pretending(), pytest.raises(ProtocolError, match="step 3: a class id is outside 0 to 3"):
        server.handle(changed(up, "targets", ids))
    query = tiny.travel(next(client.query(tiny.batch(), 4, stacked=True)))
    with pretending(), pytest.raises(ProtocolError, match="evaluation batch 5: a class id is out"):
        server.handle(changed(query, "targets", ids))
