"""What --augment says."""

from __future__ import annotations

import pytest

from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.augment import augmenting
from splitlab.core.data.batchwise import BatchAugmentation


def test_an_augmentation_is_of_images_or_of_batches() -> None:
    none = augmenting("none")
    assert (none.of_image, none.of_batch) == (None, None)
    for text in ("paper", "timm:none,hflip=0"):
        found = augmenting(text)
        assert found.text == text
        assert found.of_image is not None
        assert found.of_batch is None
    found = augmenting("device:pad=4")
    assert (found.of_image, found.of_batch) == (None, BatchAugmentation(pad=4))


@pytest.mark.parametrize("text", ["", "papers", "timm", "device", "none:x"])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="unknown augmentation"):
        augmenting(text)
