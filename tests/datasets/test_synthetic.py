"""Synthetic tasks: the truth that is returned is the truth of the data."""

import numpy as np
import pytest

from companion.datasets import make_disjoint_groups, make_overlapping_groups

BOTH = pytest.mark.parametrize("make", [make_disjoint_groups, make_overlapping_groups])
SIZES = {"n_tasks": 11, "n_groups": 3, "n_features": 7, "n_train": 5, "n_test": 6}


def as_bytes(data):
    parts = [data.W, data.L, data.S, data.groups]
    parts += [array for tasks in (data.train, data.test) for pair in tasks for array in pair]
    return [part.tobytes() for part in parts]


@BOTH
def test_noiseless_targets_are_those_of_the_true_weights(make):
    data = make(**SIZES, noise_variance=0.0, random_state=0)
    for tasks, n in ((data.train, 5), (data.test, 6)):
        assert (tasks.ids, tasks.n_features) == (tuple(range(11)), 7)
        for t, (X, y) in enumerate(tasks):
            assert X.shape == (n, 7)
            np.testing.assert_allclose(y, X @ data.W[:, t], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(data.W, data.L @ data.S, strict=True)
    assert (data.W.shape, data.L.shape[0], data.S.shape[1]) == ((7, 11), 7, 11)


@BOTH
def test_groups_are_blocks_of_almost_equal_size(make):
    data = make(**SIZES, random_state=0)
    np.testing.assert_array_equal(data.groups, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])


@BOTH
def test_moments_of_a_big_draw(make):
    """2 x 90 000 rows: standard errors of the noise variance and of the input variance are below 0.4 %."""
    data = make(n_tasks=3, n_features=4, n_train=30_000, n_test=30_000, noise_variance=0.3, random_state=1)
    assert data.noise_variance == 0.3
    for tasks in (data.train, data.test):
        noise = np.concatenate([y - X @ data.W[:, t] for t, (X, y) in enumerate(tasks)])
        X = np.concatenate([X for X, _ in tasks])
        np.testing.assert_allclose(noise.var(), 0.3, rtol=0.02)
        np.testing.assert_allclose(noise.mean(), 0, atol=0.01)
        np.testing.assert_allclose(np.cov(X.T), np.eye(4) / 3, atol=0.006)
        np.testing.assert_allclose([X.min(), X.max()], [-1, 1], atol=1e-3)


@BOTH
def test_latent_tasks_are_standard_normal(make):
    L = make(n_tasks=3, n_features=40_000, n_train=1, n_test=1, random_state=2).L
    np.testing.assert_allclose(np.cov(L.T), np.eye(L.shape[1]), atol=0.03)
    np.testing.assert_allclose(L.mean(axis=0), 0, atol=0.02)


def test_disjoint_groups_have_rank_one_and_the_multiples_asked_for():
    data = make_disjoint_groups(**SIZES, multiples=(-0.5, 2.5), random_state=3)
    assert data.L.shape == (7, 3)
    for g in range(3):
        own = data.groups == g
        assert np.linalg.matrix_rank(data.W[:, own]) == 1
        np.testing.assert_array_equal(data.W[:, own], np.outer(data.L[:, g], data.S[g, own]))
        np.testing.assert_array_equal(data.S[g, ~own], 0)
    multiples = make_disjoint_groups(n_tasks=2000, n_train=1, n_test=1, random_state=4).S.sum(axis=0)
    assert 0.05 <= multiples.min() < 0.06
    assert 1.83 < multiples.max() <= 1.84
    np.testing.assert_allclose(multiples.var(), 1.79**2 / 12, rtol=0.05)


def test_overlapping_groups_use_two_neighbouring_latent_tasks():
    data = make_overlapping_groups(**SIZES, random_state=5)
    assert data.L.shape == (7, 4)
    for t, g in enumerate(data.groups):
        np.testing.assert_array_equal(np.flatnonzero(data.S[:, t]), [g, g + 1])
    ranks = [np.linalg.matrix_rank(data.W[:, data.groups == g]) for g in range(3)]
    assert ranks == [2, 2, 2]
    assert np.linalg.matrix_rank(data.W[:, data.groups <= 1]) == 3  # 2 + 2 - the latent task in common


@BOTH
def test_same_seed_same_bytes(make):
    first = as_bytes(make(**SIZES, random_state=6))
    np.random.seed(0)  # noqa: NPY002 - the global generator must make no difference
    assert as_bytes(make(**SIZES, random_state=6)) == first
    assert as_bytes(make(**SIZES, random_state=np.random.default_rng(6))) == first
    assert as_bytes(make(**SIZES, random_state=7)) != first


@BOTH
def test_training_rows_do_not_depend_on_the_size_of_the_test(make):
    few, many = (make(**{**SIZES, "n_test": n}, random_state=8).train for n in (2, 9))
    for (X, y), (X_other, y_other) in zip(few, many, strict=True):
        np.testing.assert_array_equal(X, X_other)
        np.testing.assert_array_equal(y, y_other)


@BOTH
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_tasks": 0}, r"^n_tasks must be a whole number >= 1; got 0$"),
        ({"n_groups": 0}, r"^n_groups must be a whole number >= 1; got 0$"),
        ({"n_groups": 31}, r"^n_groups must be at most n_tasks = 30, one task in each group; got 31$"),
        ({"n_features": 2.5}, r"^n_features must be a whole number >= 1; got 2\.5$"),
        ({"n_train": -3}, r"^n_train must be a whole number >= 1; got -3$"),
        ({"n_test": True}, r"^n_test must be a whole number >= 1; got True$"),
        ({"noise_variance": -0.1}, r"^noise_variance must be a finite number >= 0; got -0\.1$"),
        ({"noise_variance": float("nan")}, r"^noise_variance must be a finite number >= 0; got nan$"),
    ],
)
def test_wrong_arguments(make, wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)


@pytest.mark.parametrize("multiples", [(2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_wrong_multiples(multiples):
    with pytest.raises(ValueError, match=r"^multiples must be two finite numbers .*low <= high; got \("):
        make_disjoint_groups(multiples=multiples)
