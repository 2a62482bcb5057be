"""Graphs over tasks: Laplacians, the penalty along edges against dense formulas, and what counts as a graph."""

import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from companion.penalties import GraphDifference, MeanDeviation, complete_graph, laplacian, path_graph
from companion.penalties.graph import n_components

T, D = 5, 3
IDS = tuple("abcde")


@pytest.fixture
def weights():
    """Edge weights of a connected graph without symmetry between tasks."""
    upper = np.triu(np.arange(1.0, 26.0).reshape(T, T) % 7, k=1)
    return upper + upper.T


def along_edges(W, weights):
    """Sum over the edges of their weight times the squared distance, edge by edge."""
    total = 0.0
    for s in range(T):
        for t in range(s):
            a = weights[s, t]
            total += abs(a) * ((W[:, s] - np.sign(a) * W[:, t]) ** 2).sum()
    return total


def test_laplacian_measures_distances_along_edges(weights):
    W = np.random.default_rng(0).normal(size=(D, T))
    L = laplacian(weights, IDS)
    assert np.trace(W @ L @ W.T) == pytest.approx(along_edges(W, weights), rel=1e-12)
    np.testing.assert_allclose(L.sum(0), 0, atol=1e-12)
    np.testing.assert_array_equal(laplacian(L, IDS), L)  # a Laplacian is taken as it is
    np.testing.assert_array_equal(laplacian(torch.from_numpy(weights), IDS), L)


def test_negative_edges_pull_towards_the_opposite(weights):
    W = np.random.default_rng(1).normal(size=(D, T))
    weights[0, 3] = weights[3, 0] = -2.5
    with pytest.raises(ValueError, match=r"weights >= 0; the smallest is -2.5. With signed=True"):
        laplacian(weights, IDS)
    L = laplacian(weights, IDS, signed=True)
    assert np.trace(W @ L @ W.T) == pytest.approx(along_edges(W, weights), rel=1e-12)
    assert np.linalg.eigvalsh(L).min() >= -1e-12
    np.testing.assert_allclose(laplacian(L, IDS, signed=True), L)
    with pytest.raises(ValueError, match="weights >= 0"):
        laplacian(L, IDS)


def test_directions_are_averaged_only_when_asked_for(weights):
    one_way = np.triu(weights)
    with pytest.raises(
        ValueError, match=r"symmetric; the weights between tasks '\w' and '\w' are [06] and [06]\. With d"
    ):
        laplacian(one_way, IDS)
    np.testing.assert_allclose(laplacian(one_way, IDS, directed=True), laplacian(weights / 2, IDS))
    with pytest.raises(ValueError, match="must be symmetric"):
        laplacian(sparse.csr_array(one_way), IDS)


def test_sparse_graphs_stay_sparse(weights):
    for given in (sparse.csr_matrix(weights), sparse.coo_array(weights)):
        L = laplacian(given, IDS)
        assert sparse.issparse(L)
        np.testing.assert_allclose(L.toarray(), laplacian(weights, IDS))
        np.testing.assert_allclose(laplacian(L, IDS).toarray(), L.toarray())


def test_a_data_frame_names_its_tasks(weights):
    order = [3, 0, 4, 1, 2]
    frame = pd.DataFrame(weights, index=list(IDS), columns=list(IDS)).iloc[order, order[::-1]]
    np.testing.assert_allclose(laplacian(frame, IDS), laplacian(weights, IDS))
    with pytest.raises(ValueError, match=r"index and columns of graph must be the 5 task ids; got index \['d', 'a'"):
        laplacian(frame, tuple("abcdx"))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (np.ones((4, 5)), r"shape \(5, 5\), one row and column per task; got \(4, 5\)"),
        (sparse.eye_array(3), r"shape \(5, 5\), one row and column per task; got \(3, 3\)"),
        (np.full((5, 5), np.nan), "finite weights; it contains NaN or infinity"),
        (sparse.csr_array(np.diag([np.inf, 0, 0, 0, 0])), "finite weights"),
        (
            np.exp(-((np.arange(5)[:, None] - np.arange(5)) ** 2)),
            r"zero diagonal.*row . has 1 on the diagonal and weig",
        ),
        (np.eye(5), "zero diagonal"),
        (sparse.eye_array(5), "zero diagonal"),
    ],
)
def test_what_is_no_graph_is_refused(graph, message):
    with pytest.raises(ValueError, match=message):
        laplacian(graph, IDS)


