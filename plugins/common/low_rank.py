"""What the low-rank methods share: a message's tensor as two factors, and back.

The tensor (B, N, D) is read as a stack of G matrices (M, F); each is sent as P (M, R) and Q (F, R)
and rebuilt as P Qᵀ. How the factors are found is the method's business, see `LowRank._factorise`.

==========  =  =====  =====  ===========  ============
``mat``     G  M      F      P travels as  Q travels as
==========  =  =====  =====  ===========  ============
``tokens``  1  B · N  D      (B, N, R)    (D, R)
``sample``  B  N      D      (B, N, R)    (B, D, R)
``batch``   1  B      N · D  (B, R)       (N, D, R)
==========  =  =====  =====  ===========  ============

So the shape of the tensor is in the shapes of its factors. They are payload, and floating point of
the tensor's dtype: a quantizer behind the method compresses them further.

The way back, ``natural``: with Q's columns orthonormal and held fixed, X ↦ P = X Q ↦ P Qᵀ has the
gradient ∂L/∂X = (G Q) Qᵀ, where G is the gradient of what was rebuilt. G Q has the size of P, and
the client still has Q: nothing else travels. The shortcut over the left factor, Pᵀ G, would be
smaller still, but leaves the gradients of all M rows in a space of R dimensions. With a quantizer
behind the method the server answers with its own, rounded Q, and the client has the whole one: the
gradient is then exact but for that rounding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from splitlab.core import Kind, Message, Peer, ProtocolError, Role, at_hand, hookimpl, upload
from splitlab.plugins.common.exchange import working_dtype

__all__ = [
    "LowRank",
    "Mat",
    "Track",
    "orthonormal",
    "principal",
    "rank_for",
    "shares",
    "spectrum",
    "worth",
]

Mat = Literal["tokens", "sample", "batch"]

_TENSOR = {Kind.ACTIVATION: "activations", Kind.GRADIENT: "gradient"}
_NDIM = {"tokens": (3, 2), "sample": (3, 3), "batch": (2, 3)}


@dataclass
class Track:
    """What the sender of one direction remembers from step to step.

    Attributes:
        basis: (F, R) where the next search starts.
        residual: what the factors of the last gradient missed, in the gradient's shape.
    """

    basis: torch.Tensor | None = None
    residual: torch.Tensor | None = None


class LowRank(ABC):
    """The hooks of a method that sends factors; a subclass finds them.

    Half precision is computed in float32. A tensor that is not finite is rebuilt as not finite; it
    leaves no trace in the state, nor does a tensor of zeros.

    Args:
        plugin: the method's name; prefix of its tensors, with underscores.
        mat: which matrices, see the module.
        natural: send G Q down. Otherwise a gradient is factorised like the activations, with a
            state of its own.
        evaluation: act on evaluation batches too. They start from the state and leave it alone.
        feedback: β, how much of the residual of one gradient is added to the next; 0 for none. A
            gradient of another shape (a last, smaller batch) passes without, and leaves it alone.
        center: send the mean of every column apart, and factors of the rest; ``mat=tokens`` only.
    """

    def __init__(
        self,
        plugin: str,
        *,
        mat: Mat,
        natural: bool,
        evaluation: bool,
        feedback: float,
        center: bool = False,
    ) -> None:
        prefix = plugin.replace("-", "_")
        self._plugin = plugin
        self._P, self._Q, self._mean = (f"{prefix}.{part}" for part in ("p", "q", "mean"))
        self._mat = mat
        self._natural = natural
        self._evaluation = evaluation
        self._feedback = feedback
        self._center = center
        self._tracks = {kind: Track() for kind in _TENSOR}
        self._ranks: dict[Kind, int] = {}  # R of the last training step's factors
        self._kept: tuple[int, torch.Tensor] | None = None  # Q of a step, until its gradient passes

    @abstractmethod
    def _factorise(
        self, matrix_GMF: torch.Tensor, track: Track, *, draw: torch.Generator, size: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return P (G, M, R), Q (G, F, R), and the basis (F, R) to start from next, or None.

        Args:
            matrix_GMF: float32, or float64; not to be changed.
            track: this direction's memory.
            draw: for random numbers.
            size: bytes of a number on the wire.
        """

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Keep the peer."""
        self._peer = peer

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Replace activations or gradient by their factors."""
        if message.kind not in _TENSOR or not (message.training or self._evaluation):
            return
        if message.kind is Kind.GRADIENT and self._natural:
            self._project(message)
        else:
            self._encode(message)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Put what the factors make in their place."""
        note = message.pop(self._plugin)
        if note is None:
            return
        if type(note) is not int or note != 1:
            raise self._wrong(message, f"its note says {note!r:.40}, and nothing but 1 is known")
        if message.kind not in _TENSOR:
            raise self._wrong(message, f"a {message.kind.name} has no factors")
        P = self._take(message, self._P)
        if message.kind is Kind.GRADIENT and self._natural:
            Q = self._take_kept(message.step)
            if Q is None:
                raise self._wrong(message, "a gradient came of activations that were not sent")
        else:
            Q = self._take(message, self._Q)
        self._check(message, P, Q)
        rebuilt = self._rebuild(P, Q)
        if self._center:
            self._add_mean(message, rebuilt)
        message.put(_TENSOR[message.kind], rebuilt, Role.PAYLOAD)
        if message.training:
            self._ranks[message.kind] = P.shape[-1]
        if message.kind is Kind.ACTIVATION and self._natural and message.training:
            self._kept = message.step, Q

    @hookimpl
    def state_dict(self) -> dict[str, Any]:
        """Return basis and residual of the direction that this peer sends."""
        return {
            _TENSOR[kind]: kept
            for kind, track in self._tracks.items()
            if (kept := {k: v.clone() for k, v in vars(track).items() if v is not None})
        }

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        for kind, track in self._tracks.items():
            kept = state.get(_TENSOR[kind], {})
            for field in fields(track):
                tensor = kept.get(field.name)
                moved = None if tensor is None else tensor.clone().to(self._peer.device)
                setattr(track, field.name, moved)

    def _matrix_shape(self, B: int, N: int, D: int) -> tuple[int, int, int]:
        """Return (G, M, F)."""
        shapes = {"tokens": (1, B * N, D), "sample": (B, N, D), "batch": (1, B, N * D)}
        return shapes[self._mat]

    def _full_shape(self) -> tuple[int, int, int]:
        """Return (G, M, F) of a full batch as the model makes it."""
        return self._matrix_shape(self._peer.batch_size, self._peer.tokens, self._peer.width)

    def _start(
        self, track: Track, F: int, R: int, draw: torch.Generator, like: torch.Tensor
    ) -> torch.Tensor:
        """Return R columns (F, R) to start from: those of the last step, random where it has none.

        Only the columns are kept from step to step, so the number of rows may change.
        """
        known = like.new_empty(F, 0)
        if track.basis is not None and track.basis.shape[0] == F:
            known = track.basis[:, :R].to(like)
        fresh = torch.randn(F, R - known.shape[1], generator=draw, dtype=torch.float64)
        return torch.cat((known, upload(fresh.to(like.dtype), like.device)), dim=1)

    def _encode(self, message: Message) -> None:
        name, track = _TENSOR[message.kind], self._tracks[message.kind]
        tensor = message.take(name)
        feeds = message.kind is Kind.GRADIENT and self._feedback > 0
        source = tensor.to(working_dtype(tensor.dtype))
        if feeds and track.residual is not None and track.residual.shape == source.shape:
            source = source + self._feedback * track.residual
        matrix_GMF = source.reshape(self._matrix_shape(*source.shape))
        if self._center:
            mean_G1F = matrix_GMF.mean(dim=1, keepdim=True)
            matrix_GMF = matrix_GMF - mean_G1F
        P, Q, basis = self._factorise(
            matrix_GMF,
            track,
            draw=self._peer.generator(self._plugin, name, message.step),
            size=tensor.element_size(),
        )
        P, Q = self._on_wire(P.to(tensor.dtype), Q.to(tensor.dtype), source)
        message.put(self._P, P, Role.PAYLOAD)
        message.put(self._Q, Q, Role.PAYLOAD)
        if self._center:
            message.put(self._mean, mean_G1F.flatten().to(tensor.dtype), Role.PAYLOAD)
        message.push(self._plugin, 1)

        if not message.training:
            return
        self._ranks[message.kind] = P.shape[-1]
        if self._natural:
            self._kept = message.step, Q
        # What is not finite, or nothing at all, is no start for the next step.
        worth_it = P.isfinite().all() & Q.isfinite().all() & P.any() & Q.any()
        if at_hand(worth_it) and not worth_it:
            return
        if basis is not None:
            _remember(track, basis, worth_it)
        full = source.shape[0] == self._peer.batch_size
        if feeds and (full or track.residual is None or track.residual.shape == source.shape):
            rebuilt = self._rebuild(P, Q)
            if self._center:
                rebuilt += message[self._mean]
            residual = source - rebuilt
            if not at_hand(worth_it):
                old = track.residual
                if old is None or old.shape != source.shape:
                    old = torch.zeros_like(residual)
                residual = torch.where(worth_it, residual, old)
            track.residual = residual

    def _project(self, message: Message) -> None:
        """Replace the gradient G by G Q."""
        Q = self._take_kept(message.step)
        if Q is None:  # the activations came without factors
            return
        gradient = message.take("gradient")
        working = gradient.to(working_dtype(gradient.dtype))
        matrix_GMF = working.reshape(self._matrix_shape(*working.shape))
        P_GMR = matrix_GMF @ self._stacked(Q).to(working)
        P, _ = self._on_wire(P_GMR.to(gradient.dtype), None, gradient)
        message.put(self._P, P, Role.PAYLOAD)
        if self._center:
            # X ↦ (X - 1μᵀ) Q Qᵀ + 1μᵀ, μ = Xᵀ1 / M: what the mean adds is G's column sums.
            sums_F = matrix_GMF.sum(dim=(0, 1))
            message.put(self._mean, sums_F.to(gradient.dtype), Role.PAYLOAD)
        message.push(self._plugin, 1)

    def _add_mean(self, message: Message, rebuilt: torch.Tensor) -> None:
        mean_F = self._take(message, self._mean)
        if mean_F.shape != rebuilt.shape[-1:]:
            raise self._wrong(message, f"a mean of shape {[*mean_F.shape]}")
        if message.kind is Kind.GRADIENT and self._natural:
            rows = rebuilt.flatten(0, -2)
            rebuilt += (mean_F - rows.sum(dim=0)) / rows.shape[0]
        else:
            rebuilt += mean_F

    def _on_wire(
        self, P_GMR: torch.Tensor, Q_GFR: torch.Tensor | None, source_BND: torch.Tensor
    ) -> Any:
        """Return P and Q in the shapes in which they travel."""
        B, N, D = source_BND.shape
        R = P_GMR.shape[-1]
        P = P_GMR.reshape(B, R) if self._mat == "batch" else P_GMR.reshape(B, N, R)
        if Q_GFR is None:
            return P, None
        shapes = {"tokens": (D, R), "sample": (B, D, R), "batch": (N, D, R)}
        return P, Q_GFR.reshape(shapes[self._mat])

    def _stacked(self, Q: torch.Tensor) -> torch.Tensor:
        """Return Q, as it travels, as (G, F, R)."""
        return Q if self._mat == "sample" else Q.reshape(1, -1, Q.shape[-1])

    def _rebuild(self, P: torch.Tensor, Q: torch.Tensor) -> torch.Tensor:
        """Return P Qᵀ, of factors as they travel, in the tensor's shape and P's dtype."""
        dtype = working_dtype(P.dtype)
        P_GMR = P if self._mat == "sample" else P.reshape(1, -1, P.shape[-1])
        product = P_GMR.to(dtype) @ self._stacked(Q).to(dtype).mT
        features = Q.shape[1:-1] if self._mat == "sample" else Q.shape[:-1]
        return product.reshape(*P.shape[:-1], *features).to(P.dtype)

    def _take(self, message: Message, name: str) -> torch.Tensor:
        if name not in message:
            raise self._wrong(message, f"no tensor {name!r}")
        if message.role(name) is not Role.PAYLOAD:
            raise self._wrong(message, f"{name!r} arrived as {message.role(name)}, not as payload")
        return message.take(name)

    def _take_kept(self, step: int) -> torch.Tensor | None:
        kept, self._kept = self._kept, None
        return kept[1] if kept is not None and kept[0] == step else None

    def _check(self, message: Message, P: torch.Tensor, Q: torch.Tensor) -> None:
        """Refuse factors that do not fit, or that make more than a full batch."""
        fit = (
            (P.ndim, Q.ndim) == _NDIM[self._mat]
            and P.is_floating_point()
            and Q.dtype is P.dtype
            and P.shape[-1] == Q.shape[-1]
            and (self._mat != "sample" or P.shape[0] == Q.shape[0])
        )
        if not fit:
            raise self._wrong(
                message,
                f"{self._P!r} is {P.dtype} {[*P.shape]} and {self._Q!r} {Q.dtype} {[*Q.shape]}, "
                f"which are no factors with mat={self._mat}",
            )
        rows = P.shape[0] * (1 if self._mat == "batch" else P.shape[1])
        columns = math.prod(Q.shape[1:-1] if self._mat == "sample" else Q.shape[:-1])
        most = self._peer.batch_size * self._peer.tokens * self._peer.width
        if rows * columns > most:
            raise self._wrong(
                message, f"factors of {rows} by {columns} numbers, a batch has {most} at most"
            )

    def _wrong(self, message: Message, what: str) -> ProtocolError:
        return ProtocolError(f"{message.when}: plugin {self._plugin!r}: {what}")


def shares(R: int, M: int, F: int, *, natural: bool, center: bool = False) -> tuple[float, float]:
    """Return the numbers that factors of rank R have, up and down, as shares of M · F; at most 1.

    R (M + F) each way, but R M down with ``natural``; F more each way for column means.
    """
    extra = F if center else 0
    up, down = R * (M + F) + extra, R * M + extra
    return min(1.0, up / (M * F)), min(1.0, (down if natural else up) / (M * F))


def rank_for(ratio: float, M: int, F: int, *, natural: bool, center: bool = False) -> int:
    """Return the largest rank whose `shares` are at most ``ratio`` in the mean; 0 if none is."""
    room = ratio * M * F - (F if center else 0)
    each = M + F / 2 if natural else M + F
    return max(0, math.floor(room / each + 1e-9))


def worth(M: int, F: int) -> int:
    """Return the largest rank whose factors have no more numbers than the matrix; at least 1."""
    return max(1, M * F // (M + F))


def orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """Return an orthonormal basis (…, M, min(M, R)) of the columns (…, M, R).

    By Householder reflections, which give orthonormal columns for dependent and zero ones as well:
    no ε is added, as Gram-Schmidt needs it.
    """
    basis: torch.Tensor = torch.linalg.qr(columns).Q
    return basis


def spectrum(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eigenvalues (…, K), largest first and not negative, and eigenvectors (…, K, K).

    A Gram matrix that is not finite has none; it gets zeros and the identity.
    """
    finite = gram.isfinite().all(-1).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(gram.where(finite, 0))
    vectors = vectors.where(finite, torch.eye(gram.shape[-1]).to(gram))
    return values.flip(-1).clamp(min=0), vectors.flip(-1)


