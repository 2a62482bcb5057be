"""The three layouts of the same data: products, sums and moments agree with plain loops over tasks."""

import os

import numpy as np
import pytest
import torch

from companion import Tasks
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties import BlockSparse, Dirty, TraceNorm
from companion.solvers import Problem, minimise, proximal_gradient
from companion.solvers.problem import _padded
from companion.solvers.rows import PaddedRows, RaggedRows, SharedRows

DEVICE = os.environ.get("COMPANION_TEST_DEVICE", "cpu")
SIZES, D = (4, 7, 2), 5
T, N = len(SIZES), sum(SIZES)
OFFSETS = np.cumsum([0, *SIZES])


@pytest.fixture
def blocks():
    """Per task: design, values per row, row weights; and weights of the model."""
    rng = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=rng).to(DEVICE)
    return [(make(n, D), make(n), make(n).abs() + 0.1) for n in SIZES], make(D, T)


def layouts(data, which):
    """A layout of the data, its values and weights per row, and how to read a task's values off it."""
    X, q, v = (torch.cat([block[i] for block in data]) for i in range(3))
    if which == "ragged":
        return RaggedRows(X, OFFSETS), q, v, lambda values, t: values[OFFSETS[t] : OFFSETS[t + 1]]
    rows, q, v = _padded(X, OFFSETS, q, v)
    return rows, q, v, lambda values, t: values[t, : SIZES[t]]


@pytest.mark.parametrize("which", ["ragged", "padded"])
def test_products_sums_and_moments_of_tasks_with_designs_of_their_own(blocks, which):
    data, W = blocks
    rows, q, v, read = layouts(data, which)
    keep = torch.tensor([3, 0], device=W.device)
    for t, (X, values, weights) in enumerate(data):
        close = torch.testing.assert_close
        close(read(rows.times(W), t), X @ W[:, t])
        close(rows.transpose_times(q)[:, t], X.T @ values)
        close(rows.sums(v)[t], weights.sum())
        close(read(rows.spread(rows.sums(v)) + 0 * q, t), weights.sum().expand(SIZES[t]))
        close(rows.gram(v)[t], X.T @ torch.diag(weights) @ X)
        close(rows.squares(v)[:, t], (X**2).T @ weights)
        close(read(rows.columns(keep).times(W[:2]), t), X[:, keep] @ W[:2, t])
        X_t, values_t, weights_t = list(rows.blocks(q, v))[t]
        close((X_t.T @ (values_t * weights_t)), X.T @ (values * weights))
    largest = max(float(torch.linalg.eigvalsh(X.T @ (w[:, None] * X)).max()) for X, _, w in data)
    assert rows.largest_eigenvalue(v) == pytest.approx(largest, rel=1e-12)


def test_products_sums_and_moments_of_shared_inputs(blocks):
    data, W = blocks
    X = data[1][0]
    n = len(X)
    q, v = torch.arange(n * T, device=DEVICE).reshape(n, T).double(), torch.rand(n, T, dtype=torch.float64).to(DEVICE)
    rows = SharedRows(X, T)
    close = torch.testing.assert_close
    close(rows.times(W), torch.stack([X @ W[:, t] for t in range(T)], dim=1))
    close(rows.transpose_times(q), torch.stack([X.T @ q[:, t] for t in range(T)], dim=1))
    close(rows.sums(q), q.sum(0))
    close(rows.squares(v), torch.stack([(X**2).T @ v[:, t] for t in range(T)], dim=1))
    close(rows.gram(torch.full_like(q, 0.3)), 0.3 * (X.T @ X)[None])
    close(rows.columns(torch.tensor([2], device=DEVICE)).times(W[:1]), X[:, 2:3] @ W[:1])
    bound = rows.largest_eigenvalue(v)
    for t, (X_t, q_t) in enumerate(rows.blocks(q)):
        close(X_t.T @ q_t, X.T @ q[:, t])
        assert float(torch.linalg.eigvalsh(X.T @ (v[:, t, None] * X)).max()) <= bound * (1 + 1e-12)
    same = torch.full_like(v, 0.7)
    assert rows.largest_eigenvalue(same) == pytest.approx(0.7 * float(torch.linalg.eigvalsh(X.T @ X).max()))


@pytest.mark.parametrize(
    "penalty", [BlockSparse(0.1), TraceNorm(0.15), Dirty(0.15, 0.1)], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("loss", [SquaredLoss(), LogisticLoss()], ids=lambda loss: type(loss).__name__)
def test_padded_blocks_give_the_answer_of_ragged_rows(loss, penalty):
    """Padding is what an accelerator gets; its spare rows must not count, in intercepts least of all."""
    rng = np.random.default_rng(0)
    pairs = []
    for n in (9, 14, 23):
        X = rng.normal(size=(n, D)) + 2
        y = X @ rng.normal(size=D) + rng.normal(size=n)
        pairs.append((X, np.where(y > np.median(y), 1.0, -1.0) if isinstance(loss, LogisticLoss) else y))
    tasks = Tasks.from_list(pairs).to(device=DEVICE)
    ragged = Problem.from_tasks(tasks, loss)
    if isinstance(ragged.rows, RaggedRows):
        rows, y, v = _padded(ragged.rows.X, ragged.rows.offsets, ragged.y, ragged.v)
        padded = Problem(rows, y, v, loss, free=ragged.free)
    else:  # an accelerator has padded already
        padded, ragged = ragged, Problem.from_tasks(tasks.to(device="cpu"), loss)
    assert isinstance(padded.rows, PaddedRows)
    solutions = [minimise(ragged, penalty, 1e-11, 20_000)]
    solutions.append(proximal_gradient(padded, penalty, 1e-11 * padded.null_objective, 20_000))
    solutions.append(minimise(padded, penalty, 1e-11, 20_000))
    assert padded.null_objective == pytest.approx(ragged.null_objective, rel=1e-12)
    for solution in solutions:
        assert solution.certificate.gap <= 1e-11 * padded.null_objective
        assert solution.certificate.primal == pytest.approx(solutions[0].certificate.primal, rel=1e-10)
        torch.testing.assert_close(solution.point.W.cpu(), solutions[0].point.W, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(solution.point.intercept.cpu(), solutions[0].point.intercept, atol=1e-4, rtol=1e-4)
