"""Paths: the same solutions as one by one, with and without screening, and the cross-validation built on them."""

import numpy as np
import pytest
import torch

import companion.solvers.path
from companion import Tasks
from companion.linear import (
    MultiTaskLasso,
    MultiTaskLassoClassifier,
    MultiTaskLassoCV,
    TraceNorm,
    TraceNormCV,
    multi_task_path,
)
from companion.losses import LogisticLoss, SquaredLoss
from companion.penalties import L1, BlockSparse, Dirty
from companion.penalties import TraceNorm as TraceNormPenalty
from companion.solvers import Problem, alpha_grid, minimise, proximal_gradient, solve_path

SIZES, D = (24, 15, 31), 110
TASK = np.repeat([0, 1, 2], SIZES)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(len(TASK), D)) + 0.4, np.zeros((3, D))
    W[:, :6] = rng.normal(size=(3, 6))
    return X, (X * W[TASK]).sum(1) + rng.normal(size=len(TASK)) + 3


def problem_of(data, loss="squared", l2=0.0):
    X, y = data
    if loss == "logistic":
        y = np.where(y > np.median(y), 1.0, -1.0)
    return Problem.from_tasks(
        Tasks.from_long(X, y, TASK), LogisticLoss() if loss == "logistic" else SquaredLoss(), l2=l2
    )


def test_grid_falls_geometrically_from_the_top():
    np.testing.assert_allclose(alpha_grid(8.0, 4, 0.125), [8, 4, 2, 1], rtol=1e-14)
    np.testing.assert_array_equal(alpha_grid(8.0, 1, 0.5), [8])
    for bad, message in [((8, 0, 0.5), "n_alphas"), ((8, 3, 0), "alpha_ratio"), ((0.0, 3, 0.5), "no grid")]:
        with pytest.raises(ValueError, match=message):
            alpha_grid(*bad)


PENALTIES = [
    L1(1.0),
    BlockSparse(1.0, 2),
    BlockSparse(1.0, 1.5),
    BlockSparse(1.0, np.inf),
    Dirty(1.0, 0.7),
    BlockSparse(1.0, 3),
]


@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_path_equals_separate_solutions_with_or_without_screening(data, penalty, l2, monkeypatch):
    """Screening is at work (parts are solved), drops nothing that is not zero, and changes no objective."""
    problem, tol = problem_of(data, l2=l2), 1e-9
    alphas = alpha_grid(problem.alpha_max(penalty), 5, 0.2)
    kept = []
    surviving = companion.solvers.path.surviving
    monkeypatch.setattr(companion.solvers.path, "surviving", lambda *args: kept.append(surviving(*args)) or kept[-1])
    screened = list(solve_path(problem, penalty, alphas, tol, 20_000))
    assert len(kept) == 5 and min(len(k) for k in kept) < D / 2
    plain = list(solve_path(problem, penalty, alphas, 1e-13, 20_000, screen=False))
    assert len(kept) == 5
    for alpha, a, b, alive in zip(alphas, screened, plain, kept, strict=True):
        scaled = penalty.scaled(alpha)
        cold = minimise(problem, scaled, tol, 20_000)
        assert a.certificate.primal == pytest.approx(cold.certificate.primal, rel=2e-9)
        assert a.certificate.primal == pytest.approx(b.certificate.primal, rel=2e-9)
        again = problem.certify(scaled, problem.at(a.point.W))
        assert again.gap <= tol * problem.null_objective
        assert a.certificate.gap == pytest.approx(again.gap, abs=1e-12 * problem.null_objective)
        dropped = torch.ones(D, dtype=torch.bool)
        dropped[alive] = False
        assert float(b.point.W[dropped].abs().amax()) <= 1e-12 if dropped.any() else True
    assert bool((screened[0].point.W == 0).all()) and bool((screened[-1].point.W != 0).any())


