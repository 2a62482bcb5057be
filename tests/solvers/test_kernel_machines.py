"""Machines on a Gram matrix, against linear systems, quadratic programmes and scikit-learn."""

import cvxpy as cp
import numpy as np
import pytest
from sklearn.svm import SVC

from companion.solvers import kernel_machines
from companion.solvers.kernel_machines import kernel_ridge, support_vectors

SIZES = (7, 11, 5)
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)])
N = sum(SIZES)
GROUPS = np.repeat(np.eye(3), SIZES, axis=0)  # (N, 3)


def _gram(rank, seed=0, scale=1.0):
    F = np.random.default_rng(seed).normal(size=(N, rank))
    return scale * F @ F.T


def _targets(seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=N) + GROUPS @ [5.0, -3.0, 1.0], rng.uniform(0.05, 2.0, size=N)


# --- ridge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [4, 40])
def test_ridge_solves_the_bordered_linear_system(rank):
    """Stationarity in c and b at once: [[K + 1/V, E], [E', 0]] (c, b) = (y, 0)."""
    K, (y, v) = _gram(rank), _targets()
    system = np.block([[K + np.diag(1 / v), GROUPS], [GROUPS.T, np.zeros((3, 3))]])
    c, b = np.split(np.linalg.solve(system, np.append(y, np.zeros(3))), [N])
    found = kernel_ridge(K.copy(), y, v, OFFSETS)
    np.testing.assert_allclose(found.dual, c, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(found.intercept, b, rtol=1e-9)
    r = y - K @ c - GROUPS @ b
    assert found.objective == pytest.approx((v @ r**2 + c @ K @ c) / 2, rel=1e-11)
    constant = y - GROUPS @ (GROUPS.T @ (v * y) / (GROUPS.T @ v))
    assert found.null_objective == pytest.approx(v @ constant**2 / 2, rel=1e-12)


def test_ridge_without_intercepts():
    K, (y, v) = _gram(6), _targets()
    found = kernel_ridge(K.copy(), y, v)
    np.testing.assert_allclose(found.dual, np.linalg.solve(K + np.diag(1 / v), y), rtol=1e-9)
    np.testing.assert_array_equal(found.intercept, [0.0])


@pytest.mark.parametrize("offsets", [None, OFFSETS])
def test_gap_of_ridge_is_primal_minus_dual_value(monkeypatch, offsets):
    """At any coefficients, not only at the optimum, where it is zero."""
    K, (y, v) = _gram(6), _targets()
    c = np.random.default_rng(2).normal(size=N)

    class Wrong:
        dual_coef_ = c

        def __init__(self, **_):
            pass

        def fit(self, *_, **__):
            return self

    monkeypatch.setattr(kernel_machines, "KernelRidge", Wrong)
    found = kernel_ridge(K.copy(), y, v, offsets)
    if offsets is not None:  # the problem without intercepts that it amounts to
        H = np.eye(N) - GROUPS @ np.linalg.solve(GROUPS.T @ (v[:, None] * GROUPS), GROUPS.T * v)
        K, y = H @ K @ H.T, H @ y
    primal = (v @ (y - K @ c) ** 2 + c @ K @ c) / 2
    dual = c @ y - (c @ (c / v) + c @ K @ c) / 2
    assert found.objective == pytest.approx(primal, rel=1e-12)
    assert found.dual_gap == pytest.approx(primal - dual, rel=1e-10)
    residual = y - K @ c - c / v
    relative = np.sqrt(v @ residual**2 / (v @ y**2))
    assert found.certificate == {"residual of the linear system": pytest.approx(relative, rel=1e-10)}


def test_constant_targets_leave_nothing_to_explain():
    """Rounding of their means must not pass for a signal, which would make every relative measure noise."""
    y = GROUPS @ [0.1, 1e6 + 0.3, -7.7]
    found = kernel_ridge(_gram(6), y, np.full(N, 1 / 7), OFFSETS)
    np.testing.assert_array_equal(found.dual, np.zeros(N))
    np.testing.assert_allclose(found.intercept, [0.1, 1e6 + 0.3, -7.7], rtol=1e-15)
    assert found.null_objective == found.dual_gap == 0.0 and found.certificate["residual of the linear system"] == 0.0


def test_a_gram_matrix_beyond_double_precision_is_certified_not_warned_about():
    K, (y, v) = _gram(4, scale=1e22), _targets()
    found = kernel_ridge(K, y, v, OFFSETS)
    assert found.certificate["residual of the linear system"] > 1e-8
    assert found.dual_gap == pytest.approx(
        found.null_objective * found.certificate["residual of the linear system"] ** 2, rel=1e-9
    )


# --- support vectors -----------------------------------------------------------------------------------------------


def _labels(seed=3):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(N) < 0.4, 1.0, -1.0), rng.uniform(0.05, 2.0, size=N)


