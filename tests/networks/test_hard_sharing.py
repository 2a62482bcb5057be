"""Hard sharing."""

import pytest
import torch
from torch import nn

from companion.networks import HardSharing

T, D, H, O, N = 3, 5, 2, 4, 7


def network(seed=0, n_outputs=O, activation=None):
    rng = torch.Generator().manual_seed(seed)
    net = HardSharing(D, H, T, n_outputs, activation, generator=rng)
    return net.double()


def test_forward_is_the_formula_for_every_form_of_input():
    net, X = network(), torch.randn(T, N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        net.trunk_bias.uniform_(generator=torch.Generator().manual_seed(2))
        net.head_bias.uniform_(generator=torch.Generator().manual_seed(3))
    for t in range(T):
        hidden = torch.tanh(X[t] @ net.trunk_weight + net.trunk_bias)
        expected = hidden @ net.head_weight[t] + net.head_bias[t]
        torch.testing.assert_close(net(X)[t], expected)
        torch.testing.assert_close(net(X[t])[t], expected)
        torch.testing.assert_close(net([X[0], X[1, :2], X[2]][:T])[t], expected[: 2 if t == 1 else N])
    assert net(X[0]).shape == (T, N, O)


def test_heads_are_private_and_the_trunk_is_common():
    """Jacobian across tasks: the loss of task 0 moves the trunk and its own head, no other head."""
    net = network()
    net(torch.ones(N, D, dtype=torch.float64))[0].sum().backward()
    assert (net.trunk_weight.grad != 0).all()
    assert (net.head_weight.grad[0] != 0).all()
    assert (net.head_weight.grad[1:] == 0).all()


def test_identity_activation_gives_weights_of_rank_h():
    net = network(activation=nn.Identity(), n_outputs=1)
    eye = torch.eye(D, dtype=torch.float64)
    W = (net(eye) - net(0 * eye)).squeeze(-1).T  # (D, T)
    assert torch.linalg.matrix_rank(W) == H


def test_first_weights_have_fan_in_variance_and_follow_the_generator():
    wide = HardSharing(400, 50, 2, generator=torch.Generator().manual_seed(0))
    assert wide.trunk_weight.var().item() == pytest.approx(1 / 400, rel=0.05)
    again = HardSharing(400, 50, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wide.head_weight, again.head_weight, rtol=0, atol=0)


def test_bad_input():
    X = torch.zeros(1, T, N, D, dtype=torch.float64)
    with pytest.raises(ValueError, match="n_hidden must be at least 1; got 0"):
        HardSharing(D, 0, T)
    with pytest.raises(ValueError, match=r"X must be \(n, 5\), \(3, n, 5\) or a list; got \(2, 7, 5\)"):
        network()(X[0, :2])
    with pytest.raises(ValueError, match=r"got \(7, 4\)"):
        network()(X[0, 0, :, :4])
    with pytest.raises(ValueError, match="inputs of 3 tasks, one tensor each; got 2"):
        network()([X[0, 0]] * 2)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"got \(5,\)"):
        network()(torch.ones(D, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"got \(1, 3, 7, 5\)"):
        network()(torch.ones(1, T, N, D, dtype=torch.float64))
