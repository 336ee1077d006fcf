"""Who would wait for a GPU is found on the CPU, and nobody else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from splitlab.core.contract.transfer import Fetch, Verdicts, upload
from splitlab.core.testing.waiting import Lookout

DEVICE = torch.device("cpu")

Does = Callable[[torch.Tensor], object]


def found(does: Does) -> list[str]:
    """Return what is called that waits, when this is done with numbers that a GPU holds."""
    lookout = Lookout()
    with lookout.watching():
        x = torch.arange(6.0).view(2, 3)
        lookout.hold([x])
        does(x)
    assert {Path(wait.file).name for wait in lookout.waits} <= {Path(__file__).name}
    return [wait.call for wait in lookout.waits]


@pytest.mark.parametrize(
    ("does", "call"),
    [
        (lambda x: x.sum().item(), "local_scalar_dense"),
        (lambda x: float(x[0, 0]), "local_scalar_dense"),
        (lambda x: int(x.argmax()), "local_scalar_dense"),
        (lambda x: bool((x > 0).all()), "local_scalar_dense"),
        (lambda x: 1 if x[0, 1] else 2, "local_scalar_dense"),
        (lambda x: torch.allclose(x, x), "allclose"),
        (lambda x: x.tolist(), "Tensor.tolist"),
        (lambda x: x.numpy(), "Tensor.numpy"),
        (lambda x: x.cpu(), "Tensor.cpu"),
        (lambda x: x.to("cpu"), "Tensor.to"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: torch.where(x > 2), "nonzero"),
        (lambda x: torch.argwhere(x > 2), "nonzero"),
        (lambda x: x.masked_select(x > 2), "masked_select"),
        (lambda x: x[x > 2], "index"),
        (lambda x: x[:, x[0] > 1], "index"),
        (lambda x: x.unique(), "unique2"),
        (lambda x: torch.unique_consecutive(x), "unique_consecutive"),
        (lambda x: x.long().view(-1).bincount(minlength=9), "bincount"),
        (lambda x: x.repeat_interleave(x[:, 0].long(), dim=0), "repeat_interleave"),
        (lambda x: torch.linalg.eigvalsh(x @ x.T), "linalg_eigh"),
        (lambda x: torch.linalg.svd(x), "linalg_svd"),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), "tensor"),
        (lambda x: x.new_tensor([1, 2]), "Tensor.new_tensor"),
        (lambda x: torch.ones(3).to(x.device), "Tensor.to"),
        (lambda x: torch.ones(3).to(x), "Tensor.to"),
        (lambda x: x + torch.ones(3), "add"),
        (lambda x: x[torch.tensor([1])], "index"),
        (lambda x: x.copy_(torch.ones(3)), "copy_"),
    ],
)
def test_what_waits_is_noted_with_its_line(does: Does, call: str) -> None:
    assert found(does) == [call]


def _marked(x: torch.Tensor) -> None:
    x[x > 2] = 0.0


@pytest.mark.parametrize(
    "does",
    [
        lambda x: torch.where(x > 2, x, 0.0).sum(dim=1).sort(stable=True).values.cumsum(0),
        lambda x: x.gather(1, x.topk(2, dim=1).indices)[x.argmax(dim=0) % 2],
        _marked,
        lambda x: x.masked_fill(x > 2, torch.inf).to(torch.float16).to(x),
        lambda x: F.one_hot(x.long(), 6),
        lambda x: x.quantile(0.5),
        lambda x: x + torch.arange(3, device=x.device) * torch.tensor(2.0),
        lambda x: x.new_zeros(3) + torch.zeros_like(x),
        lambda x: x.repeat_interleave(3, dim=1),
        lambda x: x.repeat_interleave(x[:, 0].long(), dim=0, output_size=3),
        lambda x: torch.linalg.qr(x),
        lambda x: x.shape[0] + len(x) + x.numel(),
        lambda x: x[upload(torch.tensor([1, 0]), x.device)],
        lambda x: torch.ones(3).to(x.device, non_blocking=True) + x,
        lambda x: Fetch(x.sum()).tensor().item(),
        lambda x: Verdicts().fetch(x.sum()).settle(),
    ],
)
def test_what_does_not_wait_is_not_noted(does: Does) -> None:
    assert found(does) == []


def test_what_the_host_holds_it_may_read() -> None:
    def does(x: torch.Tensor) -> None:
        kept = torch.randint(9, (5,), generator=torch.Generator().manual_seed(0))
        if int(kept.max()) > 2:
            kept = kept[kept > 2].unique()
        there = upload(kept, x.device)
        assert kept.tolist() == sorted(kept.tolist())  # also after it went up
        assert there.shape == kept.shape

    assert found(does) == []


def test_a_backward_pass_is_watched_too() -> None:
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            steps = torch.arange(3, device=gradient.device)
            return gradient * (1 + steps) * gradient.max().item()

    def does(x: torch.Tensor) -> None:
        leaf = x.clone().requires_grad_()
        Reads.apply(leaf).sum().backward()  # type: ignore[no-untyped-call]

    assert found(does) == ["local_scalar_dense"]


def test_a_place_is_noted_once_and_says_why() -> None:
    lookout = Lookout()
    with lookout.watching():
        x = torch.ones(2)
        lookout.hold([x])
        for _ in range(3):
            x.sum().item()
        lookout.noting = False
        x.tolist()
    [wait] = lookout.waits
    assert str(wait) == (
        f"test_waiting.py:{wait.line} calls local_scalar_dense, which waits: it reads a number, "
        "as .item(), float() and if do"
    )
