"""Batches on their way to a device: in order, ahead of their use, and no thread behind them."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence

import pytest
import torch

from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.upload import MAKING, ON_THEIR_WAY, CudaLane, uploaded


class FakeLane:
    """Notes what is asked of it, and in which thread; the copy is made when it is received."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.threads: set[int] = set()

    def room(self, shape: Sequence[int]) -> torch.Tensor:
        self._note("room")
        return torch.full(tuple(shape), 255, dtype=torch.uint8)

    def send(self, host: torch.Tensor) -> torch.Tensor:
        self._note(f"send {int(host.flatten()[0])}")
        return host

    def receive(self, sent: torch.Tensor) -> torch.Tensor:
        self._note(f"receive {int(sent.flatten()[0])}")
        return sent.clone()

    def _note(self, what: str) -> None:
        self.told.append(what)
        self.threads.add(threading.get_ident())


PARTS = [torch.arange(3)] * 6 + [torch.arange(2)]


def pixels(bad: int | None = None) -> Generator[torch.Tensor, None, None]:
    for number, part in enumerate(PARTS):
        if number == bad:
            raise ConfigError("a broken image")
        made.append(threading.get_ident())
        yield torch.full((len(part), 1, 2, 2), number, dtype=torch.uint8)


made: list[int] = []


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    made.clear()


def test_parts_come_in_order_and_are_sent_before_the_one_before_is_received() -> None:
    lane = FakeLane()
    found = [*uploaded(pixels(), PARTS, (1, 2, 2), lane)]
    assert [len(each) for each in found] == [len(part) for part in PARTS]
    assert [int(each.unique()) for each in found] == [*range(7)]
    order = [told for told in lane.told if told != "room"]
    for number in range(6):
        assert order.index(f"send {number + 1}") < order.index(f"receive {number}")
    # The device is one thread's affair, making is another's.
    assert lane.threads == {threading.get_ident()}
    assert len(set(made)) == 1
    assert threading.get_ident() not in made


def test_no_more_is_made_than_is_soon_due() -> None:
    lane = FakeLane()
    found = uploaded(pixels(), PARTS, (1, 2, 2), lane)
    next(found)
    assert lane.told.count("room") == 1 + MAKING + ON_THEIR_WAY
    found.close()
    assert len(made) <= 1 + MAKING + ON_THEIR_WAY


def test_few_parts_are_as_well() -> None:
    for count in range(4):
        found = uploaded(pixels(), PARTS[:count], (1, 2, 2), FakeLane())
        assert [int(each[0, 0, 0, 0]) for each in found] == [*range(count)]


def test_what_fails_fails_when_it_is_to_be_sent_and_ends_the_thread() -> None:
    before = set(threading.enumerate())
    found = uploaded(pixels(bad=4), PARTS, (1, 2, 2), FakeLane())
    for number in range(4 - ON_THEIR_WAY):
        assert int(next(found)[0, 0, 0, 0]) == number
    with pytest.raises(ConfigError, match="a broken image"):
        next(found)
    assert set(threading.enumerate()) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_gets_the_same_pixels_while_it_computes() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    busy = torch.rand(2048, 2048, device=device)
    sums = []
    for each in uploaded(pixels(), PARTS, (1, 2, 2), CudaLane(device)):
        busy = busy @ busy
        busy /= busy.norm()
        sums.append(each.sum())
        del each  # its memory may be another's at once
    want = [float(number * len(part) * 4) for number, part in enumerate(PARTS)]
    assert [float(each) for each in sums] == want
