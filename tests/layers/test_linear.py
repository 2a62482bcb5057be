"""Fully connected layers of T tasks: every format, either way of contracting, against one plain layer per task."""

import pytest
import torch
from torch import nn

from companion.factorized import LAF, Independent, TensorRing, TensorTrain, Tied, Tucker
from companion.layers import TaskLinear
from companion.layers.cost import Sizes
from companion.layers.stacking import expand_tasks

FORMATS = [LAF, Tucker, TensorTrain, TensorRing, Independent, Tied]
T, B, I, O = 3, 7, 6, 4


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def layer(cls, ranks=0.5, contraction="auto", fold=True, bias=True, shape=(I, O, T)):
    made = TaskLinear(cls.random(shape, ranks, generator=rng(1), fold=fold), bias, contraction).double()
    if bias:
        with torch.no_grad():
            made.bias.normal_(generator=rng(2))
    return made


def inputs(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=rng(3))


def plain_layers(made):
    """The T layers that it stands for."""
    layers = []
    for t in range(made.n_tasks):
        one = nn.Linear(made.weight.shape[0], made.weight.shape[1], made.bias is not None, dtype=torch.float64)
        with torch.no_grad():
            one.weight.copy_(made.weight.compose()[..., t].T)
            if made.bias is not None:
                one.bias.copy_(made.bias if made.bias.ndim == 1 else made.bias[t])
        layers.append(one)
    return layers


@pytest.mark.parametrize("contraction", ["auto", "composed", "activations"])
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("ranks", [1.0, 0.5, 1])
@pytest.mark.parametrize("cls", FORMATS)
def test_outputs_are_those_of_plain_layers(cls, ranks, fold, contraction):
    for bias in (True, False):
        made, x = layer(cls, ranks, contraction, fold, bias), inputs(T, B, I)
        expected = torch.stack([one(x_t) for one, x_t in zip(plain_layers(made), x, strict=True)])
        torch.testing.assert_close(made(x), expected, rtol=0, atol=1e-12)
        shared = torch.stack([one(x[0]) for one in plain_layers(made)])
        torch.testing.assert_close(made(expand_tasks(x[0], T)), shared, rtol=0, atol=1e-12)
        torch.testing.assert_close(made(x[:1].repeat(T, 1, 1)), shared, rtol=0, atol=1e-12)


def test_sizes_that_a_layer_counts_with():
    seen, made = [], layer(Tucker)
    made.choose = seen.append
    made(inputs(T, B, 5, I))
    made(expand_tasks(inputs(B, I), T))
    assert seen == [Sizes(5 * B, 5 * B, 1, I, O), Sizes(B, B, 1, I, O)]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("ranks", [1.0, 0.5])
@pytest.mark.parametrize("cls", FORMATS)
def test_gradients_are_the_same_either_way(cls, ranks, shared):
    """Against autograd through plain products of the composed weights."""
    for fold in (True, False):
        made = layer(cls, ranks, fold=fold)
        parameters, direction = list(made.parameters()), inputs(T, B, O)
        x = inputs(B, I).requires_grad_() if shared else inputs(T, B, I).requires_grad_()
        stacked = expand_tasks(x, T) if shared else x
        reference = torch.einsum("tbi,iot->tbo", stacked, made.weight.compose())
        reference = reference + (made.bias if made.bias.ndim == 1 else made.bias[:, None])
        expected = torch.autograd.grad((reference * direction).sum(), [x, *parameters])
        for made.contraction in ("composed", "activations"):
            found = torch.autograd.grad((made(stacked) * direction).sum(), [x, *parameters])
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("contraction", ["composed", "activations"])
@pytest.mark.parametrize("cls", FORMATS)
def test_gradcheck(cls, contraction):
    made = layer(cls, 0.5, contraction, shape=(4, 3, 2))
    names, values = zip(*made.named_parameters(), strict=True)

    def outputs(x, *parameters):
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), (x,))

    arguments = (inputs(2, 3, 4), *(value.detach() for value in values))
    assert torch.autograd.gradcheck(outputs, tuple(value.requires_grad_() for value in arguments))


def test_any_axes_between_batch_and_features():
    made, x = layer(Tucker), inputs(T, B, 2, 5, I)
    for made.contraction in ("composed", "activations"):
        assert made(x).shape == (T, B, 2, 5, O)
        torch.testing.assert_close(made(x)[:, :, 1, 4], made(x[:, :, 1, 4]), rtol=0, atol=1e-12)


