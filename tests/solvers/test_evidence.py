"""The evidence of the hierarchical Gaussian against dense normal distributions, finite differences and EM."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from companion import Tasks
from companion.solvers.compressed_tasks import CompressedTasks
from companion.solvers.evidence import Evidence, Hyperparameters, _best_scale, _cholesky, learn_hyperparameters, start
from tests.oracles.hierarchical import Model

SIZES, D = (2, 4, 11, 5), 4  # fewer rows than features, as many, one more, more
T = len(SIZES)


def draw(sizes=SIZES, d=D, seed=0, weighted=False):
    """Blocks (X_t, y_t, s_t) in units of their own, and the tasks."""
    rng = np.random.default_rng(seed)
    common, blocks = rng.normal(size=d), []
    for t, n in enumerate(sizes):
        X = rng.normal(size=(n, d)) * np.arange(1, d + 1) + t
        y = 20 * (X @ (common + 0.5 * rng.normal(size=d)) + rng.normal(size=n) + 3 * t)
        blocks.append((X, y, rng.uniform(0.5, 2.5, n) if weighted else np.ones(n)))
    X, y, s = (np.concatenate([block[i] for block in blocks]) for i in range(3))
    task = np.repeat(np.arange(len(sizes)), sizes)
    return blocks, Tasks.from_long(X, y, task, s if weighted else None)


def somewhere(d=D, seed=1):
    """Hyperparameters that are no optimum, with a factor that is not triangular."""
    L = torch.from_numpy(np.random.default_rng(seed).normal(size=(d, d)) / 2 + np.eye(d))
    return Hyperparameters(L, 0.7, 0.3, 0.2)


def known(data, at, fit_intercept=True):
    """The same hyperparameters as the oracle wants them: in the units of the data."""
    unit = data.y_scale / data.x_scale.numpy()
    C, d = (at.L @ at.L.T).numpy(), len(unit)
    M = at.mean_variance * np.eye(d)
    return Model(unit[:, None] * C * unit, unit[:, None] * M * unit, at.noise * data.y_scale**2, fit_intercept)


# --- compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_compressed_rows_have_the_second_moments_of_the_data(weighted, fit_intercept):
    blocks, tasks = draw(weighted=weighted)
    data = CompressedTasks.of(tasks, fit_intercept)
    w = np.random.default_rng(2).normal(size=D)  # in scaled units
    assert data.R.shape == (T, D, D) and data.u.shape == (T, D)
    expected = 0.0
    for t, (X, y, s) in enumerate(blocks):
        X_mean, y_mean = (s @ X / s.sum(), s @ y / s.sum()) if fit_intercept else (np.zeros(D), 0.0)
        np.testing.assert_allclose(data.x_mean[t], X_mean, rtol=1e-13)
        assert float(data.y_mean[t]) == pytest.approx(y_mean, rel=1e-13)
        Z, r = (X - X_mean) / data.x_scale.numpy(), (y - y_mean) / data.y_scale
        expected += s @ (r - Z @ w) ** 2
        np.testing.assert_allclose(data.R[t].T @ data.R[t], Z.T @ (s[:, None] * Z), atol=1e-10)
        np.testing.assert_allclose(data.R[t].T @ data.u[t], Z.T @ (s * r), atol=1e-10)
        assert float(data.n[t]) == pytest.approx(s.sum())
    found = float(((data.u - data.R @ torch.from_numpy(w)) ** 2).sum()) + data.rest
    assert found == pytest.approx(expected, rel=1e-9)
    N = sum(s.sum() for _, _, s in blocks)
    assert data.dof == pytest.approx(N - T * fit_intercept)
    assert data.log_n == pytest.approx(sum(math.log(s.sum()) for _, _, s in blocks) if fit_intercept else 0)


def test_units_are_the_deviations_within_tasks():
    blocks, tasks = draw(weighted=True)
    data = CompressedTasks.of(tasks)
    squares, dof = np.zeros(D + 1), -T
    for X, y, s in blocks:
        Z = np.column_stack([X, y])
        squares += s @ (Z - s @ Z / s.sum()) ** 2
        dof += s.sum()
    np.testing.assert_allclose([*data.x_scale, data.y_scale], np.sqrt(squares / dof), rtol=1e-12)


def test_units_of_columns_that_do_not_vary_within_tasks():
    task = np.repeat([0, 1, 2], [3, 2, 4])
    X = np.column_stack([task * 2.0, np.full(9, 7.0), np.zeros(9), np.arange(9.0)])
    data = CompressedTasks.of(Tasks.from_long(X, np.arange(9.0) ** 2, task))
    assert float(data.x_scale[0]) == pytest.approx((task * 2.0).std())  # over all rows
    assert data.x_scale[1:3].tolist() == [7, 1]  # the size; one for zeros
    np.testing.assert_array_equal(data.R[:, :, :3], 0)
    uneven = np.array([0.1, 0.3, 0.7, 1 / 3, 1e8 / 3])  # means that are off by rounding
    rounded = CompressedTasks.of(Tasks.from_long(np.tile(uneven, (9, 1)), np.arange(9.0) ** 2, task))
    np.testing.assert_allclose(rounded.x_scale, uneven)
    assert data.rest >= 1e-10 * data.dof


def test_weights_that_leave_no_degrees_of_freedom_are_refused():
    X, y, task = np.eye(4), np.arange(4.0), [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"must sum to at least the number of tasks, 2; got 1\.2"):
        CompressedTasks.of(Tasks.from_long(X, y, task, np.full(4, 0.3)))
    assert CompressedTasks.of(Tasks.from_long(X, y, task, np.full(4, 0.3)), fit_intercept=False).dof == 1.2
    assert CompressedTasks.of(Tasks.from_long(X, y, task, np.full(4, 0.5))).dof == 0


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("sizes", "d"), [(SIZES, D), ((3, 1, 5), 7), ((9,), 2), ((12, 15), 1)])
def test_evidence_is_the_density_of_a_dense_normal_distribution(sizes, d, fit_intercept):
    blocks, tasks = draw(sizes, d, seed=3)
    data = CompressedTasks.of(tasks, fit_intercept)
    at = somewhere(d)
    evidence = Evidence(data, at, d + 2.0)
    expected = known(data, at, fit_intercept).log_evidence(blocks)
    assert evidence.log_evidence - data.dof * math.log(data.y_scale) == pytest.approx(expected, rel=1e-9)
    if not fit_intercept:  # and that is SciPy's
        model = known(data, at, False)
        X, y = np.concatenate([b[0] for b in blocks]), np.concatenate([b[1] for b in blocks])
        t = np.repeat(np.arange(len(sizes)), sizes)
        Sigma = X @ model.M @ X.T + (t[:, None] == t) * (X @ model.C @ X.T) + model.noise * np.eye(len(y))
        assert expected == pytest.approx(stats.multivariate_normal(cov=Sigma).logpdf(y), rel=1e-9)


def test_prior_is_inverse_wishart_and_logistic():
    data = CompressedTasks.of(draw()[1])
    for nu in (D + 0.5, 2.0 * (D + 1)):
        at = somewhere()
        evidence = Evidence(data, at, nu)
        C = (at.L @ at.L.T).numpy()
        expected = stats.invwishart(nu, nu * at.scale * np.eye(D)).logpdf(C) + (D + 1) / 2 * np.linalg.slogdet(C)[1]
        for variance in (at.noise, D * at.mean_variance, D * at.scale):
            expected += stats.logistic.logpdf(math.log(variance))
        assert evidence.value - evidence.log_evidence == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_posterior_is_that_of_the_dense_normal_distribution(weighted, fit_intercept):
    """Means, covariances of every task, and what EM takes from them: second moments, residuals, the size of m."""
    blocks, tasks = draw(seed=4, weighted=weighted)
    data = CompressedTasks.of(tasks, fit_intercept)
    at = somewhere(seed=5)
    evidence = Evidence(data, at, 6.0)
    mean, covariance = known(data, at, fit_intercept).weights(blocks)
    unit = data.y_scale / data.x_scale.numpy()
    mean = (mean.reshape(T + 1, D) / unit).T  # to scaled units: the weights of T tasks, and m
    covariance = covariance.reshape(T + 1, D, T + 1, D) / unit[:, None, None] / unit
    np.testing.assert_allclose(evidence.weights, mean[:, :T], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(evidence.mean, mean[:, T], rtol=1e-8, atol=1e-10)
    own = np.stack([covariance[t, :, t] for t in range(T)])
    np.testing.assert_allclose(evidence.covariances(widened=False), own, rtol=1e-7, atol=1e-10)

    moments, residual = np.zeros((T, D, D)), data.rest
    for t in range(T):
        z = mean[:, t] - mean[:, T]
        cross = covariance[t, :, T]
        moments[t] = np.outer(z, z) + own[t] + covariance[T, :, T] - cross - cross.T
        R, u = data.R[t].numpy(), data.u[t].numpy()
        residual += ((u - R @ mean[:, t]) ** 2).sum() + np.trace(R @ own[t] @ R.T)
    # What an uncertain C adds, from the same moments: B_t is what is left of C once task t has been seen.
    P, V = np.linalg.inv(at.L @ at.L.T).numpy(), np.empty((T, D, D))
    for t in range(T):
        R = data.R[t].numpy()
        V[t] = np.linalg.inv(P + R.T @ R / at.noise)
    H = np.eye(D) - V @ P
    N = 6.0 + np.einsum("tij,tji->", H, H) / D
    wider = V @ P @ (np.einsum("ij,tji->t", P, moments)[:, None, None] * np.linalg.inv(P) + moments) @ P @ V / N
    np.testing.assert_allclose(evidence.covariances(), own + wider, rtol=1e-7, atol=1e-10)
    m_square = mean[:, T] @ mean[:, T] + np.trace(covariance[T, :, T])
    step = evidence.em_step().at
    C = (step.L @ step.L.T).numpy()
    np.testing.assert_allclose(C, (moments.sum(0) + 6.0 * at.scale * np.eye(D)) / (T + 6.0), rtol=1e-8)
    # The variances: the M-step's own objectives, written out, have their maximum there.
    for found, n, b, c in [
        (step.noise, data.dof, residual, 1.0),
        (step.mean_variance, D, m_square, D),
    ]:
        Q = lambda x, n=n, b=b, c=c: -n / 2 * math.log(x) - b / (2 * x) + stats.logistic.logpdf(math.log(c * x))
        assert Q(found) >= max(Q(found * 1.001), Q(found * 0.999))
    trace = np.trace(np.linalg.inv(C))
    Q = lambda s: 3.0 * D * math.log(s) - 3.0 * s * trace + stats.logistic.logpdf(math.log(D * s))
    assert Q(step.scale) >= max(Q(step.scale * 1.001), Q(step.scale * 0.999))


@pytest.mark.parametrize(
    ("n", "b", "c"), [(9.0, 4.0, 1.0), (0.0, 0.0, 3.0), (1.0, 7.0, 0.2), (40.0, 1e-9, 1.0), (5.0, 1e6, 2.0)]
)
def test_a_variance_with_its_prior(n, b, c):
    Q = lambda logarithm: n / 2 * logarithm + b / 2 * np.exp(-logarithm) - stats.logistic.logpdf(logarithm + np.log(c))
    best = optimize.minimize_scalar(Q, bounds=(-30, 30), method="bounded", options={"xatol": 1e-11}).x
    assert math.log(_best_scale(n, b, c)) == pytest.approx(best, abs=1e-5)
    assert _best_scale(n, b, c) > 0


# --- derivatives -----------------------------------------------------------------------------------------------------


def directions(d, number, seed=6):
    """Symmetric matrices and three numbers, flat."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        S = rng.normal(size=(d, d))
        yield torch.from_numpy(np.concatenate([(S + S.T).ravel() / 2, rng.normal(size=3)]))


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("sizes", "d"), [(SIZES, D), ((3, 1, 5), 7), ((9,), 2), ((12, 15), 1)])
def test_derivatives_are_those_of_finite_differences(sizes, d, fit_intercept):
    data = CompressedTasks.of(draw(sizes, d, seed=7)[1], fit_intercept)
    evidence = Evidence(data, somewhere(d), d + 2.0)
    scale = 1 + evidence.gradient.abs().max().item()
    for x in directions(d, 6):
        value = lambda h, x=x: evidence.moved(h * x).value
        first = (value(1e-5) - value(-1e-5)) / 2e-5
        assert float(evidence.gradient @ x) == pytest.approx(first, rel=1e-6, abs=1e-7 * scale)
        bend = lambda h, value=value: -(value(h) - 2 * evidence.value + value(-h)) / h**2
        second = (4 * bend(1e-3) - bend(2e-3)) / 3
        assert float(x @ evidence.curvature(x)) == pytest.approx(second, rel=1e-5, abs=1e-5 * scale)
    a, b = directions(d, 2, seed=8)
    assert float(a @ evidence.curvature(b)) == pytest.approx(float(b @ evidence.curvature(a)), rel=1e-10, abs=1e-10)


