"""Squared trace norm in NumPy: prox, gap and optimum are those of the penalty that torch solves for."""

import numpy as np
import pytest
import torch

from companion import Tasks
from companion.losses import SquaredLoss
from companion.penalties import SquaredTraceNorm
from companion.solvers import Problem, minimise, squared_trace
from companion.solvers.squared_trace import SquaredTraceProblem, duality_gap
from companion.solvers.task_rows import TaskRows
from tests.oracles.partitions import draw_groups, long_form

GAMMA = 0.05
SIZES = {"tall": ((9, 14, 7, 11), 5), "mixed": ((3, 11, 1, 6), 5), "wide": ((3, 4, 2, 5), 17)}


@pytest.fixture(params=["second moments", "rows"])
def layout(request, monkeypatch):
    if request.param == "rows":
        monkeypatch.setattr(squared_trace, "_FEW_NUMBERS", 0)


def prepared(name, seed=0):
    sizes, d = SIZES[name]
    blocks = draw_groups(seed, sizes, d, 2, 0.4, weighted=True)[1]
    problem = Problem.from_tasks(Tasks.from_long(*long_form(blocks)), SquaredLoss())
    return blocks, problem, TaskRows.of(problem)


@pytest.mark.parametrize("name", SIZES)
def test_optimum_and_gap_of_some_of_the_tasks(name, layout):
    """Tasks 0, 1 and 3, whose problem is prepared afresh and solved by FISTA on the data in torch."""
    blocks, whole, rows = prepared(name)
    tasks = [0, 1, 3]
    problem = Problem.from_tasks(Tasks.from_long(*long_form([blocks[t] for t in tasks])), SquaredLoss())
    expected = minimise(problem, SquaredTraceNorm(GAMMA), 1e-12, 20_000)
    start = np.random.default_rng(0).normal(size=(rows.A.shape[1], 3))
    scale = problem.null_objective
    for gap in (1e-2, 1e-6, 1e-12):
        found = SquaredTraceProblem(rows, GAMMA).solve(tasks, gap * scale, start, 20_000)
        assert 0 <= found.gap <= gap * scale and found.n_iter > 0
        assert found.lower <= expected.certificate.primal * (1 + 1e-12) <= found.upper * (1 + 3e-12)
        W = rows.original(found.W, whole.y)
        value = problem.at(W).value + float(SquaredTraceNorm(GAMMA).value(W))
        assert found.upper == pytest.approx(value, rel=1e-11)
        # The gap, less what a better multiple of the residuals gains.
        assert found.gap <= problem.gap(SquaredTraceNorm(GAMMA), W) * (1 + 1e-9) + 1e-15 * scale
    np.testing.assert_allclose(W, expected.point.W, atol=1e-5 * float(W.abs().max()))


def test_it_starts_where_it_is_told_and_stops_at_the_limit(layout):
    _, _, rows = prepared("tall")
    problem = SquaredTraceProblem(rows, GAMMA)
    optimum = problem.solve([0, 2, 3], 1e-9, np.zeros((5, 3)), 10_000)
    again = problem.solve([0, 2, 3], 1e-8, optimum.W, 10_000)
    assert again.n_iter == 0 and again.W is optimum.W
    only_bounds = problem.solve([0, 2, 3], np.inf, np.zeros((5, 3)), 10_000)
    assert only_bounds.n_iter == 0 and only_bounds.lower <= optimum.upper <= only_bounds.upper
    cut = problem.solve([0, 2, 3], 1e-9, np.zeros((5, 3)), 7)
    assert cut.n_iter == 7 and 1e-9 < cut.gap < only_bounds.gap


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (6, 1), (1, 6)])
def test_prox_is_that_of_the_penalty(shape):
    rng = np.random.default_rng(0)
    _, _, rows = prepared("tall")
    for gamma in (0.02, 1.3):
        subset = squared_trace._Subset(SquaredTraceProblem(rows, gamma), [0])
        for step in (1e-4, 0.3, 20.0):
            V = rng.normal(size=shape)
            W = subset.prox(V, step)
            np.testing.assert_allclose(W, SquaredTraceNorm(gamma).prox(torch.from_numpy(V), step), atol=1e-14)
            assert subset._last[0] is W and subset._last[1] == pytest.approx(np.linalg.svd(W)[1].sum(), rel=1e-12)
        assert not subset.prox(np.zeros(shape), 1.0).any()


def test_prox_keeps_singular_values_far_below_the_largest():
    rng = np.random.default_rng(0)
    U, Q = np.linalg.qr(rng.normal(size=(6, 4)))[0], np.linalg.qr(rng.normal(size=(4, 4)))[0]
    V = U * np.array([1, 1e-3, 1e-7, 1e-9]) @ Q
    W, norm = squared_trace._lower(V, 1e-10)
    s = np.array([1, 1e-3, 1e-7, 1e-9])
    lowered = s - 1e-10 * s.sum() / (1 + 4e-10)
    np.testing.assert_allclose(np.linalg.svd(W)[1], lowered, rtol=1e-6)
    assert norm == pytest.approx(lowered.sum(), rel=1e-12)


def test_the_gap_of_weights_that_prox_did_not_return():
    """Prox remembers the norm of what it returned last; other weights must not get it."""
    _, _, rows = prepared("tall")
    problem, rng = SquaredTraceProblem(rows, GAMMA), np.random.default_rng(0)
    V, other = rng.normal(size=(2, 5, 3))
    subset, fresh = (squared_trace._Subset(problem, [0, 1, 3]) for _ in range(2))
    W = subset.prox(V, 0.3)
    assert subset.gap_and_value(other) == fresh.gap_and_value(other)
    assert subset.gap_and_value(W) == pytest.approx(fresh.gap_and_value(W), rel=1e-12)


def test_the_gap_is_the_least_over_all_multiples():
    penalty, conjugate, along, r2 = 0.7, 0.4, 0.9, 1.3
    at = lambda s: penalty + s**2 * conjugate - s * along + (1 - s) ** 2 / 2 * r2
    assert duality_gap(penalty, conjugate, along, r2) == pytest.approx(min(at(s) for s in np.linspace(0, 3, 30_001)))
    assert duality_gap(0.0, 0.0, 0.0, 0.0) == 0
