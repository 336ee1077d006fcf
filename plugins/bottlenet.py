"""BottleNet++: a learned encoder at the client and a learned decoder at the server.

J. Shao, J. Zhang, "BottleNet++: An End-to-End Approach for Feature Compression in Device-Edge
Co-Inference Systems", ICC Workshops 2020, arXiv 1910.14315. Made for convolutional networks; for
ViTs it is a multilayer perceptron on every token, as in the comparison of arXiv 2509.15058.

1. Widths D = w_0 > … > w_n = d', evenly spaced, rounded down; n = ``n_layers``.
2. The client encodes every token by n linear layers with ReLUs between them.
3. The server decodes by n linear layers of the widths in reverse, with ReLUs between them.
4. Both are trained together with the model, by each peer's optimizer, and act in evaluation, too.

Up: (B, N, d') and the class ids (B,). Down: ∂L/∂Z (B, N, d'). In bytes, float32: 4·B·N·d' + B up,
4·B·N·d' down. Gradient: natural. The parameters never travel; half-precision activations are
computed in float32 and sent in half precision.

``variant=adcrepo`` is what that comparison ran: a ReLU behind the decoder, too. It cannot give
negative numbers, and the activations of a ViT are a residual stream of either sign, so that it is
handicapped at every ξ. ``variant=fair`` has no such ReLU.

``cls_bypass`` sends special tokens as they are: each is cut into ⌈D/d'⌉ pieces of d' features, the
last filled up with zeros, which stand in front of the encoded patches. With P special tokens that
is 4·B·(P·⌈D/d'⌉ + N - P)·d' bytes a way. The idea is from B. Meuwissen, V. Tsouvalas, N. Meratnia,
"AutoEncoder-Compressed Parallel Split Learning for Pre-trained Model Fine-Tuning", arXiv
2607.17913; its stages of training the codec alone are not here.

``init=identity`` starts as an orthonormal projection of tokens onto d' directions, drawn from the
run's seed, and back; for d' = D that changes nothing. A bias of 32 holds the ReLUs between layers
open, and the next layer takes it back: what is below -32 is clipped. ``init=random`` is torch's.

Otherwise than in the paper, and as in the comparison: linear layers instead of convolutions; no
batch normalization, no sigmoid, no noisy channel; one phase of training at the run's learning rate
(the paper has three, with Adam at 1e-4). Otherwise than in the comparison: exact halves of ξD are
rounded up, not to even. Numbers that are not finite spoil their own token, and by the gradient the
parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Literal, cast, get_args

import torch
from torch import nn
from torch.nn import functional as F

from splitlab.core import ConfigError, Cut, Peer, ProtocolError, Traits, hookimpl
from splitlab.plugins.common.pooling import floor
from splitlab.plugins.common.settings import (
    DEFAULT_RATIO,
    check_choice,
    check_share,
    either,
    refusal,
)

__all__ = ["BottleNet"]

Variant = Literal["fair", "adcrepo"]
Init = Literal["random", "identity"]

_OPEN = 32.0
"""Bias that holds a ReLU open for all but outliers, without spoiling float32."""


class BottleNet:
    """Send a learned code of every token.

    Args:
        variant: fair, or adcrepo with its ReLU behind the decoder.
        width: d', features of a token that are sent, 1 to D.
        ratio: ξ in (0, 1] instead: d' is the integer nearest to ξD; with ``cls_bypass`` the largest
            with at most ξND numbers. Given neither: ξ = 0.1.
        n_layers: linear layers of the encoder, and of the decoder.
        init: what training starts from.
        cls_bypass: send special tokens as they are.
    """

    def __init__(
        self,
        *,
        variant: Variant = "fair",
        width: int | None = None,
        ratio: float | None = None,
        n_layers: int = 2,
        init: Init = "random",
        cls_bypass: bool = False,
    ) -> None:
        either(width=width, ratio=ratio)
        check_choice("variant", variant, get_args(Variant))
        check_choice("init", init, get_args(Init))
        if width is not None and width < 1:
            raise refusal("width", width, "1 or more", "for example width=16")
        if ratio is not None:
            check_share("ratio", ratio)
        if n_layers < 1:
            raise refusal("n_layers", n_layers, "1 or more", "for example n_layers=2")
        self._variant = variant
        self._given_width = width
        self._ratio = ratio
        self._layers = n_layers
        self._init = init
        self._bypass = cls_bypass

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Build the encoder at the client, the decoder at the server."""
        self._peer = peer
        if self._bypass and not peer.prefix_tokens:
            raise ConfigError(
                "plugin 'bottlenet': cls_bypass=true needs special tokens, and this model has "
                "none; leave cls_bypass out"
            )
        D = peer.width
        self._width = self._meet() if self._given_width is None else self._given_width
        if self._width > D:
            raise ConfigError(
                f"plugin 'bottlenet': width={self._width} exceeds the model's {D} features; "
                f"allowed here: 1 to {D}"
            )
        n = self._layers
        widths = [(D * (n - i) + self._width * i) // n for i in range(n + 1)]
        if peer.role == "server":
            widths.reverse()
        self._module = _PerToken(
            widths, last_relu=peer.role == "server" and self._variant == "adcrepo"
        )
        if self._init == "identity":
            self._project(widths)
        peer.add_module(self._module)

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Replace (B, N, D) by codes (B, N, d')."""
        tokens, P = cut.activations, self._bypassed
        codes = self._module(tokens[:, P:])
        if P:
            B, _, D = tokens.shape
            whole = F.pad(tokens[:, :P], (0, -D % self._width))
            codes = torch.cat((whole.reshape(B, -1, self._width), codes), dim=1)
            cut.measured = {}
        cut.activations = codes

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        """Replace the codes (B, N, d') by tokens (B, N, D)."""
        codes, P, D = cut.activations, self._bypassed, self._peer.width
        pieces = P * self._pieces
        if codes.ndim != 3 or codes.shape[2] != self._width or codes.shape[1] < pieces:
            raise ProtocolError(
                f"{cut.when}: the codes that arrived have shape {[*codes.shape]}; plugin "
                f"'bottlenet' decodes (rows, {pieces} or more tokens, {self._width})"
            )
        tokens = self._module(codes[:, pieces:])
        if P:
            whole = codes[:, :pieces].reshape(len(codes), P, -1)[:, :, :D]
            tokens = torch.cat((whole, tokens), dim=1)
        cut.activations = tokens

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return ξ as the authors charge it, d'/D of what ``width`` names, for both directions."""
        if self._ratio is not None:
            return self._ratio, self._ratio
        if self._given_width is None:
            return DEFAULT_RATIO, DEFAULT_RATIO
        share = min(1.0, self._numbers(self._width) / (self._peer.tokens * self._peer.width))
        return share, share

    @hookimpl
    def traits(self) -> Traits:
        """Needs the model's features; acts in evaluation; learns."""
        # Pieces of a special token are no tokens: nobody may choose among them.
        lost = {"tokens", "layout"} if self._bypass else set()
        return Traits(
            needs={"features"}, changes={"features", *lost}, evaluation=True, stateful=True
        )

    @property
    def _bypassed(self) -> int:
        return self._peer.prefix_tokens if self._bypass else 0

    @property
    def _pieces(self) -> int:
        return math.ceil(self._peer.width / self._width)

    def _numbers(self, width: int) -> int:
        """Return how many numbers of a sample are sent with codes of this width."""
        P, N, D = self._bypassed, self._peer.tokens, self._peer.width
        return (P * math.ceil(D / width) + N - P) * width

    def _meet(self) -> int:
        """Return the width that meets ξ."""
        N, D = self._peer.tokens, self._peer.width
        ratio = self._ratio or DEFAULT_RATIO
        if self._bypass:
            most = floor(ratio * N * D)
            width = max((w for w in range(1, D + 1) if self._numbers(w) <= most), default=0)
            least = self._numbers(1) / (N * D)
        else:
            width, least = floor(ratio * D + 0.5), 0.5 / D
        if width == 0 and self._ratio is not None:
            raise ConfigError(
                f"plugin 'bottlenet': ratio={ratio} leaves no feature of {D} to send; allowed "
                f"here: ratio={math.ceil(least * 1e4) / 1e4:g} to 1"
            )
        return max(width, 1)

    def _project(self, widths: list[int]) -> None:
        """Start as a projection onto d' directions (client), or its transpose (server)."""
        D = self._peer.width
        noise = torch.randn(D, D, generator=self._peer.generator("bottlenet"), dtype=torch.float64)
        rotation, _ = torch.linalg.qr(noise)
        layers = [*cast(Iterable[nn.Linear], self._module.layers)]
        with torch.no_grad():
            for layer in layers:
                nn.init.eye_(layer.weight)
                nn.init.zeros_(layer.bias)
            if self._peer.role == "client":
                layers[0].weight.copy_(rotation.T[: widths[1]])
            else:
                layers[-1].weight.copy_(rotation[:, : widths[-2]])
            for layer, following in itertools.pairwise(layers):
                layer.bias.add_(_OPEN)
                following.bias.sub_(_OPEN * following.weight.sum(dim=1))


class _PerToken(nn.Module):
    """Linear layers of these widths with ReLUs between them."""

    def __init__(self, widths: list[int], *, last_relu: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(*pair) for pair in itertools.pairwise(widths)))
        self._last_relu = last_relu

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (…, first width) to (…, last width), in float32 at least; the dtype stays."""
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        x = tokens.to(dtype)
        for i, layer in enumerate(cast(Iterable[nn.Linear], self.layers)):
            x = F.linear(F.relu(x) if i else x, layer.weight.to(dtype), layer.bias.to(dtype))
        return (F.relu(x) if self._last_relu else x).to(tokens.dtype)