def test_path_complete_and_empty_graphs():
    np.testing.assert_array_equal(path_graph(4).toarray(), np.eye(4, k=1) + np.eye(4, k=-1))
    assert path_graph(1).toarray().tolist() == [[0.0]]
    with pytest.raises(ValueError, match="n_tasks must be >= 1; got 0"):
        path_graph(0)
    np.testing.assert_allclose(laplacian(complete_graph(T), IDS), np.eye(T) - 1 / T)
    assert n_components(laplacian(path_graph(T), IDS)) == 1
    assert n_components(laplacian(np.zeros((T, T)), IDS)) == T
    parts = np.kron(np.eye(3), [[0, 1], [1, 0]])[:5, :5]
    assert n_components(laplacian(parts, IDS)) == 3


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_penalty_matches_dense_formulas(weights, kind, dtype):
    tol = 1e-10 if dtype == torch.float64 else 1e-4
    L = laplacian(weights if kind == "dense" else sparse.csr_array(weights), IDS)
    penalty = GraphDifference(0.3, 1.7, L)
    A = 0.3 * np.eye(T) + 1.7 * laplacian(weights, IDS)
    V = np.random.default_rng(2).normal(size=(D, T))
    v = torch.from_numpy(V).to(dtype)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=tol, atol=tol)
    close(penalty.times(v), V @ A)
    close(penalty.diagonal(v), np.diag(A))
    close(penalty.value(v), np.trace(V @ A @ V.T) / 2)
    close(penalty.value(v), 0.15 * (V**2).sum() + 0.85 * along_edges(V, weights))
    close(penalty.conjugate(v), np.trace(V @ np.linalg.inv(A) @ V.T) / 2)
    close(penalty.prox(v, 0.6), V @ np.linalg.inv(np.eye(T) + 0.6 * A))
    assert penalty.dual_scale(v) == 1.0
    triple = penalty.scaled(3.0)
    close(triple.value(v), 3 * penalty.value(v))
    close(triple.prox(v, 0.2), penalty.prox(v, 0.6))
    for made in (penalty.times(v), penalty.prox(v, 0.6), penalty.conjugate(v), penalty.diagonal(v)):
        assert made.dtype == dtype


def test_the_complete_graph_is_the_distance_to_the_mean():
    V = torch.from_numpy(np.random.default_rng(3).normal(size=(D, T)))
    a, b = MeanDeviation(0.3, 1.7), GraphDifference(0.3, 1.7, laplacian(complete_graph(T), IDS))
    for method in ("times", "value", "conjugate", "diagonal"):
        torch.testing.assert_close(getattr(a, method)(V), getattr(b, method)(V))
    torch.testing.assert_close(a.prox(V, 0.6), b.prox(V, 0.6))
    assert float(a.value(V)) == pytest.approx(0.15 * float((V**2).sum()) + 0.85 * float(((V.T - V.mean(1)) ** 2).sum()))


@pytest.mark.parametrize(
    ("alpha", "coupling", "message"),
    [
        (0.0, 1.0, "alpha must be a finite number > 0; got 0.0"),
        (1.0, -0.1, "coupling must be a finite number >= 0; got -0.1"),
        (1.0, math.nan, "coupling must be a finite number >= 0; got nan"),
    ],
)
def test_weights_are_checked(alpha, coupling, message):
    with pytest.raises(ValueError, match=message):
        GraphDifference(alpha, coupling, np.zeros((T, T)))


def test_a_graph_penalty_can_be_pickled_before_use(weights):
    penalty = GraphDifference(0.3, 1.7, laplacian(weights, IDS))
    V = torch.ones(D, T, dtype=torch.float64)
    assert pickle.loads(pickle.dumps(penalty)).value(V) == penalty.value(V)
