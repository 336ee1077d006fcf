"""Copies of what a hook or a link saw, and where two rows of them differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from splitlab.core.contract.cut import Cut
from splitlab.core.contract.message import Message, Role
from splitlab.core.wire.layout import flat

__all__ = ["Seen", "difference", "same"]


@dataclass(frozen=True, eq=False)
class Seen:
    """A copy of a message, or of the tensors of a cut.

    Attributes:
        what: ``"ACTIVATION of step 3"``.
        tensors: by name; those of a cut by attribute, its side tensors as in a message.
        roles: of a message's tensors.
        facts: everything else that two equal messages have in common.
        on_graph: whether a cut's activations have a gradient.
    """

    what: str
    tensors: dict[str, torch.Tensor]
    roles: dict[str, Role]
    facts: dict[str, Any]
    on_graph: bool = False

    @classmethod
    def of(cls, subject: Cut | Message) -> Seen:
        """Copy what is there now."""
        if isinstance(subject, Message):
            return cls(
                f"{subject.kind.name} of {subject.when}",
                {name: _copy(subject[name]) for name in subject},
                {name: subject.role(name) for name in subject},
                {
                    "bytes of the frame": subject.frame_bytes,
                    "flags": (subject.kind, subject.step, subject.training, subject.stacked),
                    "metadata": _json(subject.meta),
                    "notes": _json(subject.notes),
                },
            )
        names = ("activations", "targets", "weights", "token_sizes", "gradient")
        found = {name: getattr(subject, name) for name in names} | subject.side
        tensors = {k: _copy(v) for k, v in found.items() if isinstance(v, torch.Tensor)}
        on_graph = "activations" in tensors and subject.activations.requires_grad
        return cls(f"cut of {subject.when}", tensors, {}, {}, on_graph)

    def payload(self) -> dict[str, torch.Tensor]:
        """Return the message's tensors of the role PAYLOAD."""
        return {n: t for n, t in self.tensors.items() if self.roles[n] is Role.PAYLOAD}


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, default=repr)  # as text, so that NaN equals itself


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether dtype, shape and every bit are equal."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(flat(a.contiguous()).cpu(), flat(b.contiguous()).cpu())


def difference(ours: Sequence[Seen], theirs: Sequence[Seen]) -> str | None:
    """Return where two rows of messages first differ, in words, or None if they are equal."""
    for a, b in zip(ours, theirs, strict=False):
        if (names := list(a.tensors)) != list(b.tensors) or a.roles != b.roles:
            return f"{a.what}: tensors {names} and {list(b.tensors)}"
        for name, tensor in a.tensors.items():
            other = b.tensors[name]
            if not same(tensor, other):
                return f"{a.what}: tensor {name!r}, {_compared(tensor, other)}"
        for fact, value in a.facts.items():
            if value != b.facts[fact]:
                return f"{a.what}: {fact}, {value} and {b.facts[fact]}"
    if len(ours) != len(theirs):
        return f"{len(ours)} messages and {len(theirs)}"
    return None


def _compared(a: torch.Tensor, b: torch.Tensor) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype} {[*a.shape]} and {b.dtype} {[*b.shape]}"
    return f"{int((a != b).sum())} of {a.numel()} elements"
