"""Top-K and RandTopK: send the largest activations, and where they stood.

F. Zheng, C. Chen, L. Lyu, B. Yao, "Reducing Communication for Split Learning by Randomized Top-k
Sparsification", IJCAI 2023, arXiv 2305.18469.

The client, for the M activations x of every sample (``scope=token``: of every token, M = D):

1. k = max(1, rate · M rounded, one half to even as the code does), or from ``ratio``, see below.
   k ≥ M sends everything as it is.
2. S, the k largest |x_j|. Ties: the lowest j. NaN counts as the largest.
3. RandTopK, in training, exchanges m of S for m others, all sets of m being equally likely.
   ``mode=binomial`` draws m from Binomial(k, alpha), at most M - k. ``mode=multinomial``, the
   code's, means k draws without replacement, one after the other, with probabilities
   (1 - alpha) / k in S and alpha / (M - k) outside; m follows from that, and is more than
   alpha · k: about 0.19 k for alpha = 0.1. A row that is not finite exchanges nothing, so that this
   arrives.

Up: the k values of every row in the order of j, their places, and the shape of a row. Down: k
numbers of every row; the client knows the places.

The server puts the values in their places among zeros. Nothing is scaled. Gradient: natural,
dL/dx_j where j was sent, else 0.

The places travel in the shorter of two forms, both packed for all rows at once:

- ``topk.indices``: ⌈log2 M⌉ bits for each, ⌈R·k·⌈log2 M⌉ / 8⌉ bytes, R the samples (or tokens);
- ``topk.mask``: one bit for each of R·M, which is shorter where k/M > 1/⌈log2 M⌉.

``topk.shape`` holds the shape of a row, 4 bytes per dimension. Bytes up: 4·R·k, and these; down:
4·R·k. (``randtopk.…`` likewise.)

``ratio`` ξ chooses k so that the mean of both directions is ξ and not more (of float32, if k may
be that small): rate + min(rate·⌈log2 M⌉, 1) / 64 = ξ.

Evaluation is not compressed, as in the code of ADC. ``evaluation=true`` sends the top k, without
chance, as the official code.

What differs from the paper's code, and from that of ADC (arXiv 2509.15058), which has both methods
as baselines:

- The official Top-K keeps all that reach a threshold, with ties more than k. Here k is k.
- Where it draws one of M numbers k times, step 3 draws m at once, with the same distribution (see
  ``_exchanged``), and then which m.
- Both codes charge and do not send: rate · (1 + ⌈log2 M⌉ / 32) up. ADC's charges the indices of a
  position in the whole batch, of 7 bits more for 128 samples. `nominal_ratio` is the official one.

Shapes: B samples, N tokens, D width; R rows that are sparsified, M numbers of each, k kept.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from splitlab.core import (
    ConfigError,
    Cut,
    Peer,
    ProtocolError,
    Traits,
    at_hand,
    hookimpl,
    upload,
)
from splitlab.plugins.common.bits import MOST_BITS, pack, packed_bytes, unpack
from splitlab.plugins.common.exchange import Told
from splitlab.plugins.common.settings import (
    DEFAULT_RATIO,
    check_choice,
    check_share,
    either,
    refusal,
)

__all__ = ["RandTopK", "TopK"]

Mode = Literal["multinomial", "binomial"]
Scope = Literal["sample", "token"]

_MOST_DIMENSIONS = 7


class TopK:
    """Send the largest activations of every sample or token.

    Args:
        ratio: ξ in (0, 1], the share of bytes, mean of both directions; 0.1 if no rate is given,
            either.
        rate: k/M in (0, 1], the share of numbers.
        scope: among which numbers the largest are sought: all of a sample, or those of a token.
        keep_cls: with ``scope=sample``: send the special tokens whole, as part of k; k grows if it
            is smaller than they are.
        evaluation: whether evaluation batches are sparsified, too.
    """

    _plugin = "topk"

    def __init__(
        self,
        *,
        ratio: float | None = None,
        rate: float | None = None,
        scope: Scope = "sample",
        keep_cls: bool = False,
        evaluation: bool = False,
    ) -> None:
        either(ratio=ratio, rate=rate)
        check_share("ratio", DEFAULT_RATIO if ratio is None else ratio)
        check_share("rate", DEFAULT_RATIO if rate is None else rate)
        check_choice("scope", scope, get_args(Scope))
        if keep_cls and scope == "token":
            raise refusal(
                "keep_cls",
                "true",
                "scope=sample; with scope=token every token sends something",
                "leave it out",
            )
        self._ratio = DEFAULT_RATIO if ratio is None else ratio
        self._asked = ratio is not None
        self._rate = rate
        self._scope = scope
        self._keep_cls = keep_cls
        self._evaluation = evaluation
        self._told = Told()

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Check the size of a row."""
        self._peer = peer
        self._M = peer.width * (peer.tokens if self._scope == "sample" else 1)
        if _index_bits(self._M) > MOST_BITS:
            raise ConfigError(
                f"plugin {self._plugin!r}: {self._M} numbers of a sample are more than the "
                f"{2**MOST_BITS} that an index reaches; give scope=token"
            )
        if self._keep_cls and not peer.prefix_tokens:
            raise ConfigError(
                f"plugin {self._plugin!r}: keep_cls=true keeps special tokens, and this model has "
                "none; leave it out"
            )
        self._forced = peer.prefix_tokens * peer.width if self._keep_cls else 0
        if self._asked and self._count(self._M) < self._forced:
            raise ConfigError(
                f"plugin {self._plugin!r}: ratio={self._ratio} cannot be met with keep_cls=true: "
                f"the special tokens alone are {self._forced} of {self._M} numbers; give a larger "
                "ratio"
            )

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Replace the activations by the k that are sent of every row, put their places beside."""
        if not (cut.training or self._evaluation):
            return
        shape = cut.activations.shape
        whole = self._scope == "sample"
        x_RM = cut.activations.reshape(len(cut.activations) if whole else -1, _size(shape, whole))
        R, M = x_RM.shape
        forced = self._peer.prefix_tokens * shape[-1] if self._keep_cls else 0
        k = max(self._count(M), forced)
        if k >= M or not R:
            return
        keys_RM = _magnitudes(x_RM.detach()[:, forced:])
        mask_RM = self._choose(keys_RM, k - forced, cut)
        if forced:
            mask_RM = torch.cat((mask_RM.new_ones(R, forced), mask_RM), dim=1)
        places_Rk = _places(mask_RM, k)
        bits = _index_bits(M)
        if k * bits <= M:
            cut.side[f"{self._plugin}.indices"] = pack(places_Rk, bits)
        else:
            cut.side[f"{self._plugin}.mask"] = pack(mask_RM, 1)
        row = shape[1:] if whole else shape[-1:]
        sent = torch.tensor(row, dtype=torch.int32)
        cut.side[f"{self._plugin}.shape"] = upload(sent, places_Rk.device)
        lead = shape[:1] if whole else shape[:-1]
        cut.activations = x_RM.gather(1, places_Rk).view(*lead, k)

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        """Put the values in their places."""
        sent = cut.side.get(f"{self._plugin}.shape")
        if sent is None:
            return
        values = cut.activations
        row = self._checked_row(cut, sent)
        k, M = values.shape[-1], math.prod(row)
        values_Rk = values.reshape(-1, k)
        places_Rk = self._checked_places(cut, len(values_Rk), M, k)
        x_RM = values_Rk.new_zeros(len(values_Rk), M).scatter(1, places_Rk, values_Rk)
        cut.activations = x_RM.view(*values.shape[:-1], *row)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return what the paper charges: k/M numbers, up with ⌈log2 M⌉ bits for each index.

        That is more than is sent where the mask is the shorter form.
        """
        rate = min(1.0, max(self._count(self._M), self._forced) / self._M)
        return min(1.0, rate * (1 + _index_bits(self._M) / 32)), rate

    @hookimpl
    def traits(self) -> Traits:
        """Needs numbers, and with ``keep_cls`` the model's tokens; leaves rows of values."""
        needs = {"numbers", "layout", "features"} if self._keep_cls else {"numbers"}
        return Traits(needs=needs, changes={"layout"}, evaluation=self._evaluation, once=True)

    def _count(self, M: int) -> int:
        """Return k."""
        if self._rate is not None:
            return max(1, round(self._rate * M))
        with_indices = self._ratio / (1 + _index_bits(M) / 64)
        with_mask = self._ratio - 1 / 64
        return max(1, math.floor(max(with_indices, with_mask) * M + 1e-9))

    def _choose(self, keys_RM: torch.Tensor, k: int, cut: Cut) -> torch.Tensor:
        """Return which numbers are sent, (R, M) bool, k in every row."""
        return _largest(keys_RM, k)

    def _checked_row(self, cut: Cut, sent: torch.Tensor) -> list[int]:
        """Return the shape of a row; it must be one that such values can come from."""
        values = cut.activations
        row: list[int] = []
        # Twice, since a transform in front may have made a little more of its input.
        most = 2 * self._peer.batch_size * self._peer.tokens * self._peer.width

        def wrong() -> ProtocolError:
            return ProtocolError(
                f"plugin {self._plugin!r}: values {[*values.shape]} arrived for rows of shape "
                f"{row or [*sent.shape]}; a batch has at most {most} numbers"
            )

        if sent.ndim == 1 and sent.numel() <= _MOST_DIMENSIONS:
            row = self._told.read(cut, sent, (cut.training, values.shape), wrong)
        M = math.prod(row)
        possible = sent.dtype == torch.int32 and row and min(row) > 0 and values.numel()
        if possible and values.shape[-1] <= M and math.prod(values.shape[:-1]) * M <= most:
            return row
        raise wrong()

    def _checked_places(self, cut: Cut, R: int, M: int, k: int) -> torch.Tensor:
        """Return the places of all values, (R, k) int64, ascending in every row."""
        indices, mask = (cut.side.get(f"{self._plugin}.{what}") for what in ("indices", "mask"))
        bits = _index_bits(M)

        def wrong() -> ProtocolError:
            return ProtocolError(
                f"plugin {self._plugin!r}: what arrived does not give each of {R} rows of {k} "
                f"values different places below {M}"
            )

        if indices is not None and indices.shape == (packed_bytes(R * k, bits),):
            places_Rk = unpack(indices, bits, R * k).view(R, k).long()
            ascending = (places_Rk[:, 1:] > places_Rk[:, :-1]).all()
            cut.expect(ascending & (places_Rk[:, -1].max() < M), wrong)
            return places_Rk.clamp(max=M - 1)
        if indices is None and mask is not None and mask.shape == (packed_bytes(R * M, 1),):
            mask_RM = unpack(mask, 1, R * M).view(torch.bool).view(R, M)
            cut.expect((mask_RM.sum(dim=1, dtype=torch.int32) == k).all(), wrong)
            return _places(mask_RM, k)
        raise wrong()