def test_screening_is_safe_from_any_point(data):
    """The rule holds at every point: rough ones keep more features, none drops one that the solution uses."""
    problem = problem_of(data)
    for penalty in PENALTIES:
        scaled = penalty.scaled(0.3 * problem.alpha_max(penalty))
        solution = minimise(problem, scaled, 1e-13, 50_000).point
        used = torch.nonzero((solution.W != 0).any(1))[:, 0]
        assert len(used) > 0
        norms, counts = problem.column_norms(), []
        for shrink in (0.0, 0.9, 0.999, 0.99999):
            point = problem.at(shrink * solution.W)
            alive = companion.solvers.path.surviving(problem, scaled, point, norms)
            assert torch.isin(used, alive).all()
            counts.append(len(alive))
        for lost in used.tolist():  # a point that lacks one of the features must not lose it for good
            W = solution.W.clone()
            W[lost] = 0
            assert lost in companion.solvers.path.surviving(problem, scaled, problem.at(W), norms)
        assert counts[-1] <= counts[-2] <= counts[-3] and counts[-1] < D
        # At the solution it is sharp: nothing stays that the dual constraint does not hold.
        assert len(companion.solvers.path.surviving(problem, scaled, solution, norms)) <= len(used) + 1


def test_screening_keeps_the_first_feature_to_enter(data):
    """Just below alpha_max, the zero point is nearly optimal and its bounds are nearly attained."""
    problem = problem_of(data)
    for penalty in PENALTIES:
        scaled = penalty.scaled(0.99 * problem.alpha_max(penalty))
        used = torch.nonzero((minimise(problem, scaled, 1e-12, 50_000).point.W != 0).any(1))[:, 0]
        alive = companion.solvers.path.surviving(problem, scaled, problem.at(problem.zero()), problem.column_norms())
        assert 0 < len(used) <= len(alive) and torch.isin(used, alive).all()


def test_a_rule_that_drops_too_much_is_found_out(data, monkeypatch):
    """Solutions over a part are certified over all features, so that screening can cost time but no accuracy."""
    problem, penalty = problem_of(data), BlockSparse(1.0)
    alphas = alpha_grid(problem.alpha_max(penalty), 4, 0.3)
    honest = list(solve_path(problem, penalty, alphas, 1e-9, 20_000))
    active_only = lambda problem, penalty, point, norms: torch.nonzero((point.W != 0).any(1))[:, 0]
    monkeypatch.setattr(companion.solvers.path, "surviving", active_only)
    for a, b in zip(honest, solve_path(problem, penalty, alphas, 1e-9, 20_000), strict=True):
        assert b.certificate.gap <= 1e-9 * problem.null_objective
        assert b.certificate.primal == pytest.approx(a.certificate.primal, rel=2e-9)


@pytest.mark.parametrize("kind", ["shared", "missing"])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_paths_on_common_inputs(kind, loss):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(40, 130))
    Y = X[:, :3] @ rng.normal(size=(3, 4)) + rng.normal(size=(40, 4))
    Y = np.where(Y > 0, 1.0, -1.0) if loss == "logistic" else Y
    if kind == "missing":
        Y[rng.random(Y.shape) < 0.2] = np.nan
    problem = Problem.from_tasks(Tasks.shared(X, Y), LogisticLoss() if loss == "logistic" else SquaredLoss())
    alphas = alpha_grid(problem.alpha_max(BlockSparse(1.0)), 5, 0.2)
    for alpha, found in zip(alphas, solve_path(problem, BlockSparse(1.0), alphas, 1e-9, 20_000), strict=True):
        cold = proximal_gradient(problem, BlockSparse(alpha), 1e-9 * problem.null_objective, 20_000)
        assert found.certificate.primal == pytest.approx(cold.certificate.primal, rel=2e-9)
        assert found.certificate.gap <= 1e-9 * problem.null_objective


def test_logistic_path_equals_separate_solutions(data):
    problem = problem_of(data, "logistic")
    alphas = alpha_grid(problem.alpha_max(BlockSparse(1.0)), 5, 0.3)
    for alpha, found in zip(alphas, solve_path(problem, BlockSparse(1.0), alphas, 1e-9, 1000), strict=True):
        cold = minimise(problem, BlockSparse(alpha), 1e-9, 1000)
        assert found.certificate.primal == pytest.approx(cold.certificate.primal, rel=2e-9)
        assert abs(found.certificate.gap) <= 1e-9 * problem.null_objective


