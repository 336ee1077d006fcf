"""Partitions of a batch into clusters that are never empty: by K-means, by chance, by label.

And codebooks, for which many points share few centroids and an unused one does no harm.

Batched tensor operations: no Python loop over samples or clusters, no global random state. Nothing
here knows of cuts, hooks or messages.

Shapes: B points, F features, T clusters, E empty clusters; P classes present, M samples of the most
frequent one. Of codebooks: G groups of M points of F features, L centroids each.
"""

from __future__ import annotations

import math

import torch

from splitlab.core import ConfigError, Fetch, at_hand, upload

__all__ = [
    "cluster_means",
    "codebooks",
    "kmeans",
    "label_partition",
    "membership",
    "random_partition",
]

_PIECE = {"cpu": 2**18, "cuda": 2**24}
"""Distances computed at a time: on a CPU as many as stay in a core's cache."""

_FIRST_DRAW = 2**16
"""Points among which the first centroids are looked for."""


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
    after the other, and nothing here loops over clusters. No device is waited for: what has
    converged stands still, and when the device says so, no more iterations are queued.

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
    scale = _power_of_two(points_BF.abs().max())
    points_BF = points_BF / scale
    centred_BF = points_BF - points_BF.mean(dim=0)

    if relative:
        limit = (tol * centred_BF.square().mean().double()).sqrt()
    else:
        limit = math.sqrt(tol) / scale.double()

    if init is None:
        init = torch.randperm(B, generator=generator)[:clusters]
    centroids_TF = centred_BF[upload(init, points_BF.device)]
    assignment_B = torch.zeros(B, dtype=torch.int64, device=points_BF.device)
    done = torch.zeros((), dtype=torch.bool, device=points_BF.device)
    told: Fetch | None = None
    for _ in range(iterations):
        if told is not None and told.arrived():
            if bool(told.tensor()):
                break
            told = None
        # ‖x‖² is the same for all clusters: the nearest centroid does not depend on it.
        offset_BT = torch.addmm(
            centroids_TF.square().sum(dim=1), centred_BF, centroids_TF.T, alpha=-2
        )
        nearest_B = _fill_empty(offset_BT.argmin(dim=1), offset_BT, centred_BF)
        means_TF = cluster_means(centred_BF, nearest_B, clusters)
        moved_TF = means_TF - centroids_TF
        shift = moved_TF.norm() if relative else moved_TF.norm(dim=1).sum()
        assignment_B = torch.where(done, assignment_B, nearest_B)
        centroids_TF = torch.where(done, centroids_TF, means_TF)
        done = done | (shift.double() < limit) | (shift == 0)
        told = told or Fetch(done)
    return assignment_B, cluster_means(points_BF, assignment_B, clusters) * scale


