"""K-means and its controls: always a partition, always seeded, never an empty cluster."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import ConfigError, Fetch
from splitlab.core.contract.transfer import pretending
from splitlab.plugins.common.kmeans import (
    _power_of_two,
    cluster_means,
    kmeans,
    label_partition,
    random_partition,
)

SCORES = [
    [0.4, 0.3, 0.2, 0.1],
    [0.4, 0.28, 0.22, 0.1],
    [0.1, 0.1, 0.2, 0.6],
    [0.12, 0.08, 0.2, 0.6],
]


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(clusters: int, each: int, features: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Points so far apart in groups that the right partition is beyond doubt; and the groups."""
    centres = torch.eye(clusters, max(features, clusters)) * 100
    group = torch.arange(clusters).repeat_interleave(each)
    noise = torch.rand(clusters * each, centres.shape[1], generator=draw(1))
    return centres[group] + noise, group


def lloyd(
    points: torch.Tensor, init: list[int], iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """K-means as a textbook writes it, for runs in which no cluster empties."""
    centroids = points[init]
    for _ in range(iterations):
        near = [
            min(range(len(init)), key=lambda i: (p - centroids[i]).square().sum()) for p in points
        ]
        assignment = torch.tensor(near)
        centroids = torch.stack([points[assignment == i].mean(0) for i in range(len(init))])
    return assignment, centroids


def check_partition(assignment: torch.Tensor, B: int, T: int) -> None:
    assert assignment.shape == (B,)
    assert assignment.dtype == torch.int64
    sizes = torch.bincount(assignment, minlength=T)
    assert sizes.shape == (T,)
    assert int(sizes.min()) >= 1


def test_vector_of_the_specification() -> None:
    assignment, centroids = kmeans(
        torch.tensor(SCORES), 2, generator=draw(), init=torch.tensor([0, 2])
    )
    assert assignment.tolist() == [0, 0, 1, 1]
    expected = torch.tensor([[0.4, 0.29, 0.21, 0.1], [0.11, 0.09, 0.2, 0.6]])
    torch.testing.assert_close(centroids, expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_result_is_a_partition_and_its_means(data: st.DataObject) -> None:
    B = data.draw(st.integers(1, 24), "B")
    T = data.draw(st.integers(1, B), "T")
    F = data.draw(st.integers(1, 4), "F")
    # Few distinct values: duplicates and ties are the rule.
    values = data.draw(st.lists(st.integers(-2, 2), min_size=B * F, max_size=B * F))
    points = torch.tensor(values, dtype=torch.float64).view(B, F)
    assignment, centroids = kmeans(
        points,
        T,
        generator=draw(data.draw(st.integers(0, 5), "seed")),
        iterations=data.draw(st.sampled_from([1, 2, 50]), "iterations"),
        relative=data.draw(st.booleans(), "relative"),
    )
    check_partition(assignment, B, T)
    means = torch.stack([points[assignment == i].mean(0) for i in range(T)])
    torch.testing.assert_close(centroids, means, rtol=0, atol=1e-12)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_equals_the_textbook_loop(iterations: int) -> None:
    points = torch.rand(40, 6, generator=draw(3), dtype=torch.float64)
    init = [3, 11, 17, 30]
    expected, means = lloyd(points, init, iterations)
    assignment, centroids = kmeans(
        points, 4, generator=draw(), init=torch.tensor(init), iterations=iterations, tol=0
    )
    assert torch.equal(assignment, expected)
    torch.testing.assert_close(centroids, means)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_finds_separate_groups_at_any_scale_and_offset(scale: float, offset: float) -> None:
    points, group = blobs(4, 6)
    init = torch.tensor([0, 6, 12, 18])
    assignment, _ = kmeans((points + offset) * scale, 4, generator=draw(), init=init, relative=True)
    assert torch.equal(assignment, group)


def test_relative_rule_is_free_of_scale_and_absolute_rule_is_not() -> None:
    points = torch.rand(60, 8, generator=draw(4))
    runs = {
        (scale, relative): kmeans(points * scale, 7, generator=draw(), relative=relative)[0]
        for scale in (1.0, 2.0**-20)
        for relative in (False, True)
    }
    once = kmeans(points, 7, generator=draw(), iterations=1)[0]
    assert torch.equal(runs[1.0, True], runs[2.0**-20, True])
    assert torch.equal(runs[2.0**-20, False], once), "a shift below 0.01 ends the reference's rule"
    assert not torch.equal(runs[1.0, False], once)


def test_more_iterations_never_spread_more() -> None:
    points = torch.rand(80, 5, generator=draw(5), dtype=torch.float64)
    spreads = []
    for iterations in (1, 2, 4, 8, 50):
        assignment, centroids = kmeans(points, 6, generator=draw(), iterations=iterations, tol=0)
        spreads.append(float((points - centroids[assignment]).square().sum()))
    assert spreads == sorted(spreads, reverse=True)


@pytest.mark.parametrize("T", [1, 2, 7, 12, 13])
@pytest.mark.parametrize("value", [0.0, 1.0, -3e4])
def test_identical_points_fill_every_cluster(T: int, value: float) -> None:
    assignment, centroids = kmeans(torch.full((13, 3), value), T, generator=draw())
    check_partition(assignment, 13, T)
    torch.testing.assert_close(centroids, torch.full((T, 3), value))


def test_an_empty_cluster_takes_the_farthest_point() -> None:
    points = torch.tensor([[0.0], [0.1], [0.2], [9.0]])
    # Both centres start on the same spot: all points go to the first, and 9.0 is the farthest.
    assignment, centroids = kmeans(
        points, 2, generator=draw(), init=torch.tensor([0, 0]), iterations=1
    )
    assert assignment.tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(centroids, torch.tensor([[0.1], [9.0]]))


def test_as_many_clusters_as_points_is_the_identity() -> None:
    points = torch.zeros(5, 2)
    assignment, centroids = kmeans(points, 5, generator=draw())
    assert assignment.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(centroids, points)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    points, group = blobs(3, 5)
    init = torch.tensor([0, 5, 10])
    assignment, centroids = kmeans(points.to(dtype), 3, generator=draw(), init=init)
    assert torch.equal(assignment, group)
    assert centroids.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("extreme", [torch.finfo(torch.float32).max, 1e-40, torch.inf, torch.nan])
@pytest.mark.parametrize("relative", [False, True])
def test_extreme_values_leave_everything_finite(extreme: float, relative: bool) -> None:
    points = torch.rand(12, 3, generator=draw(6))
    points[::3] = extreme
    points[1, 1] = -extreme
    assignment, centroids = kmeans(points, 5, generator=draw(), relative=relative)
    check_partition(assignment, 12, 5)
    assert centroids.isfinite().all()


def test_huge_doubles() -> None:
    points = (
        torch.rand(12, 3, generator=draw(6), dtype=torch.float64) * torch.finfo(torch.float64).max
    )
    for relative in (False, True):
        assignment, centroids = kmeans(points, 5, generator=draw(), relative=relative)
        check_partition(assignment, 12, 5)
        assert centroids.isfinite().all()


def test_same_draw_same_result_and_global_state_is_left_alone() -> None:
    points = torch.rand(50, 7, generator=draw(7))
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = kmeans(points, 9, generator=draw(3))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        second = kmeans(points, 9, generator=draw(3))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], kmeans(points, 9, generator=draw(4))[0])