@pytest.mark.parametrize("penalty", [None, TraceNormPenalty(2.0), Dirty(1.0, 0.7), Dirty(1.0, 0.4)], ids=repr)
def test_path_of_the_public_function(data, penalty):
    X, y = data[0][:, :9], data[1]
    path = multi_task_path(X, y, TASK, penalty, n_alphas=6, alpha_ratio=0.1, tol=1e-9)
    base = BlockSparse(1.0) if penalty is None else penalty
    problem = problem_of((X, y))
    np.testing.assert_allclose(path.alphas, np.geomspace(1, 0.1, 6) * problem.alpha_max(base), rtol=1e-12)
    assert path.coefs.shape == (6, 3, 9) and path.intercepts.shape == (6, 3) and path.gaps.shape == (6,)
    np.testing.assert_array_equal(path.coefs[0], 0)
    for alpha, coef, b, gap in zip(path.alphas, path.coefs, path.intercepts, path.gaps, strict=True):
        point = problem.at(torch.from_numpy(coef.T.copy()))
        assert gap <= 1e-9
        assert gap * problem.null_objective == pytest.approx(problem.certify(base.scaled(alpha), point).gap, abs=1e-11)
        for t in range(3):
            rows = t == TASK
            assert b[t] == pytest.approx((y[rows] - X[rows] @ coef[t]).mean(), rel=1e-9)


def test_path_takes_alphas_weights_losses_and_reductions(data):
    X, y = data[0][:, :7], data[1]
    weight = np.random.default_rng(2).uniform(0.5, 2, len(y))
    options = {"reduction": "sum", "fit_intercept": False, "tol": 1e-10}
    path = multi_task_path(X, y, TASK, alphas=[3.0, 30.0, 3.0], sample_weight=weight, **options)
    np.testing.assert_array_equal(path.alphas, [30.0, 3.0])
    for alpha, coef, b in zip(path.alphas, path.coefs, path.intercepts, strict=True):
        model = MultiTaskLasso(alpha, **options).fit(X, y, TASK, weight)
        np.testing.assert_allclose(coef, model.coef_, atol=1e-5)
        np.testing.assert_array_equal(b, 0)
    labels = np.where(y > np.median(y), "b", "a")
    path = multi_task_path(X, labels, TASK, loss="logistic", n_alphas=3, tol=1e-10)
    assert len(path.alphas) == 3
    for alpha, coef, b in zip(path.alphas, path.coefs, path.intercepts, strict=True):
        model = MultiTaskLassoClassifier(alpha, tol=1e-10).fit(X, labels, TASK)
        np.testing.assert_allclose(coef, model.coef_, atol=1e-4)
        np.testing.assert_allclose(b, model.intercept_, atol=1e-4)
    as_torch = multi_task_path(torch.from_numpy(X), torch.from_numpy(y), TASK, n_alphas=2, progress=False)
    assert isinstance(as_torch.coefs, torch.Tensor) and isinstance(as_torch.alphas, np.ndarray)
    with pytest.raises(ValueError, match="loss must be 'squared' or 'logistic'; got 'hinge'"):
        multi_task_path(X, y, TASK, loss="hinge")
    with pytest.raises(ValueError, match="alphas must be"):
        multi_task_path(X, y, TASK, alphas=[-1.0])


def test_a_path_that_runs_out_of_iterations_says_so_in_its_gaps(data):
    path = multi_task_path(*data, TASK, n_alphas=4, alpha_ratio=0.01, tol=1e-12, max_iter=5)
    assert path.gaps[-1] > 1e-12


# --- cross-validation ------------------------------------------------------------------------------------------------


