"""Working sets and proximal Newton against FISTA: every form of the data, one optimum, honest certificates."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import companion.solvers.convex
from companion import Tasks
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties import L1, BlockSparse, Dirty, RobustPair, SquaredTraceNorm, TraceNorm
from companion.solvers import Problem, SplitProblem, block_coordinate, minimise, proximal_gradient
from companion.solvers.working_set import working_set
from tests.oracles import convex as oracle

INF = np.inf
FORMS = ("TaskMoments", "SharedMoments", "SharedColumns", "TaskColumns")


@pytest.fixture
def forms(monkeypatch):
    """Names of the forms whose sweeps were used."""
    used = set()
    for name in FORMS:
        form = getattr(block_coordinate, name)

        def sweep(self, *args, _name=name, _sweep=form.sweep):
            used.add(_name)
            return _sweep(self, *args)

        monkeypatch.setattr(form, "sweep", sweep)
    return used


def draw(sizes, d, kind="ragged", seed=0):
    """Tasks with a few features in common; ``shared`` and ``missing`` have one X, ``weighted`` has row weights."""
    rng = np.random.default_rng(seed)
    W = np.zeros((d, len(sizes)))
    W[: min(d, 5)] = rng.normal(size=(min(d, 5), len(sizes)))
    if kind in ("shared", "missing"):
        X = rng.normal(size=(sizes[0], d)) + 0.3
        Y = X @ W + rng.normal(size=(sizes[0], len(sizes))) + 2
        if kind == "missing":
            Y[rng.random(Y.shape) < 0.3] = np.nan
        return Tasks.shared(X, Y)
    X = [rng.normal(size=(n, d)) * (1 + 0.3 * t) + 0.2 for t, n in enumerate(sizes)]
    y = np.concatenate([Z @ w + rng.normal(size=len(Z)) + 2 for Z, w in zip(X, W.T, strict=True)])
    weight = rng.uniform(0.2, 3, len(y)) if kind == "weighted" else None
    return Tasks.from_long(np.concatenate(X), y, np.repeat(np.arange(len(sizes)), sizes), weight)


def labelled(tasks):
    """The same tasks with labels -1 and +1."""
    out = []
    for t in range(len(tasks)):
        y = np.asarray(tasks[t][1])
        out.append(np.where(y > np.median(y), 1.0, -1.0))
    return tasks.with_targets(out)


PENALTIES = {
    "l1": L1(1.0),
    "q=1.5": BlockSparse(1.0, 1.5),
    "q=2": BlockSparse(1.0, 2),
    "q=3": BlockSparse(1.0, 3),
    "q=inf": BlockSparse(1.0, INF),
    "dirty": Dirty(1.0, 0.7),
    "dirty q=2": Dirty(1.0, 0.8, 2),
}
# sizes, d, kind, fraction of alpha_max, form that is to be used
CASES = {
    "tall": ((60, 45, 80), 7, "ragged", 0.1, "TaskMoments"),
    "tall weighted": ((60, 45, 80), 7, "weighted", 0.1, "TaskMoments"),
    "growing set": ((70, 90, 60), 150, "ragged", 0.2, "TaskMoments"),
    "wide": ((9, 14, 6), 40, "weighted", 0.3, "TaskColumns"),
    "wider than a set": ((9, 14, 6), 130, "ragged", 0.4, "TaskColumns"),
    "shared tall": ((50,) * 4, 8, "shared", 0.1, "SharedMoments"),
    "shared growing": ((190,) * 3, 170, "shared", 0.05, "SharedMoments"),
    "shared wide": ((13,) * 4, 50, "shared", 0.3, "SharedColumns"),
    "shared wider than a set": ((13,) * 2, 150, "shared", 0.4, "SharedColumns"),
}


def scaled(penalty, problem, fraction):
    return penalty.scaled(fraction * problem.alpha_max(penalty))


def same(problem, penalty, fast, slow, tol):
    """Same optimum, certified at both ends by an independent evaluation of the problem."""
    null = problem.null_objective
    assert fast.certificate.primal == pytest.approx(slow.certificate.primal, rel=1e-9)
    for solution in (fast, slow):
        again = problem.certify(penalty, problem.at(solution.point.W))
        assert solution.certificate.primal == pytest.approx(again.primal, rel=1e-12)
        assert solution.certificate.gap == pytest.approx(again.gap, abs=1e-13 * null)
        assert abs(again.gap) <= tol * null
    assert bool((fast.point.W != 0).any())


@pytest.mark.parametrize("l2", [0.0, 0.05])
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("case", CASES)
def test_working_sets_and_fista_agree(case, penalty, l2, forms):
    sizes, d, kind, fraction, form = CASES[case]
    problem = Problem.from_tasks(draw(sizes, d, kind).to(dtype=torch.float64), SquaredLoss(), l2=l2)
    penalty = scaled(penalty, problem, fraction)
    tol = 1e-10
    fast = minimise(problem, penalty, tol, 20_000)
    assert forms == {form}
    slow = proximal_gradient(problem, penalty, tol * problem.null_objective, 20_000)
    same(problem, penalty, fast, slow, tol)


@pytest.mark.parametrize(
    ("sizes", "d", "kind"),
    [((30, 21, 40), 6, "weighted"), ((40,) * 3, 5, "shared"), ((33,) * 3, 7, "missing"), ((40, 26, 35), 90, "ragged")],
)
@pytest.mark.parametrize("penalty", ["l1", "q=2", "q=inf", "dirty"])
def test_proximal_newton_and_fista_agree(sizes, d, kind, penalty, forms):
    tasks = labelled(draw(sizes, d, kind)).to(dtype=torch.float64)
    problem = Problem.from_tasks(tasks, LogisticLoss(), l2=0.01)
    penalty = scaled(PENALTIES[penalty], problem, 0.3)
    fast = minimise(problem, penalty, 1e-10, 100)
    assert forms and forms <= {"TaskMoments", "TaskColumns"}
    assert fast.n_iter < 60
    slow = proximal_gradient(problem, penalty, 1e-10 * problem.null_objective, 20_000)
    same(problem, penalty, fast, slow, 1e-10)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_missing_labels_of_a_squared_loss(fit_intercept, forms):
    """Free intercepts that differ by task: the way through proximal Newton, which one step solves."""
    tasks = draw((33,) * 3, 9, "missing").to(dtype=torch.float64)
    problem = Problem.from_tasks(tasks, SquaredLoss(), fit_intercept=fit_intercept)
    penalty = scaled(BlockSparse(1.0), problem, 0.1)
    fast = minimise(problem, penalty, 1e-10, 100)
    assert forms == {"TaskMoments"}
    slow = proximal_gradient(problem, penalty, 1e-10 * problem.null_objective, 20_000)
    same(problem, penalty, fast, slow, 1e-10)


@pytest.mark.parametrize(("kind", "sizes", "d"), [("weighted", (12, 9, 20), 6), ("shared", (15, 15, 15), 90)])
def test_answers_are_those_of_cvxpy(kind, sizes, d):
    """Not only of each other."""
    tasks = draw(sizes, d, kind, seed=4).to(dtype=torch.float64)
    problem = Problem.from_tasks(tasks, SquaredLoss(), "sum")
    alpha = 0.3 * problem.alpha_max(BlockSparse(1.0))
    blocks = [(*(np.asarray(a) for a in tasks[t]), tasks.weights(t).numpy()) for t in range(3)]
    value, W, _ = oracle.solve(blocks, oracle.block_sparse(alpha, 2), "squared", "sum")
    solution = minimise(problem, BlockSparse(alpha), 1e-12, 20_000)
    assert solution.certificate.primal == pytest.approx(value, rel=1e-8)
    np.testing.assert_allclose(solution.point.W, W, atol=1e-4)


@pytest.mark.parametrize("case", ["tall", "wide", "shared tall", "shared wide"])
def test_warm_starts_reach_the_same_optimum(case):
    sizes, d, kind, fraction, _ = CASES[case]
    problem = Problem.from_tasks(draw(sizes, d, kind).to(dtype=torch.float64), SquaredLoss())
    penalty = scaled(BlockSparse(1.0), problem, fraction)
    cold = minimise(problem, penalty, 1e-11, 5000)
    rng = torch.Generator().manual_seed(0)
    far = problem.at(torch.randn(d, len(sizes), dtype=torch.float64, generator=rng))
    warm = minimise(problem, penalty, 1e-11, 5000, far)
    assert warm.certificate.primal == pytest.approx(cold.certificate.primal, rel=1e-10)
    again = minimise(problem, penalty, 1e-10, 5000, cold.point)
    assert again.n_iter == 0
    torch.testing.assert_close(again.point.W, cold.point.W, rtol=0, atol=0)
    fista = proximal_gradient(problem, penalty, 1e-10 * problem.null_objective, 5000, cold.point)
    assert fista.n_iter == 0


def test_row_penalties_take_the_compiled_route_and_others_do_not(monkeypatch, forms):
    problem = Problem.from_tasks(draw((20, 30, 25), 6).to(dtype=torch.float64), SquaredLoss())
    for penalty in (L1(0.1), BlockSparse(0.1, 3), Dirty(0.1, 0.07)):
        forms.clear()
        minimise(problem, penalty, 1e-6, 1000)
        assert forms
    forms.clear()
    for penalty in (TraceNorm(0.1), SquaredTraceNorm(0.1)):
        assert minimise(problem, penalty, 1e-6, 1000).certificate.gap <= 1e-6 * problem.null_objective
    minimise(SplitProblem(problem), RobustPair(0.1, 0.1), 1e-6, 1000)
    assert not forms
    monkeypatch.setattr(companion.solvers.convex, "find_spec", lambda name: None)
    minimise(problem, BlockSparse(0.1), 1e-6, 1000)
    assert not forms


@pytest.mark.parametrize("case", ["tall", "growing set", "shared wide", "wider than a set"])
def test_best_point_is_kept_when_iterations_run_out(case):
    """Tolerance zero asks for the impossible: rounding or the limit ends it, and the best gap seen is returned."""
    sizes, d, kind, _, _ = CASES[case]
    problem = Problem.from_tasks(draw(sizes, d, kind).to(dtype=torch.float64), SquaredLoss())
    penalty = scaled(BlockSparse(1.0), problem, 0.1)
    gaps, values = [], []
    for max_iter in (5, 10, 20, 40, 2000):
        _, certificate, used = working_set(problem, penalty, 0.0, max_iter)
        gaps.append(certificate.gap)
        values.append(certificate.primal)
        assert used <= max_iter
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(values))
    assert gaps[-1] <= 1e-12 * problem.null_objective and gaps[-1] < gaps[0]
    slow = [proximal_gradient(problem, penalty, 0.0, k).certificate for k in (3, 30, 300)]
    assert slow[0].gap > slow[1].gap > slow[2].gap


@pytest.mark.parametrize(
    ("kind", "sizes", "d", "most"),
    [("ragged", (30, 25, 28), 60, 5000), ("shared", (70,) * 3, 20, 900), ("shared", (30,) * 3, 45, 3500)],
)
def test_extrapolation_saves_sweeps(kind, sizes, d, most):
    """Columns with a correlation of 0.97: without Anderson's extrapolation these took 10027, 6537 and 9477 sweeps."""
    rng = np.random.default_rng(0)
    design = lambda n: rng.normal(size=(n, d)) + 6 * rng.normal(size=(n, 1))
    if kind == "shared":
        X = design(sizes[0])
        tasks = Tasks.shared(X, X[:, :4] @ rng.normal(size=(4, 3)) + rng.normal(size=(len(X), 3)))
    else:
        X = [design(n) for n in sizes]
        y = np.concatenate([Z[:, :4] @ rng.normal(size=4) + rng.normal(size=len(Z)) for Z in X])
        tasks = Tasks.from_long(np.concatenate(X), y, np.repeat([0, 1, 2], sizes))
    problem = Problem.from_tasks(tasks.to(dtype=torch.float64), SquaredLoss())
    solution = minimise(problem, scaled(BlockSparse(1.0), problem, 2e-3), 1e-8, 20_000)
    assert solution.certificate.gap <= 1e-8 * problem.null_objective
    assert 0 < solution.n_iter <= most


