"""Any network in, networks of T tasks out: equal to the single-task networks that they are made from."""

import copy

import pytest
import torch
from torch import nn

from companion.factorized import LAF, Independent, TensorRing, TensorTrain, Tied, Tucker
from companion.layers import TaskBatchNorm, TiedNorm
from companion.networks import hard_sharing, share
from tests.oracles.networks import TEMPLATES, Residual, Written, convnet, mlp

T, B = 3, 5
FORMATS = [LAF, Tucker, TensorTrain, TensorRing, Independent]
CASES = [pytest.param(make, shape, id=make.__name__) for make, shape in TEMPLATES.items()]


@pytest.fixture(autouse=True)
def seeded():
    """The templates draw their weights from torch's own generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def models(make, n=T):
    """Trained-looking networks: different weights, running statistics that are not the first ones."""
    found = [make().double() for _ in range(n)]
    for t, model in enumerate(found):
        model(torch.randn(9, *TEMPLATES[make], dtype=torch.float64) * (t + 1))
    return [model.eval() for model in found]


def inputs(make, *lead):
    return torch.randn(*lead, *TEMPLATES[make], dtype=torch.float64)


def network(make, cls=Tucker, ranks=0.5, **more):
    return share(make().double(), T, by=cls, ranks=ranks, generator=torch.Generator().manual_seed(1), **more)


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize(("make", "shape"), CASES)
def test_at_full_rank_it_begins_as_the_networks_it_is_made_from(make, shape, cls):
    trained = models(make)
    for balance in (True, False):
        made = share(make().double(), T, by=cls, ranks=1.0, from_models=trained, balance=balance).eval()
        x = inputs(make, T, B)
        expected = torch.stack([model(x_t) for model, x_t in zip(trained, x, strict=True)])
        torch.testing.assert_close(made(x), expected, rtol=0, atol=1e-10)
        shared = torch.stack([model(x[0]) for model in trained])
        torch.testing.assert_close(made(x[0]), shared, rtol=0, atol=1e-10)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("make", "shape"), CASES)
def test_outputs_gradients_and_statistics_of_exported_networks(make, shape, training):
    """Against T plain networks that were exported first: outputs, input gradients, running statistics afterwards."""
    made = network(make).train(training)
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plain = [made.export(t) for t in range(T)]
    x = inputs(make, T, B).requires_grad_()
    for layer in plain:
        for module in layer.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    expected = torch.stack([one(x_t) for one, x_t in zip(plain, x, strict=True)])
    found = made(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)
    for t, one in enumerate(plain):
        again = made.export(t).state_dict()
        for key, value in one.state_dict().items():
            torch.testing.assert_close(again[key], value, rtol=0, atol=1e-11)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("make", "shape"), CASES)
def test_ragged_lists(make, shape, training):
    """Tasks with batches of different size: little and much raggedness, padded or one by one."""
    made = network(make).train(training)
    for module in (*made.modules(), *made._template[0].modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for counts in ((4, 5, 3), (2, 11, 3), (4, 4, 4)):
        x = [inputs(make, n) for n in counts]
        expected = [copy.deepcopy(made).export(t)(x_t) for t, x_t in enumerate(x)]
        state = copy.deepcopy(made.state_dict())
        found = made(x)
        assert isinstance(found, list)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
        made.load_state_dict(state)


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_every_parameter_learns(make, shape):
    for cls in (LAF, TensorTrain):
        made = network(make, cls)
        made(inputs(make, T, B)).square().sum().backward()
        dead = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
        assert dead == []


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_tasks_of_an_independent_network_do_not_see_each_other(make, shape):
    made, x = network(make, Independent), inputs(make, T, B).requires_grad_()
    (gradient,) = torch.autograd.grad(made(x)[1].square().sum(), x)
    assert gradient[1].any() and not gradient[[0, 2]].any()


def test_dropout_is_drawn_for_every_task():
    for make in (Written, lambda: nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 50), nn.Identity())):
        made = share(make(), 2, by=Tied).train()
        x = torch.randn(B, *((2, 8, 8) if make is Written else (6,)))
        y = made(torch.stack([x, x]))
        assert (y[0] - y[1]).abs().max() > 1e-3  # more than rounding
        torch.testing.assert_close(*made.eval()(torch.stack([x, x])))


@pytest.mark.parametrize("cls", FORMATS)
def test_formats_ranks_and_biases_of_every_layer(cls):
    made = share(mlp(), T, by={"0": cls, "2": Tied}, ranks={"0": 0.5}, generator=torch.Generator().manual_seed(0))
    assert list(made.layers) == ["0", "2", "4"]
    assert [type(layer.weight) for layer in made.layers.values()] == [cls, Tied, Independent]
    assert [layer.weight.shape for layer in made.layers.values()] == [(6, 8, T), (8, 5, T), (5, 2, T)]
    assert [tuple(layer.bias.shape) for layer in made.layers.values()] == [(T, 8), (5,), (T, 2)]
    assert made.layers["0"].weight.ranks == cls.random((6, 8, T), 0.5).ranks
    assert made.n_parameters == sum(p.numel() for p in made.parameters())


def test_the_first_weights_follow_the_generator_and_the_scale_of_plain_layers():
    template = nn.Sequential(nn.Linear(60, 80), nn.ReLU(), nn.Linear(80, 40))
    make = lambda seed: share(template, 4, by=Tucker, ranks=0.5, generator=torch.Generator().manual_seed(seed))
    one, same, other = make(0), make(0), make(1)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.layers["0"].bias, other.layers["0"].bias)
    W, b = one.layers["0"].weight.compose(), one.layers["0"].bias
    assert W.square().mean().item() == pytest.approx(1 / 180, rel=1e-3)
    assert b.square().mean().item() == pytest.approx(1 / 180, rel=0.2) and b.abs().max() <= 60**-0.5


def test_tolerance_and_rule_reach_the_factorisation():
    trained = models(mlp)
    W = torch.stack([model[0].weight.detach().T for model in trained], dim=-1)
    for rule in ("frobenius", "pivoted-qr"):
        for eps in (0.2, 0.7):
            made = share(mlp().double(), T, by=Tucker, eps=eps, rule=rule, from_models=trained)
            assert made.layers["0"].weight.ranks == Tucker.from_weights(W, eps=eps, rule=rule).ranks
    plain = share(mlp().double(), T, by=Tucker, ranks=1.0, from_models=trained, fold=False, balance=False)
    assert plain.layers["0"].weight.folded == () and plain.layers["0"].weight.n_parameters > W.numel()


def test_balancing_is_on_unless_refused():
    trained = models(mlp)
    on, off = (
        share(mlp().double(), T, LAF, ranks=2, from_models=trained, balance=b).layers["0"] for b in (True, False)
    )
    rms = lambda p: p.detach().square().mean().sqrt()
    torch.testing.assert_close(rms(on.weight.L), rms(on.weight.S))
    assert rms(off.weight.S) > 2 * rms(off.weight.L)


def test_one_format_for_all_reaches_normalisation_only_where_all_is_tied():
    assert isinstance(share(convnet(), T, by=Tied)._layers["1"], TiedNorm)
    assert isinstance(share(convnet(), T, by=LAF, ranks=2)._layers["1"], TaskBatchNorm)


def test_settings_of_a_convolution_are_kept():
    """Each of them changes the outputs; against the plain networks that it is made from."""
    settings = {"stride": (2, 1), "padding": (2, 1), "dilation": (1, 2), "groups": 2, "padding_mode": "circular"}
    make = lambda: nn.Sequential(nn.Conv2d(4, 6, 3, **settings), nn.Softmax2d(), nn.Conv2d(6, 2, 2)).double()
    trained, x = [make() for _ in range(T)], torch.randn(T, B, 4, 8, 9, dtype=torch.float64)
    made = share(make(), T, by=Tucker, ranks=1.0, from_models=trained)
    expected = torch.stack([model(x_t) for model, x_t in zip(trained, x, strict=True)])
    torch.testing.assert_close(made(x), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(made.export(1)(x[1]), expected[1], rtol=0, atol=1e-10)


def test_tied_layers_begin_with_the_mean_of_models():
    trained = models(convnet)
    made = share(convnet().double(), T, by={"0": Tied, "1": Tied}, from_models=trained).eval()
    one = made.export(1)
    mean = lambda name: torch.stack([model.state_dict()[name] for model in trained]).double().mean(0)
    for name in ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(one.state_dict()[name], mean(name), rtol=0, atol=1e-12)
    torch.testing.assert_close(one.state_dict()["6.weight"], trained[1].state_dict()["6.weight"], rtol=0, atol=0)


def test_hard_sharing_is_one_network_with_own_last_layers():
    """Against a loop: a trunk of plain modules that all tasks run through, and an own last layer each."""
    made = hard_sharing(convnet().double(), T, 2, generator=torch.Generator().manual_seed(0)).train()
    assert [type(layer.weight) for layer in made.layers.values()] == [Tied, Tied, Independent]
    plain = [made.export(t) for t in range(T)]
    trunk, x = plain[0][:-1], inputs(convnet, B)
    found = made(x)
    hidden = trunk(x)  # statistics of the batch, once
    for t in range(T):
        torch.testing.assert_close(found[t], plain[t][-1](hidden), rtol=0, atol=1e-12)
    stacked = inputs(convnet, T, B)
    pooled = copy.deepcopy(trunk)(stacked.flatten(0, 1)).unflatten(0, (T, B))  # statistics over all tasks
    expected = torch.stack([plain[t][-1](pooled[t]) for t in range(T)])
    torch.testing.assert_close(made(stacked), expected, rtol=0, atol=1e-12)


def test_hard_sharing_counts_layers_from_the_input():
    kinds = lambda n, **more: [type(x.weight) for x in hard_sharing(mlp(), T, n, **more).layers.values()]
    assert kinds(0) == [Independent] * 3 and kinds(3) == [Tied] * 3
    assert kinds(1) == [Tied, Independent, Independent]
    assert kinds(2, heads=[1, 2, 3]) == [Tied, Tied]
    for n, most in ((4, 3), (-1, 3)):
        with pytest.raises(ValueError, match=rf"n_shared must be from 0 to {most}, .*; got {n}"):
            hard_sharing(mlp(), T, n)
    with pytest.raises(ValueError, match="n_shared must be from 0 to 2"):
        hard_sharing(mlp(), T, 3, heads=[1, 2, 3])


def test_without_shared_layers_normalisation_is_not_shared_either():
    template = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    pooled = lambda n: [isinstance(m, TiedNorm) for m in hard_sharing(template, T, n).body.children()]
    assert pooled(0) == [False] * 4
    assert pooled(1) == [True, False, True, False]


def test_one_code_for_all_is_hard_sharing():
    """K = 1 with equal codes and equal biases has the outputs of tied layers."""
    soft, hard = share(mlp().double(), T, by=LAF, ranks=1), share(mlp().double(), T, by=Tied)
    with torch.no_grad():
        for one, other in zip(soft.layers.values(), hard.layers.values(), strict=True):
            one.weight.S.fill_(2.0)
            other.weight.weight.copy_(2 * one.weight.L[0])
            one.bias.copy_(one.bias[:1].expand_as(one.bias).clone())
            other.bias.copy_(one.bias[0])
    x = inputs(mlp, T, B)
    torch.testing.assert_close(soft(x), hard(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("device_dtype", [torch.float32, torch.float64])
def test_dtype_and_mode_follow_the_template(device_dtype):
    made = share(mlp().to(device_dtype).eval(), T, by=LAF, ranks=2)
    assert {p.dtype for p in made.parameters()} == {device_dtype} and not made.training
    assert share(mlp(), T, by=LAF, ranks=2).training


def test_the_template_and_the_models_are_left_alone():
    template, trained = Written().double(), models(Written)
    before = copy.deepcopy([template.state_dict(), *(model.state_dict() for model in trained)])
    made = share(template, T, by=Tucker, ranks=0.5, from_models=trained).train()
    made(inputs(Written, T, B)).square().sum().backward()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(1)
    for old, module in zip(before, (template, *trained), strict=True):
        for key, value in module.state_dict().items():
            assert torch.equal(value, old[key])
    assert all(p.grad is None for module in (template, *trained) for p in module.parameters())


def test_what_happens_to_the_template_later_does_not_matter():
    template = mlp().double().eval()
    made, x = share(template, T, by=LAF, ranks=2).train(), torch.randn(4, 6, dtype=torch.float64)
    before = made.export(1)(x)
    made([x[:1], x, x])  # one task after the other, with the code of the template
    assert not template.training
    template[1], template[3] = nn.Identity(), nn.Identity()
    torch.testing.assert_close(made.export(1)(x), before, rtol=0, atol=0)


def test_a_layer_that_is_used_twice_stays_one_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(6, 6)

        def forward(self, x):
            return self.one(torch.tanh(self.one(x)))

    layer = nn.Linear(6, 6)
    for template in (Twice(), nn.Sequential(layer, nn.Tanh(), layer)):
        made = share(template.double(), T, by=LAF, ranks=2)
        assert len(list(made.parameters())) == 3  # L, S and the bias
        x = inputs(mlp, T, B)
        expected = torch.stack([made.export(t)(x_t) for t, x_t in enumerate(x)])
        torch.testing.assert_close(made(x), expected, rtol=0, atol=1e-12)


def test_one_task_works():
    for cls in FORMATS:
        trained = models(mlp, 1)
        made = share(mlp().double(), 1, by=cls, ranks=1.0, from_models=trained)
        x = inputs(mlp, B)
        torch.testing.assert_close(made(x)[0], trained[0](x), rtol=0, atol=1e-10)
        torch.testing.assert_close(made([x])[0], trained[0](x), rtol=0, atol=1e-10)
        with pytest.raises(ValueError, match="needs at least two; got 1"):
            made.sharing_strength()


def test_a_network_of_one_layer():
    made = share(nn.Linear(6, 2).double(), T, by=LAF, ranks=2)
    x = inputs(mlp, T, B)
    torch.testing.assert_close(made(x)[1], made.export(1)(x[1]), rtol=0, atol=1e-12)
    assert list(made.layers) == [""]


# --- what is refused --------------------------------------------------------------------------------------------------


class Doubled(nn.Linear):
    """A layer that is not what its base class is."""

    def forward(self, x):
        return 2 * super().forward(x)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.linear = nn.Linear(6, 2)

    def forward(self, x):
        return self.scale * self.linear(x)


@pytest.mark.parametrize(
    ("template", "named"),
    [
        (nn.Sequential(nn.Linear(6, 6), nn.LSTM(6, 4)), r"1 \(LSTM: weight_ih_l0, "),
        (nn.Sequential(nn.Linear(6, 6), nn.MultiheadAttention(6, 2)), r"1 \(MultiheadAttention: in_proj_weight"),
        (nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 2)), r"0 \(Embedding: weight\)"),
        (nn.Sequential(nn.Linear(6, 6), nn.PReLU()), r"1 \(PReLU: weight\)"),
        (nn.Sequential(nn.Conv2d(2, 3, 2), nn.ConvTranspose2d(3, 2, 2)), r"1 \(ConvTranspose2d: weight, bias\)"),
        (nn.Sequential(nn.Conv2d(2, 3, 2), nn.InstanceNorm2d(3, track_running_stats=True)), r"1 \(InstanceNorm2d: run"),
        (nn.Sequential(Doubled(6, 6), nn.Linear(6, 2)), r"0 \(Doubled: weight, bias\)"),
        (Scaled(), r"the network itself \(Scaled: scale\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_unknown_layers_are_named_with_what_to_do(template, named):
    with pytest.raises(ValueError, match=rf"cannot share the parameters of {named}.*Put such a layer in front"):
        share(template, T, by=LAF, ranks=2)


def test_all_unknown_layers_are_named():
    template = nn.Sequential(nn.LSTM(6, 4), nn.Linear(6, 6), nn.PReLU())
    with pytest.raises(ValueError, match=r"0 \(LSTM: .*; 2 \(PReLU: weight\)"):
        share(template, T, by=LAF, ranks=2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"by": LAF}, ValueError, r"layer '0', weights \(8, 6\): ranks are needed to draw weights"),
        ({"by": LAF, "ranks": 4}, ValueError, r"layer '0', weights \(8, 6\): ranks must lie between 1 and 3"),
        ({"by": Tucker, "ranks": (6, 9, 3)}, ValueError, r"layer '0'.*ranks\[1\] must lie between 1 and 8"),
        ({"by": {"0": LAF, "7": LAF}, "ranks": 2}, ValueError, r"by names layers .*\['7'\]; it has \['0', '2', '4'\]"),
        ({"by": LAF, "ranks": {"a": 2}}, ValueError, r"ranks names layers that the template does not have: \['a'\]"),
        ({"by": "tucker", "ranks": 2}, TypeError, "by must be a format of companion.factorized, .*; got 'tucker'"),
        ({"by": {"0": nn.Linear}, "ranks": 2}, TypeError, "by must be a format"),
        ({"by": LAF, "ranks": 2, "heads": [1, 2]}, ValueError, r"heads must hold .* each of 3 tasks; got 2: \[1, 2\]"),
        ({"by": LAF, "ranks": 2, "heads": [1, 0, 2]}, ValueError, "a number of outputs >= 1 for every task"),
        ({"by": LAF, "ranks": 2, "n_tasks": 0}, ValueError, "n_tasks must be at least 1; got 0"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        share(**{"template": mlp(), "n_tasks": T, **arguments})


def test_tolerances_out_of_range():
    for eps in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"layer '0'.*eps must be in \(0, 1\]"):
            share(mlp().double(), T, by=Tucker, eps=eps, from_models=models(mlp))


def test_normalisation_has_no_factors():
    with pytest.raises(ValueError, match="layer '1' normalises, so it can be Independent or Tied; got LAF"):
        share(convnet(), T, by={"1": LAF}, ranks=2)


def test_models_must_be_like_the_template():
    trained = models(mlp)
    with pytest.raises(ValueError, match="one model for each of 3 tasks; got 2"):
        share(mlp().double(), T, by=LAF, from_models=trained[:2])
    wider = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 2)).double()
    with pytest.raises(ValueError, match=r"from_models\[1\]: layer '2' must have weight \(5, 8\), .*; got \(7, 8\)"):
        share(mlp().double(), T, by=LAF, from_models=[trained[0], wider, trained[2]])
    with pytest.raises(ValueError, match=r"from_models\[2\]: layer '0' must have weight .*float64; got .*float32"):
        share(mlp().double(), T, by=LAF, from_models=[*trained[:2], mlp()])
    with pytest.raises(ValueError, match=r"must have the layers \['0', '2', '4'\] of the template; got \['0', '1'"):
        share(mlp().double(), T, by=LAF, from_models=[*trained[:2], convnet().double()])
    renamed = nn.Sequential(*mlp()[:3], nn.Identity(), *mlp()[3:]).double()
    with pytest.raises(
        ValueError, match=r"must have the layers \['0', '2', '4'\] of the template; got \['0', '2', '5'"
    ):
        share(mlp().double(), T, by=LAF, from_models=[*trained[:2], renamed])
    other = nn.Sequential(nn.Conv1d(6, 8, 1), nn.Tanh(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    with pytest.raises(ValueError, match="layer '0' must be a Linear; got Conv1d"):
        share(mlp().double(), T, by=LAF, from_models=[*trained[:2], other])
    no_bias = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)
    ).double()
    with pytest.raises(ValueError, match=r"layer '0' must have bias \(8,\), .*; got none"):
        share(mlp().double(), T, by=LAF, from_models=[*trained[:2], no_bias])


def test_a_template_without_layers():
    with pytest.raises(ValueError, match="holds no Linear, Conv1d or Conv2d layer to share; got Sequential"):
        share(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), T, by=LAF, ranks=2)


def test_ragged_batches_cannot_pass_a_tied_batch_normalisation_in_training():
    made = share(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), T, by={"1": Tied})
    x = [torch.randn(n, 6) for n in (4, 5, 3)]
    with pytest.raises(ValueError, match=r"tied batch normalisation .* needs as many rows of each; got \[4, 5, 3\]"):
        made(x)
    assert [len(y) for y in made.eval()(x)] == [4, 5, 3]


def test_residual_blocks_are_run_as_written():
    """The user's block under vmap: the same numbers as the block itself, in training, on shared inputs."""
    made = share(Residual(2).double(), T, by=Independent).train()
    x = torch.randn(B, 2, 8, 8, dtype=torch.float64)
    for t in range(T):
        torch.testing.assert_close(copy.deepcopy(made)(x)[t], made.export(t)(x), rtol=0, atol=1e-12)
