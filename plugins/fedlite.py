"""FedLite: activations as codes of subvectors, with a correction of the returned gradient.

J. Wang, H. Qi, A. S. Rawat, S. Reddi, S. Waghmare, F. X. Yu, G. Joshi, "FedLite: A Scalable
Approach for Federated Learning on Resource-constrained Clients", 2022, arXiv 2201.11865.

The equations are those on which the abstract and the port of the ADC authors agree; the full text
was not at hand.

The client, in training:

1. z_b, the activations of sample b as one vector, is cut into q subvectors of s numbers.
2. The q places are parted into R runs of q / R. The B · q / R subvectors of a run are one group.
3. K-means with L centroids, in every group (`splitlab.plugins.common.kmeans.codebooks`).
4. z̃: every subvector replaced by its centroid.

Up: the codebooks (R, L, s), floating point, and B · q codes of ⌈log2 L⌉ bits, dense. The server
looks z̃ up. Down: ∂L/∂z̃, not compressed in the paper. The client takes

5. ∂L/∂z = ∂L/∂z̃ + λ (z - z̃),

the gradient of L(z̃) + λ/2 ‖z - z̃‖² with z̃ held fixed: it draws the activations to their centroids.
λ = 0 is straight-through. z and z̃ never leave the client. Evaluation is not compressed.

Since the gradient comes back whole, the mean of both directions is above ½ whatever goes up. With
``gradient_bits`` (ours) the server sends codes of that many bits: every token's gradient g has a
scale a = max |g_i| and 2^bits levels from -a to a; stochastic rounding chooses between the two next
to a number so that the mean is the number. The correction is added to what arrives.

``ratio`` (ours) is ξ of both directions together, and chooses s, L and, where ξ is too small for a
whole gradient, the bits: first the most for which the gradient takes no more than ξ, then the codes
of most bits per number in the room that is left, then again the bits. s is a power of two up to 32,
L one up to 256. The choice is made for every tensor by its shape; what is sent is ξ or less, except
where even the smallest choice is more (a small last batch, whose codebooks count).

What differs from paper and port, and why:

- The port of the ADC authors has R, s and the width of a DeiT-T in its code, groups samples instead
  of places if R > 1, and charges the gradient as if it were compressed. λ = 5e-5 and ten iterations
  are its values.
- At the defaults and for a DeiT-T a pass of K-means looks at 2.4 million subvectors and 64
  centroids; on a CPU ten of them take as long as the client part's own step or longer. So all but
  the last work on ``sample`` subvectors of a group; the last one, over all, gives codes and their
  means. The distortion hardly differs. ``sample=none`` does as the paper does.
- A centroid that nobody uses moves to a subvector that is far from its own.
- Activations that are not all finite are refused: no centroid could say so. A token whose gradient
  is not finite comes back so under ``gradient_bits``.
- If a quantizer stands behind and rounds the codebooks, z̃ at the client is without its error.

Shapes: B rows, N tokens, D width; G = R groups of M subvectors of F = s numbers, L centroids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from splitlab.core import (
    ConfigError,
    Cut,
    Kind,
    Message,
    Peer,
    PluginError,
    ProtocolError,
    Role,
    Traits,
    hookimpl,
)
from splitlab.plugins.common.bits import pack, packed_bytes, unpack
from splitlab.plugins.common.exchange import working_dtype
from splitlab.plugins.common.finite import check_finite
from splitlab.plugins.common.kmeans import codebooks
from splitlab.plugins.common.settings import check_share, either, refusal

__all__ = ["FedLite"]

_CODEBOOK = "fedlite.codebook"
_SCALE = "fedlite.scale"

_SIZES = tuple(2**i for i in range(6))
_CENTROIDS = tuple(2**i for i in range(1, 9))
_BITS = 16
"""The largest values that ``ratio`` chooses."""

_SIZE, _DEFAULT_CENTROIDS = 2, 64
"""Three bits per number: ξ near 0.1 up."""


@dataclass(frozen=True)
class _Plan:
    """How a tensor is sent: s, L, and the bits of its gradient, None for a whole one."""

    size: int
    centroids: int
    gradient_bits: int | None


class FedLite:
    """Send a codebook and the codes of subvectors; correct the gradient that returns.

    Bytes, with E bytes a number (4 for float32): E · R · L · s + ⌈B · q · ⌈log2 L⌉ / 8⌉ up, of q =
    N · D / s; E · B · N · D down, or with ``gradient_bits`` ⌈B · N · D · bits / 8⌉ + E · B · N.
    Never are there more centroids than subvectors in a group.

    Args:
        ratio: ξ in (0, 1], mean of both directions, instead of size and centroids; see above.
        size: s, numbers of a subvector; it divides the N · D numbers of a row into a multiple of R
            subvectors. 2 without ratio.
        centroids: L, 1 to 65536. 64 without ratio.
        groups: R, codebooks.
        iterations: of K-means.
        sample: subvectors of a group that all iterations but the last look at; none: all.
        correction: λ ≥ 0.
        gradient_bits: bits of a gradient's numbers, 1 to 16; without, gradients are sent whole,
            unless a ratio needs them small.
    """

    def __init__(
        self,
        *,
        ratio: float | None = None,
        size: int | None = None,
        centroids: int | None = None,
        groups: int = 1,
        iterations: int = 10,
        sample: int | None = 65536,
        correction: float = 5e-5,
        gradient_bits: int | None = None,
    ) -> None:
        either(ratio=ratio, size=size)
        either(ratio=ratio, centroids=centroids)
        if ratio is not None:
            check_share("ratio", ratio)
        for name, value, most in (
            ("size", size, math.inf),
            ("centroids", centroids, 2**16),
            ("groups", groups, math.inf),
            ("iterations", iterations, math.inf),
            ("sample", sample, math.inf),
            ("gradient_bits", gradient_bits, _BITS),
        ):
            if value is not None and not 1 <= value <= most:
                allowed = "1 or more" if most == math.inf else f"1 to {most}"
                raise refusal(name, value, allowed, f"for example {name}=8")
        if not 0 <= correction < math.inf:
            raise refusal("correction", correction, "0 or more", "for example correction=5e-5")
        self._ratio = ratio
        self._size = size or _SIZE
        self._centroids = centroids or _DEFAULT_CENTROIDS
        self._groups = groups
        self._iterations = iterations
        self._sample = sample
        self._correction = correction
        self._gradient_bits = gradient_bits
        self._error: tuple[int, torch.Tensor] | None = None  # z - z̃ of a step, on the client

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Keep the peer, and refuse a ratio that cannot be met."""
        self._peer = peer
        if self._ratio is None:
            return
        shape = self._full_shape()
        if sum(self._shares(self._plan(shape, 4), shape, 4)) / 2 > self._ratio + 1e-9:
            up = min(self._up(s, L, shape, 4) for s, L in self._choices(shape))
            least = (up + _down(self._gradient_bits or 1, shape, 4)) / 2
            raise ConfigError(
                f"plugin 'fedlite': ratio={self._ratio} is less than codes of one bit and the "
                f"gradient's bits take; allowed here: {math.ceil(1e4 * least) / 1e4:g} to 1"
            )

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Replace activations by codebooks and codes; the gradient by codes, if it has bits."""
        if not message.training:
            return
        if message.kind is Kind.ACTIVATION:
            self._encode(message)
        elif message.kind is Kind.GRADIENT:
            self._quantize(message)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Look up what the codes stand for."""
        facts = message.pop("fedlite")
        if facts is None:
            return
        if not isinstance(facts, list) or not all(type(n) is int and n > 0 for n in facts):
            raise _wrong(message, f"its facts are {facts!r}")
        if message.kind is Kind.ACTIVATION and len(facts) == 3:
            self._decode(message, (facts[0], facts[1], facts[2]))
        elif message.kind is Kind.GRADIENT and len(facts) == 2 and facts[1] <= _BITS:
            self._dequantize(message, *facts)
        else:
            raise _wrong(message, f"a {message.kind.name} with facts {facts}")

    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        """Add λ (z - z̃)."""
        kept, self._error = self._error, None
        if kept is None or kept[0] != cut.step or cut.gradient is None:
            return
        if kept[1].shape != cut.gradient.shape:
            raise PluginError(
                f"{cut.when}: plugin 'fedlite' was given {[*kept[1].shape]} to send, but the "
                f"gradient is {[*cut.gradient.shape]}; put it in front of what changes the shape, "
                "or give correction=0"
            )
        cut.gradient = cut.gradient + self._correction * kept[1].to(cut.gradient)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return the shares of codes and codebooks up, and of the gradient down, by their bits."""
        if not hasattr(self, "_peer"):
            if self._ratio is not None:
                return self._ratio, self._ratio
            bits = max(1, _code_bits(self._centroids))
            return min(1.0, bits / (32 * self._size)), (self._gradient_bits or 32) / 32
        shape = self._full_shape()
        up, down = self._shares(self._plan(shape, 4), shape, 4)
        return min(1.0, up), min(1.0, down)

    @hookimpl
    def traits(self) -> Traits:
        """Needs one tensor of tokens; leaves codes and codebooks."""
        return Traits(
            needs={"layout", "features"},
            # A codebook whose size is no power of two leaves bits that are no code.
            changes={"layout", "analog", "any bits"},
            gradient="corrected" if self._correction > 0 else "straight-through",
            waits="points are looked for only where a centroid has none",
        )

    def _full_shape(self) -> tuple[int, int, int]:
        return self._peer.batch_size, self._peer.tokens, self._peer.width

    def _encode(self, message: Message) -> None:
        z_BND = message.take("activations")
        check_finite(z_BND, message, "fedlite", "the activations")
        B, N, D = z_BND.shape
        plan = self._plan(z_BND.shape, z_BND.element_size())
        s, L = plan.size, plan.centroids
        G = self._groups
        if N * D % (s * G):
            raise ConfigError(
                f"plugin 'fedlite': size={s} and groups={G} do not divide the {N * D} numbers of a "
                f"row, {N} tokens of {D}; with this size and these groups their product has to"
            )
        points_GMF = z_BND.reshape(B, G, -1, s).transpose(0, 1).reshape(G, -1, s)
        book_GLF, codes_GM = codebooks(
            points_GMF,
            L,
            generator=self._peer.generator("fedlite", "codebook", message.step),
            iterations=self._iterations,
            sample=self._sample,
        )
        limit = torch.finfo(z_BND.dtype).max
        book_GLF = book_GLF.clamp(-limit, limit).to(z_BND.dtype)
        bits = _code_bits(book_GLF.shape[1])
        packed = pack(codes_GM, bits) if bits else codes_GM.new_empty(0, dtype=torch.uint8)
        message.put("activations", packed, Role.PAYLOAD)
        message.put(_CODEBOOK, book_GLF, Role.PAYLOAD)
        message.push("fedlite", [B, N, D])
        if self._correction > 0:
            self._error = message.step, z_BND - _look_up(book_GLF, codes_GM, (B, N, D))

    def _decode(self, message: Message, shape: tuple[int, int, int]) -> None:
        packed, book_GLF = _take(message, "activations"), _take(message, _CODEBOOK)
        B, N, D = shape
        numbers, most = B * N * D, math.prod(self._full_shape())
        if numbers > most:
            raise _wrong(message, f"{[*shape]} activations, a batch has {most} numbers at most")
        G, L, F = book_GLF.shape if book_GLF.ndim == 3 else (0, 0, 0)
        if not book_GLF.is_floating_point() or G * L * F == 0 or N * D % (G * F):
            raise _wrong(
                message,
                f"codebooks {book_GLF.dtype} {[*book_GLF.shape]} for {[*shape]} activations",
            )
        count, bits = numbers // F, _code_bits(L)
        if packed.dtype != torch.uint8 or packed.shape != (packed_bytes(count, bits),):
            raise _wrong(
                message,
                f"codes {packed.dtype} {[*packed.shape]}; {count} of {bits} bits are due",
            )
        codes_GM = packed.new_zeros(count)
        if bits:
            codes_GM = unpack(packed, bits, count)
        if int(codes_GM.max()) >= L:
            raise _wrong(message, f"a code is beyond the {L} centroids")
        restored = _look_up(book_GLF, codes_GM.view(G, -1), shape)
        message.put("activations", restored, Role.PAYLOAD)

    def _quantize(self, message: Message) -> None:
        gradient_BND = message["gradient"]
        bits = self._gradient_bits
        if bits is None and self._ratio is not None:
            bits = self._plan(gradient_BND.shape, gradient_BND.element_size()).gradient_bits
        if bits is None:
            return
        working = gradient_BND.to(working_dtype(gradient_BND.dtype))
        scale_BN1 = working.abs().amax(dim=-1, keepdim=True)
        steps = 2**bits - 1
        per_step = steps / (2 * scale_BN1)
        per_step = per_step.where(per_step.isfinite(), 0.0)
        # Only the sender draws, so the numbers may come from the device's own generator.
        seed = self._peer.generator("fedlite", "gradient", message.step).initial_seed()
        draw = torch.Generator(working.device).manual_seed(seed)
        chance = torch.rand(
            working.shape, generator=draw, dtype=working.dtype, device=working.device
        )
        codes = (working + scale_BN1).mul_(per_step).add_(chance).floor_()
        codes = codes.nan_to_num_(nan=0.0).clamp_(0, steps)
        packed = pack(codes.to(torch.uint8 if bits <= 8 else torch.int32), bits)
        message.put("gradient", packed, Role.PAYLOAD)
        message.put(_SCALE, scale_BN1.squeeze(-1).to(gradient_BND.dtype), Role.SIDE)
        message.push("fedlite", [gradient_BND.shape[2], bits])

    def _dequantize(self, message: Message, D: int, bits: int) -> None:
        packed, scale_BN = _take(message, "gradient"), _take(message, _SCALE)
        if scale_BN.ndim != 2 or not scale_BN.is_floating_point() or not scale_BN.numel():
            raise _wrong(message, f"scales {scale_BN.dtype} {[*scale_BN.shape]}")
        codes = unpack(packed, bits, scale_BN.numel() * D).view(*scale_BN.shape, D)
        scale_BN1 = scale_BN[..., None].to(working_dtype(scale_BN.dtype))
        values = codes.to(scale_BN1).mul_(2 * scale_BN1 / (2**bits - 1)).sub_(scale_BN1)
        message.put("gradient", values.to(scale_BN.dtype), Role.PAYLOAD)

    def _plan(self, shape: Sequence[int], number: int) -> _Plan:
        """Choose how to send activations of this shape, of so many bytes a number, both ways."""
        if self._ratio is None:
            return _Plan(self._size, self._centroids, self._gradient_bits)
        both = 2 * self._ratio
        choices = self._choices(shape)
        up = {choice: self._up(*choice, shape, number) for choice in choices}
        least = min(choices, key=up.__getitem__)

        def down(bits: int | None) -> float:
            return _down(bits, shape, number)

        def best(room: float) -> tuple[int, int]:
            fitting = [choice for choice in choices if up[choice] <= room]
            return max(fitting, key=lambda c: (_code_bits(c[1]) / c[0], c[0]), default=least)

        bits = self._gradient_bits
        if bits is None and 1 + up[least] > both:
            bits = max((b for b in range(1, _BITS + 1) if down(b) <= self._ratio), default=1)
            chosen = best(both - down(bits))
            wider = (b for b in range(bits, _BITS + 1) if down(b) + up[chosen] <= both)
            return _Plan(*chosen, max(wider, default=bits))
        return _Plan(*best(both - down(bits)), bits)

    def _choices(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """Return the s and L that a ratio may choose for activations of this shape."""
        rows, row = shape[0], shape[1] * shape[2]
        fitting = [s for s in _SIZES if row % (s * self._groups) == 0]
        count = {s: rows * row // (s * self._groups) for s in fitting}
        return [(s, L) for s in fitting for L in _CENTROIDS if count[s] >= L] or [(1, 2)]

    def _shares(self, plan: _Plan, shape: Sequence[int], number: int) -> tuple[float, float]:
        """Return the bytes up and down as shares of the tensor's."""
        up = self._up(plan.size, plan.centroids, shape, number)
        return up, _down(plan.gradient_bits, shape, number)

    def _up(self, s: int, L: int, shape: Sequence[int], number: int) -> float:
        count = math.prod(shape) // s
        L = max(1, min(L, count // self._groups))
        sent = number * self._groups * L * s + packed_bytes(count, _code_bits(L))
        return sent / (number * math.prod(shape))


def _down(bits: int | None, shape: Sequence[int], number: int) -> float:
    """Return the share of a gradient's bytes that so many bits and the scales take."""
    if bits is None:
        return 1.0
    numbers = math.prod(shape)
    return (packed_bytes(numbers, bits) + number * numbers // shape[-1]) / (number * numbers)


def _look_up(
    book_GLF: torch.Tensor, codes_GM: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """Return the activations (B, N, D) in which every subvector is its centroid."""
    G, L, F = book_GLF.shape
    row_GM = codes_GM + torch.arange(G, device=codes_GM.device)[:, None] * L
    values = book_GLF.reshape(G * L, F).index_select(0, row_GM.flatten())
    return values.view(G, shape[0], -1, F).transpose(0, 1).reshape(shape)


def _code_bits(centroids: int) -> int:
    """Return ⌈log2 L⌉."""
    return (centroids - 1).bit_length()


def _take(message: Message, name: str) -> torch.Tensor:
    if name not in message:
        raise _wrong(message, f"no tensor {name!r}")
    return message.take(name)


def _wrong(message: Message, what: str) -> ProtocolError:
    return ProtocolError(f"{message.when}: plugin 'fedlite': {what}")
