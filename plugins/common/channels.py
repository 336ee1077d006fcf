"""What channels share: the directions that they spoil, the tensors, and the draws.

A channel stands last in a stack. It acts at the sender, on the payload as it is about to leave, so
that any transport carries what came through, and the ledger counts what left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, TypeVar, get_args

import torch

from splitlab.core import Kind, Message, Peer, Role
from splitlab.plugins.common.settings import check_choice, refusal

__all__ = ["Direction", "by_kind", "check_db", "octets_of", "payloads", "rows_of", "seeded"]

Direction = Literal["both", "up", "down"]
_MOST_DB = 100.0
T = TypeVar("T", bound=float)


def by_kind(
    name: str, value: T, gradient_value: T | None, direction: Direction, check: Callable[..., None]
) -> dict[Kind, T]:
    """Return what a setting is for activations and for gradients, where the channel is one.

    Args:
        name: of the setting; that of gradients is ``gradient_NAME``.
        value: for activations.
        gradient_value: for gradients; None: the same.
        direction: which of them pass.
        check: is given name and value of both, and raises.

    Raises:
        ConfigError: a value that is not allowed.
    """
    check_choice("direction", direction, get_args(Direction))
    check(name, value)
    found = {} if direction == "down" else {Kind.ACTIVATION: value}
    if gradient_value is not None:
        check(f"gradient_{name}", gradient_value)
        if direction == "up":
            raise refusal(
                f"gradient_{name}",
                gradient_value,
                "direction=both or down",
                "leave one of them out",
            )
    if direction != "up":
        found[Kind.GRADIENT] = value if gradient_value is None else gradient_value
    return found


def check_db(name: str, value: float) -> None:
    """Refuse what is no usual ratio in dB."""
    if not -_MOST_DB <= value <= _MOST_DB:
        raise refusal(name, value, f"{-_MOST_DB:g} to {_MOST_DB:g} dB", f"for example {name}=10")


def payloads(message: Message) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and tensor of all payload that is not empty."""
    for name in message.names(Role.PAYLOAD):
        if message[name].numel():
            yield name, message[name]


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as (R, n): row by row; one of less than two dimensions is a single row."""
    return tensor.reshape(len(tensor) if tensor.ndim > 1 else 1, -1)


def octets_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor as they would lie in a frame, (n,) uint8."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def seeded(peer: Peer, plugin: str, message: Message, name: str) -> torch.Generator:
    """Return a CPU generator for this tensor of this message, alike at both peers.

    It follows from seed and step alone: a run that is resumed draws what it would have drawn, and
    every evaluation meets the same channel.
    """
    return peer.generator(plugin, name, int(message.kind), int(message.training), message.step)
