"""Where the tensors of a frame lie: by descending item size, without a gap."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from splitlab.core.contract.link import Limits
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.wire.layout import DTYPES, Slot, check_name, flat, layout, note_key


def test_tensors_are_aligned_views_of_one_allocation(wire: Any) -> None:
    message = Message(Kind.ACTIVATION)
    for index, dtype in enumerate(reversed(DTYPES.values())):
        message.put(f"t{index}", torch.zeros(3, dtype=torch.uint8).to(dtype), Role.PAYLOAD)
    [arrived] = wire.read(wire.to_bytes(message))
    places = sorted((arrived[name].data_ptr(), arrived[name].nbytes) for name in arrived)
    assert all(a + size == b for (a, size), (b, _) in itertools.pairwise(places))
    for name in arrived:
        assert arrived[name].data_ptr() % arrived[name].dtype.itemsize == 0


def slots(*tensors: tuple[str, torch.dtype, tuple[int, ...]]) -> list[Slot]:
    return layout([(Role.SIDE, *tensor) for tensor in tensors], Limits())[0]


def test_large_items_lie_first_and_equal_ones_in_the_order_of_the_message() -> None:
    found = slots(
        ("a", torch.uint8, (3,)),
        ("b", torch.float32, (2, 2)),
        ("c", torch.int64, ()),
        ("d", torch.int32, (1,)),
        ("e", torch.float16, (0, 5)),
    )
    assert [slot.name for slot in found] == ["a", "b", "c", "d", "e"]
    places = {slot.name: (slot.begin, slot.end) for slot in found}
    assert places == {"c": (0, 8), "b": (8, 24), "d": (24, 28), "e": (28, 28), "a": (28, 31)}


def test_the_bytes_of_all_tensors_are_counted() -> None:
    tensors = [(Role.SIDE, str(n), dtype, (3,)) for n, dtype in enumerate(DTYPES.values())]
    found, total = layout(tensors, Limits())
    assert total == 3 * sum(dtype.itemsize for dtype in DTYPES.values())
    assert max(slot.end for slot in found) == total
    assert layout([], Limits()) == ([], 0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_place_is_read_alike_from_memory_and_from_a_tensor(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    slot = Slot(Role.SIDE, "x", dtype, shape, 8, 8 + torch.Size(shape).numel() * dtype.itemsize)
    memory = bytearray(range(8 + 6 * 8))
    data = torch.frombuffer(memory, dtype=torch.uint8)
    one, two = slot.in_memory(memory), slot.in_tensor(data)
    for tensor in (one, two):
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)
        assert flat(tensor).tolist() == [*range(8, slot.end)]


def test_a_tensor_that_is_changed_in_place_changes_no_other_of_its_frame() -> None:
    memory = bytearray(16)
    data = torch.frombuffer(memory, dtype=torch.uint8)
    one, two = (Slot(Role.SIDE, "x", torch.float32, (2,), n, n + 8) for n in (0, 8))
    for leaf, other in (
        (one.in_memory(memory), two.in_memory(memory)),
        (one.in_tensor(data), two.in_tensor(data)),
    ):
        squares = leaf.requires_grad_() * leaf
        other.mul_(torch.ones((), requires_grad=True))
        squares.sum().backward()  # autograd would refuse what was changed since
        assert other.grad_fn is not None


def test_flat_shares_memory_whatever_the_strides_of_a_single_element() -> None:
    tensor = torch.zeros(4, 4)[:1, :1]
    assert tensor.is_contiguous()
    flat(tensor)[3] = 0x40
    assert tensor.item() == 2.0


@pytest.mark.parametrize(
    ("name", "reason"),
    [("", "name of 0 characters"), ("x" * 129, "of 129 characters"), ("a\tb", "cannot be printed")],
)
def test_names_that_an_error_line_cannot_hold_are_refused(name: str, reason: str) -> None:
    check_name("tensor", "x" * 128, Limits())
    with pytest.raises(ValueError, match=reason):
        check_name("tensor", name, Limits())


def test_notes_that_could_be_taken_for_a_word_get_a_colon() -> None:
    assert [note_key(name) for name in ("adc", "loss", "adc:", ":")] == [
        "adc",
        "loss:",
        "adc::",
        "::",
    ]
