"""Partitions of a batch into clusters that are never empty: by K-means, by chance, by label.

Batched tensor operations: no Python loop over samples or clusters, no global random state. Nothing
here knows of cuts, hooks or messages.

Shapes: B points, F features, T clusters, E empty clusters; P classes present, M samples of the most
frequent one.
"""

from __future__ import annotations

import math

import torch

from splitlab.core import ConfigError

__all__ = ["cluster_means", "kmeans", "label_partition", "membership", "random_partition"]


def kmeans(
    points_BF: torch.Tensor,
    clusters: int,
    *,
    generator: torch.Generator,
    iterations: int = 50,
    tol: float = 1e-4,
    relative: bool = False,
    init: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Partition the points into non-empty clusters of small squared Euclidean spread.

    Lloyd's algorithm, on the device of the points. One iteration assigns every point to its nearest
    centroid (ties: the lowest cluster), hands each empty cluster the farthest point of a cluster
    that has another one, and moves the centroids to the means of their members. The first centroids
    are T distinct points drawn at random. k-means++ is left out on purpose: it draws one centre
    after the other, and nothing here loops over clusters.

    Args:
        points_BF: (B, F) floating point. Half precision computes in float32. NaN counts as 0.
        clusters: T, 1 ≤ T ≤ B; with T = B every point is its own cluster.
        generator: CPU generator of the initial draw, so that every device draws alike.
        iterations: most iterations to run.
        tol: stop once the centroids have moved less than this.
        relative: what "moved" means. False, the rule of the reference implementation of ADC:
            (Σ_i ‖Δc_i‖)² < tol, in the units of the points. True, free of scale: Σ_i ‖Δc_i‖² < tol
            times the mean variance of a feature. Both stop when nothing moves any more.
        init: (T,) indices of the points to start from, instead of the draw.

    Returns:
        ``assignment_B`` (B,) int64, which uses every id in [0, T), and ``centroids_TF`` (T, F), the
        means of exactly these members, in float32 (float64 for float64 points).

    Raises:
        ConfigError: T, ``iterations`` or ``tol`` is out of range.
    """
    B = points_BF.shape[0]
    if not 1 <= clusters <= B:
        raise ConfigError(
            f"K-means cannot make {clusters} non-empty clusters of {B} points; "
            f"allowed here: 1 to {B}; use a larger batch or a smaller ratio"
        )
    if iterations < 1:
        raise ConfigError(f"K-means iterations={iterations} is refused; allowed: 1 or more")
    if not tol >= 0:
        raise ConfigError(f"K-means tol={tol} is refused; allowed: 0 or more")
    points_BF = _finite(points_BF.detach())
    if clusters == B:
        return torch.arange(B, device=points_BF.device), points_BF

    # Near the origin and of size one, ‖x‖² - 2⟨x, c⟩ + ‖c‖² neither cancels nor overflows. A power
    # of two scales without rounding.
    _, exponent = math.frexp(points_BF.abs().max().item())
    scale = max(math.ldexp(0.5, exponent), torch.finfo(points_BF.dtype).tiny)
    points_BF = points_BF / scale
    centred_BF = points_BF - points_BF.mean(dim=0)

    if relative:
        limit = math.sqrt(tol * centred_BF.square().mean().item())
    else:
        limit = math.sqrt(tol) / scale

    if init is None:
        init = torch.randperm(B, generator=generator)[:clusters]
    centroids_TF = centred_BF[init.to(points_BF.device)]
    for _ in range(iterations):
        # ‖x‖² is the same for all clusters: the nearest centroid does not depend on it.
        offset_BT = torch.addmm(
            centroids_TF.square().sum(dim=1), centred_BF, centroids_TF.T, alpha=-2
        )
        assignment_B = _fill_empty(offset_BT.argmin(dim=1), offset_BT, centred_BF)
        previous_TF, centroids_TF = centroids_TF, cluster_means(centred_BF, assignment_B, clusters)
        moved_TF = centroids_TF - previous_TF
        shift = (moved_TF.norm() if relative else moved_TF.norm(dim=1).sum()).item()
        if shift < limit or shift == 0:
            break
    return assignment_B, cluster_means(points_BF, assignment_B, clusters) * scale


def random_partition(B: int, T: int, generator: torch.Generator) -> torch.Tensor:
    """Return a random partition of B samples into T ≤ B clusters, their sizes equal or one apart.

    On the CPU.
    """
    order_B = torch.randperm(B, generator=generator)
    return torch.empty_like(order_B).index_copy_(0, order_B, torch.arange(B) * T // B)


def label_partition(labels_B: torch.Tensor, T: int, generator: torch.Generator) -> torch.Tensor:
    """Return a partition into T ≤ B non-empty clusters, as pure in labels as T allows.

    With T ≥ P every class gets one cluster and the others go by highest averages (D'Hondt); within
    a class the sizes differ by one at most and chance decides who goes where. With T < P the
    clusters are runs of the samples ordered by label. On the CPU.
    """
    labels_B = labels_B.cpu()
    B = labels_B.numel()
    order_B = torch.randperm(B, generator=generator)
    order_B = order_B[labels_B[order_B].argsort(stable=True)]
    count_P = torch.bincount(labels_B)
    count_P = count_P[count_P > 0]
    P, M = count_P.numel(), int(count_P.max())

    if T < P:
        cluster_B = torch.arange(B) * T // B
    else:
        # A class of m samples has m averages of 1 or more, and all have B ≥ T together: the T
        # highest never give a class more clusters than samples.
        average_PM = count_P[:, None] / torch.arange(1, M + 1)
        average_PM[:, 0] = torch.inf
        highest_T = average_PM.flatten().argsort(descending=True, stable=True)[:T]
        seats_P = torch.bincount(highest_T // M, minlength=P)
        class_B = torch.arange(P).repeat_interleave(count_P)
        rank_B = torch.arange(B) - (count_P.cumsum(0) - count_P)[class_B]
        first_P = seats_P.cumsum(0) - seats_P
        cluster_B = first_P[class_B] + rank_B * seats_P[class_B] // count_P[class_B]
    return torch.empty_like(order_B).index_copy_(0, order_B, cluster_B)


def cluster_means(points_BF: torch.Tensor, assignment_B: torch.Tensor, T: int) -> torch.Tensor:
    """Return the (T, F) means of the points of each cluster; every cluster needs a member.

    A product with the (T, B) matrix of members, not a scatter: at these sizes it is as fast, and it
    adds in a fixed order on a GPU too.
    """
    points_BF = points_BF.to(_statistics_dtype(points_BF))
    member_TB = membership(assignment_B, T).to(points_BF.dtype)
    return (member_TB @ points_BF) / member_TB.sum(dim=1, keepdim=True)


def membership(ids_B: torch.Tensor, T: int) -> torch.Tensor:
    """Return the (T, B) boolean matrix that says which sample carries which id."""
    return torch.arange(T, device=ids_B.device)[:, None] == ids_B


def _fill_empty(
    assignment_B: torch.Tensor, offset_BT: torch.Tensor, points_BF: torch.Tensor
) -> torch.Tensor:
    """Give every empty cluster the farthest point that is not the nearest of its own cluster.

    There are B minus (T - E) such points, at least E as T ≤ B, and taking any of them leaves its
    cluster the nearest one: after this no cluster is empty, even when all points are the same.
    """
    empty_E = (torch.bincount(assignment_B, minlength=offset_BT.shape[1]) == 0).nonzero().squeeze(1)
    if empty_E.numel() == 0:
        return assignment_B
    distance_B = offset_BT.gather(1, assignment_B[:, None]).squeeze(1)
    distance_B = distance_B + points_BF.square().sum(dim=1)

    nearest_first = distance_B.argsort(stable=True)
    by_cluster = nearest_first[assignment_B[nearest_first].argsort(stable=True)]
    cluster_of = assignment_B[by_cluster]
    kept = torch.ones_like(cluster_of, dtype=torch.bool)
    kept[1:] = cluster_of[1:] != cluster_of[:-1]
    distance_B[by_cluster[kept]] = -torch.inf

    farthest_E = distance_B.argsort(descending=True, stable=True)[: empty_E.numel()]
    return assignment_B.index_copy(0, farthest_E, empty_E)


def _finite(points: torch.Tensor) -> torch.Tensor:
    """Return the points in the dtype of statistics, with room for sums: no NaN, no infinity."""
    points = points.to(_statistics_dtype(points))
    room = 0.99 * torch.finfo(points.dtype).max
    return points.nan_to_num(nan=0.0).clamp(-room, room)


def _statistics_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
