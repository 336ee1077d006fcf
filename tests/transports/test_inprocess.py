"""Both peers in one process: the turns of the server, and memory that nobody shares.

The contract that it holds like every other transport is in test_contract.py.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from splitlab.core import Kind, Message, NetworkError, Role
from splitlab.transports.inprocess import InProcess


def message(step: int = 0, tensor: torch.Tensor | None = None) -> Message:
    made = Message(Kind.ACTIVATION, step)
    made.put("x", torch.zeros(3) if tensor is None else tensor, Role.PAYLOAD)
    return made


def test_it_works_everywhere_and_in_one_process_only() -> None:
    assert InProcess().unavailable() is None
    assert InProcess().place == "inside"


def test_the_server_takes_its_turns_inside_of_the_clients_wait() -> None:
    turns: list[int] = []

    def serve() -> None:
        arrived = server.receive(0.0)
        turns.append(arrived.step)
        if arrived.step != 1:  # it may need more than one turn to answer
            server.send(message(10 * arrived.step), 1.0)

    client, server = InProcess().pair(serve)
    for step in (1, 2):
        client.send(message(step), 1.0)
    assert turns == []
    assert client.receive(1.0).step == 20
    assert turns == [1, 2]


def test_a_server_that_says_nothing_costs_no_patience() -> None:
    client, server = InProcess().pair(lambda: server.receive(0.0))
    client.send(message(), 1.0)
    started = time.monotonic()
    with pytest.raises(
        NetworkError, match="the server in this process: the other end sent nothing"
    ):
        client.receive(60.0)
    assert time.monotonic() - started < 30


def test_the_peers_share_no_memory_and_no_message() -> None:
    client, server = InProcess().pair()
    tensor = torch.ones(3)
    sent = message(4, tensor)
    assert client.send(sent, 1.0) == sent.frame_bytes > 12
    tensor.zero_()
    arrived: Any = server.receive(1.0)
    assert arrived is not sent
    assert arrived["x"].tolist() == [1, 1, 1]
    assert arrived.frame_bytes == sent.frame_bytes


def test_what_was_sent_before_the_end_still_arrives() -> None:
    client, server = InProcess().pair()
    client.send(message(7), 1.0)
    client.close()
    assert server.receive(1.0).step == 7
    with pytest.raises(
        NetworkError, match="the client in this process: the other end closed the co"
    ):
        server.receive(60.0)
    with pytest.raises(NetworkError, match="closed the connection"):
        server.send(message(), 1.0)
