"""The ledger: real frame bytes, by phase, direction and what they are."""

from __future__ import annotations

from typing import Literal

from splitlab.core.contract.message import Kind, Message, Role

__all__ = ["Counts", "Ledger"]

Counts = dict[str, dict[str, dict[str, int]]]
"""Bytes by phase, direction and kind."""

Direction = Literal["up", "down"]
Phase = Literal["training", "evaluation", "control"]

_PAYLOADS = {
    Kind.ACTIVATION: "activation",
    Kind.GRADIENT: "gradient",
    Kind.PREDICTION: "prediction",
}
_ROLES = {Role.TARGETS: "targets", Role.SIDE: "side"}


class Ledger:
    """Counts what crosses one link, both ways, as the frames' lengths.

    Training and evaluation are kept apart, and from both (``control``) handshake, checkpoint
    requests, goodbye, signs of life, and what is said again after a fault; the sum of all three is
    what the link carried, but for frames that a fault cut off.
    """

    def __init__(self, counts: Counts | None = None) -> None:
        self.counts: Counts = {
            phase: {"up": {}, "down": {}} for phase in ("training", "evaluation", "control")
        }
        for phase, directions in (counts or {}).items():
            for direction, kinds in directions.items():
                self.counts[phase][direction].update(kinds)

    def add(self, message: Message, direction: Direction) -> None:
        """Count a message as it was sent or as it arrived, before any hook changes it."""
        if message.kind not in _PAYLOADS:
            phase: Phase = "control"
        else:
            phase = "training" if message.training else "evaluation"
        counts = self.counts[phase][direction]
        rest = message.frame_bytes
        for name in message:
            kind = _ROLES.get(message.role(name)) or _PAYLOADS.get(message.kind, "side")
            size = message[name].nbytes
            counts[kind] = counts.get(kind, 0) + size
            rest -= size
        counts["header"] = counts.get("header", 0) + rest

    def again(self, message: Message, direction: Direction) -> None:
        """Count a message that was counted before, and crosses once more after a fault."""
        counts = self.counts["control"][direction]
        counts["again"] = counts.get("again", 0) + message.frame_bytes

    def mark(self) -> Ledger:
        """Return a copy of what is counted so far, for `since`."""
        return Ledger(self.counts)

    def since(self, mark: Ledger) -> Ledger:
        """Return what was counted after `mark` was made."""
        grown = Ledger()
        for phase, directions in self.counts.items():
            for direction, kinds in directions.items():
                before = mark.counts[phase][direction]
                grown.counts[phase][direction] = {
                    kind: count - before.get(kind, 0) for kind, count in kinds.items()
                }
        return grown

    def numbers(self) -> list[int]:
        """Return all counts."""
        phases = self.counts.values()
        return [n for phase in phases for kinds in phase.values() for n in kinds.values()]

    def total(self, direction: Direction, phase: Phase | None = None) -> int:
        """Return the bytes of one direction, of one phase or of all."""
        phases = [phase] if phase else list(self.counts)
        return sum(sum(self.counts[name][direction].values()) for name in phases)
