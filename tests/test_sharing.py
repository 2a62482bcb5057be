"""What tasks share: by hand on a small example, and what does not change when the factors do."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

from companion.factorized import LAF, TensorTrain, Tucker
from companion.sharing import code_similarity, sharing_strength, support_overlap, task_similarity

S = np.array([[1.0, -2.0, 0.0, 0.0, 3.0], [0.5, 0.0, -4.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])  # (K, T)


def test_overlap_counts_latent_tasks():
    expected = [
        [1, 1 / 2, 1 / 3, 0, 1 / 2],
        [1 / 2, 1, 0, 0, 1],
        [1 / 3, 0, 1, 0, 0],
        [0, 0, 0, 0, 0],
        [1 / 2, 1, 0, 0, 1],
    ]
    np.testing.assert_allclose(support_overlap(S), expected)
    np.testing.assert_allclose(support_overlap(torch.tensor(S) * 1e-9), expected)


def test_a_task_that_goes_backwards_is_near():
    found = code_similarity(S)
    assert found[1, 4] == pytest.approx(1) and found[0, 1] == pytest.approx(1 / np.sqrt(1.25))
    assert found[0, 2] == pytest.approx(0.5 * 4 / np.sqrt(1.25 * 17)) and not found[3].any()
    assert task_similarity(S)[1, 4] == pytest.approx(-1)
    np.testing.assert_allclose(code_similarity(1e-9 * S), found, atol=1e-12)  # no length is too short


def test_similarity_of_weights_does_not_depend_on_the_factors():
    rng = np.random.default_rng(0)
    L, M = rng.normal(size=(7, 3)), rng.normal(size=(3, 3))
    other = np.linalg.solve(M, S)
    np.testing.assert_allclose(task_similarity((L @ M) @ other), task_similarity(L @ S), atol=1e-12)
    assert np.abs(code_similarity(other) - code_similarity(S)).max() > 0.1
    W = L @ S
    assert task_similarity(W)[0, 2] == pytest.approx(1 - cosine(W[:, 0], W[:, 2]), rel=1e-12)
    assert task_similarity(3.0 * W)[0, 0] == 1 and (np.abs(task_similarity(W)) <= 1).all()


@pytest.mark.parametrize(
    "function, name",
    [(support_overlap, "S"), (code_similarity, "S"), (sharing_strength, "S"), (task_similarity, "W")],
)
def test_bad_input(function, name):
    with pytest.raises(ValueError, match=rf"{name} must be a matrix of numbers.*got shape \(3,\)"):
        function(np.ones(3))
    with pytest.raises(ValueError, match=f"{name} must be a matrix of numbers"):
        function([["a", "b"]])
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        function(np.array([[1.0, np.nan]]))


# --- sharing strength -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [2, 5, 50])
def test_strength_of_the_two_ends(T):
    """The paper's 0 for separate tasks and 1 for tied ones are those of raw codes; softmax leaves far more than 0."""
    apart, tied = np.eye(T), np.ones((1, T))
    assert sharing_strength(apart, normalized=False) == pytest.approx(0, abs=1e-15)
    assert sharing_strength(apart) == pytest.approx((2 * np.e + T - 2) / (np.e**2 + T - 1))
    assert sharing_strength(tied) == sharing_strength(tied, normalized=False) == pytest.approx(1)
    assert sharing_strength(10 * np.eye(T)) < 1e-3 * T
    assert sharing_strength(1e4 * np.eye(T)) == pytest.approx(0, abs=1e-12)  # no overflow


def test_strength_is_the_mean_over_pairs():
    rng = np.random.default_rng(1)
    C = rng.normal(size=(4, 5))
    soft = np.exp(np.abs(C)) / np.exp(np.abs(C)).sum(0)
    for normalized, codes in ((True, soft), (False, C)):
        pairs = [1 - cosine(codes[:, s], codes[:, t]) for s in range(5) for t in range(s)]
        assert sharing_strength(C, normalized) == pytest.approx(np.mean(pairs), rel=1e-12)
        assert sharing_strength(torch.tensor(C), normalized) == pytest.approx(np.mean(pairs), rel=1e-12)
        shuffled = C[rng.permutation(4)][:, rng.permutation(5)]
        assert sharing_strength(shuffled, normalized) == pytest.approx(sharing_strength(C, normalized), rel=1e-12)
    assert 0 < sharing_strength(C) <= 1


def test_strength_depends_on_the_factors_where_similarity_does_not():
    """Another basis of the latent tasks, or another scale: the same weights, another strength."""
    rng = np.random.default_rng(3)
    L, C, M = rng.normal(size=(7, 3)), rng.normal(size=(3, 5)), rng.normal(size=(3, 3))
    other = np.linalg.solve(M, C)
    np.testing.assert_allclose((L @ M) @ other, L @ C, atol=1e-12)
    for normalized in (True, False):
        assert abs(sharing_strength(other, normalized) - sharing_strength(C, normalized)) > 0.02
    assert sharing_strength(3 * C) != pytest.approx(sharing_strength(C), abs=0.02)
    assert sharing_strength(3 * C, normalized=False) == pytest.approx(sharing_strength(C, normalized=False))
    np.testing.assert_allclose(task_similarity((L @ M) @ other), task_similarity(L @ C), atol=1e-12)


def test_strength_by_format():
    """One set of weights: Tucker's orthonormal codes of full rank share nothing, those of LAF hold singular values."""
    W = torch.randn(6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    W = W + torch.randn(6, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))  # tasks are alike
    codes = {cls: cls.from_weights(W, ranks=1.0).task_factor() for cls in (LAF, Tucker, TensorTrain)}
    assert sharing_strength(codes[Tucker], normalized=False) == pytest.approx(0, abs=1e-12)
    # Codes of LAF and the train at full rank are an isometry away from the weights.
    similarity = task_similarity(W.reshape(30, 4))[np.triu_indices(4, 1)].mean()
    for cls in (LAF, TensorTrain):
        assert sharing_strength(codes[cls], normalized=False) == pytest.approx(similarity, rel=1e-10)
    assert similarity > 0.3


def test_a_task_without_a_code_shares_nothing():
    assert sharing_strength(np.array([[1.0, 0.0, 1.0]]), normalized=False) == pytest.approx(1 / 3)


def test_one_task_has_no_pair():
    with pytest.raises(ValueError, match="compares pairs of tasks and needs at least two; got 1"):
        sharing_strength(np.ones((3, 1)))
