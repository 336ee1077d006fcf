"""What ADC costs, against a loop over clusters and against the client it runs on.

Run with ``pytest -o addopts= --benchmark-only -s benchmarks/bench_adc.py``. Both sides of a ratio
are timed in turn, in one process and on one thread, and their medians are divided: a busy machine
slows both. The loop is what the method's official code does, written from its description: a kernel
or more for every cluster in every iteration, and the host looks at each of them.

Shapes: B samples, N tokens, D width; T clusters, K tokens sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from race import race

from splitlab.core import Attention, Cut, Peer
from splitlab.core.contract.part import Layout
from splitlab.core.models.build import build_model
from splitlab.core.models.vit import class_attention
from splitlab.plugins.adc import ADC

N, D = 197, 192
RATIO = 0.1
LEAST_SPEEDUP = 10
LARGEST_SHARE = 0.02


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_adc(B: int, device: torch.device) -> ADC:
    plugin = ADC(ratio=RATIO)
    layout = Layout(N, D, prefix_tokens=1, class_token=True)
    plugin.setup(
        Peer(
            role="client",
            seed=0,
            classes=100,
            layout=layout,
            cut=3,
            batch_size=B,
            device=device,
        )
    )
    return plugin


def compress(plugin: ADC, activations: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Run partition, merge and selection; returns what is sent, on the graph."""
    targets = torch.zeros(activations.shape[0], dtype=torch.int64, device=activations.device)
    cut = Cut(
        activations=activations,
        targets=targets,
        step=0,
        training=True,
        measured={Attention(): attention},
    )
    plugin.after_client_forward(cut)
    return cut.activations


def compress_in_loops(activations: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The same as one writes it down first: cluster by cluster, with autograd for the gradient."""
    B = activations.shape[0]
    T, K = int(RATIO**0.5 * B), int(RATIO**0.5 * N)
    first = torch.randperm(B, generator=torch.Generator().manual_seed(0))[:T]
    centroids = scores[first.to(scores.device)]
    for _ in range(50):
        assignment = torch.cdist(scores, centroids).argmin(dim=1)
        before, centroids = centroids, centroids.clone()
        for i in range(T):
            members = assignment == i
            if members.any():
                centroids[i] = scores[members].mean(dim=0)
        if (centroids - before).norm(dim=1).sum() ** 2 < 1e-4:
            break
    rows = []
    for i in range(T):
        members = assignment == i
        if members.any():
            kept = 1 + centroids[i, 1:].topk(K - 1).indices
            kept = torch.cat([kept.new_zeros(1), kept])
            rows.append(activations[members].mean(dim=0)[kept])
    return torch.stack(rows)


def with_backward(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], B: int, device: torch.device
) -> Callable[[], None]:
    draw = torch.Generator().manual_seed(0)
    activations = torch.randn(B, N, D, generator=draw).to(device).requires_grad_()
    attention = torch.randn(B, N, generator=draw).softmax(dim=1).to(device)

    def step() -> None:
        sent = function(activations, attention)
        torch.autograd.grad(sent, activations, torch.ones_like(sent))

    return step


def contestants(B: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return clustering, merging and selecting both ways, and one read of what they read."""
    plugin = make_adc(B, device)
    read = torch.randn(B, N, D, generator=torch.Generator().manual_seed(0)).to(device)
    return {
        "ours": with_backward(lambda x, scores: compress(plugin, x, scores), B, device),
        "loops": with_backward(compress_in_loops, B, device),
        "one read": read.sum,
    }


def test_compression_against_a_loop_over_clusters(benchmark: Any, device: torch.device) -> None:
    sides = contestants(128, device)
    found = benchmark.pedantic(race, args=(sides, device), kwargs={"rounds": 15})
    ratio = found["loops"] / found["ours"]
    benchmark.extra_info |= {**found, "ratio": ratio}
    print("\n" + ", ".join(f"{name} {1e3 * took:.2f} ms" for name, took in found.items()))
    assert ratio >= LEAST_SPEEDUP


def test_whole_cost_against_the_clients_part(benchmark: Any, device: torch.device) -> None:
    B = 64
    plugin = make_adc(B, device)
    model = build_model("deit_tiny_patch16_224", classes=100, seed=0)
    client = model.part(0, (3,), device)
    client.train(True)
    parameters = [parameter for _, parameter in client.named_parameters()]
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(B, 3, 224, 224, generator=draw).to(device)
    queries_keys_values = []
    attention_module: Any = client.module.get_submodule("blocks.2.attn")
    probe = attention_module.qkv.register_forward_hook(
        lambda module, args, output: queries_keys_values.append(output.detach())
    )
    activations = client.forward(images).detach().requires_grad_()
    probe.remove()
    assert queries_keys_values, "cut 3 lies behind this block"
    gradient = torch.randn(activations.shape, generator=draw).to(device)

    def client_step() -> None:
        torch.autograd.grad(client.forward(images), parameters, gradient)

    def adc_step() -> None:
        attention = class_attention(attention_module, queries_keys_values[0])
        sent = compress(plugin, activations, attention)
        torch.autograd.grad(sent, activations, torch.ones_like(sent))

    sides = {"client": client_step, "adc": adc_step}
    found = benchmark.pedantic(race, args=(sides, device), kwargs={"rounds": 9})
    share = found["adc"] / found["client"]
    print(f"\nADC {1e3 * found['adc']:.2f} ms, {share:.1%} of the client's step")
    assert share <= LARGEST_SHARE