def _certificate(found, K, y, v):
    """Primal and dual value, from their definitions; asserts that the dual point is feasible."""
    c, b = found.dual, found.intercept[0]
    assert (c * y >= 0).all() and (c * y <= v).all()
    assert abs(c.sum()) <= 1e-12 * v.sum()
    primal = v @ np.maximum(0, 1 - y * (K @ c + b)) + c @ K @ c / 2
    return primal, y @ c - c @ K @ c / 2


@pytest.mark.parametrize("rank, scale", [(2, 1.0), (4, 100.0), (40, 0.01), (40, 1.0), (40, 1e5)])
def test_support_vectors_solve_the_quadratic_programme(rank, scale):
    K, (y, v) = _gram(rank, scale=scale), _labels()
    found = support_vectors(K.copy(), y, v, tol=1e-13, max_iter=100_000)
    primal, dual = _certificate(found, K, y, v)
    assert found.objective == pytest.approx(primal, rel=1e-12)
    assert found.dual_gap == pytest.approx(primal - dual, abs=1e-11 * found.null_objective)
    assert 0 <= found.dual_gap <= 1e-13 * found.null_objective
    values, Q = np.linalg.eigh(K)
    root = Q * np.sqrt(values.clip(min=0))
    w, b = cp.Variable(N), cp.Variable()
    problem = cp.Problem(cp.Minimize(v @ cp.pos(1 - cp.multiply(y, root @ w + b)) + cp.sum_squares(w) / 2))
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    assert found.objective == pytest.approx(problem.value, rel=1e-8)
    np.testing.assert_allclose(K @ found.dual, root @ w.value, rtol=1e-4, atol=1e-4)  # sqrt of its gap


def test_the_gap_closes_where_libsvm_stops_in_single_precision():
    rng = np.random.default_rng(4)
    X = rng.normal(size=(300, 5))
    y, v = np.where(X[:, 0] + rng.normal(size=300) > 0, 1.0, -1.0), np.full(300, 1 / 300)
    K = np.exp(-0.2 * ((X[:, None] - X) ** 2).sum(-1)) / 1e-4
    machine = SVC(C=1, kernel="precomputed", tol=1e-10).fit(K, y, sample_weight=v)
    c = np.zeros(300)
    c[machine.support_] = machine.dual_coef_[0]
    libsvm = kernel_machines._state(K, c, y, v)
    found = support_vectors(K.copy(), y, v, tol=1e-13, max_iter=100_000)
    assert libsvm.gap > 1e-9 * found.null_objective  # else there would be nothing to do
    assert found.dual_gap <= 1e-13 * found.null_objective
    np.testing.assert_allclose(found.dual, c, atol=1e-3 * v[0])


def test_a_loose_tolerance_takes_what_libsvm_found():
    K, (y, v) = _gram(40), _labels()
    H = np.eye(N) - 1 / N
    machine = SVC(C=1, kernel="precomputed", tol=1e-3).fit(H @ K @ H, y, sample_weight=v)
    found = support_vectors(K.copy(), y, v, tol=0.1, max_iter=100_000)
    assert found.n_iter == machine.n_iter_[0]
    np.testing.assert_array_equal(np.flatnonzero(found.dual), np.sort(machine.support_))
    np.testing.assert_allclose(found.dual[machine.support_], machine.dual_coef_[0], rtol=1e-6)  # single precision


