"""What arrives over a link is looked at here, before any plugin sees it, and again when decoded.

The other end's fault is a `ProtocolError`, a plugin's a `PluginError`; both name what came and what
is allowed. Where no plugin acts, a message holds the engine's own tensors and nothing else; where
one does, only they know what they send, and the engine looks at what they make of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch

from splitlab.core.contract.cut import Cut
from splitlab.core.contract.errors import PluginError, ProtocolError
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.contract.peer import Peer
from splitlab.core.contract.transfer import at_hand
from splitlab.core.engine.stack import Stack

__all__ = [
    "ACTIVATIONS",
    "GRADIENT",
    "PREDICTIONS",
    "TARGETS",
    "Arriving",
    "Side",
    "check_answer",
    "check_answer_decoded",
    "check_decoded",
    "check_predictions",
    "check_read",
    "check_request",
    "check_server_input",
    "ids_dtype",
    "loss_of",
]

# Names of the tensors that the engine itself puts into messages.
ACTIVATIONS = "activations"
GRADIENT = "gradient"
TARGETS = "targets"
PREDICTIONS = "predictions"

_LARGEST_LOSS = 3.5e38
"""More than float32 can hold."""

_COMPUTED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_SLACK = 1e-3
"""What rounding may add to a probability of 1."""


@dataclass(frozen=True, slots=True)
class Arriving:
    """What can arrive in a run, by its plan: the server's measure of all that a client sends.

    Attributes:
        dtype: of activations at the cut.
        rows: B, the most rows; no plugin makes more.
        tokens: N.
        width: D.
        classes: C.
        plugins: whether there are any.
        changed: aspects that plugins on the graph change in training.
        evaluated: the same of an evaluation.
    """

    dtype: torch.dtype
    rows: int
    tokens: int
    width: int
    classes: int
    plugins: bool
    changed: AbstractSet[str]
    evaluated: AbstractSet[str]

    @classmethod
    def at(cls, peer: Peer, dtype: torch.dtype, stack: Stack) -> Arriving:
        """Return what can arrive at a peer with this stack."""
        changed, evaluated = (stack.changed_on_graph(training=each) for each in (True, False))
        sizes = peer.batch_size, peer.tokens, peer.width, peer.classes
        return cls(dtype, *sizes, bool(stack.traits()), changed, evaluated)

    def fits(self, leaf: torch.Tensor) -> bool:
        """Return whether activations are some that plugins on the graph may have made."""
        if leaf.dtype not in _COMPUTED or leaf.ndim < 2 or not 1 <= len(leaf) <= self.rows:
            return False
        if not 1 <= leaf.numel() <= self.numbers:
            return False
        if "layout" in self.changed:
            return True
        return (
            leaf.ndim == 3
            and (leaf.shape[1] == self.tokens or "tokens" in self.changed)
            and (leaf.shape[2] == self.width or "features" in self.changed)
            and (leaf.dtype is self.dtype or bool(self.changed))
        )

    @property
    def numbers(self) -> int:
        """The most numbers of activations: those of a full batch, of which no plugin makes more."""
        return self.rows * self.tokens * self.width

    def words(self) -> str:
        """Return what activations fit, for an error message."""
        if "layout" in self.changed:
            return f"1 to {self.rows} floating-point rows, of {self.numbers} numbers in all"
        N = f"1 to {self.numbers}" if "tokens" in self.changed else str(self.tokens)
        D = f"1 to {self.numbers}" if "features" in self.changed else str(self.width)
        dtype = "a floating-point type" if self.changed else str(self.dtype)
        return f"{dtype} [1 to {self.rows}, {N}, {D}]"


# At the server.


class Side(dict[str, torch.Tensor]):
    """Side information of a cut, which knows what of it no plugin looked at.

    Args:
        message: that it came with, decoded.
    """

    def __init__(self, message: Message) -> None:
        self._unread = {*message.unread()}
        super().__init__((name, message[name]) for name in message.names(Role.SIDE))

    def unread(self) -> list[str]:
        """Return the names of what nobody looked at."""
        return sorted(self._unread & self.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        self._unread.discard(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._unread.discard(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Look at what has this name."""
        self._unread.discard(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self._unread.clear()
        return super().__iter__()

    def items(self) -> Any:
        """Look at everything."""
        self._unread.clear()
        return super().items()

    def values(self) -> Any:
        """Look at everything."""
        self._unread.clear()
        return super().values()


def check_request(message: Message, arriving: Arriving) -> None:
    """Check what a client sends, as it came over the link.

    Raises:
        ProtocolError: it is nothing that a client of this run sends.
    """
    if message.kind is not Kind.ACTIVATION:
        raise ProtocolError(
            f"got a {message.kind.name} for {message.when}, which is not open; expected "
            "an ACTIVATION"
        )
    if message.training and not message.stacked:
        raise ProtocolError(f"{message.when}: a training step came past the plugins")
    if message.meta and message.meta != {"gradient": True}:
        raise _words(message, "nothing, or that a gradient is wanted")
    if message.meta and (message.training or message.stacked):
        raise ProtocolError(f"{message.when}: a gradient is asked for in what came to the plugins")
    if arriving.plugins and message.stacked:
        _check_payload(message)
        message.arrived()
    else:
        _check_names(message, {ACTIVATIONS: Role.PAYLOAD, TARGETS: Role.TARGETS})


def check_decoded(
    message: Message, arriving: Arriving, suspects: Callable[[], str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check activations and targets as ``after_receive`` leaves them; where it does, its work.

    Args:
        message: of the client, decoded, on the device.
        arriving: what can arrive.
        suspects: tells what else to look at, as the end of an error line.

    Returns:
        Activations, and targets: class ids int64, or class probabilities float32. Where the host
        cannot look at ids without waiting, the message expects them to name classes, and those that
        do not are changed to some that can be computed with.

    Raises:
        ProtocolError: they are nothing that a client of this run sends.
    """
    leaf, targets, C = message[ACTIVATIONS], message[TARGETS], arriving.classes
    _check_roles(message, {ACTIVATIONS: Role.PAYLOAD, TARGETS: Role.TARGETS})
    plain = not (arriving.plugins and message.stacked)
    changed = arriving.changed if message.training else arriving.evaluated
    measure = dataclasses.replace(arriving, changed=frozenset() if plain else changed)
    if not measure.fits(leaf):
        behind = "" if plain else ", and no plugin made of it what the server takes"
        raise ProtocolError(
            f"{message.when}: activations arrived as {leaf.dtype} {[*leaf.shape]}{behind}; "
            f"allowed: {measure.words()}{suspects()}"
        )
    rows = targets.shape[0] if targets.ndim else 0
    merged = "batch" in measure.changed
    most = f"1 to {arriving.rows}" if merged else str(len(leaf))
    mixed = targets.dtype is torch.float32 and targets.shape == (rows, C)
    ids = targets.dtype is ids_dtype(C) and targets.ndim == 1
    right = 1 <= rows <= arriving.rows if merged else rows == len(leaf)
    soft = mixed and (message.training or "gradient" in message.meta)
    if not (ids or soft) or not right:
        raise ProtocolError(
            f"{message.when}: targets arrived as {targets.dtype} {[*targets.shape]}; allowed: "
            f"class ids, {ids_dtype(C)} [{most}], and in training class probabilities, "
            f"torch.float32 [{most}, {C}]"
        )
    if mixed:
        low, high = targets.aminmax()
        sums = targets.sum(1)
        message.expect(
            (low >= 0) & (high <= 1 + _SLACK) & ((sums - 1).abs() <= _SLACK).all(),
            lambda: ProtocolError(
                f"{message.when}: the class probabilities of a row are outside 0 to 1, or do not "
                "add up to 1"
            ),
        )
        return leaf, targets
    targets = targets.long()
    low, high = targets.aminmax()
    message.expect(
        (low >= 0) & (high < C),
        lambda: ProtocolError(f"{message.when}: a class id is outside 0 to {C - 1}"),
    )
    # A GPU that is asked for the logit of another class stops for good.
    return leaf, targets if at_hand(targets) else targets.clamp(0, C - 1)


def check_server_input(cut: Cut, peer: Peer, dtype: torch.dtype, suspects: str) -> None:
    """Check what the stack gives the server's part of the model.

    Args:
        cut: as ``before_server_forward`` leaves it.
        peer: the server's facts.
        dtype: of activations at the cut.
        suspects: what else to look at, as the end of an error line.

    Raises:
        PluginError: the part cannot take it.
    """
    shape, targets = [*cut.activations.shape], [*cut.targets.shape]
    D, C = peer.width, peer.classes
    soft = cut.targets.is_floating_point()
    wanted = [*shape[:1], C] if soft else shape[:1]
    rows, N = peer.batch_size, peer.tokens
    fits = len(shape) == 3 and 0 < shape[0] <= rows and 0 < shape[1] <= N and shape[2] == D
    if not fits or targets != wanted:
        raise PluginError(
            f"{cut.when}: the stack gives the server activations {shape} and "
            f"{cut.targets.dtype} targets {targets}; it takes (1 to {rows} rows, 1 to {N} tokens, "
            f"{D}) and for every row a class id (rows) or probabilities (rows, {C}){suspects}"
        )
    fit = cut.targets.dtype.itemsize > 1 if soft else cut.targets.dtype is torch.int64
    if cut.activations.dtype is not dtype or not fit:
        raise PluginError(
            f"{cut.when}: the stack gives the server activations of {cut.activations.dtype} and "
            f"targets of {cut.targets.dtype}; it takes {dtype}, and class ids of torch.int64 or "
            f"probabilities of 16 bits or more{suspects}"
        )


# At the client.


def check_answer(message: Message, kind: Kind, asked: Message, *, plugins: bool) -> None:
    """Check what a server answers, as it came over the link.

    Args:
        message: of the server.
        kind: that it should be of.
        asked: what it answers.
        plugins: whether there are any.

    Raises:
        ProtocolError: it is no answer to that.
    """
    same = message.step == asked.step and message.training is asked.training
    if message.kind is not kind or not same:
        raise ProtocolError(
            f"got a {message.kind.name} for {message.when}, expected a {kind.name} for {asked.when}"
        )
    if message.stacked is not asked.stacked:
        went, came = ("through" if m.stacked else "past" for m in (asked, message))
        raise ProtocolError(
            f"{asked.when}: the {kind.name} came {came} the plugins, what was sent went {went} them"
        )
    if len(message.meta) > 1:
        raise _words(message, "its loss")
    if plugins and message.stacked:
        _check_payload(message)
        message.arrived()
        return
    name, like = (GRADIENT, ACTIVATIONS) if kind is Kind.GRADIENT else (PREDICTIONS, TARGETS)
    _check_names(message, {name: Role.PAYLOAD})
    answer, sent = message[name], asked[like]
    if answer.dtype is not sent.dtype or answer.shape != sent.shape:
        raise ProtocolError(
            f"{asked.when}: the {name} arrived as {answer.dtype} {[*answer.shape]}; allowed: "
            f"{sent.dtype} {[*sent.shape]}, as what was sent"
        )


def check_answer_decoded(message: Message, name: str) -> torch.Tensor:
    """Return what the server answers as ``after_receive`` leaves it.

    Args:
        message: of the server, decoded.
        name: of the tensor.

    Raises:
        ProtocolError: it is not there, or there is more.
    """
    tensor = message[name]
    _check_roles(message, {name: Role.PAYLOAD})
    check_read(message.when, message.unread())
    return tensor


def check_predictions(ids: torch.Tensor, targets: torch.Tensor, when: str, classes: int) -> None:
    """Check class ids as ``after_receive`` leaves them, against those that were sent.

    Raises:
        PluginError: they are not one for every sample.
        ProtocolError: they name no class.
    """
    if ids.dtype is not ids_dtype(classes) and not bool((ids.double() == ids.long()).all()):
        raise ProtocolError(
            f"{when}: predictions came back as {ids.dtype}, and not all of them are whole numbers"
        )
    if ids.shape != targets.shape:
        raise PluginError(
            f"{when}: {[*ids.shape]} predictions came back for {len(targets)} samples; the stack "
            "must keep samples apart in evaluation"
        )
    if not 0 <= int(ids.long().min()) <= int(ids.long().max()) < classes:
        raise ProtocolError(f"{when}: a predicted class is outside 0 to {classes - 1}")


def loss_of(message: Message) -> float:
    """Return the loss that an answer holds; it may be NaN or infinite, as a diverged one is.

    Raises:
        ProtocolError: it holds none, or one that no training has.
    """
    mean = message.kind is Kind.GRADIENT
    word, what = ("loss", "loss") if mean else ("loss_sum", "summed loss")
    loss = message.meta.get(word)
    if not isinstance(loss, float):
        raise ProtocolError(f"{message.when}: the server's answer holds no {what}")
    if loss < 0 or _LARGEST_LOSS < loss < math.inf:
        raise ProtocolError(
            f"{message.when}: the server's answer holds a {what} of {loss}; allowed: 0 or more, as "
            "float32 holds it"
        )
    return loss


# At both.


def ids_dtype(classes: int) -> torch.dtype:
    """Return the narrowest type that holds class ids on the wire."""
    return torch.uint8 if classes <= 256 else torch.int32


def check_read(when: str, unread: Sequence[str]) -> None:
    """Raise `ProtocolError` for side information that no plugin looked at.

    Only a plugin knows what it sends besides, so what none of them asks for is none's.
    """
    if unread:
        raise ProtocolError(
            f"{when}: side information {', '.join(map(repr, unread))[:200]} arrived, at which no "
            "plugin looks; both peers must run the same stack"
        )


def _check_roles(message: Message, expected: dict[str, Role]) -> None:
    """Raise `ProtocolError` unless these tensors are left, and nothing but side information."""
    found = {name: message.role(name) for name in message}
    side = {name for name, role in found.items() if role is Role.SIDE and name not in expected}
    if message.notes or found != expected | dict.fromkeys(side, Role.SIDE):
        raise _names(message, expected, "; the plugins of this run make no more of it")


def _words(message: Message, allowed: str) -> ProtocolError:
    return ProtocolError(
        f"{message.when}: a {message.kind.name} arrived that says {str(message.meta)[:100]}; "
        f"allowed: {allowed}"
    )


def _check_names(message: Message, expected: dict[str, Role]) -> None:
    """Raise `ProtocolError` unless these tensors arrived, and no other."""
    if {name: message.role(name) for name in message} != expected or message.notes:
        raise _names(message, expected, " without plugins")


def _names(message: Message, expected: dict[str, Role], how: str) -> ProtocolError:
    roles = [f"{message.role(name).value} {name!r}" for name in message]
    notes = [f"a note of {plugin!r}" for plugin in message.notes]
    allowed = ", ".join(f"{role.value} {name!r}" for name, role in expected.items())
    came = ", ".join([*roles, *notes]) or "no tensor"
    if how.startswith(";"):
        allowed, how = f"{allowed}{how}", ""
    return ProtocolError(
        f"{message.when}: a {message.kind.name} arrived with {came[:300]}; allowed{how}: {allowed}"
    )


def _check_payload(message: Message) -> None:
    """Raise `ProtocolError` for numbers without rows or tokens; codes may be none at all."""
    payload = [message[name] for name in message.names(Role.PAYLOAD)]
    rows = [tensor for tensor in payload if tensor.is_floating_point() and tensor.ndim > 1]
    if rows and not any(tensor.numel() for tensor in payload):
        raise ProtocolError(
            f"{message.when}: a {message.kind.name} arrived without a number in its payload "
            f"({message!r})"
        )
