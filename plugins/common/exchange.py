"""What the two ends of a method on messages do alike: find the payload, note its form, check.

A sender calls `payload_name` and `describe`; a receiver, which trusts nothing, calls `described`,
`coded_name` and `take_checked`, and reads sizes with `Told`. No method lives here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from splitlab.core import Cut, Message, Peer, PluginError, ProtocolError, Role, at_hand

__all__ = [
    "Told",
    "coded_name",
    "describe",
    "described",
    "payload_name",
    "take_checked",
    "working_dtype",
]

_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}

_MOST_BATCHES = 16
"""A payload that claims to be larger than so many full batches of the run is refused."""


class Told:
    """Sizes that arrive beside every payload and follow from its form, read once for each form.

    Reading waits for a GPU. There, what the same form came with before is expected again.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, list[int]] = {}

    def read(
        self,
        subject: Cut | Message,
        numbers: torch.Tensor,
        form: Hashable,
        wrong: Callable[[], Exception],
    ) -> list[int]:
        """Return the numbers.

        Args:
            subject: that they came with.
            numbers: (n,) of an integer type.
            form: of the payload: what the numbers follow from in one run.
            wrong: makes the error for others than the same form came with before.
        """
        if at_hand(numbers):
            return list(numbers.tolist())
        known = self._known.get(form)
        if known is None or len(known) != len(numbers):
            known = self._known[form] = list(numbers.tolist())
        else:
            same = [number == before for number, before in zip(numbers, known, strict=True)]
            subject.expect(torch.stack(same).all(), wrong)
        return known


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what to compute in: float64 stays, every other floating-point type takes float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def payload_name(message: Message, plugin: str) -> str:
    """Return the name of the one payload tensor (rows, tokens, features), floating point.

    Raises:
        PluginError: the payload is anything else: a plugin in front left it so.
    """
    names = message.names(Role.PAYLOAD)
    if len(names) == 1:
        tensor = message[names[0]]
        if tensor.is_floating_point() and tensor.ndim == 3 and tensor.numel():
            return names[0]
    found = ", ".join(f"{name} {message[name].dtype} {[*message[name].shape]}" for name in names)
    raise PluginError(
        f"plugin {plugin!r} compresses one floating-point tensor (rows, tokens, features); a "
        f"plugin in front of it left: {found or 'no payload'}"
    )


def describe(tensor: torch.Tensor) -> dict[str, Any]:
    """Return shape and dtype as JSON values, for a note that `described` reads."""
    return {"shape": [*tensor.shape], "dtype": str(tensor.dtype).removeprefix("torch.")}


def described(plugin: str, note: Any, peer: Peer) -> tuple[tuple[int, int, int], torch.dtype]:
    """Return the shape (rows, tokens, features) and the dtype that a note of `describe` holds.

    Raises:
        ProtocolError: it holds none, or none that can be: a note of a few bytes must not make the
            receiver allocate more than some batches of this run.
    """
    most = _MOST_BATCHES * peer.batch_size * peer.tokens * peer.width
    shape, name = (note.get("shape"), note.get("dtype")) if isinstance(note, dict) else (None, None)
    if (
        not isinstance(shape, list)
        or len(shape) != 3
        or not all(type(size) is int and size > 0 for size in shape)
        or math.prod(shape) > most
        or not isinstance(name, str)
        or name not in _DTYPES
    ):
        raise ProtocolError(
            f"plugin {plugin!r}: the note that should say shape and dtype of a payload (rows, "
            f"tokens, features) says {str(note)[:100]}"
        )
    return (shape[0], shape[1], shape[2]), _DTYPES[name]


def coded_name(message: Message, plugin: str) -> str:
    """Return the name of the one payload tensor that arrived.

    Raises:
        ProtocolError: there is none, or more than one.
    """
    names = message.names(Role.PAYLOAD)
    if len(names) != 1:
        raise ProtocolError(f"plugin {plugin!r}: {len(names)} payloads arrived, expected one")
    return names[0]


def take_checked(
    message: Message,
    plugin: str,
    name: str,
    dtype: torch.dtype,
    shape: Sequence[int],
    role: Role = Role.SIDE,
) -> torch.Tensor:
    """Take the tensor out of the message, if it is one of this dtype, shape and role.

    Raises:
        ProtocolError: it is missing, or another.
    """
    if name not in message:
        raise ProtocolError(f"plugin {plugin!r}: tensor {name!r} is missing")
    if message.role(name) is not role:
        raise ProtocolError(
            f"plugin {plugin!r}: {name} arrived as {message.role(name)}, expected as {role}"
        )
    tensor = message.take(name)
    if tensor.dtype != dtype or tensor.shape != tuple(shape):
        raise ProtocolError(
            f"plugin {plugin!r}: {name} arrived as {tensor.dtype} {[*tensor.shape]}, expected "
            f"{dtype} {[*shape]}"
        )
    return tensor
