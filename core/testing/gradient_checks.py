"""The check that the client gets the gradient that the plugin's traits promise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from splitlab.core.contract.cut import Cut
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.testing.couple import Couple
from splitlab.core.testing.report import Skipped, Warned
from splitlab.core.testing.subject import GRADIENT, Subject, with_activations

__all__ = ["gradient_as_declared"]

_EXACT = 1e-9
"""Of the gradient, relative: two ways of autograd in float64."""
_NUMERIC = 1e-6
"""Of a directional derivative by central differences in float64."""
_FLAT = 1e-3
"""Of a derivative, relative to others: as if there were none."""
_STEPS = (1e-5, 2.5e-6)
"""Of the differences; two, which agree where the loss is smooth."""
_SMALLER_STEPS = ((1e-6, 2.5e-7), (1e-7, 2.5e-8))
"""For any other model: those of ReLU have kinks everywhere, and few lie within such a step."""


def gradient_as_declared(s: Subject) -> str | None:
    """The client gets the exact gradient, the server's, or one that a hook corrects."""
    s.charged(GRADIENT)
    s.working()
    declared = s.traits.gradient
    if declared == "corrected":
        if not s.has("gradient_return"):
            raise s.failed(
                "traits() says gradient='corrected', but no gradient_return adds anything; declare "
                "'natural' or 'straight-through'"
            )
        raise Skipped("gradient='corrected' is the plugin's own rule: its own tests must hold it")
    return _straight_through(s) if declared == "straight-through" else _natural(s)