def by_hand(model, single, X, y, task, weight, splits):
    """(T, A) held-out loss: every fold, every alpha and every task in a loop, over fits that know of no path."""
    loss = np.zeros((3, len(model.alphas_)))
    for train, test in splits:
        for a, alpha in enumerate(model.alphas_):
            fit = single(alpha).fit(X[train], y[train], task[train], weight[train])
            for t in range(3):
                rows = test[task[test] == t]
                s = weight[rows] / (weight[task == t].sum() if model.reduction == "mean" else 1)
                loss[t, a] += s @ (y[rows] - X[rows] @ fit.coef_[t] - fit.intercept_[t]) ** 2 / 2
    return loss


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["lasso", "trace"])
@pytest.mark.parametrize("cv", [3, "splits"])
def test_cross_validation_equals_a_loop(data, kind, reduction, cv):
    X, y = data[0][:, :6], data[1]
    rng = np.random.default_rng(3)
    order, weight = rng.permutation(len(y)), rng.uniform(0.5, 2, len(y))
    X, y, task = X[order], y[order], TASK[order]
    options = {"reduction": reduction, "tol": 1e-10}
    if cv == "splits":
        # One part of four is never held out.
        fold = rng.integers(0, 4, len(y))
        splits = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(3)]
        cv = splits
    else:  # the folds of Tasks, with the same seed
        splits = []
        tasks = Tasks.from_long(X, y, task, weight)
        for _, held_out in tasks.folds(3, 5):
            test = tasks.rows[np.concatenate(held_out)]
            splits.append((np.setdiff1d(np.arange(len(y)), test), test))
    search = {"n_alphas": 6, "alpha_ratio": 0.01, "cv": cv, "random_state": 5, **options}
    if kind == "lasso":
        model, single = (
            MultiTaskLassoCV(q=np.inf, l2=0.1, **search),
            lambda a: MultiTaskLasso(a, np.inf, 0.1, **options),
        )
    else:
        model, single = TraceNormCV(**search), lambda a: TraceNorm(a, **options)
    model.fit(X, y, task, weight)
    top = single(1.0).alpha_max(X, y, task, weight)
    np.testing.assert_allclose(model.alphas_, np.geomspace(top, 0.01 * top, 6), rtol=1e-10)
    expected = by_hand(model, single, X, y, task, weight, splits)
    np.testing.assert_allclose(model.cv_loss_, expected, rtol=1e-4)
    assert model.alpha_ == model.alphas_[expected.sum(0).argmin()]
    assert model.alpha_ < model.alphas_[0]
    final = single(model.alpha_).fit(X, y, task, weight)
    np.testing.assert_allclose(model.coef_, final.coef_, atol=1e-9)
    np.testing.assert_allclose(model.intercept_, final.intercept_, rtol=1e-9)
    assert model.objective_ == pytest.approx(final.objective_, rel=1e-9)


def test_cross_validation_over_given_alphas_and_common_inputs():
    rng = np.random.default_rng(6)
    X = rng.normal(size=(40, 5))
    Y = X @ rng.normal(size=(5, 3)) + rng.normal(size=(40, 3))
    Y[rng.random(Y.shape) < 0.2] = np.nan
    model = MultiTaskLassoCV(alphas=[0.01, 0.1, 1.0], cv=4, random_state=2, tol=1e-9).fit(Tasks.shared(X, Y))
    np.testing.assert_array_equal(model.alphas_, [1.0, 0.1, 0.01])
    loss = np.zeros((3, 3))
    tasks, seen = Tasks.shared(X, Y), ~np.isnan(Y)
    for train, held_out in tasks.folds(4, 2):
        for a, alpha in enumerate(model.alphas_):
            fit = MultiTaskLasso(alpha, tol=1e-9).fit(train)
            for t in range(3):
                rows = np.flatnonzero(seen[:, t])[held_out[t]]
                error = Y[rows, t] - X[rows] @ fit.coef_[t] - fit.intercept_[t]
                loss[t, a] += (error**2).sum() / 2 / seen[:, t].sum()
    np.testing.assert_allclose(model.cv_loss_, loss, rtol=1e-5)
    assert model.alpha_ == model.alphas_[loss.sum(0).argmin()]
    again = MultiTaskLassoCV(alphas=[0.01, 0.1, 1.0], cv=4, random_state=2, tol=1e-9).fit(Tasks.shared(X, Y))
    np.testing.assert_array_equal(model.cv_loss_, again.cv_loss_)
    other = MultiTaskLassoCV(alphas=[0.01, 0.1, 1.0], cv=4, random_state=3, tol=1e-9).fit(Tasks.shared(X, Y))
    assert (other.cv_loss_ != model.cv_loss_).any()
