"""What arrives over a link is looked at here, before any plugin sees it, and again when decoded.

The other end's fault is a `ProtocolError`, a plugin's a `PluginError`; both name what came and what
is allowed. Where no plugin acts, a message holds the engine's own tensors and nothing else; where
one does, only they know what they send, and the engine looks at what they make of it.
"""

from __future__ import annotations

import math

import torch

from splitlab.core.contract.cut import Cut
from splitlab.core.contract.errors import PluginError, ProtocolError
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.contract.peer import Peer
from splitlab.core.contract.transfer import at_hand

__all__ = [
    "ACTIVATIONS",
    "GRADIENT",
    "PREDICTIONS",
    "TARGETS",
    "check_answer",
    "check_decoded",
    "check_predictions",
    "check_request",
    "check_server_input",
    "loss_of",
]

# Names of the tensors that the engine itself puts into messages.
ACTIVATIONS = "activations"
GRADIENT = "gradient"
TARGETS = "targets"
PREDICTIONS = "predictions"

_LARGEST_LOSS = 3.5e38
"""More than float32 can hold."""

_SLACK = 1e-3
"""What rounding may add to a probability of 1."""


# At the server.


def check_request(message: Message, peer: Peer, dtype: torch.dtype, *, plugins: bool) -> None:
    """Check what a client sends, as it came over the link.

    Args:
        message: of the client.
        peer: the server's facts.
        dtype: of activations at the cut.
        plugins: whether there are any.

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
    wanted = "gradient" in message.meta
    if wanted and (message.training or message.stacked):
        raise ProtocolError(f"{message.when}: a gradient is asked for in what came to the plugins")
    if plugins and message.stacked:
        _check_payload(message)
        return
    _check_names(message, {ACTIVATIONS: Role.PAYLOAD, TARGETS: Role.TARGETS})
    activations, targets = message[ACTIVATIONS], message[TARGETS]
    rows = activations.shape[0] if activations.ndim else 0
    N, D, B = peer.tokens, peer.width, peer.batch_size
    if activations.dtype is not dtype or activations.shape != (rows, N, D) or not 1 <= rows <= B:
        raise ProtocolError(
            f"{message.when}: activations arrived as {activations.dtype} {[*activations.shape]}; "
            f"allowed: {dtype} [1 to {B}, {N}, {D}]"
        )
    mixed = targets.dtype is torch.float32 and targets.shape == (rows, peer.classes)
    ids = not targets.is_floating_point() and targets.shape == (rows,)
    if not ids and not (mixed and (message.training or wanted)):
        raise ProtocolError(
            f"{message.when}: targets arrived as {targets.dtype} {[*targets.shape]}; allowed: "
            f"class ids, an integer type [{rows}], and in training class probabilities, "
            f"torch.float32 [{rows}, {peer.classes}]"
        )


def check_decoded(
    leaf: torch.Tensor, targets: torch.Tensor, message: Message, peer: Peer, most_rows: float
) -> torch.Tensor:
    """Check activations and targets as ``after_receive`` leaves them.

    Args:
        leaf: the activations.
        targets: class ids, int64, or class probabilities.
        message: what they came with.
        peer: the server's facts.
        most_rows: of the activations; infinite where a plugin changes the batch.

    Returns:
        The targets. Where the host cannot look at them without waiting, the message expects them to
        name classes, and those that do not are changed to some that can be computed with.

    Raises:
        ProtocolError: they are nothing that a client of this run sends.
    """
    if leaf.ndim < 2 or not leaf.is_floating_point() or not leaf.numel() or len(leaf) > most_rows:
        rows = f"1 to {most_rows}" if most_rows < math.inf else "1 or more"
        raise ProtocolError(
            f"{message.when}: activations arrived as {leaf.dtype} {[*leaf.shape]}, and no "
            f"plugin made floating-point rows of them; allowed: {rows} rows of 1 or more numbers"
        )
    if not targets.numel():
        raise ProtocolError(f"{message.when}: the targets that arrived are empty")
    ends = targets.float() if targets.dtype.itemsize == 1 else targets
    low, high = ends.aminmax()
    if targets.is_floating_point():
        what, most = "probability is outside 0 to 1", 1 + _SLACK
    else:
        what, most = f"id is outside 0 to {peer.classes - 1}", peer.classes - 1
    message.expect(
        (low >= 0) & (high <= most), lambda: ProtocolError(f"{message.when}: a class {what}")
    )
    if at_hand(targets) or targets.is_floating_point():
        return targets
    # A GPU that is asked for the logit of another class stops for good.
    return targets.clamp(0, peer.classes - 1)


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
    if len(shape) != 3 or 0 in shape or shape[2] != D or targets != wanted:
        raise PluginError(
            f"{cut.when}: the stack gives the server activations {shape} and "
            f"{cut.targets.dtype} targets {targets}; it takes (rows, tokens, {D}) and for "
            f"every row a class id (rows) or probabilities (rows, {C}){suspects}"
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
    if message.kind is not kind or message.step != asked.step:
        raise ProtocolError(
            f"got a {message.kind.name} for {message.when}, expected a {kind.name} for {asked.when}"
        )
    if message.stacked is not asked.stacked:
        went, came = ("through" if m.stacked else "past" for m in (asked, message))
        raise ProtocolError(
            f"{asked.when}: the {kind.name} came {came} the plugins, what was sent went {went} them"
        )
    if plugins and message.stacked:
        _check_payload(message)
        return
    name, like = (GRADIENT, ACTIVATIONS) if kind is Kind.GRADIENT else (PREDICTIONS, TARGETS)
    _check_names(message, {name: Role.PAYLOAD})
    answer, sent = message[name], asked[like]
    if answer.dtype is not sent.dtype or answer.shape != sent.shape:
        raise ProtocolError(
            f"{asked.when}: the {name} arrived as {answer.dtype} {[*answer.shape]}; allowed: "
            f"{sent.dtype} {[*sent.shape]}, as what was sent"
        )


def check_predictions(ids: torch.Tensor, targets: torch.Tensor, when: str, classes: int) -> None:
    """Check class ids as ``after_receive`` leaves them, against those that were sent.

    Raises:
        PluginError: they are not one for every sample.
        ProtocolError: they name no class.
    """
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


def _check_names(message: Message, expected: dict[str, Role]) -> None:
    """Raise `ProtocolError` unless these tensors arrived, and no other."""
    if {name: message.role(name) for name in message} != expected or message.notes:
        roles = [f"{message.role(name).value} {name!r}" for name in message]
        notes = [f"a note of {plugin!r}" for plugin in message.notes]
        allowed = ", ".join(f"{role.value} {name!r}" for name, role in expected.items())
        raise ProtocolError(
            f"{message.when}: a {message.kind.name} arrived with "
            f"{', '.join([*roles, *notes]) or 'no tensor'}; allowed without plugins: {allowed}"
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
