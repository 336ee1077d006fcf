"""What goes to a device and comes back, as far as a CPU can tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from splitlab.core.contract.errors import Diverged
from splitlab.core.contract.message import Kind, Message
from splitlab.core.contract.transfer import Fetch, Verdicts, at_hand, pretending, upload

CPU = torch.device("cpu")
YES, NO = torch.tensor(True), torch.tensor(False)


def numbered(text: str) -> Callable[[int], Exception]:
    return lambda i: ValueError(f"{text} {i}")


def test_a_cpu_has_everything_at_hand_unless_it_pretends() -> None:
    assert at_hand(YES)
    assert not at_hand(torch.empty(1, device="meta"))
    with pretending():
        assert not at_hand(YES)
        with pretending():
            pass
        assert not at_hand(YES)
    assert at_hand(YES)


def test_on_a_cpu_nothing_is_copied_on_the_way_up_and_everything_on_the_way_back() -> None:
    tensor = torch.arange(3.0)
    assert upload(tensor, CPU) is tensor
    fetch = Fetch(tensor.requires_grad_())
    with torch.no_grad():
        tensor.zero_()
    assert fetch.arrived()
    assert fetch.tensor().tolist() == [0, 1, 2]
    assert not fetch.tensor().requires_grad


def test_what_is_expected_is_refused_at_once_where_it_is_at_hand() -> None:
    verdicts = Verdicts()
    verdicts.expect(YES, numbered("fine"))
    verdicts.expect(torch.tensor([True, True]), numbered("fine"))
    with pytest.raises(ValueError, match="wrong 0"):
        verdicts.expect(NO, numbered("wrong"))
    with pytest.raises(ValueError, match="wrong 1"):
        verdicts.expect(torch.tensor([True, False, False]), numbered("wrong"))
    assert verdicts.fetch().settle() == []


def test_elsewhere_it_is_refused_when_the_step_is_settled_first_come_first() -> None:
    verdicts = Verdicts()
    with pretending():
        verdicts.expect(torch.tensor([True, True]), numbered("fine"))
        verdicts.expect(torch.tensor([[True, True], [False, True]]), numbered("first"))
        verdicts.expect(NO, numbered("second"))
        pending = verdicts.fetch(torch.tensor(0.1), torch.tensor(7))
        with pytest.raises(ValueError, match="first 2"):
            pending.settle()
        assert verdicts.fetch(torch.tensor(2.5)).settle() == [2.5]  # nothing is asked twice


def test_a_number_comes_back_as_item_gives_it() -> None:
    third = 1 / torch.tensor(3.0)
    numbers = [third, 1 / torch.tensor(3.0).double(), third.bfloat16(), 1 / torch.tensor(0.0)]
    assert Verdicts().fetch(*numbers).settle() == [number.item() for number in numbers]


def test_a_message_says_what_it_expects_and_does_not_send_it() -> None:
    message = Message(Kind.GRADIENT)
    with pretending():
        message.expect(NO, lambda: Diverged("no"))
        pending = message.verdicts.fetch()
    with pytest.raises(Diverged, match="no"):
        pending.settle()
    with pytest.raises(Diverged, match="now"):
        message.expect(NO, lambda: Diverged("now"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_is_read_behind_what_was_queued_and_no_later() -> None:
    cuda = torch.device("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensor = upload(torch.arange(4.0), cuda)
        fetch = Fetch(tensor + 1)
        tensor.zero_()
        verdicts = Verdicts()
        verdicts.expect(tensor == 0, numbered("wrong"))
        verdicts.expect(tensor > 0, numbered("wrong"))
        pending = verdicts.fetch(tensor.sum())
        assert fetch.tensor().tolist() == [1, 2, 3, 4]
        wide = upload(torch.ones(3, 1).expand(3, 2), cuda)
        flat = upload(torch.empty(0), cuda)
        assert (wide.device.type, wide.shape, flat.shape) == ("cuda", (3, 2), (0,))
        with pytest.raises(ValueError, match="wrong 0"):
            pending.settle()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert fetch.tensor().device.type == "cpu"