def principal(matrix_GMF: torch.Tensor, R: int) -> torch.Tensor:
    """Return the first R right singular vectors of every matrix, (G, F, R).

    They are the eigenvectors of the smaller Gram matrix, in float64: squared, the singular values
    of a float32 matrix keep their digits there, and with M ≫ F that is much quicker than a singular
    value decomposition.
    """
    exact = matrix_GMF.double()
    M, F = exact.shape[-2:]
    if M >= F:
        _, vectors = spectrum(exact.mT @ exact)
        return vectors[..., :R].to(matrix_GMF)
    _, vectors = spectrum(exact @ exact.mT)
    return orthonormal(exact.mT @ vectors[..., :R]).to(matrix_GMF)


def _remember(track: Track, basis: torch.Tensor, worth_it: torch.Tensor) -> None:
    """Keep the basis, and behind it the columns of the old one that it did not need.

    Where it is not worth it, which is asked only if the host cannot tell, the old one stays; unit
    vectors where there is none.
    """
    old = track.basis
    if old is None or old.shape[0] != basis.shape[0]:
        old = basis[:, :0]
    basis = torch.cat((basis, old[:, basis.shape[1] :].to(basis)), dim=1)
    if not at_hand(worth_it):
        units = torch.eye(*basis.shape, dtype=basis.dtype, device=basis.device)
        before = torch.cat((old.to(basis), units[:, old.shape[1] :]), dim=1)
        basis = torch.where(worth_it, basis, before)
    track.basis = basis.clone()
