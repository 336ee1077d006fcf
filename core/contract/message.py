"""What travels over a link: a `Message` of named tensors, each with a role.

A message is built by one peer, changed by the ``before_send`` hooks of its stack, frozen when it is
sent, and rebuilt by the other peer, whose ``after_receive`` hooks change it back. How it becomes
bytes is `splitlab.core.wire`'s business; how bytes move is a transport's.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Any

import torch

from splitlab.core.contract.errors import PluginError, when
from splitlab.core.contract.transfer import Verdicts, upload

__all__ = ["WORDS", "Kind", "Message", "Role"]

_ENGINE = ("gradient", "loss", "loss_sum", "step")
_HANDSHAKE = ("agreement", "marks", "protocol", "run", "schedule")
_LASTING = ("attempt", "heard", "session", "timeout", "waits")
_CONTROL = ("damaged", "did", "diverged", "do", "error", "keep")
WORDS = tuple(sorted((*_ENGINE, *_HANDSHAKE, *_LASTING, *_CONTROL)))
"""The names under which the engine and the session say something in ``Message.meta``."""


class Kind(enum.IntEnum):
    """What a message is for. The numbers are part of the wire format."""

    HELLO = 1
    """Opens a link: what both peers must agree on."""
    ACTIVATION = 2
    """Client to server: the activations at the cut, targets, side information."""
    GRADIENT = 3
    """Server to client: the loss gradient with respect to what arrived (training)."""
    PREDICTION = 4
    """Server to client: predicted class ids and summed loss (evaluation)."""
    CONTROL = 5
    """Either way: checkpoint requests, their answers, goodbye."""
    ERROR = 6
    """Either way: the sender cannot go on; ``meta["error"]`` says why, in one line, and
    ``meta["diverged"]`` that the training is to blame, ``meta["damaged"]`` the way of a message."""


class Role(enum.StrEnum):
    """What a tensor is. Codecs act on, and the ledger sums by, the role."""

    PAYLOAD = "payload"
    """Activations, gradients or predictions, in whatever form a codec gave them."""
    TARGETS = "targets"
    """Class ids."""
    SIDE = "side"
    """What the receiver needs besides: cluster ids, scales, indices, codebooks."""


class Message:
    """Named tensors with a role each, and a little metadata; ``message[name]`` is a tensor.

    Args:
        kind: what the message is for.
        step: training step, or batch number of an evaluation, from 0; 0 ≤ step < 2**64. Of a
            CONTROL message: training steps done.
        training: whether it belongs to a training step (the ledger counts evaluation apart).
        stacked: whether the stack of plugins acts on it; an uncompressed evaluation says ``False``.
        meta: what the engine and the session say besides tensors: JSON values under names of
            `WORDS`, of a GRADIENT ``"loss"``, the mean over the batch, of a PREDICTION
            ``"loss_sum"``; an ACTIVATION past the stack says ``"gradient"`` if that is wanted, of
            the training loss. Plugins read it, and leave notes with `push`.

    Attributes:
        elapsed_ns: nanoseconds that the sender computed to produce this message; a fixed-width
            field of the frame, so that timing never changes a byte count.
        frame_bytes: length of its frame, once it was sent or received.
        number: of what its sender says on a link that outlives its connection, from 1; 0 on others,
            and of what is no part of the conversation (`splitlab.core.session.lasting`).
        notes: of plugins, by the plugin's name: lists of JSON values.
        verdicts: what its peer expects of it, see `expect`; it does not travel.
    """

    __slots__ = (
        "_frozen",
        "_read",
        "_roles",
        "_tensors",
        "elapsed_ns",
        "frame_bytes",
        "kind",
        "meta",
        "notes",
        "number",
        "stacked",
        "step",
        "training",
        "verdicts",
    )

    def __init__(
        self,
        kind: Kind,
        step: int = 0,
        *,
        training: bool = True,
        stacked: bool = True,
        meta: dict[str, Any] | None = None,
    ) -> None:
        self.kind = kind
        self.step = step
        self.training = training
        self.stacked = stacked
        self.meta: dict[str, Any] = dict(meta or {})
        self.notes: dict[str, list[Any]] = {}
        self.elapsed_ns = 0
        self.frame_bytes = 0
        self.number = 0
        self.verdicts = Verdicts()
        self._tensors: dict[str, torch.Tensor] = {}
        self._roles: dict[str, Role] = {}
        self._read: set[str] = set()
        self._frozen = False

    @property
    def when(self) -> str:
        """What an error message calls the step: ``"step 1"``, ``"evaluation batch 1"``."""
        return when(self.step, self.training)

    def put(self, name: str, tensor: torch.Tensor, role: Role) -> None:
        """Add the tensor, or replace the one of that name. It must be detached."""
        self._check_open(f"put {name!r}")
        if tensor.requires_grad:
            raise PluginError(
                f"tensor {name!r} of a {self.kind.name} message is still on the autograd graph; "
                "detach it: a message carries values, gradients travel in a message of their own"
            )
        self._tensors[name] = tensor
        self._roles[name] = role

    def take(self, name: str) -> torch.Tensor:
        """Remove the tensor and return it."""
        self._check_open(f"take {name!r}")
        tensor = self[name]
        del self._tensors[name], self._roles[name]
        return tensor

    def push(self, plugin: str, note: Any) -> None:
        """Leave a note for the same plugin at the receiver: a JSON value, sent with the header.

        What was put in there by ``before_send`` is read back by `pop` in ``after_receive``, last
        note first, so that a stack may hold a plugin twice.
        """
        self._check_open(f"leave a note of {plugin!r}")
        self.notes.setdefault(plugin, []).append(note)

    def pop(self, plugin: str) -> Any:
        """Take the last note of the plugin; None if it left none: it did not act."""
        self._check_open(f"take a note of {plugin!r}")
        notes = self.notes.get(plugin)
        if not notes:
            return None
        note = notes.pop()
        if not notes:
            del self.notes[plugin]
        return note

    def expect(self, ok: torch.Tensor, error: Callable[[], Exception]) -> None:
        """Raise an error unless this is true, without waiting for the device to say so.

        On a CPU it is raised here. On a GPU the step goes on and ends with it, so what a number
        that is not as expected would break, such as an index, has to be clamped as well.

        Args:
            ok: a boolean tensor without dimensions.
            error: makes what is raised.
        """
        self.verdicts.expect(ok, lambda _: error())

    def __getitem__(self, name: str) -> torch.Tensor:
        try:
            self._read.add(name)
            return self._tensors[name]
        except KeyError:
            raise PluginError(
                f"a {self.kind.name} message has no tensor {name!r}; "
                f"it has: {', '.join(self._tensors) or 'none'}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._tensors))

    def __len__(self) -> int:
        return len(self._tensors)

    def role(self, name: str) -> Role:
        """Return the role of the tensor of that name."""
        if name not in self._roles:
            self[name]
        return self._roles[name]

    def arrived(self) -> None:
        """Take note that nobody has looked at it yet who decodes it."""
        self._read.clear()

    def unread(self) -> tuple[str, ...]:
        """Return the names of side information at which nobody looked since `arrived`."""
        return tuple(name for name in self.names(Role.SIDE) if name not in self._read)

    def names(self, role: Role) -> tuple[str, ...]:
        """Return the names of all tensors of this role, in the order they were put."""
        return tuple(name for name, own in self._roles.items() if own is role)

    def sent(self, frame_bytes: int) -> None:
        """Take note that it left in a frame of so many bytes; from now on it cannot change."""
        self.frame_bytes = frame_bytes
        self._frozen = True

    def to(self, device: torch.device) -> Message:
        """Move all tensors to the device, in place; returns the message itself."""
        for name, tensor in self._tensors.items():
            self._tensors[name] = upload(tensor, device)
        return self

    def _check_open(self, what: str) -> None:
        if self._frozen:
            raise PluginError(f"cannot {what}: this {self.kind.name} message was sent already")

    def __repr__(self) -> str:
        tensors = ", ".join(
            f"{name}: {self._roles[name].value} {str(t.dtype).removeprefix('torch.')}{[*t.shape]}"
            for name, t in self._tensors.items()
        )
        return f"<Message {self.kind.name} step={self.step} {{{tensors}}}>"
