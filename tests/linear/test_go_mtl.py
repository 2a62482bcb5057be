"""GO-MTL: certificates recomputed, limits, planted groups, new tasks, and odd data."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import Lasso
from sklearn.metrics import adjusted_rand_score

from companion import Tasks
from companion.datasets import make_disjoint_groups, make_overlapping_groups
from companion.linear import GOMTL, GOMTLClassifier, SingleTask
from companion.linear.go_mtl import alternate_factors, separate_weights, starting_factors
from companion.penalties import L1
from companion.solvers.latent import Factors, LatentProblem
from tests.oracles import convex

MU, LAM = 0.08, 0.05


def blocks_of(seed, sizes=(9, 4, 12, 7, 3), d=6, loss="squared"):
    """Tasks that are combinations of two latent tasks, with levels and row weights."""
    rng = np.random.default_rng(seed)
    L, S = rng.normal(size=(d, 2)), rng.normal(size=(2, len(sizes))) * (rng.random((2, len(sizes))) < 0.8)
    blocks = []
    for t, n in enumerate(sizes):
        X = rng.normal(size=(n, d))
        m = X @ L @ S[:, t]
        y = m + 0.2 * rng.normal(size=n) + t
        if loss == "logistic":
            y = np.where(m + rng.logistic(size=n) > np.median(m), 1.0, -1.0)
            y[:2] = 1.0, -1.0
        blocks.append((X, y, rng.integers(1, 3, n).astype(float)))
    return blocks


def long_form(blocks):
    X, y, s = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return X, y, np.repeat(np.arange(len(blocks)), [len(y) for _, y, _ in blocks]), s


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("Model, loss", [(GOMTL, "squared"), (GOMTLClassifier, "logistic")])
def test_every_number_is_recomputed_from_the_weights(Model, loss, free, reduction):
    blocks = blocks_of(0, loss=loss)
    model = Model(3, MU, LAM, reduction=reduction, fit_intercept=free, tol=1e-8).fit(*long_form(blocks))
    L, S, W, b = model.latent_, model.codes_, model.coef_.T, model.intercept_
    assert L.shape == (6, 3) and S.shape == (3, 5)
    np.testing.assert_allclose(L @ S, W, atol=1e-12)
    if free:
        for t, ((X, y, _), v) in enumerate(zip(blocks, convex.row_weights(blocks, reduction), strict=True)):
            assert b[t] == pytest.approx(convex.best_intercept(loss, y, X @ W[:, t], v), rel=1e-8, abs=1e-9)
    else:
        assert not b.any()
    value = convex.data_term(blocks, W, b, loss, reduction) + MU * np.abs(S).sum() + LAM * (L**2).sum()
    assert model.objective_ == pytest.approx(value, rel=1e-11)
    C = convex.descent(blocks, W, b, loss, reduction)
    pull = L.T @ C
    np.testing.assert_allclose(pull[S != 0], MU * np.sign(S[S != 0]), atol=2e-8 * MU)
    assert (np.abs(pull[S == 0]) <= MU * (1 + 2e-8)).all() and (S == 0).any()
    np.testing.assert_allclose(C @ S.T, 2 * LAM * L, atol=1e-7 * np.abs(L).max())
    np.testing.assert_allclose(2 * LAM * (L**2).sum(0), MU * np.abs(S).sum(1), rtol=1e-7, atol=1e-12)
    assert set(model.certificate_) == {"codes", "latent", "balance"} and max(model.certificate_.values()) <= 1e-8
    assert np.isnan(model.dual_gap_) and model.n_active_ == (S != 0).any(1).sum()
    history = model.history_
    assert (np.diff(history) <= 1e-9 * history[0]).all() and history[-1] == pytest.approx(value, rel=1e-11)
    assert len(history) > model.n_iter_ / 2 > 1
    assert (np.diff((L**2).sum(0)) <= 0).all() and (S.sum(1) >= 0).all()  # in order, with signs


def test_how_singular_values_are_divided_does_not_matter():
    """The start of the paper, L = U, and that of later ones, L = U sqrt(s): the same factors once they are scaled."""
    blocks = blocks_of(1)
    model = GOMTL(2, MU, LAM)
    _, problem = model.prepare(*long_form(blocks))
    latent = LatentProblem(problem, L1(MU), LAM)
    W = torch.from_numpy(SingleTask(2 * LAM).fit(*long_form(blocks)).coef_.T.copy())
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    root = s[:2].sqrt()
    one, other = Factors(U[:, :2], s[:2, None] * Vh[:2]), Factors(U[:, :2] * root, root[:, None] * Vh[:2])
    ours = starting_factors(W, 2)
    for at in (other, ours):
        torch.testing.assert_close(latent.balanced(at).L, latent.balanced(one).L, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(latent.balanced(at).S, latent.balanced(one).S, rtol=1e-9, atol=1e-12)


def test_starts_represent_the_separate_weights():
    W = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 3)))
    for K in (3, 4, 7):  # as many as there are, and more
        for rng in (None, np.random.default_rng(1)):
            L, S = starting_factors(W, K, rng)
            assert L.shape == (5, K) and S.shape == (K, 3)
            torch.testing.assert_close(L @ S, W)
            torch.testing.assert_close(L.norm(dim=0), torch.ones(K, dtype=W.dtype))
            assert float((L.T @ L - torch.eye(K, dtype=W.dtype)).abs().max()) < 0.999  # all of them differ
    U = torch.linalg.svd(W)[0][:, :2]
    turned, _ = starting_factors(W, 2, np.random.default_rng(1))
    torch.testing.assert_close(U @ U.T @ turned, turned)
    assert not torch.allclose(turned.abs(), U.abs())
    assert not starting_factors(torch.zeros(5, 3, dtype=W.dtype), 2).S.any()


def test_a_sweep_is_codes_then_scales_then_latent_tasks():
    data = long_form(blocks_of(1))
    _, problem = GOMTL().prepare(*data)
    latent = LatentProblem(problem, L1(MU), LAM)
    alone = separate_weights(problem, LAM)
    np.testing.assert_allclose(alone.T, SingleTask(2 * LAM).fit(*data).coef_, rtol=1e-3, atol=1e-3)
    start = starting_factors(alone, 2)
    codes = latent.codes(start, 1e-6, 1000)
    scaled = latent.balanced(codes)
    ends = [start, codes, scaled, latent.latent(scaled, 1e-14, 50)]
    history = alternate_factors(latent, start, 1, 1e-6)
    np.testing.assert_allclose(history.objective, [latent.value(at) for at in ends], rtol=1e-9)
    torch.testing.assert_close(history.state.L, ends[-1].L, rtol=1e-5, atol=1e-6)


def test_sweeps_without_rescaling_creep():
    """What the scales cost: after as many sweeps the balance is off by orders of magnitude."""
    data = make_disjoint_groups(n_tasks=12, random_state=0)
    _, problem = GOMTL(3, fit_intercept=False).prepare(data.train)
    latent = LatentProblem(problem, L1(0.05), 0.1)
    W = torch.from_numpy(SingleTask(0.2, fit_intercept=False).fit(data.train).coef_.T.copy())
    start = starting_factors(W, 3)
    balance = []
    for rescale in (True, False):
        history = alternate_factors(latent, start, 30, 1e-5, rescale, stop=lambda at: False)
        assert history.n_iter == 30 and len(history.objective) == 1 + 30 * (2 + rescale)
        assert (np.diff(history.objective) <= 1e-9 * history.objective[0]).all()
        balance.append(latent.stationarity(history.state).balance)
    assert balance[0] < 0.003 < 0.05 < balance[1]


def test_more_starts_are_never_worse_and_some_are_better():
    blocks = blocks_of(4, sizes=(5, 6, 4, 7, 5, 6, 4, 8), d=7)
    values = [GOMTL(4, 0.02, LAM, n_init=n).fit(*long_form(blocks)).objective_ for n in (1, 3, 8)]
    assert values[0] >= values[1] >= values[2] and values[0] > values[2] * (1 + 1e-6)


def test_planted_groups_and_their_noise_floor():
    """One latent task for each group, found from 15 rows of 20 features per task."""
    data = make_disjoint_groups(random_state=0)
    model = GOMTL(3, 0.03, 0.1, fit_intercept=False).fit(data.train)
    clear = data.S.max(0) >= 0.25
    assert adjusted_rand_score(data.groups[clear], np.abs(model.codes_).argmax(0)[clear]) == 1
    error = lambda m: np.sqrt(
        np.mean([((y - p) ** 2).mean() for p, (_, y) in zip(m.predict(data.test), data.test, strict=True)])
    )
    assert error(model) < 0.39 < 0.9 < error(SingleTask(0.1, fit_intercept=False).fit(data.train))


def test_tasks_that_point_backwards_share_a_latent_task():
    data = make_overlapping_groups(n_tasks=12, random_state=1)
    turned = Tasks.from_list([(X, -y if t % 2 else y) for t, (X, y) in enumerate(data.train)])
    fit = lambda tasks: GOMTL(4, 0.03, 0.1, fit_intercept=False, tol=1e-9).fit(tasks)
    a, b = fit(data.train), fit(turned)
    sign = np.where(np.arange(12) % 2, -1.0, 1.0)
    assert b.objective_ == pytest.approx(a.objective_, rel=1e-9)
    np.testing.assert_allclose(b.coef_, sign[:, None] * a.coef_, atol=1e-6)


def test_data_decide_the_library_and_missing_labels_are_left_out():
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(19, 4)), rng.normal(size=(4, 2)) @ rng.normal(size=(2, 5))
    Y = X @ W + 0.1 * rng.normal(size=(19, 5))
    Y[rng.random(Y.shape) < 0.2] = np.nan
    model = GOMTL(2, 0.02, 0.02).fit(Tasks.shared(torch.tensor(X, dtype=torch.float32), torch.tensor(Y)))
    seen = ~np.isnan(Y)
    lists = GOMTL(2, 0.02, 0.02).fit(Tasks.from_list([(X[seen[:, t]], Y[seen[:, t], t]) for t in range(5)]))
    assert model.latent_.dtype == model.codes_.dtype == torch.float32
    np.testing.assert_allclose(model.coef_, lists.coef_, atol=1e-4)


@pytest.mark.gpu
def test_accelerator_and_processor_agree():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    X, y, task, s = long_form(blocks_of(0))
    expected = GOMTL(2, MU, LAM, tol=1e-5).fit(X, y, task, s)
    model = GOMTL(2, MU, LAM, tol=1e-5).fit(torch.tensor(X, device="cuda"), torch.tensor(y, device="cuda"), task, s)
    assert model.latent_.device.type == "cuda"
    np.testing.assert_allclose(model.coef_.cpu(), expected.coef_, atol=1e-4)


# --- new tasks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [True, False])
def test_a_new_task_is_a_lasso_in_the_latent_tasks(free):
    X, y, task, s = long_form(blocks_of(2))
    model = GOMTL(3, MU, LAM, fit_intercept=free, tol=1e-9).fit(X, y, task, s)
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(8, 6))
    targets = rows @ model.latent_ @ [1.0, -0.5, 0.0] + 0.1 * rng.normal(size=8) + 2
    code, intercept = model.adapt(rows, targets, return_intercept=True)
    lasso = Lasso(alpha=MU, fit_intercept=free, tol=1e-14, max_iter=100_000).fit(rows @ model.latent_, targets)
    np.testing.assert_allclose(code, lasso.coef_, atol=1e-7)
    assert intercept == pytest.approx(lasso.intercept_, abs=1e-7)
    assert isinstance(code, np.ndarray) and isinstance(model.adapt(torch.tensor(rows), targets), torch.Tensor)
    twice = np.repeat(rows, [2, 0, 1, 1, 3, 1, 1, 1], axis=0), np.repeat(targets, [2, 0, 1, 1, 3, 1, 1, 1])
    np.testing.assert_allclose(
        model.adapt(rows, targets, sample_weight=[2, 0, 1, 1, 3, 1, 1, 1]), model.adapt(*twice), atol=1e-7
    )


@pytest.mark.parametrize("Model, loss", [(GOMTL, "squared"), (GOMTLClassifier, "logistic")])
def test_a_known_task_adapts_to_its_own_code(Model, loss):
    X, y, task, s = long_form(blocks_of(2, loss=loss))
    y = y if loss == "squared" else np.where(y > 0, "yes", "no")
    model = Model(2, MU / 4, LAM, tol=1e-9).fit(X, y, task, s)
    for t in range(5):
        mine = task == t
        code, intercept = model.adapt(X[mine], y[mine], s[mine], return_intercept=True)
        np.testing.assert_allclose(code, model.codes_[:, t], atol=1e-6)
        assert intercept == pytest.approx(model.intercept_[t], abs=1e-6)


def test_bad_new_tasks_are_refused():
    X, y, task, s = long_form(blocks_of(2, loss="logistic"))
    with pytest.raises(NotFittedError, match="GOMTL instance is not fitted yet"):
        GOMTL().adapt(X, y)
    model = GOMTLClassifier(2, MU, LAM).fit(X, y, task, s)
    with pytest.raises(ValueError, match="X must have 6 features, as in fit; got 5"):
        model.adapt(X[:, :5], y)
    with pytest.raises(ValueError, match=r"y must hold the labels of fit, \[-1.0, 1.0\]; got 3.0 as well"):
        model.adapt(X, np.where(y > 0, 3.0, -1.0))
    with pytest.raises(ValueError, match="y holds 1 class only"):
        model.adapt(X, np.ones(len(y)))
    without = GOMTLClassifier(2, MU, LAM, fit_intercept=False).fit(X, y, task, s)
    assert without.adapt(X, np.ones(len(y))).shape == (2,)
    with pytest.raises(ValueError, match=r"y must have shape \(35,\)"):
        GOMTL(2).fit(X, y, task).adapt(X, y[:3])


# --- odd data and bad input -------------------------------------------------------------------------------------------


def test_more_latent_tasks_than_features_or_tasks():
    X, y, task, s = long_form(blocks_of(0))
    for K in (5, 6, 9):
        model = GOMTL(K, MU, LAM).fit(X, y, task, s)
        assert max(model.certificate_.values()) <= 1e-6 and model.n_active_ <= K
        assert model.latent_.shape == (6, K)
        unused = ~(model.codes_ != 0).any(1)
        assert not model.latent_[:, unused].any() and unused.sum() == K - model.n_active_


def test_one_task_one_latent_task_one_row_one_feature():
    X, y, _, _ = long_form(blocks_of(0))
    for data in ((X[:9], y[:9]), (X[:1], y[:1]), (X[:9, :1], y[:9])):
        model = GOMTL(1, 0.01, 0.01).fit(*data)
        assert max(model.certificate_.values()) <= 1e-6 and model.coef_.shape == (1, data[0].shape[1])
    lonely = GOMTL(2, MU, LAM).fit(X[:10], y[:10], [0] * 9 + [7])  # a task of one row has no slope
    assert not lonely.coef_[1].any() and not lonely.codes_[:, 1].any()
    assert lonely.intercept_[1] == pytest.approx(y[9])


def test_targets_without_signal_and_strong_penalties_leave_nothing():
    X, y, task, _ = long_form(blocks_of(0))
    for model in (GOMTL(2).fit(X, task.astype(float), task), GOMTL(2, 100.0, 100.0).fit(X, y, task)):
        assert not model.coef_.any() and not model.latent_.any() and model.n_active_ == 0
        assert set(model.certificate_.values()) == {0.0}


def test_columns_that_repeat_share_what_one_would_get():
    X, y, task, s = long_form(blocks_of(0))
    model = GOMTL(2, MU, LAM, tol=1e-9).fit(np.hstack([X, X[:, :2]]), y, task, s)
    np.testing.assert_allclose(model.latent_[:2], model.latent_[6:], atol=1e-6)


def test_a_task_a_thousand_times_larger():
    blocks = blocks_of(0, sizes=(9, 4000, 12, 7))
    model = GOMTL(2, MU, LAM, reduction="sum").fit(*long_form(blocks))
    assert max(model.certificate_.values()) <= 1e-6


def test_stopping_early_names_what_failed():
    blocks = blocks_of(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model = GOMTL(2, 0.01, LAM, max_iter=2).fit(*long_form(blocks))
    message = str(caught[0].message)
    missed = {name: value for name, value in model.certificate_.items() if value > 1e-6}
    assert len(caught) == 1 and "GOMTL stopped after 2 iterations (max_iter=2) at a" in message
    assert missed and all(f"{name} of {value:.1e}" in message for name, value in missed.items())


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("n_latent", (0, -1, 1.0, True, "2", None), "n_latent must be an integer >= 1; got "),
        ("n_init", (0, 2.0), "n_init must be an integer >= 1; got "),
        ("mu", (0.0, -1.0, np.nan, np.inf), "mu must be a finite number > 0; got "),
        ("lam", (0.0, -1.0, np.nan, np.inf), "lam must be a finite number > 0; got "),
    ],
)
def test_bad_parameters_are_refused(name, values, message):
    X, y, task, s = long_form(blocks_of(0))
    for value in values:
        with pytest.raises(ValueError, match=message):
            GOMTL(**{name: value}).fit(X, y, task, s)


def test_a_task_of_one_class_is_named():
    X, y, task, s = long_form(blocks_of(0, loss="logistic"))
    y = np.where(task == 2, 1.0, y)
    with pytest.raises(ValueError, match=r"task 2 holds 1 class only \(1.0\)"):
        GOMTLClassifier().fit(X, y, task, s)
    assert max(GOMTLClassifier(fit_intercept=False).fit(X, y, task, s).certificate_.values()) <= 1e-6
