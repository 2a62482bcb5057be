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


def test_bounds_never_get_wider_with_more_iterations():
    """The gaps of the iterates themselves go up and down; every fifth is looked at, and the last."""
    _, _, rows = prepared("tall")
    problem = SquaredTraceProblem(rows, GAMMA)
    for limit in range(5, 50, 5):
        less, more = (problem.solve([0, 1, 3], 0.0, np.zeros((5, 3)), n).gap for n in (limit, limit + 1))
        assert more <= less


def test_tasks_that_are_left_out_make_no_difference():
    """However large: neither bounds nor the length of a step depend on them."""
    blocks, _, _ = prepared("tall")
    found = []
    for factor in (1, 30):
        scaled = [(factor * X if t == 2 else X, y, s) for t, (X, y, s) in enumerate(blocks)]
        rows = TaskRows.of(Problem.from_tasks(Tasks.from_long(*long_form(scaled)), SquaredLoss()))
        result = SquaredTraceProblem(rows, GAMMA).solve([0, 1, 3], 1e-6, np.zeros((5, 3)), 10_000)
        found.append((result.lower, result.upper, result.n_iter))
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_second_moments_are_kept_while_they_are_few_numbers(monkeypatch):
    _, _, rows = prepared("tall")  # four tasks, five features
    for few, kept in ((99, False), (100, True)):
        monkeypatch.setattr(squared_trace, "_FEW_NUMBERS", few)
        assert (SquaredTraceProblem(rows, GAMMA)._gram is not None) == kept


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
    for s, c, k in (([1, 1e-3, 1e-7, 1e-9], 1e-10, 4), ([1, 1e-3, 5e-5, 1e-6], 2e-5, 3)):
        W, norm = squared_trace._lower(U * np.array(s) @ Q, c)
        lowered = np.maximum(np.array(s) - c * sum(s[:k]) / (1 + k * c), 0)
        assert (lowered > 0).sum() == k
        np.testing.assert_allclose(np.linalg.svd(W)[1], lowered, rtol=1e-6, atol=1e-15)
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
