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


def written(weight, sizes, chain):
    """Numbers that the model takes for written to memory, by hand from the maps themselves."""
    T = weight.n_tasks
    if chain is None:
        return 0 if isinstance(weight, Independent | Tied) else T * prod(weight.shape[:-1])
    _, middle, right = weight.chain(chain)
    rows = {"channels": sizes.rows_in, "kernel and channels": sizes.rows, "first kernel axis": sizes.rows_first}
    between = rows[chain.left] * middle.shape[-2] if chain.left else 0
    return middle.numel() + T * (between + (0 if right is None else sizes.rows * right.shape[0]))


def assert_counted(layer, x, sizes):
    """Every way of this layer costs what is counted, and what is written beside."""
    weight, ways = layer.weight, []
    for chain in (None, *weight.chains()):
        if chain is not None and not chain.middle:
            continue  # one layer for all has no middle to count; it is never asked
        layer.choose = lambda sizes, chain=chain: chain
        cost = composed_cost(weight, sizes) if chain is None else activations_cost(weight, chain, sizes)
        assert cost == counted(lambda: layer(x)) + PASS * written(weight, sizes, chain)
        ways.append(chain and chain.left)
    return ways


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("ranks", [1.0, 0.5, 2])
@pytest.mark.parametrize("cls", FORMATS)
def test_counts_of_linear_layers(cls, ranks, fold):
    weight = cls.random((I, O, T), ranks, generator=torch.Generator().manual_seed(0), fold=fold)
    x, sizes = torch.randn(T, B, I), Sizes(B, B, 1, I, O)
    assert_counted(TaskLinear(weight, bias=False), x, sizes)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("ranks", [1.0, 0.5, 0.25, 2])
@pytest.mark.parametrize("cls", [LAF, Tucker, TensorTrain, TensorRing])
def test_counts_of_convolutions(cls, ranks, fold):
    weight = cls.random((3, 2, 5, 6, T), ranks, generator=torch.Generator().manual_seed(0), fold=fold)
    x, sizes = torch.randn(T, B, 5, 8, 9), Sizes(B * 6 * 8, B * 8 * 9, 6, 5, 6, B * 6 * 9, 8)
    ways = assert_counted(TaskConv2d(weight, bias=False), x, sizes)
    if not fold and cls in (TensorTrain, TensorRing):
        assert ways == [None, "kernel and channels", "first kernel axis"]


@pytest.mark.parametrize(("ranks", "left", "right"), [((12, 5, 3), None, True), ((6, 10, 3), "channels", False)])
def test_tucker_with_one_factor_folded_away(ranks, left, right):
    weight = Tucker.random((12, 10, T), ranks, generator=torch.Generator().manual_seed(0))
    (chain,) = weight.chains()
    assert (chain.left, chain.right) == (left, right) and len(weight.folded) == 1
    assert assert_counted(TaskLinear(weight, bias=False), torch.randn(T, B, 12), Sizes(B, B, 1, 12, 10)) == [None, left]


def test_padding_makes_the_first_axis_longer():
    weight = TensorTrain.random((3, 2, 5, 6, T), 0.25, generator=torch.Generator().manual_seed(0))
    x, sizes = torch.randn(T, B, 5, 8, 9), Sizes(B * 5 * 12, B * 8 * 9, 6, 5, 6, B * 5 * 9, 12)
    ways = assert_counted(TaskConv2d(weight, bias=False, padding=2, stride=(2, 1)), x, sizes)
    assert ways == [None, "kernel and channels", "first kernel axis"]


def test_what_is_chosen():
    """The regimes that were measured: LAF and full rank composed, low ranks through the factors."""
    wide = Sizes(32, 32, 1, 512, 512)
    rng = torch.Generator().manual_seed(0)
    assert choose("auto", LAF.random((512, 512, 10), 1.0, generator=rng), wide) is None
    assert choose("activations", LAF.random((512, 512, 10), 1.0, generator=rng), wide) is None  # there is no chain
    tied = Tied.random((512, 512, 10), generator=rng)
    assert choose("auto", tied, wide) == tied.chains()[0]
    for cls in (Tucker, TensorTrain):
        assert choose("auto", cls.random((512, 512, 10), 1.0, generator=rng), wide) is None  # all is folded
        for ranks in (0.5, 0.25):
            low = cls.random((512, 512, 10), ranks, generator=rng)
            assert choose("auto", low, wide) == low.chains()[0]
            assert choose("composed", low, wide) is None
    many = Sizes(100_000, 100_000, 1, 512, 512)  # so many rows that composing costs nothing beside them
    high = Tucker.random((512, 512, 10), (510, 510, 10), generator=rng)
    assert choose("auto", high, many) is None and choose("activations", high, many) == high.chains()[0]


def test_what_a_small_convolution_chooses():
    """Second convolution of LeNet: thin kernels, then a quarter of the taps per task; of two chains the cheaper."""
    rng, rows = torch.Generator().manual_seed(0), 32 * 9 * 9
    sizes = Sizes(rows, 32 * 12 * 12, 16, 32, 64, 32 * 9 * 12, 12)
    for ranks in (0.25, 0.5):
        train = TensorTrain.random((4, 4, 32, 64, 10), ranks, generator=rng)
        assert choose("auto", train, sizes).left == "first kernel axis"
    single = TensorTrain.random((5, 5, 1, 32, 10), 0.25, generator=rng)  # was measured to be slower, not faster
    assert "first kernel axis" not in {chain.left for chain in single.chains()}
    unfolded = TensorTrain.random((4, 4, 32, 64, 10), 0.25, generator=rng, fold=False)
    costs = [activations_cost(unfolded, chain, sizes) for chain in unfolded.chains()]
    assert costs[1] < composed_cost(unfolded, sizes) < costs[0]
    assert choose("auto", unfolded, sizes) == choose("activations", unfolded, sizes) == unfolded.chains()[1]


def test_writing_counts():
    """Four channels, 3 x 3 taps, two mixtures of rows: less arithmetic than composed, and measured to be slower."""
    sizes = Sizes(32 * 14 * 14, 32 * 16 * 16, 9, 4, 16, 32 * 14 * 16, 16)
    train = TensorTrain.random((3, 3, 4, 16, 10), (2, 6, 24, 3), generator=torch.Generator().manual_seed(0))
    (chain,) = (chain for chain in train.chains() if chain.left == "first kernel axis")
    arithmetic = activations_cost(train, chain, sizes) - PASS * written(train, sizes, chain)
    assert arithmetic < composed_cost(train, sizes) - PASS * written(train, sizes, None)
    assert choose("auto", train, sizes) is None


def test_choices_are_remembered_and_made_anew_for_other_weights():
    layer = TaskLinear(LAF.random((512, 512, 10), 1.0, generator=torch.Generator().manual_seed(0)))
    wide = Sizes(32, 32, 1, 512, 512)
    assert layer.choose(wide) is None and layer.choose(wide) is None
    layer.weight = Tucker.random((512, 512, 10), 0.25, generator=torch.Generator().manual_seed(0))
    assert layer.choose(wide) == layer.weight.chains()[0]
    layer.contraction = "composed"
    assert layer.choose(wide) is None
    layer.contraction = "auto"
    layer.weight = TensorTrain.random((512, 512, 10), 0.25, generator=torch.Generator().manual_seed(0))
    assert layer.choose(wide) == layer.weight.chains()[0]
