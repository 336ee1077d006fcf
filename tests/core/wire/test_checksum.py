"""The checksum of a frame is that of its bytes, however they are cut."""

from __future__ import annotations

import numpy as np
import pytest

from splitlab.core.wire.checksum import SUM_BYTES, Sum, packed, sum_of


def test_known_sums_of_xxh3() -> None:
    """Of nothing and of one letter, as the algorithm's own tables have them."""
    assert sum_of([]) == sum_of([b""]) == 0x2D06800538D394C2
    assert sum_of([b"a"]) == 0xE6C632B61E964E1F


@pytest.mark.parametrize("cut", [0, 1, 240, 256, 1023])
def test_a_sum_does_not_depend_on_cuts(cut: int) -> None:
    raw = bytes(np.arange(1024, dtype=np.uint8))
    grown = Sum()
    grown.update(raw[:cut])
    grown.update(memoryview(bytearray(raw[cut:])))
    assert grown.intdigest() == sum_of([raw]) == sum_of([raw[:cut], raw[cut:]])
    assert packed(sum_of([raw])) == sum_of([raw]).to_bytes(8, "little")
    assert len(packed(2**64 - 1)) == SUM_BYTES
