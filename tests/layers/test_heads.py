"""Heads of different sizes against plain linear layers."""

import pytest
import torch
from torch import nn

from companion.layers import TaskHeads

I, SIZES, B = 5, (2, 4, 3), 7


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_task_has_a_plain_layer():
    heads, plain = TaskHeads(I, SIZES, generator=rng()).double(), [nn.Linear(I, size).double() for size in SIZES]
    for t, layer in enumerate(plain):
        heads.load_(t, layer)
    x = torch.randn(3, B, I, dtype=torch.float64, generator=rng(1))
    for found, layer, x_t in zip(heads(x), plain, x, strict=True):
        torch.testing.assert_close(found, layer(x_t), rtol=0, atol=0)
    ragged = [x[0], x[1, :2], x[2, :4]]
    for found, layer, x_t in zip(heads(ragged), plain, ragged, strict=True):
        torch.testing.assert_close(found, layer(x_t), rtol=0, atol=0)
    heads(x)[1].sum().backward()
    assert heads.weights[1].grad is not None and heads.weights[0].grad is None


def test_first_weights_are_those_of_plain_layers():
    heads = TaskHeads(400, (50, 70), generator=rng())
    assert heads.weights[0].var().item() == pytest.approx(1 / 1200, rel=0.05)
    assert heads.biases[1].abs().max() <= 1 / 20
    assert torch.equal(heads.weights[1], TaskHeads(400, (50, 70), generator=rng()).weights[1])
    assert TaskHeads(I, SIZES, bias=False).biases is None


def test_a_new_task_gets_a_head():
    for bias in (True, False):
        heads = TaskHeads(I, SIZES, bias, generator=rng()).double()
        assert heads.add_task(6, generator=rng(1)) == 3 and heads.sizes == (*SIZES, 6)
        y = heads(torch.zeros(4, B, I, dtype=torch.float64))
        assert y[3].shape == (B, 6) and bool(y[3].any()) == bias
        assert len(list(heads.parameters())) == (8 if bias else 4)


@pytest.mark.parametrize("sizes", [(), (2, 0), (2, 1.5)])
def test_bad_sizes(sizes):
    with pytest.raises(ValueError, match="heads must hold a number of outputs >= 1 for every task"):
        TaskHeads(I, sizes)


def test_bad_input():
    heads = TaskHeads(I, SIZES)
    with pytest.raises(ValueError, match="activations of 3 tasks with 5 units; got 2 with 5"):
        heads(torch.zeros(2, B, I))
    with pytest.raises(ValueError, match="activations of 3 tasks with 5 units; got 3 with 6"):
        heads(torch.zeros(3, B, I + 1))