def test_coordinates_are_a_symmetric_logarithm_and_three_logarithms():
    data = CompressedTasks.of(draw()[1])
    evidence = Evidence(data, somewhere(), 6.0)
    (x,) = directions(D, 1)
    moved = evidence.moved(x).at
    raw = x / evidence._metric
    values, Q = torch.linalg.eigh(raw[:-3].reshape(D, D))
    expected = evidence.at.L @ (Q * values.exp()) @ Q.T @ evidence.at.L.T
    torch.testing.assert_close(moved.L @ moved.L.T, expected, rtol=1e-10, atol=1e-12)
    steps = np.log(np.array(moved[1:]) / np.array(evidence.at[1:]))
    np.testing.assert_allclose(steps, raw[-3:], rtol=1e-10)


def test_a_step_along_the_gradient_is_that_of_em():
    """In the coordinates the information of complete data is the identity: EM moves C by the gradient."""
    data = CompressedTasks.of(draw()[1])
    evidence = Evidence(data, somewhere(), 6.0)
    L, step = evidence.at.L, evidence.em_step().at.L
    S = (evidence.gradient / evidence._metric)[:-3].reshape(D, D)
    torch.testing.assert_close(step @ step.T, L @ (torch.eye(D, dtype=L.dtype) + S) @ L.T, rtol=1e-10, atol=1e-12)


