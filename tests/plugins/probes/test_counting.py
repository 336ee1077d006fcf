"""FLOPs are counted between two hooks: by the formulas of a transformer, and of each plugin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from splitlab.core import ConfigError, Cut, Kind, Message, hookimpl
from splitlab.core.catalogue.binding import bind
from splitlab.core.contract.peer import Schedule
from splitlab.plugins.probes.counting import MODEL, Counting


def driven(tiny: Any, role: str = "client", every: int = 1) -> Counting:
    probe = Counting(every)
    probe.setup(tiny.peer(role=role))
    return probe


def around(hook: Any, subject: Any, inside: Any) -> None:
    """Go through a wrapper as pluggy does, with something inside of it."""
    generator = hook(subject)
    next(generator)
    inside()
    with pytest.raises(StopIteration):
        next(generator)


def product(rows: int) -> torch.Tensor:
    return torch.ones(rows, 3) @ torch.ones(3, 5)


def cut() -> Cut:
    targets = torch.zeros(2, dtype=torch.int64)
    return Cut(activations=torch.ones(2, 3, 4), targets=targets, step=0, training=True)


def test_the_clients_part_is_what_runs_between_its_hooks(tiny: Any) -> None:
    probe = driven(tiny)
    product(1)  # before the step
    probe.step_begin(0)
    product(2)

    def plugins() -> None:
        product(4)
        probe.plugin_ran("a", 3_000_000)
        product(8)
        probe.plugin_ran("b", 5_000_000)

    around(probe.after_client_forward, cut(), plugins)
    product(16)  # between forward and backward, where a server may run
    around(probe.gradient_return, cut(), lambda: None)
    product(32)
    probe.step_end()
    product(64)
    once = 2 * 3 * 5
    assert probe.flops == {"a": 4 * once, "b": 8 * once, MODEL: (2 + 32) * once}
    assert probe.seconds["a"] == pytest.approx(3e-3)
    assert probe.seconds["b"] == pytest.approx(5e-3)
    assert probe.seconds[MODEL] > 0
    assert probe.complete()
    assert not probe.complete()


def test_the_servers_part_begins_behind_its_stack(tiny: Any) -> None:
    probe = driven(tiny, "server")
    probe.step_begin(0)
    product(2)
    message = Message(Kind.ACTIVATION)

    def decodes() -> None:
        product(4)
        probe.plugin_ran("a", 1)

    around(probe.after_receive, message, decodes)
    around(probe.before_server_forward, cut(), lambda: None)
    product(8)
    probe.step_end()
    around(probe.before_send, message, decodes)
    assert probe.flops == {"a": 8 * 2 * 3 * 5, MODEL: 8 * 2 * 3 * 5}


def test_only_some_steps_are_counted_and_no_evaluation(tiny: Any) -> None:
    probe = driven(tiny, every=3)
    assert [step for step in range(9) if probe.due(step)] == [1, 4, 7]
    assert [step for step in range(9) if probe.timed(step)] == [2, 5, 8]
    assert driven(tiny, every=1).due(0)
    assert driven(tiny, every=1).timed(0)
    once = 2 * 3 * 5
    for step, flops, seconds in (
        (0, {}, set()),
        (1, {MODEL: 2 * once, "a": 4 * once}, set()),
        (2, {MODEL: 2 * once, "a": 4 * once}, {MODEL, "a"}),  # timed, and not counted
        (3, {MODEL: 2 * once, "a": 4 * once}, {MODEL, "a"}),
    ):
        probe.step_begin(step)
        product(2)

        def plugin() -> None:
            product(4)
            probe.plugin_ran("a", 1)

        around(probe.after_client_forward, cut(), plugin)
        probe.step_end()
        assert (probe.flops, probe.seconds.keys()) == (flops, seconds)
        assert probe.complete() == (step == 2)
        around(probe.after_client_forward, cut(), lambda: product(4))  # an evaluation
        assert probe.flops == flops
    with pytest.raises(ConfigError, match="every=0 is not allowed; 1 or more"):
        Counting(0)


def test_a_step_where_a_plugin_s_setting_changes_is_counted(tiny: Any) -> None:
    probe = driven(tiny, every=100)
    probe.peer.schedule = Schedule(80, "steps", 9.0, 9)
    probe.peer.pieces.add(2)  # as ratio=0.4..0.1 does
    assert [step for step in range(9) if probe.due(step)] == [1, 5]
    assert [step for step in range(9) if probe.timed(step)] == [2, 6]


def test_attention_counts_on_a_cpu_too(tiny: Any) -> None:
    probe = driven(tiny)
    B, H, N, D = 2, 3, 16, 8
    query = torch.ones(B, H, N, D, requires_grad=True)
    probe.step_begin(0)
    made = F.scaled_dot_product_attention(query, query, query)
    around(probe.after_client_forward, cut(), lambda: None)
    forward = probe.flops[MODEL]
    assert forward == 4 * B * H * N * N * D
    around(probe.gradient_return, cut(), lambda: None)
    made.sum().backward()
    probe.step_end()
    # Five products of a fused kernel, which computes one again; four of one that keeps it.
    assert (probe.flops[MODEL] - forward) / forward in (2.0, 2.5)


def test_two_probes_of_a_peer_count_the_same_in_any_order(tiny: Any) -> None:
    peer = tiny.peer(role="client")
    first, second = Counting(1), Counting(1)
    for probe in (first, second):
        probe.setup(peer)
        probe.step_begin(0)
    product(2)
    around(first.after_client_forward, cut(), lambda: None)  # the first one leaves first
    around(second.after_client_forward, cut(), lambda: None)
    assert first.flops == second.flops == {MODEL: 2 * 2 * 3 * 5}


def test_a_step_that_fails_leaves_torch_as_it_was(tiny: Any) -> None:
    probe = driven(tiny)
    probe.step_begin(0)
    product(2)
    probe.run_end()  # the forward pass failed
    flops = dict(probe.flops)
    product(4)
    assert probe.flops == flops
    probe.step_begin(1)
    hook = probe.after_client_forward(cut())
    next(hook)
    with pytest.raises(ValueError, match="a plugin fails"):
        hook.throw(ValueError("a plugin fails"))
    product(8)
    assert probe.flops == {MODEL: 0}


@pytest.mark.skipif(
    not hasattr(TorchDispatchMode, "ignore_compile_internals"),
    reason="this torch runs no compiled part while it is counted",
)
def test_a_compiled_part_runs_as_it_is_and_is_counted(tiny: Any) -> None:
    ran: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def call(*arguments: Any) -> Any:
            ran.append(1)
            return graph(*arguments)

        return call

    probe = driven(tiny)
    compiled = torch.compile(lambda x: x @ x, backend=backend)
    compiled(torch.ones(3, 3))
    probe.step_begin(0)
    compiled(torch.ones(3, 3))
    around(probe.after_client_forward, cut(), lambda: None)
    assert len(ran) == 2
    assert probe.flops == {MODEL: 2 * 3 * 3 * 3}


class Multiplies:
    """A plugin that computes something: (B, N, D) by (D, D), and back."""

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        square = torch.eye(cut.activations.shape[-1])
        cut.activations = cut.activations @ square


def test_a_step_of_real_peers(tiny: Any) -> None:
    plugin = tiny.bound(Multiplies)
    probe = bind("probes", "overhead:every=1").build()
    client, server = tiny.client([plugin], observers=[probe]), tiny.server([plugin])
    tiny.train(client, server, [0])
    numbers = probe.metrics(0)
    B, N, D = client.peer.batch_size, client.peer.tokens, client.peer.width
    assert numbers["multiplies FLOPs"] == 2 * B * N * D * D
    assert numbers["model FLOPs"] > numbers["multiplies FLOPs"]
