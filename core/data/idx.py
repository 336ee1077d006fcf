"""The IDX format of MNIST and its relatives: one array in a file, its dimensions ahead.

Two zero bytes, a byte for the type (8 for unsigned bytes, the only one read here), a byte for the
number of dimensions, each dimension as four bytes, the highest first, and then the values.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch

from splitlab.core.contract.errors import ConfigError
from splitlab.core.data.words import brief

__all__ = ["read_idx"]


def read_idx(path: Path) -> torch.Tensor:
    """Read an IDX file of bytes, plain or gzipped.

    Returns a uint8 tensor of the dimensions that the file declares.

    Raises ConfigError if this is no such file, or if its length is not what its header declares; no
    memory is taken on the header's word.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            start = stream.read(4)
            count = start[3] if len(start) == 4 and start[:3] == b"\0\0\x08" else 0
            header = stream.read(4 * count)
            if not count or len(header) < 4 * count:
                raise ConfigError(f"{path}: not an IDX file of bytes (it starts with {start!r})")
            dims = [int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4)]
            size = math.prod(dims)
            body = bytearray()
            while len(body) <= size and (chunk := stream.read(1 << 20)):
                body += chunk
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read ({brief(error)}); copy it again") from None
    if not size or len(body) != size:
        found = f"more than {size:,}" if len(body) > size else f"{len(body):,}"
        raise ConfigError(
            f"{path}: the header declares {' x '.join(map(str, dims))} = {size:,} bytes, "
            f"the file holds {found}; copy it again"
        )
    return torch.frombuffer(body, dtype=torch.uint8).view(dims)