def test_independent_tasks_do_not_see_each_other():
    """Zero Jacobian across tasks, for inputs and for parameters; not so with shared factors."""
    x = inputs(T, B, I).requires_grad_()
    for cls, alone in ((Independent, True), (LAF, False)):
        made = layer(cls, 1.0)
        made.zero_grad()
        weight = made.weight.weight if alone else made.weight.L
        grad_x, grad_w = torch.autograd.grad(made(x)[1].square().sum(), [x, weight])
        assert (grad_x[1] != 0).all() and not grad_x[[0, 2]].any()
        assert bool(grad_w[[0, 2]].any()) != alone


def test_laf_with_identity_codes_is_independent():
    """S = I and K = T: the gradient of task 1 reaches its own latent task only."""
    weight = LAF(inputs(T, I, O), torch.eye(T, dtype=torch.float64))
    made = TaskLinear(weight).double()
    made(inputs(T, B, I))[1].square().sum().backward()
    assert weight.L.grad[1].abs().min() > 0 and not weight.L.grad[[0, 2]].any()


def test_one_latent_task_with_equal_codes_and_biases_is_hard_sharing():
    W, x = inputs(I, O), inputs(T, B, I)
    soft = TaskLinear(LAF(W[None].clone(), torch.ones(1, T, dtype=torch.float64))).double()
    hard = TaskLinear(Tied(W.clone(), T)).double()
    with torch.no_grad():
        hard.bias.copy_(inputs(O))
        soft.bias.copy_(hard.bias.expand(T, O))
    torch.testing.assert_close(soft(x), hard(x), rtol=0, atol=1e-13)
    soft(x).square().sum().backward()
    hard(x).square().sum().backward()
    torch.testing.assert_close(soft.weight.L.grad[0], hard.weight.weight.grad, rtol=0, atol=1e-11)


def test_biases_are_never_shared_but_where_the_layer_is_one():
    for cls in FORMATS:
        assert layer(cls).bias.shape == ((O,) if cls is Tied else (T, O))
        assert layer(cls).task_biases().shape == (T, O)
        assert layer(cls, bias=False).task_biases() is None
        assert not TaskLinear(cls.random((I, O, T), 0.5, generator=rng())).bias.any()


def test_tied_layers_keep_shared_inputs_shared():
    y = layer(Tied)(expand_tasks(inputs(B, I), T))
    assert y.stride(0) == 0 and y.shape == (T, B, O)


def test_weights_as_torch_has_them():
    made = layer(Tucker)
    for t, one in enumerate(plain_layers(made)):
        torch.testing.assert_close(made.task_weights()[t], one.weight, rtol=0, atol=0)
        torch.testing.assert_close(made.task_biases()[t], one.bias, rtol=0, atol=0)


@pytest.mark.parametrize("cls", FORMATS)
def test_a_new_task_begins_as_the_mean(cls):
    made, x = layer(cls), inputs(T, B, I)
    before = made(x)
    assert made.add_task() == T and made.n_tasks == T + 1
    after = made(torch.cat([x, x[:1]]))
    torch.testing.assert_close(after[:T], before, rtol=0, atol=1e-12)
    mean = made(torch.cat([x[:1]] * (T + 1)))
    torch.testing.assert_close(mean[T], mean[:T].mean(0), rtol=0, atol=1e-12)


def test_one_task():
    made, x = layer(Tucker, 1.0, shape=(I, O, 1)), inputs(1, B, I)
    torch.testing.assert_close(made(x)[0], plain_layers(made)[0](x[0]), rtol=0, atol=1e-12)
    torch.testing.assert_close(made(expand_tasks(x[0], 1)), made(x), rtol=0, atol=0)


def test_what_activations_go_through_is_not_composed():
    """Peak size of what is kept for the gradient: no tensor as large as the weights."""
    made, sizes = layer(Tucker, (2, 2, 2), "activations", shape=(60, 50, 20)), []
    pack = lambda tensor: sizes.append(tensor.numel()) or tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made(inputs(20, B, 60).requires_grad_())
        assert max(sizes) == 20 * B * 60  # the inputs
        sizes.clear()
        made.contraction = "composed"
        made(inputs(20, B, 60).requires_grad_())
        assert max(sizes) == 60 * 50 * 20


def test_bad_input():
    with pytest.raises(ValueError, match=r"must have shape \(I, O, T\); got \(3, 3, 4, 6, 5\)"):
        TaskLinear(LAF.random((3, 3, 4, 6, 5), 2))
    with pytest.raises(ValueError, match=r"contraction must be one of .*; got 'fast'"):
        layer(LAF, contraction="fast")
    made = layer(LAF)
    for shape in ((T, B, I + 1), (T + 1, B, I), (B, I)):
        with pytest.raises(ValueError, match=r"TaskLinear takes .* T=3 tasks and 6 features; got"):
            made(inputs(*shape))
