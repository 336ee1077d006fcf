"""ADC: merge the samples that attend alike, and send the tokens that they attend to.

F. Alvetreti, J. Pomponi, P. Di Lorenzo, S. Scardapane, "Communication Efficient Split Learning of
ViTs with Attention-based Double Compression", 2025, arXiv 2509.15058.

The client, in training:

1. s_b, the class token's attention to every token in the last client block, mean over heads,
   detached. Only this row of the attention is computed, by the engine.
2. T = max(2, ⌊τB⌋) clusters and k = max(1, ⌊κN⌋) tokens. k counts the class token.
3. K-means with T clusters on {s_b}.
4. Merge: X̄_i, the mean of X_b over the members b of cluster i.
5. Select: J_i, the special tokens and those with the largest mean attention c_i of the members, k
   in all. Z_i = X̄_i[J_i], tokens in their old order. Ties: the lowest token.

Steps 4 and 5 run as one: what is not kept is never merged (`merge_select`), but where
``select=norm`` ranks tokens by what merging makes of them. A row Z_i is NaN if any number of its
samples is not finite, kept or not.

Up: Z (T, k, D), the class ids (B,) and the cluster ids (B,), one byte each for up to 256 classes
and clusters. The server counts out the mean label ȳ_i of every cluster from these; probabilities
(T, C) would cost more. Token indices do not travel: positions were added before the first block,
and the blocks to come treat all tokens alike. Down: ∂L/∂Z (T, k, D). A batch that is not merged
sends no cluster ids.

Loss: the mean over rows i of the cross-entropy against ȳ_i. Gradient: natural, that is exact
autograd of X ↦ Z with partition and selection held fixed: ∂L/∂X_b[j] = ∂L/∂Z_i[j] / |S_i| for the
members b of S_i and j in J_i, else 0.

Evaluation is not compressed, as in paper and code: an image then sends B/T · N/k times as much as
in training. ``evaluation=true`` selects tokens then, too. Merging has no place there: an
image would be judged together with the strangers of its batch.

What this file does otherwise than the paper or its two public code bases, and why:

- Three rules for τ and κ have borne the name ADC. ``sqrt``, τ = κ = √ξ, is the paper's. ``fifth``,
  τ = ξ^⅕ and κ = ξ^⅘, was the code's at the time of the paper's runs. ``quarter_bug``, τ = √ξ and
  κ = ξ^¼, is the second release's: it sends ξ^¾ and charges ξ. `nominal_ratio` says what the
  authors charge, the ledger what was sent.
- The floors forgive a product that float arithmetic puts just below an integer: 0.29 · 100 is 29.
- The reference re-seeds an empty cluster, but may return it empty: a mean of nothing, NaN. Here an
  empty cluster takes the farthest point of another (`splitlab.plugins.common.kmeans`). Its draw
  came from a generator that was never seeded; ours from the run's seed and the step.
- The reference drops a last, smaller batch. Here it is merged into T(B') rows, and not at all when
  T(B') ≥ B'.
- With ``cls_token`` and ``avg_token`` the reference takes the centroid, a vector of D features, for
  an attention over N tokens and keeps the tokens whose numbers are those of its largest features.
  Here the criterion drives the partition alone, and tokens are selected by the mean attention of
  the members. ``repo_token_bug=true`` does as the reference does.
- Controls that paper and code do not have: ``select`` ranks tokens otherwise than by attention,
  ``criterion=random`` and ``class_label`` cluster without looking or by the truth.
- Targets that are class probabilities already, those of mixup, cross as they are, and their mean
  over a cluster is its target. ``class_label`` clusters mixed samples by their larger share.
- All special tokens are kept; the reference knows the class token alone. If k is smaller than their
  number they are sent nevertheless.

Shapes: B samples, N tokens, D width, C classes; T clusters, K tokens sent; F features that are
clustered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch.autograd.function import once_differentiable

from splitlab.core import (
    Attention,
    ConfigError,
    Cut,
    Peer,
    ProtocolError,
    Traits,
    hookimpl,
    upload,
)
from splitlab.plugins.common.finite import faults, marked
from splitlab.plugins.common.kmeans import (
    cluster_means,
    kmeans,
    label_partition,
    membership,
    random_partition,
)
from splitlab.plugins.common.pooling import (
    Rounding,
    attention_in_cut,
    bring_attention,
    rounded,
    select_in_cut,
)
from splitlab.plugins.common.selection import Select, Selection
from splitlab.plugins.common.settings import DEFAULT_RATIO, check_choice, check_share, refusal

__all__ = ["ADC", "ADCBatchMerge", "ADCTokenSelect", "merge_select"]

Alloc = Literal["sqrt", "fifth", "quarter_bug", "explicit"]
Criterion = Literal["cls_score", "cls_token", "avg_token", "random", "class_label"]
Heads = Literal["mean", "max"]
LossWeight = Literal["uniform", "size"]
ScoreLayer = Literal["last", "rollout"]
TolMode = Literal["absolute", "relative"]

CLUSTERS = "adc.clusters"
"""Name of the side information: the cluster id of every sample, uint8 or uint16."""


class ADC:
    """Merge the batch into T attention-alike rows and send k tokens of each.

    Args:
        ratio: ξ in (0, 1], split into τ and κ by ``alloc``. With ``alloc=explicit`` leave it out.
        alloc: sqrt (the paper), fifth (the code of the paper's runs), quarter_bug (the second
            release: sends more than it charges), explicit.
        tau: share of rows left by merging, in (0, 1]; with ``alloc=explicit`` only.
        kappa: share of tokens left by selection, in (0, 1]; with ``alloc=explicit`` only.
        criterion: what is clustered: class-token attention, class token, mean token; or no K-means
            but a random partition, or one by class label (as pure as T allows: an oracle).
        select: what tokens are ranked by: class-token attention, its rollout through all client
            blocks, the norm of the merged token, or chance.
        iterations: most iterations of K-means.
        tol: when K-means stops, see `splitlab.plugins.common.kmeans`.
        tol_mode: absolute (the reference's rule) or relative to the variance of the points.
        rounding: how τB and κN become T and k.
        loss_weight: uniform over merged rows (the paper), or by cluster size, so that the loss is
            an average over samples.
        heads: how attention heads are reduced.
        score_layer: attention of the last client block, or rollout through all of them, for
            clusters and tokens alike.
        evaluation: whether evaluation batches send the selected tokens only; the paper: no.
        repo_token_bug: forensic, with cls_token or avg_token: select tokens by the features of the
            centroid as the reference does.
    """

    def __init__(
        self,
        *,
        ratio: float = DEFAULT_RATIO,
        alloc: Alloc = "sqrt",
        tau: float | None = None,
        kappa: float | None = None,
        criterion: Criterion = "cls_score",
        select: Select = "attention",
        iterations: int = 50,
        tol: float = 1e-4,
        tol_mode: TolMode = "absolute",
        rounding: Rounding = "floor",
        loss_weight: LossWeight = "uniform",
        heads: Heads = "mean",
        score_layer: ScoreLayer = "last",
        evaluation: bool = False,
        repo_token_bug: bool = False,
    ) -> None:
        tau, kappa, ratio = _allocate(ratio, alloc, tau, kappa)
        attention = _request(heads, score_layer)
        self._ratio = ratio
        self._evaluation = evaluation
        self._merging = _Merging(
            "adc", tau, criterion, iterations, tol, tol_mode, rounding, loss_weight, attention
        )
        self._selection = Selection("adc", kappa, rounding, attention, select)
        self._repo_token_bug = repo_token_bug
        if repo_token_bug and criterion not in ("cls_token", "avg_token"):
            raise refusal(
                "repo_token_bug",
                True,
                "criterion=cls_token and criterion=avg_token, the two that the bug concerns",
                f"leave it out with criterion={criterion}",
            )
        if repo_token_bug and select != "attention":
            raise refusal(
                "repo_token_bug",
                True,
                "select=attention, in the place of which the bug puts the centroid",
                f"leave it out with select={select}",
            )

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Check the parameters against model and batch, ask for the attention that is needed."""
        self._peer = peer
        self._merging.check(peer)
        self._selection.check(peer)
        if self._repo_token_bug:
            self._check_reference_indices(peer)

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Replace (B, N, D) by (T, K, D); in an evaluation merge nothing."""
        if not (cut.training or self._evaluation):
            return
        T = self._merging.count(len(cut.activations))
        assignment_B = self._merging.partition(cut, self._peer)
        _announce(cut, assignment_B, T)
        rows = partial(_merged, cut.activations.detach(), assignment_B, T)
        T = len(cut.activations) if assignment_B is None else T
        scores_TN = self._selection.scores(cut, self._peer, T, rows)
        if self._repo_token_bug and cut.training:
            features_BF = self._merging.features(cut)
            scores_TN = _reference_scores(features_BF, assignment_B, T, N=scores_TN.shape[1])
        tokens_TK = self._selection.choose(scores_TN, self._peer)
        _replace(cut, assignment_B, T, tokens_TK)

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        """Turn class ids and cluster ids into the targets of the merged rows."""
        self._merging.mix_targets(cut, self._peer.classes)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return ξ, as the authors charge it, for both directions; more if κN is too few tokens."""
        ratio = self._ratio * (self._selection.nominal(self._peer) / self._selection.kappa)
        return ratio, ratio

    @hookimpl
    def traits(self) -> Traits:
        """Needs attention and samples at their places; leaves merged rows of chosen tokens."""
        return Traits(
            needs={"targets", "places", *self._merging.needs, *self._selection.needs},
            changes={"batch", "tokens", "places"},
            evaluation=self._evaluation,
        )

    def _check_reference_indices(self, peer: Peer) -> None:
        """Refuse a model on which the reference would index beyond its tokens or features."""
        if peer.width > peer.tokens:
            raise ConfigError(
                f"plugin 'adc': repo_token_bug=true takes features for tokens; this model's "
                f"{peer.width} features reach beyond its {peer.tokens} tokens, where the reference "
                "stops with an index error; leave repo_token_bug out or choose a narrower model"
            )
        if (K := self._selection.count(peer.tokens)) > peer.width:
            raise ConfigError(
                f"plugin 'adc': repo_token_bug=true takes features for tokens; {K} tokens cannot "
                f"be chosen among {peer.width} features, where the reference stops with an error; "
                "leave repo_token_bug out or give a smaller ratio"
            )


class ADCBatchMerge:
    """ADC's merging alone: T rows of all N tokens.

    In front of ``adc-token-select`` it gives, bit for bit, what ``adc`` gives with τ and κ their
    ratios. Merging is for training; evaluation batches pass unchanged.

    Args:
        ratio: τ in (0, 1], the share of rows that is left.
        criterion: as in `ADC`.
        iterations: as in `ADC`.
        tol: as in `ADC`.
        tol_mode: as in `ADC`.
        rounding: as in `ADC`.
        loss_weight: as in `ADC`.
        heads: as in `ADC`; for ``criterion=cls_score`` only.
        score_layer: as in `ADC`; for ``criterion=cls_score`` only.
    """

    def __init__(
        self,
        *,
        ratio: float = DEFAULT_RATIO,
        criterion: Criterion = "cls_score",
        iterations: int = 50,
        tol: float = 1e-4,
        tol_mode: TolMode = "absolute",
        rounding: Rounding = "floor",
        loss_weight: LossWeight = "uniform",
        heads: Heads = "mean",
        score_layer: ScoreLayer = "last",
    ) -> None:
        check_share("ratio", ratio)
        self._merging = _Merging(
            "adc-batch-merge",
            ratio,
            criterion,
            iterations,
            tol,
            tol_mode,
            rounding,
            loss_weight,
            _request(heads, score_layer),
        )

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Check the parameters against model and batch, ask for attention if it is clustered."""
        self._peer = peer
        self._merging.check(peer)

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Replace (B, N, D) by (T, N, D), in training."""
        T = self._merging.count(len(cut.activations))
        assignment_B = self._merging.partition(cut, self._peer)
        _announce(cut, assignment_B, T)
        _replace(cut, assignment_B, T, None)

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        """Turn class ids and cluster ids into the targets of the merged rows."""
        self._merging.mix_targets(cut, self._peer.classes)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return τ for both directions."""
        return self._merging.tau, self._merging.tau

    @hookimpl
    def traits(self) -> Traits:
        """Needs samples at their places, and attention if it is clustered; leaves merged rows."""
        return Traits(needs={"targets", "places", *self._merging.needs}, changes={"batch"})


class ADCTokenSelect:
    """ADC's token selection alone: the k tokens of every row that the class token attends to most.

    Args:
        ratio: κ in (0, 1], the share of tokens that is left.
        select: as in `ADC`.
        rounding: as in `ADC`.
        heads: as in `ADC`.
        score_layer: as in `ADC`.
        evaluation: as in `ADC`.
    """

    def __init__(
        self,
        *,
        ratio: float = DEFAULT_RATIO,
        select: Select = "attention",
        rounding: Rounding = "floor",
        heads: Heads = "mean",
        score_layer: ScoreLayer = "last",
        evaluation: bool = False,
    ) -> None:
        check_share("ratio", ratio)
        attention = _request(heads, score_layer)
        self._selection = Selection("adc-token-select", ratio, rounding, attention, select)
        self._evaluation = evaluation

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Ask for attention, if tokens are chosen by it."""
        self._peer = peer
        self._selection.check(peer)

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Replace (B, N, D) by (B, K, D)."""
        if not (cut.training or self._evaluation):
            return
        B = len(cut.activations)
        scores_BN = self._selection.scores(cut, self._peer, B, lambda: cut.activations)
        tokens_BK = self._selection.choose(scores_BN, self._peer)
        if tokens_BK is not None:
            select_in_cut(cut, tokens_BK)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return κ for both directions, or the smallest that the model allows."""
        kappa = self._selection.nominal(self._peer)
        return kappa, kappa

    @hookimpl
    def traits(self) -> Traits:
        """Needs attention; leaves every row with tokens of its own."""
        return Traits(
            needs=self._selection.needs,
            changes={"tokens", "places"},
            evaluation=self._evaluation,
        )


def _request(heads: Heads, score_layer: ScoreLayer) -> Attention:
    """Return what the client's part is asked to measure."""
    check_choice("heads", heads, get_args(Heads))
    check_choice("score_layer", score_layer, get_args(ScoreLayer))
    return Attention(heads, score_layer)


@dataclass(frozen=True, slots=True)
class _Merging:
    """Which samples become one row, and what their labels become."""

    plugin: str
    tau: float
    criterion: Criterion
    iterations: int
    tol: float
    tol_mode: TolMode
    rounding: Rounding
    loss_weight: LossWeight
    attention: Attention

    def __post_init__(self) -> None:
        check_choice("criterion", self.criterion, get_args(Criterion))
        check_choice("tol_mode", self.tol_mode, get_args(TolMode))
        check_choice("rounding", self.rounding, get_args(Rounding))
        check_choice("loss_weight", self.loss_weight, get_args(LossWeight))
        if self.iterations < 1:
            raise refusal("iterations", self.iterations, "1 or more", "for example iterations=50")
        if not 0 <= self.tol < math.inf:
            raise refusal("tol", self.tol, "0 or more, finite", "for example tol=1e-4")

    def count(self, B: int) -> int:
        """Return T for B samples; T ≥ B means: do not merge."""
        return B if self.tau == 1 else max(2, rounded(self.tau * B, self.rounding))

    def check(self, peer: Peer) -> None:
        """Refuse a model or a batch that cannot be merged as configured."""
        B, T = peer.batch_size, self.count(peer.batch_size)
        if T > B:
            raise ConfigError(
                f"plugin {self.plugin!r} merges into {T} rows or more, but a batch has {B}; "
                f"give --batch-size {T} or more, or do not merge (a share of 1)"
            )
        if T > 2**16:
            raise ConfigError(
                f"plugin {self.plugin!r}: {T} clusters do not fit the uint16 that carries their "
                f"ids; allowed: {2**16}; use a smaller batch or ratio"
            )
        if self.criterion == "cls_token" and not peer.class_token:
            raise ConfigError(
                f"plugin {self.plugin!r}: criterion=cls_token needs a class token, and this model "
                "has none; allowed here: avg_token, random, class_label"
            )
        if self.needs:
            peer.request(self.plugin, self.attention)

    @property
    def needs(self) -> frozenset[str]:
        """Aspects of the cut: attention, if it is clustered."""
        return frozenset({"attention"} if self.criterion == "cls_score" else ())

    def features(self, cut: Cut) -> torch.Tensor:
        """Return what K-means clusters, (B, F), detached."""
        if self.criterion == "cls_score":
            return attention_in_cut(cut, self.attention, self.plugin)
        activations_BND = cut.activations.detach()
        if self.criterion == "cls_token":
            return activations_BND[:, 0]
        half = activations_BND.dtype in (torch.float16, torch.bfloat16)
        return activations_BND.mean(dim=1, dtype=torch.float32 if half else None)

    def partition(self, cut: Cut, peer: Peer) -> torch.Tensor | None:
        """Return the cluster of every sample, (B,) int64, or None where nothing is to be merged.

        The draw depends on seed and step and not on the plugin, so that ``adc`` and the stack of
        its two halves draw alike.
        """
        B = cut.activations.shape[0]
        T = self.count(B)
        if not cut.training or T >= B:
            return None
        generator = peer.generator("kmeans", cut.step)
        if self.criterion == "random":
            return upload(random_partition(B, T, generator), cut.activations.device)
        if self.criterion == "class_label":
            return label_partition(_main_class(cut.targets), T, generator, peer.classes)
        assignment_B, _ = kmeans(
            self.features(cut),
            T,
            generator=generator,
            iterations=self.iterations,
            tol=self.tol,
            relative=self.tol_mode == "relative",
        )
        return assignment_B

    def mix_targets(self, cut: Cut, C: int) -> None:
        """Server: replace class ids (B,) or shares (B, C) by the shares (T, C) of every cluster."""
        if CLUSTERS not in cut.side:
            return
        T = cut.activations.shape[0]
        sent_B, wanted = cut.side[CLUSTERS], _ids_dtype(T)
        if sent_B.shape != cut.targets.shape[:1] or sent_B.dtype != wanted:
            raise ProtocolError(
                f"{cut.when}: {CLUSTERS!r} is {sent_B.dtype} {[*sent_B.shape]}, the targets have "
                f"{[*cut.targets.shape]}; plugin {self.plugin!r} needs one cluster id per class "
                f"id, {wanted}"
            )
        ids_B = sent_B.to(torch.int64)
        member_TB = membership(ids_B, T).to(torch.float32)
        size_T = member_TB.sum(dim=1)
        when = cut.when
        cut.expect(
            (size_T.min() >= 1) & (size_T.sum() == ids_B.numel()),
            lambda: ProtocolError(
                f"{when}: {CLUSTERS!r} must name each of the {T} rows that arrived at "
                "least once, and no other"
            ),
        )
        label_BC = cut.targets
        if not label_BC.is_floating_point():
            label_BC = membership(cut.targets, C).T.to(torch.float32)
        cut.targets = (member_TB @ label_BC) / size_T[:, None]
        if self.loss_weight == "size":
            cut.weights = size_T / ids_B.numel()


def _ids_dtype(T: int) -> torch.dtype:
    """Return the type that the ids of so many clusters travel in."""
    return torch.uint8 if T <= 2**8 else torch.uint16


def _main_class(targets: torch.Tensor) -> torch.Tensor:
    """Return class ids (B,): as they are, or of the largest share of mixed samples (B, C)."""
    return targets.argmax(-1) if targets.is_floating_point() else targets


def merge_select(
    activations_BND: torch.Tensor, assignment_B: torch.Tensor, tokens_TK: torch.Tensor
) -> torch.Tensor:
    """Return the (T, K, D) means over the members of each cluster of the tokens kept of it.

    Row i, token j is the mean of ``activations_BND[b, tokens_TK[i, j]]`` over the b with
    ``assignment_B[b] == i``; what is not kept is never read. Each mean adds its terms in the order
    of b, whatever else is kept, so that merging all tokens and selecting then gives the same bits.
    Half precision adds in float32. Neither direction uses atomic additions on a GPU. Differentiable
    once in the activations.

    Args:
        activations_BND: (B, N, D) floating point, in any memory layout.
        assignment_B: (B,) int64, every id in [0, T) at least once.
        tokens_TK: (T, K) int64, the entries of a row distinct and in [0, N).
    """
    apply = cast(Any, _MergeSelect).apply
    return cast(torch.Tensor, apply(activations_BND, assignment_B, tokens_TK))


class _MergeSelect(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, activations_BND: torch.Tensor, assignment_B: torch.Tensor, tokens_TK: torch.Tensor
    ) -> torch.Tensor:
        B, N, D = activations_BND.shape
        T, K = tokens_TK.shape
        device = activations_BND.device
        size_T = membership(assignment_B, T).sum(dim=1)

        # One bag of rows of the (B·N, D) table per (cluster, token kept): its members' tokens.
        row_BK = torch.arange(B, device=device)[:, None] * N + tokens_TK[assignment_B]
        bag_BK = assignment_B[:, None] * K + torch.arange(K, device=device)
        rows = row_BK.flatten()[bag_BK.flatten().argsort(stable=True)]
        bag_size = size_T[:, None].expand(T, K).flatten()
        table = activations_BND.detach().reshape(B * N, D)
        if table.dtype in (torch.float16, torch.bfloat16):
            table, rows = table[rows].float(), torch.arange(B * K, device=device)
        sums = torch.nn.functional.embedding_bag(
            rows, table, bag_size.cumsum(0) - bag_size, mode="sum"
        )

        ctx.save_for_backward(assignment_B, tokens_TK, size_T)
        ctx.tokens = N
        return (sums.view(T, K, D) / size_T[:, None, None]).to(activations_BND.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TKD: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        assignment_B, tokens_TK, size_T = ctx.saved_tensors
        T, K, D = gradient_TKD.shape
        B, N = assignment_B.shape[0], ctx.tokens

        # Reading a row of zeros for what was not kept writes every gradient once; filling with
        # zeros and scattering what was kept writes them twice and takes two to three times as long.
        source = gradient_TKD.new_zeros(T * K + 1, D)
        torch.div(
            gradient_TKD.reshape(T * K, D),
            size_T[:, None].expand(T, K).reshape(-1, 1),
            out=source[:-1],
        )
        slot_TN = tokens_TK.new_full((T, N), T * K)
        slot_TN.scatter_(1, tokens_TK, torch.arange(T * K, device=tokens_TK.device).view(T, K))
        return source.index_select(0, slot_TN[assignment_B].flatten()).view(B, N, D), None, None


def _replace(
    cut: Cut, assignment_B: torch.Tensor | None, T: int, tokens_TK: torch.Tensor | None
) -> None:
    """Replace the activations by what is kept of them, and the attention after a selection."""
    if assignment_B is None:
        if tokens_TK is not None:
            select_in_cut(cut, tokens_TK)
        return
    if tokens_TK is None:
        cut.activations = _merged(cut.activations, assignment_B, T)
        return
    cut.provenance.select(tokens_TK)
    bring_attention(cut, lambda attention_TN: attention_TN.gather(1, tokens_TK))
    fault_B = faults(cut.activations)
    fault_T = fault_B.new_zeros(len(tokens_TK)).index_add(0, assignment_B, fault_B)
    Z_TKD = merge_select(cut.activations, assignment_B, tokens_TK)
    cut.activations = marked(Z_TKD, fault_T)


def _merged(
    activations_BND: torch.Tensor, assignment_B: torch.Tensor | None, T: int
) -> torch.Tensor:
    """Return the rows that a partition leaves, with all their tokens: (T, N, D)."""
    if assignment_B is None:
        return activations_BND
    N = activations_BND.shape[1]
    tokens_TN = torch.arange(N, device=assignment_B.device).expand(T, N)
    return merge_select(activations_BND, assignment_B, tokens_TN)


def _announce(cut: Cut, assignment_B: torch.Tensor | None, T: int) -> None:
    """Put beside the activations what a merge leaves: cluster ids and mean attention."""
    if assignment_B is None:
        return
    cut.side[CLUSTERS] = assignment_B.to(_ids_dtype(T))
    cut.sample_ids = None  # a merged row is no sample
    cut.provenance.merge(assignment_B)
    bring_attention(cut, lambda attention_BN: cluster_means(attention_BN, assignment_B, T))


def _reference_scores(
    features_BF: torch.Tensor, assignment_B: torch.Tensor | None, T: int, N: int
) -> torch.Tensor:
    """Return the centroids' features in the place of scores of N ≥ F tokens, as the reference."""
    if assignment_B is not None:
        features_BF = cluster_means(features_BF, assignment_B, T)
    return torch.nn.functional.pad(features_BF, (0, N - features_BF.shape[1]), value=-torch.inf)


def _allocate(
    ratio: float, alloc: Alloc, tau: float | None, kappa: float | None
) -> tuple[float, float, float]:
    """Return τ, κ and the ξ that is charged for them."""
    check_choice("alloc", alloc, get_args(Alloc))
    check_share("ratio", ratio)
    given = {key: value for key, value in (("tau", tau), ("kappa", kappa)) if value is not None}
    for key, value in given.items():
        check_share(key, value)
    if alloc != "explicit":
        if given:
            raise refusal(
                *next(iter(given.items())),
                f"tau and kappa with alloc=explicit only, not with alloc={alloc}",
                "for example alloc=explicit,tau=0.3,kappa=0.3",
            )
        power_tau, power_kappa = {
            "sqrt": (1 / 2, 1 / 2),
            "fifth": (1 / 5, 4 / 5),
            "quarter_bug": (1 / 2, 1 / 4),
        }[alloc]
        return ratio**power_tau, ratio**power_kappa, ratio
    if tau is None or kappa is None:
        raise refusal(
            "alloc", alloc, "both tau and kappa", "for example alloc=explicit,tau=0.3,kappa=0.3"
        )
    if ratio != DEFAULT_RATIO and not math.isclose(ratio, tau * kappa):
        raise refusal(
            "ratio",
            ratio,
            f"{tau * kappa:g}, the product of tau={tau} and kappa={kappa}",
            "leave ratio out with alloc=explicit",
        )
    return tau, kappa, tau * kappa
