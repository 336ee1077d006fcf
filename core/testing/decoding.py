"""What is wrong behind the hooks that decode: shapes, dtypes, devices; what traits leave unsaid.

Shapes: B samples, N tokens, D width; rows and tokens as a stack leaves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from splitlab.core.testing.couple import Couple, Event

__all__ = ["decoding_problem", "undeclared"]


def decoding_problem(couple: Couple) -> str | None:
    """Return what is wrong with shapes, dtypes or devices behind the decoding hooks."""
    for training in (True, False):
        outputs = couple.seen("client", "after_client_forward", training=training)
        problem = (
            _arrived_problem(couple, training)
            or _cut_problem(couple, outputs, training)
            or (_gradient_problem(couple, outputs) if training else None)
        )
        if problem:
            return problem
    return None


def _arrived_problem(couple: Couple, training: bool) -> str | None:
    for role, name in (("server", "activations"), ("client", "gradient")):
        for event in couple.seen(role, "after_receive", training=training):
            found = event.after.tensors.get(name)
            if name == "gradient" and not training:
                continue
            if found is None or not found.is_floating_point():
                left = _described(found) if found is not None else "gone"
                return (
                    f"after after_receive at the {role} {name!r} is {left}; undo there what "
                    "before_send did, under the same name"
                )
    return None


def _cut_problem(couple: Couple, outputs: Sequence[Event], training: bool) -> str | None:
    decoded = couple.seen("server", "before_server_forward", training=training)
    for output, event in zip(outputs, decoded, strict=False):
        X, left = output.before.tensors["activations"], event.after.tensors
        Y = left.get("activations")
        D = X.shape[-1]
        if Y is None or Y.ndim != 3 or Y.shape[-1] != D:
            found = "gone" if Y is None else _described(Y)
            return (
                f"after before_server_forward the activations are {found}, the server's part takes "
                f"(rows, tokens, {D}); decode them there or in after_receive"
            )
        if Y.dtype != X.dtype or Y.device != X.device:
            return (
                f"after before_server_forward the activations are {Y.dtype} on {Y.device}, those "
                f"of the client were {X.dtype} on {X.device}; restore dtype and device in the "
                "decoding hook"
            )
        rows, targets = len(Y), left.get("targets")
        if not training and rows != len(X):
            return f"{rows} rows are left of {len(X)} samples in an evaluation; keep them apart"
        if targets is None or targets.shape[:1] != Y.shape[:1]:
            found = "gone" if targets is None else _described(targets)
            return f"{rows} rows reach the server's part with targets {found}; one for each row"
        sums = targets.sum(-1) if targets.is_floating_point() else targets.new_ones(())
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
            return "after before_server_forward the target probabilities of a row do not sum to 1"
        for name, shape in (("weights", Y.shape[:1]), ("token_sizes", Y.shape[:2])):
            extra = left.get(name)
            if extra is not None and (extra.shape != shape or extra.device != Y.device):
                return f"cut.{name} is {_described(extra)}; it must have the shape {[*shape]}"
    return None


def _gradient_problem(couple: Couple, outputs: Sequence[Event]) -> str | None:
    for hook in ("after_receive", "gradient_return"):
        for output, event in zip(outputs, couple.seen("client", hook), strict=False):
            Z, G = output.after.tensors["activations"], event.after.tensors.get("gradient")
            if G is None or (G.shape, G.dtype, G.device) != (Z.shape, Z.dtype, Z.device):
                found = "gone" if G is None else f"{_described(G)} on {G.device}"
                return (
                    f"after {hook} at the client the gradient is {found}, the activations that "
                    f"were sent are {_described(Z)} on {Z.device}; restore shape, dtype and device "
                    "there"
                )
    return None


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {[*tensor.shape]}"


def undeclared(couple: Couple) -> str | None:
    """Return what the client's hooks visibly change in training without a word in the traits."""
    declared = couple.client.stack.traits().values()
    gone = frozenset[str]().union(*(traits.takes_away for traits in declared))
    outputs = couple.seen("client", "after_client_forward")
    for output, sending in zip(outputs, couple.seen("client", "before_send"), strict=False):
        for aspect, hook, what in _changed(output, sending):
            # Without the layout, shapes say nothing of samples, tokens and features.
            if aspect not in gone and not {"layout", "plain"} & gone:
                return f"{hook} {what}, and traits() does not say so; add {aspect!r} to changes"
    return None


def _changed(output: Event, sending: Event) -> Iterator[tuple[str, str, str]]:
    """Yield (aspect, hook, what happened) for what the client's hooks visibly changed."""
    X, Z = (event.tensors["activations"] for event in (output.before, output.after))
    hook = "after_client_forward"
    yield from _reshaped(X, Z, hook)
    if len(Z) == len(X) and not torch.equal(
        output.before.tensors["targets"], output.after.tensors["targets"]
    ):
        yield "targets", hook, "changes the targets"
    hook = "before_send"
    payload = sending.after.payload()
    if any(not tensor.is_floating_point() for tensor in payload.values()):
        yield "numbers", hook, "sends codes that are no floating-point numbers"
    elif [*payload] != ["activations"]:
        yield "layout", hook, f"sends {', '.join(payload) or 'nothing'} instead of 'activations'"
    else:
        yield from _reshaped(Z, payload["activations"], hook)


def _reshaped(a: torch.Tensor, b: torch.Tensor, hook: str) -> Iterator[tuple[str, str, str]]:
    aspects = ("batch", "tokens", "features") if a.ndim == b.ndim == 3 else ("layout",)
    for aspect, old, new in zip(aspects, a.shape, b.shape, strict=False):
        if old != new or a.ndim != b.ndim:
            yield aspect, hook, f"makes {[*b.shape]} of {[*a.shape]}"
