"""From a plan to the two peers: each has its own part, and they know the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from splitlab.core import Config, hookimpl
from splitlab.core.runs.plan import Decided, make, make_for_server
from splitlab.core.runs.workers import build_client, build_server, limited_threads

SMALL = Config(image_size=8, batch_size=6, cut=1, threads=1, seed=3, weights="none", device="cpu")


def test_both_peers_agree_and_share_no_tensor(noise_data: str) -> None:
    config = dataclasses.replace(SMALL, plugins=("adc",), data_dir=noise_data)
    plan, model, _ = make(Decided.of(config))
    served, served_model = make_for_server(Decided.of(config), 4, peers_here=1, samples=20)
    client, server = build_client(plan, model), build_server(served, served_model)
    assert plan.agreement == served.agreement
    assert plan.batch_bytes == served.batch_bytes == 4 * 6 * 5 * 64
    assert client.peer.role == "client"
    assert server.peer.role == "server"
    assert_same_facts(client.peer, server.peer)
    # In one process both parts come from one model, and still each has memory of its own.
    beside = build_server(plan, model)
    assert not client.state()[0].keys() & beside.state()[0].keys()
    for own in client.state()[0].values():
        for other in beside.state()[0].values():
            assert own.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()


def assert_same_facts(client: Any, server: Any) -> None:
    """Both peers know the same but for their role; two facts are of each one's own part."""
    facts = [
        {spec.name: getattr(peer, spec.name) for spec in dataclasses.fields(peer)}
        for peer in (client, server)
    ]
    for known in facts:
        known.pop("role")
        known.pop("unable", None)
        assert known.pop("parameters"), "of its own part"
    assert facts[0] == facts[1]


def test_the_optimizer_is_the_one_of_the_configuration() -> None:
    changed = dataclasses.replace(SMALL, optimizer="sgd", lr=0.5, weight_decay=0.25)
    plan, model = make_for_server(Decided.of(changed), 4, peers_here=1)
    for worker in (build_client(plan, model), build_server(plan, model)):
        optimizer: Any = worker._trainer._optimizer
        assert type(optimizer) is torch.optim.SGD
        assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.5, 0.25)


def test_observers_watch_the_peer_that_they_were_given_to() -> None:
    seen: list[str] = []

    class Watch:
        @hookimpl
        def step_end(self, step: int) -> None:
            seen.append(f"step {step}")

    plan, model = make_for_server(Decided.of(SMALL), 4, peers_here=1)
    build_server(plan, model).stack.step_end(1)
    assert seen == []
    build_server(plan, model, [Watch()]).stack.step_end(2)
    build_client(plan, model, [Watch()]).stack.step_end(3)
    assert seen == ["step 2", "step 3"]


def _fail_with_threads(count: int) -> None:
    with limited_threads(count):
        assert torch.get_num_threads() == count
        raise KeyError


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError):
        _fail_with_threads(before + 1)
    assert torch.get_num_threads() == before


def test_parts_are_compiled_where_that_is_asked_for_and_peers_need_not_agree_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, bool]] = []

    def note(part: Any, mode: str, *, begins: bool) -> None:
        asked.append((mode, begins))

    monkeypatch.setattr("splitlab.core.models.segments.SegmentedPart.compile", note)
    plain, model = make_for_server(Decided.of(SMALL), 4, peers_here=1)
    build_client(plain, model)
    assert asked == []
    config = dataclasses.replace(SMALL, compile="reduce-overhead")
    plan, _ = make_for_server(Decided.of(config), 4, peers_here=1)
    build_client(plan, model)
    build_server(plan, model)  # the client's forward begins the step
    build_server(plan, model, alone=True)
    assert asked == [(config.compile, True), (config.compile, False), (config.compile, True)]
    assert plan.agreement == plain.agreement
    assert (plain.timeout, plan.timeout) == (60, 1800)  # a peer that compiles is silent
    long = dataclasses.replace(config, timeout=4000.0)
    assert make_for_server(Decided.of(long), 4, peers_here=1)[0].timeout == 4000
