"""ELLA: sums that can be rebuilt, visits that never raise the objective, and the optimum of GO-MTL in the long run."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import Lasso
from sklearn.utils.estimator_checks import parametrize_with_checks

from companion import Tasks
from companion.linear import ELLA, GOMTL
from companion.linear.ella import Knowledge, Quadratic, RowsSeen
from companion.losses import SquaredLoss
from companion.penalties import L1
from companion.solvers import Problem
from companion.solvers.latent import Factors, LatentProblem
from tests.oracles import convex

MU, LAM, D = 0.08, 0.05, 6


def blocks_of(seed, sizes=(9, 4, 12, 7, 3)):
    """Tasks that are combinations of two latent tasks, with levels and row weights."""
    rng = np.random.default_rng(seed)
    L, S = rng.normal(size=(D, 2)), rng.normal(size=(2, len(sizes))) * (rng.random((2, len(sizes))) < 0.8)
    blocks = []
    for t, n in enumerate(sizes):
        X = rng.normal(size=(n, D)) + 1
        y = X @ L @ S[:, t] + 0.2 * rng.normal(size=n) + t
        blocks.append((X, y, rng.integers(1, 3, n).astype(float)))
    return blocks


def long_form(blocks):
    X, y, s = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return X, y, np.repeat(np.arange(len(blocks)), [len(y) for _, y, _ in blocks]), s


def one_by_one(blocks, model, order=None):
    for t in range(len(blocks)) if order is None else order:
        X, y, s = blocks[t]
        model.partial_fit(X, y, np.full(len(y), t), s)
    return model


def rebuilt(known):
    """A and b from the definition."""
    A, b = np.zeros_like(known.A), np.zeros_like(known.b)
    for id_, code in known.codes.items():
        task = known.quadratics[id_]
        A += np.kron(np.outer(code, code), task.D)
        b += (task.D @ np.outer(task.theta, code)).T.ravel()
    return A, b


@parametrize_with_checks([ELLA(), ELLA(3, 0.05, 0.2, reduction="sum", fit_intercept=False)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


# --- one task ---------------------------------------------------------------------------------------------------------


def test_rows_in_two_parts_are_all_rows():
    rng = np.random.default_rng(0)
    X, y, s = rng.normal(size=(11, D)) + 1e6, rng.normal(size=11) - 1e5, rng.uniform(0.5, 2, 11)
    both = RowsSeen.of(X[:4], y[:4], s[:4]) + RowsSeen.of(X[4:], y[4:], s[4:])
    for found, expected in zip(vars(both).values(), vars(RowsSeen.of(X, y, s)).values(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("n", [11, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("free", [True, False])
def test_the_quadratic_is_the_loss(n, reduction, free):
    """At any weights, also where there are fewer rows than features."""
    X, y, s = blocks_of(0, (n,))[0]
    task = Quadratic.of(RowsSeen.of(X, y, s), reduction, free)
    v = s / s.sum() if reduction == "mean" else s
    for scale in (0.0, 1.0, 30.0):
        w = scale * np.random.default_rng(1).normal(size=D)
        b = v @ (y - X @ w) / v.sum() if free else 0.0
        away = task.theta - w
        assert task.least + away @ task.D @ away / 2 == pytest.approx(v @ (y - X @ w - b) ** 2 / 2, rel=1e-9)
    np.testing.assert_allclose(task.root.T @ task.root, task.D, atol=1e-12)
    assert task.null == pytest.approx(v @ (y - (v @ y / v.sum() if free else 0)) ** 2 / 2, rel=1e-12)
    assert len(task.root) == min(n - free, D)


def test_a_code_is_a_lasso():
    X, y, _ = blocks_of(0, (11,))[0]
    L = np.random.default_rng(2).normal(size=(D, 4))
    task = Quadratic.of(RowsSeen.of(X, y, np.ones(11)), "mean", True)
    code = task.code(L, 0.5, 1e-14)
    expected = Lasso(alpha=0.5, tol=1e-14, max_iter=100_000).fit(X @ L, y).coef_
    assert (expected == 0).any() and (expected != 0).any()
    np.testing.assert_allclose(code, expected, atol=1e-6)
    assert not task.code(L, 1e6, 1e-14).any()


# --- the stream -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sums_are_those_of_the_tasks_after_every_visit(reduction):
    """New tasks, known ones, known ones with more rows: what a task contributed before is gone."""
    blocks = blocks_of(1)
    model = ELLA(3, MU, LAM, reduction=reduction)
    for t in (0, 1, 0, 2, 3, 1, 4, 4, 2):
        X, y, s = blocks[t]
        half = slice(0, len(y) // 2 + 1)
        model.partial_fit(X[half], y[half], np.full(len(y[half]), t), s[half])
        A, b = rebuilt(model.knowledge_)
        np.testing.assert_allclose(model.knowledge_.A, A, atol=1e-9 * np.abs(A).max())
        np.testing.assert_allclose(model.knowledge_.b, b, atol=1e-9 * np.abs(b).max())
    assert model.n_iter_ == 9 and model.task_ids_ == (0, 1, 2, 3, 4)
    assert model.knowledge_.seen[4].weight == pytest.approx(2 * blocks[4][2][:2].sum())


def test_latent_tasks_are_those_of_the_half_step_of_go_mtl(monkeypatch):
    """All tasks seen, codes as they are: the linear system has the solution of conjugate gradients on the rows."""
    monkeypatch.setattr(Knowledge, "_balance", lambda self: None)
    blocks = blocks_of(1)
    known = one_by_one(blocks, ELLA(3, MU, LAM)).knowledge_
    X, y, task, s = long_form(blocks)
    problem = Problem.from_tasks(Tasks.from_long(X, y, task, s), SquaredLoss())
    at = Factors(torch.zeros(D, 3, dtype=torch.float64), torch.from_numpy(known.S))
    expected = LatentProblem(problem, L1(MU), LAM).latent(at, 1e-20, 100).L
    np.testing.assert_allclose(known.L, expected, atol=1e-8)


def test_visits_to_known_tasks_never_raise_the_objective_which_is_that_of_go_mtl():
    blocks = blocks_of(1)
    model = one_by_one(blocks, ELLA(3, MU, LAM))
    known, values = model.knowledge_, [model.objective_]
    for t in (3, 1, 1, 0, 4, 2, 0, 3) * 2:
        known.visit(t, known.quadratics[t], 1e-14)
        values.append(known.objective())
    assert (np.diff(values) <= 1e-12 * values[0]).all() and values[-1] < values[0]
    L, S = known.L, known.S
    b = [y @ s / s.sum() - (s @ X / s.sum()) @ (L @ S)[:, t] for t, (X, y, s) in enumerate(blocks)]
    value = convex.data_term(blocks, L @ S, b, "squared") + MU * np.abs(S).sum() + LAM * (L**2).sum()
    assert known.objective() == pytest.approx(value, rel=1e-10)


def test_passes_end_where_go_mtl_ends():
    X, y, task, s = long_form(blocks_of(0))
    model = ELLA(2, MU, LAM).fit(X, y, task, s)
    expected = GOMTL(2, MU, LAM).fit(X, y, task, s)
    assert model.objective_ == pytest.approx(expected.objective_, rel=1e-7)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-3)
    np.testing.assert_allclose(model.intercept_, expected.intercept_, atol=1e-3)
    assert 1 < model.n_iter_ < 1000 and max(model.certificate_.values()) <= 1e-4
    np.testing.assert_allclose(model.latent_ @ model.codes_, model.coef_.T, atol=1e-12)
    _, problem = GOMTL(2, MU, LAM).prepare(X, y, task, s)
    at = Factors(torch.from_numpy(model.latent_), torch.from_numpy(model.codes_))
    certificate = LatentProblem(problem, L1(MU), LAM).stationarity(at)
    assert certificate._asdict() == pytest.approx(model.certificate_, rel=1e-3, abs=1e-9)


def test_one_pass_is_the_stream():
    blocks = blocks_of(1)
    stream = one_by_one(blocks, ELLA(3, MU, LAM))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = ELLA(3, MU, LAM, max_iter=1).fit(*long_form(blocks))
    np.testing.assert_allclose(fit.coef_, stream.coef_, atol=1e-10)
    together = ELLA(3, MU, LAM).partial_fit(*long_form(blocks))
    np.testing.assert_allclose(together.coef_, stream.coef_, atol=1e-10)
    other = one_by_one(blocks, ELLA(3, MU, LAM), order=(4, 2, 0, 1, 3))
    assert other.task_ids_ == (4, 2, 0, 1, 3) and other.coef_.shape == (5, D)
    assert other.objective_ != pytest.approx(stream.objective_, rel=1e-6)  # the order matters


def test_a_stream_goes_on_after_fit_and_earlier_tasks_profit():
    blocks = blocks_of(3, sizes=(30, 4, 30, 30, 30, 30))
    alone = ELLA(2, 0.01, 0.01).partial_fit(blocks[1][0], blocks[1][1], np.ones(4, dtype=int))
    model = ELLA(2, 0.01, 0.01).fit(*long_form(blocks[:2]))
    visits = model.n_iter_ * 2
    for t in range(2, 6):
        model.partial_fit(blocks[t][0], blocks[t][1], np.full(30, t))
    assert model.n_iter_ == visits + 4 and model.task_ids_ == (0, 1, 2, 3, 4, 5)
    assert model.predict(blocks[5][0], np.full(30, 5)).shape == (30,)
    assert alone.task_ids_ == (1,)
    model.fit(*long_form(blocks[:2]))  # forgets
    assert model.task_ids_ == (0, 1)


def test_latent_tasks_are_taken_up_as_they_are_needed():
    """Two tasks of one direction use one; a third one of another gets another."""
    rng = np.random.default_rng(0)
    X, u, v = rng.normal(size=(40, D)), np.eye(D)[0], np.eye(D)[1]
    model, in_use = ELLA(4, 0.02, 0.02, fit_intercept=False), []
    for t, w in enumerate((u, 2 * u, v, u - v)):
        model.partial_fit(X, X @ w, np.full(40, t))
        in_use.append(int((model.codes_ != 0).any(1).sum()))
    assert in_use == [1, 1, 2, 2]
    np.testing.assert_allclose(model.coef_ @ np.stack([u, v], 1), [[1, 0], [2, 0], [0, 1], [1, -1]], atol=0.15)


def test_libraries_tasks_and_weights():
    X, y, task, s = long_form(blocks_of(0))
    expected = ELLA(2, MU, LAM).partial_fit(X, y, task, s)
    tasks = ELLA(2, MU, LAM).partial_fit(Tasks.from_long(X, y, task, s))
    np.testing.assert_allclose(tasks.coef_, expected.coef_, atol=1e-12)
    X32, y32 = torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    model = ELLA(2, MU, LAM).partial_fit(X32, y32, task, s)
    assert model.coef_.dtype == model.latent_.dtype == torch.float32
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-3)
    repeats = s.astype(int)
    again = ELLA(2, MU, LAM).partial_fit(*(np.repeat(part, repeats, axis=0) for part in (X, y, task)))
    np.testing.assert_allclose(again.coef_, expected.coef_, atol=1e-8)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_and_nothing_is_learned_from_it():
    X, y, task, s = long_form(blocks_of(0))
    with pytest.raises(NotFittedError):
        ELLA().predict(X)
    model = ELLA(2, MU, LAM).partial_fit(X, y, task, s)
    before = model.knowledge_.A.copy()
    for bad in ((X[:, :5], y, task), (Tasks.from_long(X[:, :5], y, task),)):
        with pytest.raises(
            ValueError, match=r"5 features, but ELLA is expecting 6|expected 6 features, as before; got 5"
        ):
            model.partial_fit(*bad)
    with pytest.raises(ValueError, match="contains NaN"):
        model.partial_fit(np.where(X > 1, np.nan, X), y, task)
    np.testing.assert_array_equal(model.knowledge_.A, before)
    assert model.predict(X, task).shape == (35,)
    for name, value, message in [
        ("n_latent", 0, "n_latent must be an integer >= 1; got 0"),
        ("mu", 0.0, "mu must be a finite number > 0; got 0.0"),
        ("lam", np.inf, "lam must be a finite number > 0; got inf"),
        ("reduction", "median", "reduction must be 'mean' or 'sum'"),
    ]:
        with pytest.raises(ValueError, match=message):
            ELLA(**{name: value}).partial_fit(X, y, task)


def test_tasks_without_signal():
    X, _, task, _ = long_form(blocks_of(0))
    model = ELLA(2).fit(X, task.astype(float), task)
    assert not model.coef_.any() and model.intercept_ == pytest.approx([0, 1, 2, 3, 4])
    one = ELLA(2).partial_fit(X[:1], [3.0])
    assert not one.coef_.any() and one.intercept_ == pytest.approx([3])


def test_too_few_passes_say_so():
    with pytest.warns(ConvergenceWarning, match=r"ELLA stopped after 2 iterations \(max_iter=2\) at a codes of"):
        ELLA(3, 0.01, LAM, max_iter=2).fit(*long_form(blocks_of(1)))