# --- the maximum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "d", "fit_intercept"),
    [(SIZES, D, True), (SIZES, D, False), ((6, 3, 5, 7, 4), 6, False), ((14,), 3, True)],
)
def test_em_never_falls_and_ends_where_newton_ends(sizes, d, fit_intercept):
    data = CompressedTasks.of(draw(sizes, d, seed=9)[1], fit_intercept)
    nu = 2.0 * (d + 1)
    best, gain, n_iter = learn_hyperparameters(data, nu, 1e-14, 100)
    assert 0 <= gain <= 1e-14 and n_iter < 14
    assert float(best.gradient.norm()) < 1e-6
    state = start(data, nu)
    for _ in range(300):
        before, state = state, state.em_step()
        assert state.value >= before.value - 1e-11 * abs(before.value)
        if state.value - before.value < 1e-7:
            break
    assert state.value > start(data, nu).value + 0.1
    assert state.value == pytest.approx(best.value, abs=1e-4)
    for x in directions(d, 10):  # no neighbour is better
        assert best.moved(1e-3 * x).value < best.value + 1e-10


def test_the_gain_left_is_honest():
    """Stopped early, the gain that is promised is about the gain that comes."""
    data = CompressedTasks.of(draw((9, 12, 8, 15, 11, 10), 3, seed=10)[1])
    best = learn_hyperparameters(data, 8.0, 1e-14, 100)[0]
    for max_iter in (3, 4, 5):
        state, gain, n_iter = learn_hyperparameters(data, 8.0, 1e-14, max_iter)
        assert n_iter == max_iter
        if 1e-10 < gain < 0.1:
            assert gain == pytest.approx(best.value - state.value, rel=0.5)


