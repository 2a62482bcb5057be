"""Normalisation of T tasks against T plain layers, or against one where it is tied."""

import pytest
import torch
from torch import nn

from companion.layers import TaskAffineNorm, TaskBatchNorm, TiedNorm
from companion.layers.stacking import expand_tasks

T, B, C = 3, 7, 4
CASES = [
    (lambda: nn.BatchNorm1d(C, eps=1e-3), (C,)),
    (lambda: nn.BatchNorm1d(C, momentum=None), (C, 5)),
    (lambda: nn.BatchNorm2d(C, momentum=0.3), (C, 5, 6)),
    (lambda: nn.BatchNorm2d(C, affine=False), (C, 5, 6)),
    (lambda: nn.BatchNorm2d(C, track_running_stats=False), (C, 5, 6)),
    (lambda: nn.LayerNorm(C, eps=1e-2), (C,)),
    (lambda: nn.LayerNorm((C, 5)), (2, C, 5)),
    (lambda: nn.LayerNorm(C, bias=False), (6, C)),
    (lambda: nn.LayerNorm(C, elementwise_affine=False), (C,)),
    (lambda: nn.GroupNorm(2, C, eps=0.3), (C, 5, 6)),
    (lambda: nn.GroupNorm(2, C, affine=False), (C, 5)),
]
IDS = [f"{make()!r} {shape}" for make, shape in CASES]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(*shape, seed=3):
    return torch.randn(shape, dtype=torch.float64, generator=rng(seed)) + torch.arange(T).view(
        -1, *[1] * (len(shape) - 1)
    )


def plain_layers(make):
    """T layers with parameters and statistics of their own."""
    layers = [make().double() for _ in range(T)]
    with torch.no_grad():
        for t, layer in enumerate(layers):
            for value in (*layer.parameters(), *layer.buffers()):
                if value.is_floating_point():
                    value.add_(torch.rand(value.shape, dtype=torch.float64, generator=rng(t)))
    return layers


def of_tasks(make):
    kind = TaskBatchNorm if isinstance(make(), nn.BatchNorm1d | nn.BatchNorm2d) else TaskAffineNorm
    return kind(make().double(), T)


@pytest.mark.parametrize(("make", "shape"), CASES, ids=IDS)
def test_every_task_is_normalised_by_itself(make, shape):
    """Outputs, gradients and running statistics over three batches, then in evaluation."""
    plain, ours = plain_layers(make), of_tasks(make)
    ours.load_(plain)
    for step in range(3):
        x = inputs(T, B, *shape, seed=step).requires_grad_()
        expected, found = torch.stack([layer(x_t) for layer, x_t in zip(plain, x, strict=True)]), ours(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)
        for key, value in ours.task_state().items():
            stacked = torch.stack([layer.state_dict()[key] for layer in plain])
            torch.testing.assert_close(value.detach(), stacked, rtol=0, atol=1e-12)
    for layer in (*plain, ours):
        layer.eval()
    x = inputs(T, B, *shape, seed=9)
    expected = torch.stack([layer(x_t) for layer, x_t in zip(plain, x, strict=True)])
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("make", "shape"), CASES, ids=IDS)
def test_tied_normalisation_is_one_layer(make, shape):
    plain, ours = make().double(), TiedNorm(make().double(), T)
    x = inputs(T, B, *shape)
    torch.testing.assert_close(ours(x), plain(x.flatten(0, 1)).unflatten(0, (T, B)), rtol=0, atol=1e-12)
    shared = ours(expand_tasks(x[0], T))
    torch.testing.assert_close(shared[2], plain(x[0]), rtol=0, atol=1e-12)
    assert shared.stride(0) == 0
    assert ours.pools == isinstance(plain, nn.BatchNorm1d | nn.BatchNorm2d)
    for key, value in ours.task_state().items():
        torch.testing.assert_close(value[1], plain.state_dict()[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("make", "shape"), CASES, ids=IDS)
def test_a_new_task_gets_the_means(make, shape):
    for ours in (of_tasks(make), TiedNorm(make().double(), T)):
        ours.load_(plain_layers(make))
        before = {key: value.detach().clone() for key, value in ours.task_state().items()}
        assert ours.add_task() == T
        for key, value in ours.task_state().items():
            torch.testing.assert_close(value[:T].detach(), before[key], rtol=0, atol=0)
            torch.testing.assert_close(value[T].double(), before[key].double().mean(0), rtol=0, atol=1e-12)
        assert ours(torch.cat([inputs(T, B, *shape)] * 2)[: T + 1]).shape == (T + 1, B, *shape)


def test_tied_normalisation_takes_the_mean_of_layers():
    plain, ours = plain_layers(lambda: nn.BatchNorm1d(C)), TiedNorm(nn.BatchNorm1d(C).double(), T)
    ours.load_(plain)
    for key, value in ours.task_state().items():
        mean = torch.stack([layer.state_dict()[key] for layer in plain]).double().mean(0)
        torch.testing.assert_close(value[1].double(), mean, rtol=0, atol=1e-12)


def test_bad_input():
    with pytest.raises(ValueError, match=r"TaskBatchNorm takes \(T, B, C, ...\) with T=3 and C=4; got \(3, 7, 5\)"):
        of_tasks(lambda: nn.BatchNorm1d(C))(inputs(T, B, C + 1))
