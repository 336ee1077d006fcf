"""Both ends of a link in this process."""

from __future__ import annotations

import pytest
import torch

from splitlab.core import Kind, Message, Role
from splitlab.core.catalogue.loading import load
from splitlab.core.testing import joined, links


def test_a_link_of_each_kind_is_found_and_carries_both_ways() -> None:
    names = links.one_of_each_kind()
    kinds = [load("transports", name)().place == "inside" for name in names]
    assert kinds == [True, False]
    for name in names:
        with joined(name) as carry:
            for upward in (True, False):
                message = Message(Kind.GRADIENT, 3)
                message.put("gradient", torch.arange(4.0), Role.PAYLOAD)
                arrived = carry(message, upward)
                assert arrived.step == 3
                assert torch.equal(arrived["gradient"], torch.arange(4.0))


def test_only_what_works_here_is_a_link_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = links.one_of_each_kind()
    monkeypatch.setattr(links, "working_transports", lambda: [outside])
    assert links.one_of_each_kind() == [outside]
    monkeypatch.setattr(links, "working_transports", lambda: [inside])
    assert links.one_of_each_kind() == [inside]


@pytest.mark.parametrize(
    ("device", "gpus", "servers"),
    [
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda", 2, "cuda:1"),
        ("cuda", 4, "cuda:1"),
        ("cuda:0", 2, "cuda:0"),
    ],
)
def test_the_server_has_a_gpu_of_its_own_where_there_are_two(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, servers: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert links._servers(torch.device(device)) == torch.device(servers)