@pytest.mark.parametrize("d", [1, 3])
def test_widening_is_the_first_order_effect_of_an_uncertain_precision(d):
    """By sampling: C^-1 from a Wishart distribution of many degrees of freedom, m known to be zero."""
    data = CompressedTasks.of(draw((2, 6, 9), d, seed=11)[1], fit_intercept=False)
    at = somewhere(d)._replace(mean_variance=1e-12)
    evidence = Evidence(data, at, 4000.0)
    exact = evidence.covariances(widened=False).numpy()
    found = evidence.covariances().numpy() - exact
    inverse = np.linalg.inv(at.L.numpy())
    H, P = np.eye(d) - inverse @ exact @ inverse.T, inverse.T @ inverse
    N = 4000.0 + (H**2).sum() / d
    draws = stats.wishart(df=N, scale=P / N).rvs(40_000, random_state=12).reshape(-1, d, d)
    for t in range(3):
        R, u = data.R[t].numpy(), data.u[t].numpy()
        V = np.linalg.inv(draws + R.T @ R / at.noise)
        w = V @ (R.T @ u) / at.noise
        # What is linear in the draws has the mean zero, but not the average: it is taken out.
        mean = V.mean(0) + exact[t] @ (draws.mean(0) - P) @ exact[t]
        expected = mean + np.cov(w.T).reshape(d, d) - exact[t]
        np.testing.assert_allclose(found[t], expected, atol=0.03 * np.abs(expected).max())