def test_few_iterations_leave_a_gap_that_is_true():
    K, (y, v) = _gram(40, scale=1e4), _labels()
    found = support_vectors(K.copy(), y, v, tol=1e-13, max_iter=1)
    primal, dual = _certificate(found, K, y, v)
    assert found.n_iter <= 2
    assert found.objective == pytest.approx(primal, rel=1e-12)
    assert found.dual_gap == pytest.approx(primal - dual, rel=1e-9) and found.dual_gap > 1e-3 * found.null_objective


@pytest.mark.parametrize("rank", [3, 40])
def test_copies_of_rows_and_weights_agree(rank):
    """Copies make the free part of the Gram matrix singular, and coefficients (not the function) arbitrary."""
    rng = np.random.default_rng(5)
    K, (y, _) = _gram(rank, scale=10.0), _labels()
    times = rng.integers(1, 5, size=N)
    index = np.repeat(np.arange(N), times)
    a = support_vectors(K.copy(), y, times / 40, tol=1e-13, max_iter=100_000)
    b = support_vectors(K[np.ix_(index, index)], y[index], np.full(len(index), 1 / 40), tol=1e-13, max_iter=100_000)
    np.testing.assert_allclose(K[:, index] @ b.dual, K @ a.dual, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(b.intercept, a.intercept, rtol=1e-9)
    assert b.objective == pytest.approx(a.objective, rel=1e-12)


def test_copies_with_opposite_labels_are_both_at_their_bounds():
    K, (y, _) = _gram(4, scale=100.0), _labels()
    index = np.append(np.arange(N), [2, 9])
    y = np.append(y, -y[[2, 9]])
    found = support_vectors(K[np.ix_(index, index)], y, np.full(N + 2, 0.1), tol=1e-13, max_iter=100_000)
    primal, dual = _certificate(found, K[np.ix_(index, index)], y, np.full(N + 2, 0.1))
    assert primal - dual <= 1e-12 * found.null_objective
    np.testing.assert_allclose(abs(found.dual[[N, N + 1]]), 0.1, rtol=1e-9)


@pytest.mark.parametrize("weights, expected", [((1.0, 1.0), 0.0), ((3.0, 1.0), 1.0), ((1.0, 3.0), -1.0)])
def test_nothing_to_learn_from(weights, expected):
    """A zero kernel: the heavier class wins; equal weights leave the intercept open, and the middle is taken."""
    y = np.array([1.0, 1.0, -1.0, -1.0, -1.0])
    v = np.where(y > 0, weights[0] / 2, weights[1] / 3)
    found = support_vectors(np.zeros((5, 5)), y, v, tol=1e-13, max_iter=1000)
    assert found.intercept[0] == pytest.approx(expected, abs=1e-12)
    assert found.objective == pytest.approx(2 * min(weights)) and found.null_objective == pytest.approx(
        2 * min(weights)
    )
    assert found.dual_gap <= 1e-13


def test_an_intercept_that_is_open_is_put_in_the_middle():
    """All coefficients at their bounds: the risk is flat between the margins nearest on either side."""
    x = np.array([-2.0, -1.0, 0.5, 3.0])
    y, v = np.array([-1.0, -1.0, 1.0, 1.0]), np.full(4, 0.01)
    K = np.outer(x, x)
    found = support_vectors(K.copy(), y, v, tol=1e-13, max_iter=1000)
    f = K @ (v * y)  # all at their bounds
    np.testing.assert_allclose(K @ found.dual, f, rtol=1e-12)
    low, high = (y - f)[y < 0].max(), (y - f)[y > 0].min()
    risk = [v @ np.maximum(0, 1 - y * (f + b)) for b in (low, (low + high) / 2, high)]
    assert low < high - 0.1 and np.ptp(risk) < 1e-15
    assert found.intercept[0] == pytest.approx((low + high) / 2, abs=1e-12)


def test_separable_data_with_one_row_a_class():
    K = np.array([[4.0, -2.0], [-2.0, 1.0]])  # x = 2 and -1
    found = support_vectors(K, np.array([1.0, -1.0]), np.full(2, 5.0), tol=1e-13, max_iter=100)
    np.testing.assert_allclose(found.dual, [2 / 9, -2 / 9], rtol=1e-12)  # the margin is 3 wide: w = 2/3
    assert found.intercept[0] == pytest.approx(1 - 4 / 3)
    assert found.objective == pytest.approx(2 / 9)


@pytest.mark.parametrize("kind", ["ties", "copies", "far from zero", "opposite copies", "uneven weights"])
@pytest.mark.parametrize("seed", range(6))
def test_the_active_set_needs_no_libsvm(monkeypatch, kind, seed):
    """From zero, on hard margins: bounds are met, left and met again, in flat directions too."""
    monkeypatch.setattr(kernel_machines, "_libsvm", lambda K, y, v, max_iter: (np.zeros(len(y)), 0))
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 30))
    F = rng.normal(size=(N, rank))
    y = np.where(rng.random(N) < 0.4, 1.0, -1.0)
    v = np.full(N, 1 / 7)
    if kind == "ties":
        F = np.round(F)
    elif kind == "copies":
        F = F[rng.integers(0, N // 3, N)]
    elif kind == "far from zero":
        F = F + 100
    elif kind == "opposite copies":
        F[1::2] = F[:-1:2]
        y[1::2] = -y[:-1:2]
    else:
        v = 10.0 ** rng.uniform(-3, 1, N)
    K = 1e3 * F @ F.T
    found = support_vectors(K.copy(), y, v, tol=1e-11, max_iter=500)
    primal, dual = _certificate(found, K, y, v)
    assert found.dual_gap <= 1e-11 * found.null_objective
    assert primal - dual == pytest.approx(0, abs=1e-8 * found.null_objective)  # far from zero, K c cancels

    alpha, slack = found.dual * y, 1e-14 * v.sum()
    np.testing.assert_array_equal(alpha[alpha < slack], 0)  # else rows would be kept for nothing
    np.testing.assert_allclose(alpha[v - alpha < slack], v[v - alpha < slack], rtol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 1e15])
def test_a_direction_without_curvature_is_followed_to_its_end(monkeypatch, scale):
    """Three points on a line, the middle one of the other class: all end at a bound, in a few steps."""
    monkeypatch.setattr(kernel_machines, "_libsvm", lambda K, y, v, max_iter: (np.zeros(len(y)), 0))
    x, y = np.array([-1.0, 0.0, 1.0]), np.array([1.0, -1.0, 1.0])
    found = support_vectors(scale * np.outer(x, x), y, np.ones(3), tol=1e-12, max_iter=20)
    np.testing.assert_allclose(found.dual, [0.5, -1, 0.5], rtol=1e-12)
    assert found.objective == pytest.approx(2, rel=1e-12)


def test_more_steps_never_make_it_worse(monkeypatch):
    """Gaps go up and down on the way; the best point is kept."""
    monkeypatch.setattr(kernel_machines, "_libsvm", lambda K, y, v, max_iter: (np.zeros(len(y)), 0))
    K, (y, v) = _gram(6, scale=1e4), _labels()
    found = [support_vectors(K.copy(), y, v, tol=1e-13, max_iter=n) for n in range(1, 60)]
    gaps = np.array([f.dual_gap for f in found])
    assert (np.diff(gaps) <= 0).all() and gaps[-1] < 1e-9 < gaps[5]
    for f in found[::10]:
        primal, dual = _certificate(f, K, y, v)
        assert f.dual_gap == pytest.approx(primal - dual, rel=1e-6, abs=1e-9)


def test_an_offset_of_the_features_moves_the_intercept_only():
    rng = np.random.default_rng(6)
    F = rng.normal(size=(N, 5))
    y, v = _labels()
    a = support_vectors(F @ F.T, y, v, tol=1e-12, max_iter=100_000)
    offset = np.array([1e4, -2e4, 0, 0, 3e4])
    far = F + offset
    b = support_vectors(far @ far.T, y, v, tol=1e-12, max_iter=100_000)
    np.testing.assert_allclose(F.T @ b.dual, F.T @ a.dual, rtol=1e-5)  # (1e4)^2 times the precision
    expected = a.intercept[0] - (a.dual @ F) @ offset
    assert b.intercept[0] == pytest.approx(expected, rel=1e-5)
    assert b.dual_gap <= 1e-12 * b.null_objective
