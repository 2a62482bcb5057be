"""The data term in every layout: values, gradients, intercepts, moments and certificates against plain NumPy."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from companion import Tasks
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties import L1, BlockSparse, Dirty, RobustPair, SquaredL2, SquaredTraceNorm, TraceNorm
from companion.solvers import Problem, SplitProblem
from companion.solvers.problem import _padded
from companion.solvers.rows import PaddedRows, RaggedRows, SharedRows
from tests.oracles import convex as oracle

D = 5
LOSSES = {"squared": SquaredLoss(), "logistic": LogisticLoss()}


@dataclass(frozen=True)
class Data:
    """The same tasks for the package and for the oracle."""

    problem: Problem
    blocks: list
    loss: str
    reduction: str
    fit_intercept: bool
    l2: float

    def weights(self, seed=0):
        return 0.3 * torch.randn(
            D, len(self.blocks), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )

    def intercepts(self, W):
        """Best ones on the data as they came."""
        out = np.zeros(len(self.blocks))
        if self.fit_intercept:
            for t, ((X, y, _), v) in enumerate(
                zip(self.blocks, oracle.row_weights(self.blocks, self.reduction), strict=True)
            ):
                out[t] = oracle.best_intercept(self.loss, y, X @ W[:, t], v)
        return out


def build(layout, loss, reduction, fit_intercept, l2):
    rng = np.random.default_rng(3)
    shared = layout in ("shared", "missing")
    sizes = (11, 11, 11) if shared else (9, 4, 13)
    common = rng.normal(size=(11, D)) + 2
    blocks = []
    for t, n in enumerate(sizes):
        X = common if shared else rng.normal(size=(n, D)) + t
        y = X @ rng.normal(size=D) + rng.normal(size=n) - 4
        y = np.where(y > np.sort(y)[n // 2], 1.0, -1.0) if loss == "logistic" else y
        blocks.append((X, y, np.ones(n) if layout in ("shared", "missing", "ragged") else rng.uniform(0.3, 2, n)))
    if shared:
        Y = np.stack([y for _, y, _ in blocks], axis=1)
        if layout == "missing":
            Y[rng.random(Y.shape) < 0.25] = np.nan
            seen = ~np.isnan(Y)
            blocks = [(common[s], y[s], np.ones(s.sum())) for (_, y, _), s in zip(blocks, seen.T, strict=True)]
        tasks = Tasks.shared(torch.from_numpy(common), torch.from_numpy(Y))
    else:
        X, y, s = (np.concatenate([block[i] for block in blocks]) for i in range(3))
        weight = None if layout == "ragged" else s
        tasks = Tasks.from_long(torch.from_numpy(X), torch.from_numpy(y), np.repeat(np.arange(3), sizes), weight)
    problem = Problem.from_tasks(tasks, LOSSES[loss], reduction, fit_intercept, l2)
    if layout == "padded":  # what accelerators get
        rows = problem.rows
        padded, y, v = _padded(rows.X, rows.offsets, problem.y, problem.v)
        again = Problem(padded, y, v, problem.loss, l2, problem.free)
        again._X_mean, again._y_mean = problem._X_mean, problem._y_mean
        problem = again
    return Data(problem, blocks, loss, reduction, fit_intercept, l2)


LAYOUTS = {
    "ragged": RaggedRows,
    "weighted": RaggedRows,
    "shared": SharedRows,
    "missing": SharedRows,
    "padded": PaddedRows,
}
OPTIONS = [("mean", True, 0.0), ("sum", True, 0.7), ("mean", False, 0.4)]


@pytest.fixture(params=[(lay, loss, *o) for lay in LAYOUTS for loss in LOSSES for o in OPTIONS], ids=str)
def data(request):
    built = build(*request.param)
    assert type(built.problem.rows) is LAYOUTS[request.param[0]]
    return built


def test_values_gradients_and_intercepts(data):
    for seed in (0, 1):
        W = data.weights(seed)
        b = data.intercepts(W.numpy())
        point = data.problem.at(W)
        value = oracle.data_term(data.blocks, W.numpy(), b, data.loss, data.reduction, data.l2)
        assert point.value == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(data.problem.original_intercepts(point), b, rtol=1e-9, atol=1e-10)
        C = oracle.descent(data.blocks, W.numpy(), b, data.loss, data.reduction, data.l2)
        np.testing.assert_allclose(data.problem.descent(point), C, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(data.problem.gradient(W), -C, rtol=1e-9, atol=1e-10)


def test_gradient_is_the_slope_of_the_value(data):
    """Central differences, intercepts solved for on both sides."""
    W, step = data.weights(), 1e-5
    slopes = torch.zeros_like(W)
    for j in range(D):
        for t in range(W.shape[1]):
            up, down = W.clone(), W.clone()
            up[j, t] += step
            down[j, t] -= step
            slopes[j, t] = (data.problem.at(up).value - data.problem.at(down).value) / (2 * step)
    torch.testing.assert_close(data.problem.gradient(W), slopes, rtol=1e-5, atol=1e-7)


def test_null_objective_and_zero(data):
    null = oracle.null_objective(data.blocks, data.loss, data.reduction, data.fit_intercept)
    assert data.problem.null_objective == pytest.approx(null, rel=1e-12)
    assert data.problem.zero().shape == (D, 3) and not data.problem.zero().any()
    assert data.problem.at(data.problem.zero()).value == pytest.approx(null, rel=1e-12)


NORMS = [
    (BlockSparse(0.4, 2), oracle.block_sparse(0.4, 2)),
    (BlockSparse(0.4, 1.5), oracle.block_sparse(0.4, 1.5)),
    (L1(0.3), oracle.block_sparse(0.3, 1)),
    (TraceNorm(0.5), oracle.trace_norm(0.5)),
    (SquaredTraceNorm(0.2), oracle.squared_trace_norm(0.2)),
]


@pytest.mark.parametrize(("penalty", "norms"), NORMS, ids=lambda p: repr(p) if hasattr(p, "prox") else "")
def test_certificates_are_those_of_numpy(data, penalty, norms):
    for W in (data.weights(), 0.01 * data.weights(), data.problem.zero()):
        certificate = data.problem.certify(penalty, data.problem.at(W))
        b = data.intercepts(W.numpy())
        primal = oracle.data_term(data.blocks, W.numpy(), b, data.loss, data.reduction, data.l2)
        primal += norms.value(W.numpy())
        dual = oracle.lower_bound(data.blocks, W.numpy(), norms, data.loss, data.reduction, data.fit_intercept, data.l2)
        assert certificate.primal == pytest.approx(primal, rel=1e-12)
        assert certificate.dual == pytest.approx(dual, rel=1e-9, abs=1e-11)
        assert certificate.gap == certificate.primal - certificate.dual
        assert data.problem.gap(penalty, W) == pytest.approx(primal - dual, rel=1e-9, abs=1e-11)


def test_weak_duality(data):
    """No dual value of any point is above any primal value."""
    for penalty in (BlockSparse(0.1, 3), Dirty(0.12, 0.1), TraceNorm(0.1), SquaredL2(0.3), SquaredTraceNorm(0.02)):
        scales = (0.0, 0.05, 0.4, 3.0)
        found = [data.problem.certify(penalty, data.problem.at(s * data.weights())) for s in scales]
        assert max(c.dual for c in found) <= min(c.primal for c in found)


def test_alpha_max_is_the_dual_norm_at_zero(data):
    C = oracle.descent(data.blocks, np.zeros((D, 3)), data.intercepts(np.zeros((D, 3))), data.loss, data.reduction)
    assert data.problem.alpha_max(BlockSparse(2.0)) == pytest.approx(np.linalg.norm(C, axis=1).max() / 2, rel=1e-10)
    assert data.problem.alpha_max(TraceNorm(1.0)) == pytest.approx(np.linalg.norm(C, 2), rel=1e-10)


def test_lipschitz_constant_bounds_every_curvature(data):
    """Exact for a squared loss where the intercepts are gone and tasks weigh their rows alike; else an upper bound."""
    centred = []
    for (X, _, _), v in zip(data.blocks, oracle.row_weights(data.blocks, data.reduction), strict=True):
        Z = X - v @ X / v.sum() if data.fit_intercept else X
        centred.append(np.linalg.eigvalsh(Z.T @ (v[:, None] * Z)).max())
    curvature = 0.25 if data.loss == "logistic" else 1.0
    exact = curvature * max(centred) + data.l2
    assert data.problem.lipschitz >= exact * (1 - 1e-12)
    if data.problem.is_quadratic and not (
        isinstance(data.problem.rows, SharedRows) and not data.problem.has_common_weight
    ):
        assert data.problem.lipschitz == pytest.approx(exact, rel=1e-10)
    assert data.problem.lipschitz <= 3 * exact
    W, V = data.weights(0), data.weights(1)
    moved = (data.problem.gradient(W) - data.problem.gradient(V)).norm()
    assert float(moved) <= data.problem.lipschitz * float((W - V).norm()) * (1 + 1e-12)


def test_column_norms_and_columns(data):
    """(d, T) roots of ``sum v x^2 + l2`` on the prepared rows; a part of the features is a problem of its own."""
    norms = data.problem.column_norms().expand(D, 3).numpy()
    for t, ((X, _, _), v) in enumerate(zip(data.blocks, oracle.row_weights(data.blocks, data.reduction), strict=True)):
        if not data.fit_intercept:
            expected = np.sqrt(v @ X**2 + data.l2)
        elif isinstance(data.problem.rows, SharedRows):  # centred by the mean of all rows
            Z = X - data.blocks[t][0].mean(0) if data.problem.is_quadratic else None
            expected = norms[:, t] if Z is None else np.sqrt(v @ Z**2 + data.l2)
        else:
            expected = np.sqrt(v @ (X - v @ X / v.sum()) ** 2 + data.l2)
        np.testing.assert_allclose(norms[:, t], expected, rtol=1e-10)
    index = torch.tensor([3, 0])
    part, W = data.problem.columns(index), data.problem.zero()
    W[index] = data.weights()[:2]
    assert part.at(W[index]).value == pytest.approx(data.problem.at(W).value, rel=1e-12)
    torch.testing.assert_close(part.gradient(W[index]), data.problem.gradient(W)[index], rtol=1e-9, atol=1e-11)
    assert part.n_features == 2 and part.null_objective == pytest.approx(data.problem.null_objective, rel=1e-12)


def test_two_parts_see_the_sum():
    data = build("weighted", "squared", "mean", True, 0.0)
    split, Z = SplitProblem(data.problem), torch.stack([data.weights(0), data.weights(1)])
    W = Z.sum(0)
    assert split.at(Z).value == pytest.approx(data.problem.at(W).value, rel=1e-13)
    torch.testing.assert_close(split.gradient(Z), data.problem.gradient(W).expand(2, D, 3))
    torch.testing.assert_close(split.descent(split.at(Z)), -split.gradient(Z), rtol=1e-9, atol=1e-11)
    assert split.lipschitz == pytest.approx(2 * data.problem.lipschitz)
    np.testing.assert_allclose(split.original_intercepts(split.at(Z)), data.intercepts(W.numpy()), rtol=1e-9)
    penalty, norms = RobustPair(0.4, 0.3), oracle.robust(0.4, 0.3)
    primal = oracle.data_term(data.blocks, W.numpy(), data.intercepts(W.numpy()), "squared")
    primal += norms.value(Z[0].numpy(), Z[1].numpy())
    dual = oracle.lower_bound(data.blocks, W.numpy(), norms, "squared")
    assert split.gap(penalty, Z) == pytest.approx(primal - dual, rel=1e-9)
    assert split.zero().shape == (2, D, 3)
    C = oracle.descent(data.blocks, 0 * W.numpy(), data.intercepts(0 * W.numpy()), "squared")
    assert split.alpha_max(RobustPair(1.0, 1.0)) == pytest.approx(np.linalg.norm(C, 2), rel=1e-10)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_a_gap_from_moments_keeps_its_digits(l2):
    """Near the solution primal and dual agree in all digits; the formula from moments must not lose the rest."""
    data = build("weighted", "squared", "mean", True, l2)
    penalty = SquaredL2(0.5)  # whose solution is a linear system
    W = torch.zeros(D, 3, dtype=torch.float64)
    for t, ((X, y, _), v) in enumerate(zip(data.blocks, oracle.row_weights(data.blocks, "mean"), strict=True)):
        Z, r = X - v @ X, y - v @ y
        W[:, t] = torch.from_numpy(np.linalg.solve(Z.T @ (v[:, None] * Z) + (0.5 + l2) * np.eye(D), Z.T @ (v * r)))
    assert abs(data.problem.gap(penalty, W)) <= 1e-14 * data.problem.null_objective
    moved = W + 1e-6 * data.weights()
    # The gap of a strongly convex quadratic under a squared penalty: (w + C/a)' a/2 (w + C/a).
    C = -data.problem.gradient(moved)
    expected = 0.25 * float(((moved - C / 0.5) ** 2).sum())
    assert data.problem.gap(penalty, moved) == pytest.approx(expected, rel=1e-3)