def test_permuted_points_permute_the_assignment() -> None:
    points = torch.rand(30, 4, generator=draw(8), dtype=torch.float64)
    init = torch.tensor([2, 9, 20])
    order = torch.randperm(30, generator=draw(9))
    place = order.argsort()
    assignment, centroids = kmeans(points, 3, generator=draw(), init=init)
    permuted, same = kmeans(points[order], 3, generator=draw(), init=place[init])
    assert torch.equal(permuted, assignment[order])
    torch.testing.assert_close(same, centroids)


def test_points_of_a_graph_and_of_any_layout() -> None:
    points = torch.rand(4, 20, generator=draw(10)).T.requires_grad_()
    assignment, centroids = kmeans(points, 3, generator=draw())
    assert not centroids.requires_grad
    assert torch.equal(assignment, kmeans(points.detach().contiguous(), 3, generator=draw())[0])


@pytest.mark.parametrize(
    ("clusters", "options", "says"),
    [
        (5, {}, "5 non-empty clusters of 4 points; allowed here: 1 to 4"),
        (0, {}, "allowed here: 1 to 4"),
        (2, {"iterations": 0}, "iterations=0"),
        (2, {"tol": -1.0}, "tol=-1.0"),
        (2, {"tol": float("nan")}, "tol=nan"),
    ],
)
def test_refuses(clusters: int, options: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        kmeans(torch.zeros(4, 2), clusters, generator=draw(), **options)  # type: ignore[arg-type]


@given(late=st.integers(0, 60), data=st.data())
@settings(max_examples=40, deadline=None)
def test_iterations_queued_before_the_device_says_that_it_is_done_change_nothing(
    late: int, data: st.DataObject
) -> None:
    class Late(Fetch):
        """Is asked a few times before it has arrived."""

        def __init__(self, tensor: torch.Tensor) -> None:
            super().__init__(tensor)
            self._left = late

        def arrived(self) -> bool:
            self._left -= 1
            return self._left < 0

    seed, B = data.draw(st.integers(0, 99)), data.draw(st.integers(2, 24))
    points = torch.randn(B, 3, generator=draw(seed))
    if data.draw(st.booleans()):  # so alike that clusters stay empty
        points = points.round().clamp(0, 1)
    T = data.draw(st.integers(1, B))
    relative = data.draw(st.booleans())
    at_once = kmeans(points, T, generator=draw(), relative=relative)
    with pretending(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("splitlab.plugins.common.kmeans.Fetch", Late)
        later = kmeans(points, T, generator=draw(), relative=relative)
    assert torch.equal(later[0], at_once[0])
    assert torch.equal(later[1], at_once[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_are_scaled_by_a_power_of_two(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    for number in (1.0, 1.5, 0.3, 2.0**20, 3e-30, limits.max, limits.tiny):
        value = torch.tensor(number, dtype=dtype)
        assert _power_of_two(value).item() == 2.0 ** (math.frexp(value.item())[1] - 1)
    for number in (0.0, limits.tiny / 2):
        assert _power_of_two(torch.tensor(number, dtype=dtype)).item() == limits.tiny


@pytest.mark.gpu
def test_gpu_draws_like_the_cpu_and_repeats_itself() -> None:
    points, _ = blobs(5, 8, features=197)
    on_cpu = kmeans(points, 5, generator=draw())
    on_gpu = [kmeans(points.cuda(), 5, generator=draw()) for _ in range(2)]
    assert torch.equal(on_gpu[0][0].cpu(), on_cpu[0])
    torch.testing.assert_close(on_gpu[0][1].cpu(), on_cpu[1])
    assert torch.equal(on_gpu[0][1], on_gpu[1][1])


def test_cluster_means_in_float32_for_half() -> None:
    # 300 times 1000 is beyond float16: the sum must not be taken there.
    values = torch.full((300, 2), 1000.0, dtype=torch.float16)
    means = cluster_means(values, torch.zeros(300, dtype=torch.int64), 1)
    torch.testing.assert_close(means, torch.full((1, 2), 1000.0))


@given(B=st.integers(1, 40), data=st.data())
@settings(max_examples=40, deadline=None)
def test_random_partition_is_even(B: int, data: st.DataObject) -> None:
    T = data.draw(st.integers(1, B))
    assignment = random_partition(B, T, draw())
    check_partition(assignment, B, T)
    sizes = torch.bincount(assignment)
    assert int(sizes.max() - sizes.min()) <= 1
    assert torch.equal(assignment, random_partition(B, T, draw()))


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=40), data=st.data())
@settings(max_examples=60, deadline=None)
def test_label_partition_is_as_pure_as_the_clusters_allow(
    labels: list[int], data: st.DataObject
) -> None:
    T = data.draw(st.integers(1, len(labels)))
    assignment = label_partition(torch.tensor(labels), T, draw(), max(labels) + 2)
    check_partition(assignment, len(labels), T)
    classes_of = [
        {y for y, a in zip(labels, assignment.tolist(), strict=True) if a == i} for i in range(T)
    ]
    present = len(set(labels))
    if present <= T:
        assert all(len(classes) == 1 for classes in classes_of)
        seats = {y: sum(y in classes for classes in classes_of) for y in set(labels)}
        assert seats == highest_averages({y: labels.count(y) for y in set(labels)}, T)
    else:
        # Runs of the sorted labels: neighbours share at most the class at their border.
        for one, two in itertools.pairwise(classes_of):
            assert max(one) <= min(two)


def highest_averages(votes: dict[int, int], seats: int) -> dict[int, int]:
    """D'Hondt seat by seat, after one seat for everybody."""
    given = dict.fromkeys(votes, 1)
    for _ in range(seats - len(votes)):
        winner = max(votes, key=lambda y: (votes[y] / (given[y] + 1), -y))
        given[winner] += 1
    return given


def test_label_partition_leaves_to_chance_who_goes_where() -> None:
    labels = torch.zeros(40, dtype=torch.int64)
    first, second = (label_partition(labels, 4, draw(seed), 100) for seed in (0, 1))
    assert not torch.equal(first, second)
