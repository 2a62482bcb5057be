"""What tasks share: by hand on a small example, and what does not change when the factors do."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

from companion.sharing import code_similarity, support_overlap, task_similarity

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


@pytest.mark.parametrize("function, name", [(support_overlap, "S"), (code_similarity, "S"), (task_similarity, "W")])
def test_bad_input(function, name):
    with pytest.raises(ValueError, match=rf"{name} must be a matrix of numbers.*got shape \(3,\)"):
        function(np.ones(3))
    with pytest.raises(ValueError, match=f"{name} must be a matrix of numbers"):
        function([["a", "b"]])
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        function(np.array([[1.0, np.nan]]))
