"""What the low-rank methods share: counts of numbers, bases, and factors that make a tensor again.

The hooks are tested with the methods that inherit them, test_powersgd.py and test_nsc_sl.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitlab.core import Kind, Message, ProtocolError, Role
from splitlab.plugins.common.low_rank import (
    LowRank,
    Mat,
    Track,
    orthonormal,
    principal,
    rank_for,
    shares,
    spectrum,
    worth,
)

SIZES = [(30, 16), (16, 30), (7, 7), (100, 1)]


class Exact(LowRank):
    """Keeps every singular vector: what it rebuilds is what it was given."""

    def _factorise(
        self, matrix_GMF: torch.Tensor, track: Track, *, draw: torch.Generator, size: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        U, S, Vh = torch.linalg.svd(matrix_GMF, full_matrices=False)
        return U * S.unsqueeze(-2), Vh.mT, None


def exact(tiny: Any, mat: Mat, *, natural: bool, center: bool = False) -> Any:
    plugin = Exact("exact", mat=mat, natural=natural, evaluation=True, feedback=0.0, center=center)
    plugin.setup(tiny.peer())
    return plugin


def carried(kind: Kind, tensor: torch.Tensor) -> Message:
    message = Message(kind, 3)
    name = "gradient" if kind is Kind.GRADIENT else "activations"
    message.put(name, tensor, Role.PAYLOAD)
    return message


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("mat", "P", "Q"),
    [
        ("tokens", (6, 5, 16), (16, 16)),
        ("sample", (6, 5, 5), (6, 16, 5)),
        ("batch", (6, 6), (5, 16, 6)),
    ],
)
def test_factors_travel_in_the_shapes_of_the_table_and_make_the_tensor_again(
    tiny: Any, mat: Mat, P: tuple[int, ...], Q: tuple[int, ...]
) -> None:
    X = noise(6, 5, 16)
    message = carried(Kind.ACTIVATION, X.clone())
    exact(tiny, mat, natural=False).before_send(message)
    assert message.names(Role.PAYLOAD) == ("exact.p", "exact.q")
    assert message["exact.p"].shape == P
    assert message["exact.q"].shape == Q
    exact(tiny, mat, natural=False).after_receive(message)
    assert message.names(Role.PAYLOAD) == ("activations",)
    torch.testing.assert_close(message["activations"], X, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mat", ["tokens", "sample", "batch"])
def test_the_natural_way_back_is_the_gradient_projected_on_the_clients_basis(
    tiny: Any, mat: Mat
) -> None:
    client, server = (exact(tiny, mat, natural=True) for _ in range(2))
    up = carried(Kind.ACTIVATION, noise(6, 5, 16))
    client.before_send(up)
    Q = up["exact.q"].clone()
    server.after_receive(up)
    G = noise(6, 5, 16, seed=1)
    down = carried(Kind.GRADIENT, G.clone())
    server.before_send(down)
    assert down.names(Role.PAYLOAD) == ("exact.p",)  # the client has Q
    client.after_receive(down)
    if mat == "sample":
        matrix, basis = G, Q
    else:
        matrix = G.reshape(-1, 16) if mat == "tokens" else G.reshape(6, -1)
        basis = Q.reshape(-1, Q.shape[-1])
    expected = (matrix @ basis @ basis.mT).reshape(G.shape)
    torch.testing.assert_close(down["gradient"], expected, rtol=1e-4, atol=1e-5)


def test_a_gradient_of_activations_that_were_not_sent_is_the_peers_error(tiny: Any) -> None:
    down = carried(Kind.GRADIENT, noise(6, 5, 16))
    exact(tiny, "tokens", natural=False).before_send(down)
    with pytest.raises(ProtocolError, match="step 4: plugin 'exact': a gradient came of activa"):
        exact(tiny, "tokens", natural=True).after_receive(down)


def test_means_of_columns_travel_apart(tiny: Any) -> None:
    X = noise(6, 5, 16) + 100
    message = carried(Kind.ACTIVATION, X.clone())
    exact(tiny, "tokens", natural=False, center=True).before_send(message)
    torch.testing.assert_close(message["exact.mean"], X.mean((0, 1)), rtol=1e-5, atol=1e-4)
    assert message["exact.p"].mean((0, 1)).abs().max() < 1e-3
    exact(tiny, "tokens", natural=False, center=True).after_receive(message)
    torch.testing.assert_close(message["activations"], X, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("M", "F"), SIZES)
@pytest.mark.parametrize("natural", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_the_rank_of_a_ratio_is_the_largest_that_fits(
    M: int, F: int, natural: bool, center: bool
) -> None:
    for percent in range(0, 101, 5):
        ratio = percent / 100
        R = rank_for(ratio, M, F, natural=natural, center=center)
        each, extra = M + F / 2 if natural else M + F, F if center else 0
        assert (R + 1) * each + extra > ratio * M * F - 1e-6 * M * F
        if R:
            assert R * each + extra <= ratio * M * F + 1e-6 * M * F
            assert sum(shares(R, M, F, natural=natural, center=center)) / 2 <= ratio + 1e-6


def test_shares_are_counts_of_numbers_and_never_more_than_the_matrix() -> None:
    assert shares(2, 30, 16, natural=False) == (2 * 46 / 480, 2 * 46 / 480)
    assert shares(2, 30, 16, natural=True) == (2 * 46 / 480, 2 * 30 / 480)
    assert shares(2, 30, 16, natural=True, center=True) == ((2 * 46 + 16) / 480, (60 + 16) / 480)
    assert shares(16, 30, 16, natural=False) == (1.0, 1.0)


@pytest.mark.parametrize(("M", "F"), SIZES)
def test_a_rank_is_worth_it_while_its_factors_are_smaller(M: int, F: int) -> None:
    R = worth(M, F)
    assert R >= 1
    assert R == 1 or R * (M + F) <= M * F
    assert (R + 1) * (M + F) > M * F


@pytest.mark.parametrize("columns", [noise(5, 3), torch.zeros(5, 3), torch.ones(2, 5, 4)])
def test_bases_are_orthonormal_whatever_the_columns(columns: torch.Tensor) -> None:
    Q = orthonormal(columns)
    assert Q.shape == columns.shape
    torch.testing.assert_close(Q.mT @ Q, torch.eye(Q.shape[-1]).expand(*Q.shape[:-2], -1, -1))


def test_a_spectrum_is_sorted_and_that_of_what_is_not_finite_is_empty() -> None:
    A = noise(2, 6, 4)
    values, vectors = spectrum(A.mT @ A)
    assert (values[..., :-1] >= values[..., 1:]).all()
    assert (values >= 0).all()
    torch.testing.assert_close(vectors * values.unsqueeze(-2) @ vectors.mT, A.mT @ A)
    broken = (A.mT @ A).index_fill(0, torch.tensor([1]), float("nan"))
    values, vectors = spectrum(broken)
    assert values[0].max() > 0
    assert values[1].tolist() == [0] * 4
    assert torch.equal(vectors[1].sort().values, torch.eye(4).sort().values)


@pytest.mark.parametrize(("M", "F"), [(30, 16), (16, 30)])
def test_principal_vectors_span_what_a_singular_value_decomposition_finds(M: int, F: int) -> None:
    A = noise(2, M, 3) @ noise(2, 3, F, seed=1)  # of rank 3
    Q = principal(A, 3)
    assert Q.shape == (2, F, 3)
    torch.testing.assert_close(Q.mT @ Q, torch.eye(3).expand(2, -1, -1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(A @ Q @ Q.mT, A, rtol=1e-4, atol=1e-4)
    Vh = torch.linalg.svd(A, full_matrices=False).Vh[:, :1]
    overlap = (Vh @ principal(A, 1)).abs().flatten()
    torch.testing.assert_close(overlap, torch.ones(2), rtol=1e-4, atol=1e-4)