def _natural(s: Subject) -> str | None:
    """Compare the gradient of a real step in float64 with autograd and with differences."""
    couple = _double(s)
    couple.train(s.tiny.batch(), 0)
    [forward], [backward] = (
        couple.seen("client", "after_client_forward"),
        couple.seen("client", "backward"),
    )
    X, G = forward.before.tensors["activations"], backward.after.tensors["gradient"]
    if not G.norm() > 0:
        raise s.failed("no gradient reaches the client's part, all of it is 0 or not a number")
    remarks = []
    if not any(map(s.has, ("before_send", "after_receive", "gradient_return"))):
        expected = _composed(s, X)
        error = float((G - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        if not error <= _EXACT:
            raise s.failed(
                f"the client's gradient is off by {error:.1e} (relative) from autograd through "
                "encoder and decoder in one process; both hooks must be functions of "
                "cut.activations and of what travels, or declare another gradient"
            )
        remarks.append(f"off by {error:.0e} from autograd")
    noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(0), dtype=X.dtype)
    noise = noise.to(X.device)
    along, held = _derivative(s, X, noise, G), ""
    if along is None or not _agrees(G, noise, along):
        # Most choices that a method holds fixed (a basis, a partition, the largest values) are the
        # same for c X as for X, so that along X itself the derivative is whole.
        noise, held = X, "what follows from the direction of the activations is held fixed"
        along = _derivative(s, X, X, G) if along is not None else None
    if along is None:
        if not remarks:
            raise s.failed(
                "gradient='natural', but the loss is no smooth function of the activations; "
                "declare gradient='straight-through', or compute in float64 what comes in float64"
            )
        return Warned(f"{remarks[0]}; not smooth enough to compare with differences")
    if held and s.tiny.model and abs(along) <= _FLAT * _size(G, noise):
        flat = (
            "the loss of this model does not depend on the size of the activations, so differences "
            "say nothing of a method that holds something fixed; check it without a model, too"
        )
        return Warned("; ".join([*remarks, flat]))
    if not _agrees(G, noise, along):
        raise s.failed(
            f"the loss changes along a direction by {along:.6g}, the client's gradient says "
            f"{float((G * noise).sum()):.6g}; if the method does not send the exact gradient, "
            "declare gradient='straight-through' or 'corrected' in traits()"
        )
    return "; ".join([*remarks, "agrees with differences", *([held] if held else [])])


def _derivative(s: Subject, X: torch.Tensor, V: torch.Tensor, G: torch.Tensor) -> float | None:
    """Return the derivative of all losses along V, None if they are not smooth there.

    A kink within a step makes a right gradient look wrong and never a wrong one right, so smaller
    steps are tried until one agrees with the gradient.
    """
    at = [X]
    couple = None

    def loss(where: torch.Tensor) -> float:
        nonlocal couple
        at[0] = where
        if couple is None or s.traits.stateful:  # nothing is learned: one step is like the other
            couple = _double(s, lambda cut: with_activations(cut, at[0]), lr=0.0)
        return couple.train(s.tiny.batch(), 0) + couple.own_losses()

    found = None
    for steps in _SMALLER_STEPS if s.tiny.model else (_STEPS,):
        slopes = [(loss(X + h * V) - loss(X - h * V)) / (2 * h) for h in steps]
        if math.isclose(*slopes, rel_tol=1e-4, abs_tol=1e-9):
            found = slopes[1]
            if _agrees(G, V, found):
                break
    return found


def _agrees(G: torch.Tensor, V: torch.Tensor, slope: float) -> bool:
    return abs(slope - float((G * V).sum())) <= _NUMERIC * _size(G, V)


def _size(G: torch.Tensor, V: torch.Tensor) -> float:
    """Return how large a derivative is along a direction as long as V, by its root mean square."""
    return float(G.norm() * V.norm()) / math.sqrt(G.numel())


def _double(s: Subject, enter: Callable[[Cut], None] | None = None, **settings: Any) -> Couple:
    couple = s.couple(enter=enter, dtype=torch.float64, **settings)
    for peer in (couple.client.peer, couple.server.peer):
        for module in peer.modules:
            module.double()
    return couple


def _composed(s: Subject, X: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the loss by autograd through encoder, decoder and server part."""
    leaf = X.clone().requires_grad_()
    cuts: list[Cut] = []

    def enter(cut: Cut) -> None:
        cut.activations = leaf
        cuts.append(cut)

    couple = _double(s, enter)
    batch = s.tiny.batch()
    next(couple.client.train(dataclasses.replace(batch, images=batch.images.double()), 0))
    [sent] = cuts
    side = {name: tensor.detach() for name, tensor in sent.side.items()}
    cut = Cut(activations=sent.activations, targets=sent.targets, step=0, training=True, side=side)
    part = s.tiny.server(dtype=torch.float64)._part
    part.train(True)
    peer = couple.server.peer
    with isolated_rng(peer.seed, "server", 0, device=peer.device):  # as the server draws
        couple.server.stack.before_server_forward(cut)
        logits = part.forward(cut.activations, cut.token_sizes)
    loss = F.cross_entropy(logits, cut.targets, reduction="none")
    weights = torch.ones_like(loss) if cut.weights is None else cut.weights
    own = [*sent.losses.values(), *cut.losses.values()]
    whole = sum(own, start=(loss * weights).sum() / weights.sum())
    gradient: torch.Tensor = torch.autograd.grad(whole, leaf)[0]
    return gradient


def _straight_through(s: Subject) -> str | None:
    """Compare what the client gets with what the server had: as much as was sent of it."""
    couple = s.working()
    crossed = zip(
        couple.seen("server", "before_send"),
        couple.seen("client", "after_receive"),
        couple.seen("client", "backward"),
        strict=True,
    )
    exact = True
    for sending, receiving, backward in crossed:
        had, got = sending.before.tensors["gradient"], receiving.after.tensors["gradient"]
        sent = sending.after.tensors.get("gradient")
        untouched = sent is not None and sent.dtype == had.dtype and torch.equal(sent, had)
        if untouched and not torch.equal(got, had):
            raise s.failed(
                f"the gradient crosses the link as it is, but after_receive changes it "
                f"({sending.before.what}); act on a GRADIENT message at both ends or at none"
            )
        exact = exact and untouched
        if not float((got * had).sum()) > 0:
            raise s.failed(
                "the gradient that after_receive gives the client points away from the one that "
                f"the server sent ({sending.before.what}); decode it to its own values"
            )
        graph = s.has("after_client_forward") or s.has("gradient_return")
        if not graph and not torch.equal(backward.after.tensors["gradient"], got):
            raise s.failed("the client's part gets another gradient than after_receive left")
    return "the server's gradient as it is" if exact else "the server's gradient, compressed"