@pytest.mark.parametrize(("sizes", "d"), [((60, 45, 80), 7), ((9, 14, 6), 40)])
@pytest.mark.parametrize("penalty", ["q=2", "q=inf", "dirty"])
def test_descent_stops_at_the_gap_it_was_asked_for(sizes, d, penalty):
    """Rough tolerances, where the dual point has to be scaled: what it reports below is also below for the problem."""
    problem = Problem.from_tasks(draw(sizes, d, "weighted").to(dtype=torch.float64), SquaredLoss(), l2=0.05)
    penalty = scaled(PENALTIES[penalty], problem, 0.05)
    for fraction in (0.1, 1e-2, 1e-4):
        W = np.zeros((d, 3))
        form = block_coordinate.task_form(problem.rows.blocks(problem.y, problem.v), False, d, problem.l2, W)
        block_coordinate.descend(form, penalty, fraction * problem.null_objective, 10_000)
        gap = problem.gap(penalty, torch.from_numpy(form.W))
        assert 0 < gap <= fraction * problem.null_objective * (1 + 1e-9)


@pytest.mark.parametrize(("sizes", "d"), [((60, 45, 80), 7), ((9, 14, 6), 40)])
def test_forms_know_residuals_and_correlations(sizes, d):
    """At any weights, from second moments (first case) and from columns."""
    problem = Problem.from_tasks(draw(sizes, d, "weighted").to(dtype=torch.float64), SquaredLoss(), l2=0.05)
    W = torch.randn(d, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    blocks = problem.rows.blocks(problem.y, problem.v)
    form = block_coordinate.task_form(blocks, False, d, problem.l2, W.numpy().copy())
    assert type(form).__name__ == ("TaskMoments" if d == 7 else "TaskColumns")
    point = problem.at(W)
    np.testing.assert_allclose(form.correlations(), problem.descent(point), rtol=1e-9, atol=1e-10)
    assert form.residual_energy() == pytest.approx(2 * point.value, rel=1e-10)


def test_zero_is_the_answer_from_alpha_max_on():
    problem = Problem.from_tasks(draw((20, 30, 25), 6).to(dtype=torch.float64), SquaredLoss())
    for penalty in (*PENALTIES.values(), TraceNorm(1.0)):
        for factor, zero in ((1.0001, True), (0.99, False)):
            solution = minimise(problem, scaled(penalty, problem, factor), 1e-8, 1000)
            assert bool((solution.point.W == 0).all()) is zero
            assert solution.certificate.gap <= 1e-8 * problem.null_objective


def test_the_result_is_on_the_scale_of_the_data():
    tasks = draw((20, 30, 25), 6).to(dtype=torch.float64)
    problem = Problem.from_tasks(tasks, SquaredLoss())
    solution = minimise(problem, BlockSparse(0.1), 1e-10, 1000)
    result = solution.result(problem)
    for t in range(3):
        X, y = (np.asarray(a) for a in tasks[t])
        assert float(result.intercept[t]) == pytest.approx((y - X @ result.W[:, t].numpy()).mean(), rel=1e-10)
    assert (result.objective, result.dual_gap) == (solution.certificate.primal, solution.certificate.gap)
    assert result.null_objective == problem.null_objective and result.n_iter == solution.n_iter > 0