def test_widening_of_a_task_that_says_nothing_tends_to_the_mean_of_the_prior():
    """Without data the covariance is C (1 + (d + 1) / N), to first order the mean of an inverse Wishart matrix."""
    X = np.zeros((5, 3))
    data = CompressedTasks.of(Tasks.from_long(X, np.arange(5.0), [0, 0, 0, 1, 1]))
    at = somewhere(3)._replace(mean_variance=1e-13)
    C = at.L @ at.L.T
    for nu in (50.0, 5000.0):
        found = Evidence(data, at, nu).covariances()
        torch.testing.assert_close(found, (C * (1 + 4 / nu)).expand(2, 3, 3), rtol=1e-9, atol=1e-11)
    exact = stats.invwishart(5000.0, 5000.0 * C.numpy()).mean()
    np.testing.assert_allclose(found[0], exact, rtol=1e-6)


# --- numbers at the edge ---------------------------------------------------------------------------------------------


def test_rounding_that_makes_a_matrix_indefinite_gives_nan_and_no_error():
    A = torch.tensor([[[1.0, 2.0], [2.0, 1.0]], [[4.0, 0.0], [0.0, 9.0]]])
    assert _cholesky(A)[0].isnan().all() and _cholesky(A)[1].tolist() == [[2, 0], [0, 3]]
    rng = np.random.default_rng(13)
    X = np.repeat(rng.normal(size=(3, 1)), 4, axis=1)  # K_t of rank one
    data = CompressedTasks.of(Tasks.from_long(X, np.arange(3.0), None), fit_intercept=False)
    at = Hyperparameters(1e9 * torch.eye(4, dtype=torch.float64), 1e-10, 1.0, 1.0)
    assert math.isnan(Evidence(data, at, 6.0).value)


def test_huge_steps_stay_finite():
    data = CompressedTasks.of(draw()[1])
    evidence = start(data, 6.0)
    x = torch.zeros_like(evidence.gradient)
    x[-3:] = torch.tensor([1e5, -1e5, 1e5])
    assert all(0 < number < math.inf for number in evidence.moved(x).at[1:])