def codebooks(
    points_GMF: torch.Tensor,
    size: int,
    *,
    generator: torch.Generator,
    iterations: int = 10,
    sample: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize the points of every group to a codebook of its own, by K-means.

    Lloyd's algorithm for millions of points: distances are computed in pieces. It starts from L
    different points of a random draw, if that has so many (with up to 65536 points all are drawn:
    L or fewer different points then come back, but for the rounding of a mean about the mean of
    all: some 10⁻⁷ of the largest). A centroid that nobody uses moves to one of the points that are
    worst off, different points to different centroids.

    Args:
        points_GMF: (G, M, F) floating point, finite. Half precision computes in float32. What is
            beyond 1e28 (1e231 in float64) counts as that.
        size: most centroids, at least 1; of M points, min(size, M) are made.
        generator: CPU generator of all draws.
        iterations: most iterations, at least 1. The objective, the summed squared distance, never
            grows from one to the next.
        sample: how many points of a group, drawn at random and at least L, all iterations but the
            last work on; None: all of them.

    Returns:
        The codebooks (G, L, F) in float32 (float64 for float64 points), and the codes (G, M) int64.
        A centroid is the mean of the points with its code; what no point uses is finite.
    """
    points_GMF = points_GMF.detach()
    dtype, M = _statistics_dtype(points_GMF), points_GMF.shape[1]
    L = min(size, M)
    most = _largest(points_GMF)
    room = torch.finfo(dtype).max ** 0.75  # sums of so large numbers are finite
    if most > room:
        points_GMF = points_GMF.to(dtype).clamp(-room, room)
        most = _largest(points_GMF)

    # As in `kmeans`: near the origin and of size one. Piece by piece, as the points are many.
    _, exponent = math.frexp(most)
    scale = max(math.ldexp(0.5, exponent), torch.finfo(dtype).tiny)
    origin_G1F = points_GMF.mean(dim=1, keepdim=True, dtype=dtype)

    def drawn(count: int) -> torch.Tensor:
        return points_GMF[:, _some(M, count, generator).to(points_GMF.device)]

    centroids_GLF = _different(drawn(max(_FIRST_DRAW, 16 * L)).to(dtype), L)
    centroids_GLF = (centroids_GLF - origin_G1F) / scale
    known = points_GMF if sample is None or sample >= M else drawn(max(sample, L))
    for _ in range(iterations - 1):
        before = centroids_GLF
        codes_GM, centroids_GLF, count_GL = _lloyd(known, before, origin_G1F, scale)
        if bool((count_GL == 0).any()):
            rebuilt = centroids_GLF * scale + origin_G1F
            far_GLF = _farthest(known.to(dtype), codes_GM, rebuilt)
            far_GLF = (far_GLF - origin_G1F) / scale
            centroids_GLF = _fill_idle(centroids_GLF, count_GL, far_GLF)
        if torch.equal(before, centroids_GLF):
            break
    codes_GM, centroids_GLF, _ = _lloyd(points_GMF, centroids_GLF, origin_G1F, scale)
    return centroids_GLF * scale + origin_G1F, codes_GM


def random_partition(B: int, T: int, generator: torch.Generator) -> torch.Tensor:
    """Return a random partition of B samples into T ≤ B clusters, their sizes equal or one apart.

    On the CPU.
    """
    order_B = torch.randperm(B, generator=generator)
    return torch.empty_like(order_B).index_copy_(0, order_B, torch.arange(B) * T // B)


def label_partition(
    labels_B: torch.Tensor, T: int, generator: torch.Generator, classes: int
) -> torch.Tensor:
    """Return a partition into T ≤ B non-empty clusters, as pure in labels as T allows.

    With T ≥ P every class gets one cluster and the others go by highest averages (D'Hondt); within
    a class the sizes differ by one at most and chance decides who goes where. With T < P the
    clusters are runs of the samples ordered by label.

    Args:
        labels_B: (B,) int64 in [0, classes).
        T: clusters.
        generator: CPU generator of the order.
        classes: C, of which P occur.
    """
    B, device = labels_B.numel(), labels_B.device
    order_B = upload(torch.randperm(B, generator=generator), device)
    order_B = order_B[labels_B[order_B].argsort(stable=True)]
    class_B = labels_B[order_B]
    count_C = membership(labels_B, classes).sum(dim=1)
    nth_B = torch.arange(B, device=device)

    # A class of m samples has m averages of 1 or more, and all have B ≥ T together: the T highest
    # never give a class more clusters than samples, nor one without any its first.
    average_CB = count_C[:, None] / (nth_B + 1)
    average_CB[:, 0] = torch.where(count_C > 0, torch.inf, 0.0)
    highest_T = average_CB.flatten().argsort(descending=True, stable=True)[:T]
    seats_C = membership(highest_T // B, classes).sum(dim=1)
    rank_B = nth_B - (count_C.cumsum(0) - count_C)[class_B]
    first_C = seats_C.cumsum(0) - seats_C
    by_class_B = first_C[class_B] + rank_B * seats_C[class_B] // count_C[class_B]
    few = (count_C > 0).sum() > T
    cluster_B = torch.where(few, nth_B * T // B, by_class_B)
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
    T = offset_BT.shape[1]
    empty_T = ~membership(assignment_B, T).any(dim=1)
    if at_hand(empty_T) and not empty_T.any():
        return assignment_B
    distance_B = offset_BT.gather(1, assignment_B[:, None]).squeeze(1)
    distance_B = distance_B + points_BF.square().sum(dim=1)

    nearest_first = distance_B.argsort(stable=True)
    by_cluster = nearest_first[assignment_B[nearest_first].argsort(stable=True)]
    cluster_of = assignment_B[by_cluster]
    kept = torch.ones_like(cluster_of, dtype=torch.bool)
    kept[1:] = cluster_of[1:] != cluster_of[:-1]
    left = distance_B[by_cluster].masked_fill(kept, -torch.inf)
    distance_B = torch.empty_like(distance_B).scatter_(0, by_cluster, left)

    # The first E of T clusters are the empty ones, and the first E of T points move to them.
    empty_first_T = empty_T.to(torch.uint8).argsort(descending=True, stable=True)
    farthest_T = distance_B.argsort(descending=True, stable=True)[:T]
    own_T = assignment_B[farthest_T]
    moves_T = torch.arange(T, device=empty_T.device) < empty_T.sum()
    return assignment_B.index_copy(0, farthest_T, torch.where(moves_T, empty_first_T, own_T))


def _power_of_two(value: torch.Tensor) -> torch.Tensor:
    """Return the largest power of two up to a number, a normal one at least; both scalars."""
    if value.dtype == torch.float64:
        integers, exponent = torch.int64, 0x7FF << 52
    else:
        integers, exponent = torch.int32, 0xFF << 23
    bits = value.view(integers) & exponent  # of sign, exponent and fraction
    return bits.view(value.dtype).clamp(min=torch.finfo(value.dtype).tiny)


def _largest(points: torch.Tensor) -> float:
    """Return the largest magnitude."""
    low, high = (bound.item() for bound in points.aminmax())
    return max(-low, high)


def _some(M: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return the numbers of so many random points, in random order; of all if there are no more.

    Of few among many some come twice: drawing without that would shuffle all.
    """
    if count >= M:
        return torch.randperm(M, generator=generator)
    return torch.randint(M, (count,), generator=generator)


def _different(candidates_GCF: torch.Tensor, L: int) -> torch.Tensor:
    """Return the first L different candidates of every group; repeats if there are no more."""
    G, _, F = candidates_GCF.shape
    # Equal points have equal sums of scrambled bits, exactly: integers wrap around.
    bits = (candidates_GCF + 0.0).view(
        torch.int64 if candidates_GCF.dtype == torch.float64 else torch.int32
    )
    odd_F = torch.randint(2**62, (F,), generator=torch.Generator().manual_seed(0)) * 2 + 1
    key_GC = (bits.long() * odd_F.to(bits.device)).sum(dim=-1)
    sorted_GC, order_GC = key_GC.sort(dim=1, stable=True)
    repeat_GC = torch.zeros_like(sorted_GC, dtype=torch.bool)
    repeat_GC[:, 1:] = sorted_GC[:, 1:] == sorted_GC[:, :-1]
    repeat_GC = torch.empty_like(repeat_GC).scatter_(1, order_GC, repeat_GC)
    chosen_GL = repeat_GC.long().argsort(dim=1, stable=True)[:, :L]
    return candidates_GCF.gather(1, chosen_GL[..., None].expand(G, L, F))


def _pieces(M: int, distances: int, device: torch.device) -> list[slice]:
    """Return runs of points, so many distances each, that are looked at together."""
    piece = max(1, _PIECE.get(device.type, _PIECE["cpu"]) // distances)
    return [slice(start, start + piece) for start in range(0, M, piece)]


def _lloyd(
    points_GMF: torch.Tensor, centroids_GLF: torch.Tensor, origin_G1F: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run one iteration of Lloyd's algorithm.

    Returns:
        Codes (G, M) int64, the nearest centroids; the means (G, L, F) of the points of every code,
        and their counts (G, L). A code without points keeps its centroid. Centroids are of
        (points - origin) / scale.
    """
    G, M, F = points_GMF.shape
    L = centroids_GLF.shape[1]
    device = points_GMF.device
    first_of_book_G1 = torch.arange(G, device=device)[:, None] * L
    codes_GM = torch.empty(G, M, dtype=torch.int64, device=device)
    sums_GLF = torch.zeros_like(centroids_GLF, dtype=torch.float64)
    on_cpu = device.type == "cpu"
    for here in _pieces(M, G if F == 1 and on_cpu else G * L, device):
        piece = (points_GMF[:, here].to(origin_G1F) - origin_G1F) / scale
        code = _nearest(piece, centroids_GLF)
        codes_GM[:, here] = code
        if on_cpu:
            row = (code + first_of_book_G1).flatten()
            sums = piece.new_zeros(G * L, F).index_add_(0, row, piece.reshape(-1, F))
            sums_GLF += sums.view(G, L, F)
        else:  # there index_add_ adds in any order
            member = torch.arange(L, device=device)[:, None] == code[:, None]
            sums_GLF += member.to(piece) @ piece
    count_GL = torch.bincount((codes_GM + first_of_book_G1).flatten(), minlength=G * L).view(G, L)
    means_GLF = (sums_GLF / count_GL.clamp(min=1)[..., None]).to(centroids_GLF)
    return codes_GM, means_GLF.where(count_GL[..., None] > 0, centroids_GLF), count_GL


def _nearest(points_GMF: torch.Tensor, centroids_GLF: torch.Tensor) -> torch.Tensor:
    """Return the nearest centroid of every point, (G, M) int64; of equally near ones one."""
    L, F = centroids_GLF.shape[1:]
    if F == 1:  # numbers: between which midpoints they lie
        sorted_GL, order_GL = centroids_GLF.squeeze(-1).sort(dim=1, stable=True)
        middle_GL = ((sorted_GL[:, 1:] + sorted_GL[:, :-1]) / 2).contiguous()
        return order_GL.gather(
            1, torch.searchsorted(middle_GL, points_GMF.squeeze(-1).contiguous())
        )
    # ‖x‖² - 2⟨x, c⟩ + ‖c‖² is least where ⟨x, c⟩ - ‖c‖²/2 is largest. Not argmax: on a CPU and with
    # many centroids this, with the first of equals, is much quicker.
    half_G1L = centroids_GLF.square().sum(dim=-1)[:, None] / 2
    score = torch.baddbmm(half_G1L, points_GMF, centroids_GLF.mT, beta=-1)
    best = score.amax(dim=-1, keepdim=True)
    last_to_first_L = torch.arange(L, 0, -1, device=score.device).to(score)
    torch.eq(score, best, out=score).mul_(last_to_first_L)
    return L - score.amax(dim=-1).long()


def _farthest(
    points_GMF: torch.Tensor, codes_GM: torch.Tensor, centroids_GLF: torch.Tensor
) -> torch.Tensor:
    """Return L points of every group (G, L, F), different as far as that goes, far from theirs."""
    G, M, F = points_GMF.shape
    L = centroids_GLF.shape[1]
    own_GMF = centroids_GLF.gather(1, codes_GM[..., None].expand(G, M, F))
    distance_GM = torch.linalg.vector_norm(points_GMF - own_GMF, dim=-1)
    far_GC = distance_GM.argsort(dim=1, descending=True, stable=True)[:, : 16 * L]
    return _different(points_GMF.gather(1, far_GC[..., None].expand(*far_GC.shape, F)), L)


def _fill_idle(
    centroids_GLF: torch.Tensor, count_GL: torch.Tensor, far_GLF: torch.Tensor
) -> torch.Tensor:
    """Return the centroids; those that no point uses, one after the other, are far points."""
    idle_GL = count_GL == 0
    rank_GL = (idle_GL.long().cumsum(dim=1) - 1).clamp(min=0)
    far_GLF = far_GLF.gather(1, rank_GL[..., None].expand_as(centroids_GLF))
    return far_GLF.where(idle_GL[..., None], centroids_GLF)


def _finite(points: torch.Tensor) -> torch.Tensor:
    """Return the points in the dtype of statistics, with room for sums: no NaN, no infinity."""
    points = points.to(_statistics_dtype(points))
    room = 0.99 * torch.finfo(points.dtype).max
    return points.nan_to_num(nan=0.0).clamp(-room, room)


def _statistics_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