class RandTopK(TopK):
    """Send the largest activations, some of them exchanged for others at random.

    Args:
        ratio: as in `TopK`.
        rate: as in `TopK`.
        alpha: the chance of what is not among the largest, in [0, 1); 0 is Top-K.
        mode: how alpha is meant: multinomial (the official code) or binomial (a share of k).
        scope: as in `TopK`.
        keep_cls: as in `TopK`; nothing of the special tokens is exchanged.
        evaluation: as in `TopK`; without chance.
    """

    _plugin = "randtopk"

    def __init__(
        self,
        *,
        ratio: float | None = None,
        rate: float | None = None,
        alpha: float = 0.1,
        mode: Mode = "multinomial",
        scope: Scope = "sample",
        keep_cls: bool = False,
        evaluation: bool = False,
    ) -> None:
        super().__init__(
            ratio=ratio, rate=rate, scope=scope, keep_cls=keep_cls, evaluation=evaluation
        )
        if not 0 <= alpha < 1:
            raise refusal("alpha", alpha, "0 or more, less than 1", "for example alpha=0.1")
        check_choice("mode", mode, get_args(Mode))
        self._alpha = alpha
        self._mode = mode

    def _choose(self, keys_RM: torch.Tensor, k: int, cut: Cut) -> torch.Tensor:
        """Return which numbers are sent, (R, M) bool, k in every row."""
        mask_RM = _largest(keys_RM, k)
        R, M = mask_RM.shape
        if not cut.training or not 0 < k < M or not self._alpha:
            return mask_RM
        draw = self._peer.generator("randtopk", cut.step)
        if self._mode == "binomial":
            sizes_R = torch.full((R,), float(k))
            count_R = torch.binomial(sizes_R, torch.full((R,), self._alpha), generator=draw).long()
        else:
            count_R = _exchanged(R, M, k, self._alpha, draw)
        places_Rk, device = _places(mask_RM, k), keys_RM.device
        infinity = _magnitudes(torch.full((), torch.inf, dtype=cut.activations.dtype)).item()
        broken_R = (keys_RM.gather(1, places_Rk) >= infinity).any(dim=1)
        count_R = count_R.clamp_(max=M - k)
        if at_hand(broken_R):  # elsewhere their exchanges are drawn and not made
            count_R.masked_fill_(broken_R, 0)
        leaving, coming = (
            upload(_subsets(count_R, size, draw).view(-1).nonzero().view(-1), device)
            for size in (k, M - k)
        )
        top_Rk = places_Rk + torch.arange(R, device=device)[:, None] * M
        flat = mask_RM.view(-1)
        flat[_outside(top_Rk, coming)] = ~broken_R[coming // (M - k)]
        flat[top_Rk.view(-1)[leaving]] = broken_R[leaving // k]
        return mask_RM


def _size(shape: torch.Size, whole: bool) -> int:
    """Return M, the numbers of a row of activations of this shape."""
    return math.prod(shape[1:]) if whole else shape[-1]


def _index_bits(M: int) -> int:
    """Return ⌈log2 M⌉, at least 1."""
    return max(1, (M - 1).bit_length())


def _magnitudes(x: torch.Tensor) -> torch.Tensor:
    """Return integers in the order of |x|: its bits without the sign. NaN comes last."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.dtype.itemsize]
    return x.contiguous().view(integers) & torch.iinfo(integers).max


def _largest(keys_RM: torch.Tensor, k: int) -> torch.Tensor:
    """Return where the k largest of every row are, (R, M) bool; of equal ones the first."""
    if not k:
        return torch.zeros_like(keys_RM, dtype=torch.bool)
    least_R1 = keys_RM.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    mask_RM = keys_RM >= least_R1
    if not at_hand(mask_RM):
        above, equal = keys_RM > least_R1, keys_RM == least_R1
        room = k - above.sum(dim=1, keepdim=True, dtype=torch.int32)
        return above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
    tied = (mask_RM.sum(dim=1, dtype=torch.int32) > k).nonzero().view(-1)
    if len(tied):
        above, equal = keys_RM[tied] > least_R1[tied], keys_RM[tied] == least_R1[tied]
        room = k - above.sum(dim=1, keepdim=True, dtype=torch.int32)
        mask_RM[tied] = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
    return mask_RM


def _places(mask_RM: torch.Tensor, k: int) -> torch.Tensor:
    """Return the places of the k that are True in every row, (R, k) int64, ascending."""
    R, M = mask_RM.shape
    if at_hand(mask_RM):
        return mask_RM.view(-1).nonzero().view(R, k) - torch.arange(R)[:, None] * M
    # Every place is written to its rank, and those that are not chosen behind the last one.
    rank_RM = torch.where(mask_RM, mask_RM.cumsum(dim=1) - 1, k).clamp_(max=k)
    places_RM = torch.arange(M, device=mask_RM.device).expand(R, M)
    found = torch.zeros(R, k + 1, dtype=torch.int64, device=mask_RM.device)
    return found.scatter_(1, rank_RM, places_RM)[:, :k].contiguous()


def _exchanged(R: int, M: int, k: int, alpha: float, draw: torch.Generator) -> torch.Tensor:
    """Return m, (R,) int64: how many of k draws without replacement come from outside S.

    Numbers that arrive after exponential waiting times, their rates the probabilities, arrive in
    the order in which they would be drawn. In S, once i have arrived, the next one follows at the
    rate (k - i) · (1 - alpha) / k; outside likewise. The j-th from outside, counted from 0, is
    among the first k of all if the (k - 1 - j)-th of S comes later.
    """
    n = min(k, M - k)
    waits_R = 1 - torch.rand(R, k + n, generator=draw)
    waits_R = waits_R.log_().neg_()
    still_k, still_n = torch.arange(k, 0, -1), torch.arange(M - k, M - k - n, -1)
    inside_Rk = (waits_R[:, :k] * (k / (1 - alpha)) / still_k).cumsum(dim=1)
    outside_Rn = (waits_R[:, k:] * ((M - k) / alpha) / still_n).cumsum(dim=1)
    return (outside_Rn < inside_Rk.flip(1)[:, :n]).sum(dim=1)


def _subsets(count_R: torch.Tensor, n: int, draw: torch.Generator) -> torch.Tensor:
    """Return so many of n in every row, (R, n) bool, all such sets being equally likely.

    Draws with replacement, until enough are different; of more than half, what is left out.
    """
    fewer_R1 = torch.minimum(count_R, n - count_R)[:, None]
    R = len(count_R)
    mask_Rn = torch.zeros(R, n, dtype=torch.bool)
    starts_R1 = torch.arange(R)[:, None] * n
    while True:
        missing_R1 = fewer_R1 - mask_Rn.sum(dim=1, keepdim=True, dtype=torch.int32)
        most = int(missing_R1.max())
        if not most:
            return mask_Rn ^ (2 * count_R > n)[:, None]
        found = torch.randint(n, (R, most), generator=draw) + starts_R1
        mask_Rn.view(-1)[found[torch.arange(most) < missing_R1]] = True


def _outside(top_Rk: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Return where in the flat (R, M) those chosen among the numbers outside S stand.

    Args:
        top_Rk: where S stands in the flat (R, M), ascending.
        number: of each in the flat (R, M - k) of the numbers outside S in their order.
    """
    R, k = top_Rk.shape
    # Numbered through all rows, the i-th of S has top_i - i others in front of it.
    before = top_Rk.view(-1) - torch.arange(R * k, device=top_Rk.device)
    return number + torch.searchsorted(before, number, right=True)
