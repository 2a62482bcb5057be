"""The cost model: its counts against operations that are really counted, and what it chooses."""

from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from companion.factorized import LAF, Independent, TensorRing, TensorTrain, Tied, Tucker
from companion.layers import TaskConv2d, TaskLinear
from companion.layers.cost import PASS, Sizes, activations_cost, choose, composed_cost

FORMATS = [LAF, Tucker, TensorTrain, TensorRing, Independent, Tied]
T, B, I, O = 3, 7, 12, 10


def counted(function):
    """Multiply-adds that torch counts."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops() / 2


def written(weight, sizes, way):
    """Numbers that the model takes for written to memory, by hand."""
    chain, T = weight.chain_sizes(), weight.n_tasks
    if way == "composed":
        return 0 if isinstance(weight, Independent | Tied) else T * prod(weight.shape[:-1])
    first = chain.left == "kernel and channels"
    middle = (1 if first else sizes.kernel) * chain.inner * chain.outer
    left = (sizes.rows if first else sizes.rows_in) * chain.inner if chain.left else 0
    return T * (middle + left + chain.right * sizes.rows * chain.outer)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("ranks", [1.0, 0.5, 2])
@pytest.mark.parametrize("cls", FORMATS)
def test_counts_of_linear_layers(cls, ranks, fold):
    weight = cls.random((I, O, T), ranks, generator=torch.Generator().manual_seed(0), fold=fold)
    x, sizes = torch.randn(T, B, I), Sizes(B, B, 1, I, O)
    layer = TaskLinear(weight, bias=False)
    for layer.contraction, cost in (("composed", composed_cost), ("activations", activations_cost)):
        if layer.contraction == "activations" and not weight.chain_sizes().middle:
            continue  # one layer for all has no middle to count; it is never asked
        operations = counted(lambda: layer(x))
        if not (weight.chain_sizes().left or weight.chain_sizes().right) and layer.contraction == "activations":
            continue  # nothing to go through: it is composed
        assert cost(weight, sizes) == operations + PASS * written(weight, sizes, layer.contraction)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("ranks", [1.0, 0.5, 2])
@pytest.mark.parametrize("cls", [LAF, Tucker, TensorTrain, TensorRing])
def test_counts_of_convolutions(cls, ranks, fold):
    weight = cls.random((3, 2, 5, 6, T), ranks, generator=torch.Generator().manual_seed(0), fold=fold)
    x, sizes = torch.randn(T, B, 5, 8, 9), Sizes(B * 6 * 8, B * 8 * 9, 6, 5, 6)
    layer, chain = TaskConv2d(weight, bias=False), weight.chain_sizes()
    for layer.contraction, cost in (("composed", composed_cost), ("activations", activations_cost)):
        if layer.contraction == "composed" or chain.left or chain.right:
            operations = counted(lambda: layer(x))
            assert cost(weight, sizes) == operations + PASS * written(weight, sizes, layer.contraction)


def test_what_is_chosen():
    """The regimes that were measured: LAF and full rank composed, low ranks through the factors."""
    wide = Sizes(32, 32, 1, 512, 512)
    rng = torch.Generator().manual_seed(0)
    assert choose("auto", LAF.random((512, 512, 10), 1.0, generator=rng), wide) == "composed"
    assert choose("auto", Tied.random((512, 512, 10), generator=rng), wide) == "activations"
    for cls in (Tucker, TensorTrain):
        assert choose("auto", cls.random((512, 512, 10), 1.0, generator=rng), wide) == "composed"  # all is folded
        for ranks in (0.5, 0.25):
            low = cls.random((512, 512, 10), ranks, generator=rng)
            assert choose("auto", low, wide) == "activations"
            assert choose("composed", low, wide) == "composed"
    many = Sizes(100_000, 100_000, 1, 512, 512)  # so many rows that composing costs nothing beside them
    high = Tucker.random((512, 512, 10), (510, 510, 10), generator=rng)
    assert choose("auto", high, many) == "composed" and choose("activations", high, many) == "activations"


def test_choices_are_remembered_and_made_anew_for_other_weights():
    layer = TaskLinear(LAF.random((512, 512, 10), 1.0, generator=torch.Generator().manual_seed(0)))
    wide = Sizes(32, 32, 1, 512, 512)
    assert layer.choose(wide) == layer.choose(wide) == "composed"
    layer.contraction = "activations"
    assert layer.choose(wide) == "activations"
    layer.contraction = "auto"
    layer.weight = TensorTrain.random((512, 512, 10), 0.25, generator=torch.Generator().manual_seed(0))
    assert layer.choose(wide) == "activations"
