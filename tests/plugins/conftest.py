"""What the tests of probes and loggers share."""

from __future__ import annotations

import pytest
from images import write_images


@pytest.fixture(scope="session")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of 16 training and 8 test images of 2 classes."""
    return write_images(tmp_path_factory.mktemp("idx"), 16, 8, 2)
