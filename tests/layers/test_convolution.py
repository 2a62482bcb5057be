"""Convolutions of T tasks: every format, either way of contracting, against one plain layer per task."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from companion.factorized import LAF, Independent, TensorRing, TensorTrain, Tied, Tucker
from companion.layers import TaskConv1d, TaskConv2d
from companion.layers.cost import Sizes
from companion.layers.stacking import expand_tasks

FORMATS = [LAF, Tucker, TensorTrain, TensorRing, Independent, Tied]
T, B, C, M = 3, 5, 4, 6
SPACE = {1: (11,), 2: (8, 9)}
KERNEL = {1: (3,), 2: (3, 2)}
SETTINGS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": "same"},
    {"padding": "valid", "dilation": 2},
    {"padding": 2, "padding_mode": "circular"},
    {"padding": "same", "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "replicate", "dilation": 2, "stride": 2},
]
CASES = ((1.0, True), (0.5, False), (2, True), (0.25, True), ("all but the first axis in one core", True))
IN_ONE_CORE = {1: (1, 4, 2), 2: (1, 2, 8, 2)}
EVEN_KERNEL = "ignore:Using padding='same' with even kernel lengths"


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=rng(3))


def layer(cls, n=2, ranks=0.5, fold=True, bias=True, groups=1, shape=None, **settings):
    shape = shape or (*KERNEL[n], C // groups, M, T)
    if isinstance(ranks, str):
        ranks = {TensorTrain: IN_ONE_CORE[n], TensorRing: (1, *IN_ONE_CORE[n])}.get(cls, 0.5)
    kind = TaskConv1d if n == 1 else TaskConv2d
    made = kind(cls.random(shape, ranks, generator=rng(1), fold=fold), bias, groups=groups, **settings).double()
    if bias:
        with torch.no_grad():
            made.bias.normal_(generator=rng(2))
    return made


def every_way(made):
    """Set the layer to compose its weights, then to go through each of its chains, then to what it chooses itself."""
    for way in (None, *made.weight.chains()):
        made.choose = lambda sizes, way=way: way
        yield way
    del made.choose
    yield "auto"


def plain_layers(made, **settings):
    """The T layers that it stands for, from the composed weights."""
    n, layers = len(made.weight.shape) - 3, []
    *kernel, C, M, _ = made.weight.shape
    for t in range(made.n_tasks):
        kind = nn.Conv1d if n == 1 else nn.Conv2d
        channels = C * settings.get("groups", 1)
        one = kind(channels, M, tuple(kernel), bias=made.bias is not None, dtype=torch.float64, **settings)
        with torch.no_grad():
            one.weight.copy_(made.weight.compose()[..., t].permute(n + 1, n, *range(n)))
            if made.bias is not None:
                one.bias.copy_(made.bias if made.bias.ndim == 1 else made.bias[t])
        layers.append(one)
    return layers


@pytest.mark.filterwarnings(EVEN_KERNEL)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("cls", FORMATS)
def test_outputs_are_those_of_plain_layers(cls, n, settings):
    x = inputs(T, B, C, *SPACE[n])
    for ranks, fold in CASES:
        made = layer(cls, n, ranks, fold, **settings)
        plain = plain_layers(made, **settings)
        expected = torch.stack([one(x_t) for one, x_t in zip(plain, x, strict=True)])
        shared = torch.stack([one(x[0]) for one in plain])
        for _ in every_way(made):
            torch.testing.assert_close(made(x), expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(made(expand_tasks(x[0], T)), shared, rtol=0, atol=1e-12)


@pytest.mark.parametrize("contraction", ["auto", "composed", "activations"])
@pytest.mark.parametrize("cls", FORMATS)
def test_groups(cls, contraction):
    x = inputs(T, B, C, *SPACE[2])
    made = layer(cls, 2, groups=2, contraction=contraction, bias=False)
    plain = plain_layers(made, groups=2)
    expected = torch.stack([one(x_t) for one, x_t in zip(plain, x, strict=True)])
    torch.testing.assert_close(made(x), expected, rtol=0, atol=1e-12)
    shared = torch.stack([one(x[0]) for one in plain])
    torch.testing.assert_close(made(expand_tasks(x[0], T)), shared, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("cls", FORMATS)
def test_gradients_are_the_same_either_way(cls, n, shared):
    """Against autograd through one plain convolution per task with composed weights."""
    kind = torch.nn.functional.conv1d if n == 1 else torch.nn.functional.conv2d
    for ranks, fold in CASES:
        made = layer(cls, n, ranks, fold, stride=2, padding=1)
        parameters = list(made.parameters())
        x = inputs(*(() if shared else (T,)), B, C, *SPACE[n]).requires_grad_()
        stacked = expand_tasks(x, T) if shared else x
        kernels, biases = made.task_weights(), made.task_biases()
        tasks = [kind(stacked[t], kernels[t], biases[t], 2, 1) for t in range(T)]
        direction = inputs(*torch.stack(tasks).shape)
        expected = torch.autograd.grad((torch.stack(tasks) * direction).sum(), [x, *parameters])
        for _ in every_way(made):
            found = torch.autograd.grad((made(stacked) * direction).sum(), [x, *parameters])
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("contraction", ["composed", "activations"])
@pytest.mark.parametrize("cls", FORMATS)
def test_gradcheck(cls, contraction):
    made = layer(cls, contraction=contraction, shape=(2, 1, 2, 3, 2), padding=1)
    names, values = zip(*made.named_parameters(), strict=True)

    def outputs(x, *parameters):
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), (x,))

    arguments = (inputs(2, 2, 2, 3, 4), *(value.detach() for value in values))
    assert torch.autograd.gradcheck(outputs, tuple(value.requires_grad_() for value in arguments))


@pytest.mark.parametrize("cls", [TensorTrain, TensorRing])
def test_gradcheck_of_the_first_axis(cls):
    made = layer(cls, ranks=1, shape=(2, 3, 2, 3, 2), padding=1, stride=2)
    (chain,) = (chain for chain in made.weight.chains() if chain.left == "first kernel axis")
    made.choose = lambda sizes: chain
    names, values = zip(*made.named_parameters(), strict=True)

    def outputs(x, *parameters):
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), (x,))

    arguments = (inputs(2, 2, 2, 3, 4), *(value.detach() for value in values))
    assert torch.autograd.gradcheck(outputs, tuple(value.requires_grad_() for value in arguments))


def test_the_ways_that_are_tried_are_those_there_are():
    """Ranks that the tests above take lead through every chain, with and without cores between."""
    kinds = set()
    for cls in FORMATS:
        for n in (1, 2):
            for ranks, fold in CASES:
                weight = layer(cls, n, ranks, fold).weight
                for chain in weight.chains():
                    between = len(weight.cores) - 2 if isinstance(weight, TensorTrain | TensorRing) else 0
                    kinds.add((cls, n, chain.left, between > 0, chain.right))
    trains = {
        (cls, n, left, between, False)
        for cls in (TensorTrain, TensorRing)
        for n in (1, 2)
        for left, between in (("first kernel axis", True), ("first kernel axis", False), ("kernel and channels", True))
    }
    assert trains <= kinds
    assert {kind[2] for kind in kinds if kind[0] is Tucker} == {"channels"}
    assert not any(kind[0] in (LAF, Independent) for kind in kinds)


@pytest.mark.parametrize("n", [1, 2])
def test_sizes_that_a_layer_counts_with(n):
    """Rows before, after and in between, of an image that gets smaller along both axes."""
    seen, made = [], layer(TensorTrain, n, stride=2, padding=1)
    made.choose = seen.append
    made(inputs(T, B, C, *SPACE[n]))  # 11 -> 6; 8 x 9 -> 4 x 5
    rows, rows_in, first = {1: (6, 11, 6), 2: (4 * 5, 8 * 9, 4 * 9)}[n]
    assert seen == [Sizes(B * rows, B * rows_in, 3 if n == 1 else 6, C, M, B * first, SPACE[n][0] + 2)]


def test_shared_inputs_are_convolved_once():
    """Composed kernels of all tasks read a shared input as the filters of one convolution, without groups."""
    made, x, groups = layer(LAF), inputs(B, C, *SPACE[2]), []
    made._plain = lambda x, kernels, bias, g, *_: groups.append(g) or type(made)._plain(made, x, kernels, bias, g)
    made(expand_tasks(x, T))
    made(x.expand(T, B, C, *SPACE[2]).clone())
    assert groups == [1, T]


def test_shared_inputs_go_through_the_first_axis_once():
    made, x, taps = layer(TensorTrain), inputs(B, C, *SPACE[2]), inputs(3, 2)
    work = []
    for given in (expand_tasks(x, T), x.expand(T, *x.shape).clone()):
        with FlopCounterMode(display=False) as counter:
            y = made._first_axis(given, taps)
        work.append(counter.get_total_flops())
        assert y.shape == (T, B, 2 * C, 6, 9)
    assert work[1] == T * work[0] > 0


def test_an_image_smaller_than_the_kernel():
    for cls in FORMATS:
        for contraction in ("auto", "composed", "activations"):
            made = layer(cls, 2, "all but the first axis in one core", contraction=contraction)
            with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
                made(inputs(T, B, C, 1, 9))


def test_weights_as_torch_has_them():
    for n in (1, 2):
        made = layer(Tucker, n)
        for t, one in enumerate(plain_layers(made)):
            torch.testing.assert_close(made.task_weights()[t], one.weight, rtol=0, atol=0)


@pytest.mark.parametrize("cls", [LAF, Tucker, TensorTrain])
def test_any_memory_layout_of_the_input(cls):
    made, x = layer(cls), inputs(T, B, C, *SPACE[2])
    layouts = (
        x.permute(1, 3, 4, 0, 2).contiguous().permute(3, 0, 4, 1, 2),
        x.transpose(3, 4).contiguous().transpose(3, 4),
    )
    for other in layouts:
        assert other.stride() != x.stride()
        for _ in every_way(made):
            torch.testing.assert_close(made(other), made(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, C])
def test_the_next_layer_takes_the_memory_as_it_is(channels):
    """Channels are last in what convolutions leave, also where the input has one channel, which fits any memory."""
    x, contiguous = inputs(T, B, channels, *SPACE[2]), lambda y: y.is_contiguous(memory_format=torch.channels_last)
    for cls in FORMATS:
        made = layer(cls, shape=(3, 2, channels, M, T))
        for _ in every_way(made):
            for y in (made(x), made(expand_tasks(x[0], T))):
                y = y[:1] if y.stride(0) == 0 else y  # shared
                assert contiguous(y.flatten(0, 1)) or contiguous(y.movedim(0, 1).flatten(1, 2)), (cls, y.stride())


def test_tied_kernels_keep_shared_inputs_shared():
    y = layer(Tied)(expand_tasks(inputs(B, C, 8, 9), T))
    assert y.stride(0) == 0 and y.shape == (T, B, M, 6, 8)


@pytest.mark.parametrize("cls", FORMATS)
def test_a_new_task_begins_as_the_mean(cls):
    made, x = layer(cls), inputs(B, C, 8, 9)
    before = made(expand_tasks(x, T))
    assert made.add_task() == T
    after = made(expand_tasks(x, T + 1))
    torch.testing.assert_close(after[:T], before, rtol=0, atol=1e-12)
    torch.testing.assert_close(after[T], before.mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 0}, "stride must be an integer >= 1, or 2 of them; got 0"),
        ({"stride": (1, 2, 1)}, "stride must be an integer >= 1, or 2 of them"),
        ({"dilation": 1.5}, "dilation must be an integer"),
        ({"padding": -1}, "padding must be an integer >= 0"),
        ({"padding": "full"}, "padding must be a number, one per axis, .*; got 'full'"),
        ({"padding": "same", "stride": 2}, r"padding=\"same\" goes with stride 1 only; got stride \(2, 2\)"),
        ({"padding_mode": "wrap"}, "padding_mode must be one of .*; got 'wrap'"),
        ({"groups": 4}, "groups must be at least 1 and divide the 6 filters; got 4"),
        ({"contraction": "fast"}, "contraction must be one of .*; got 'fast'"),
    ],
    ids=lambda value: str(value)[:25],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        layer(LAF, **settings)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"must have shape \(H, W, C, M, T\); got \(5, 4, 3\)"):
        TaskConv2d(LAF.random((5, 4, 3), 2))
    with pytest.raises(ValueError, match=r"must have shape \(W, C, M, T\); got \(3, 2, 4, 6, 3\)"):
        TaskConv1d(LAF.random((3, 2, 4, 6, 3), 2))
    made = layer(LAF)
    for shape in ((T, B, C + 1, 8, 9), (T + 1, B, C, 8, 9), (B, C, 8, 9), (T, B, C, 8, 9, 1)):
        with pytest.raises(ValueError, match=r"TaskConv2d takes .* T=3 tasks and 4 features; got"):
            made(inputs(*shape))
