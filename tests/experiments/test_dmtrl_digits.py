"""The apprentices: what is drawn, what is compared, at which budgets, and what the record shows."""

import numpy as np
import pytest
import torch
from torch import nn

from companion.datasets import load_digits_tasks
from companion.experiments import DMTRLDigits, dmtrl_digits
from companion.experiments.dmtrl_digits import (
    ALIKE,
    APART,
    DIGITS,
    DRAWN,
    METHODS,
    SHUFFLED,
    STARTS,
    Apprentices,
    OwnProducts,
    build,
    digit_network,
    draw_apprentices,
    error,
    fit,
    separate_networks,
)
from companion.factorized import LAF, Independent, TensorTrain, Tied
from companion.metrics import paired_difference
from companion.networks import share
from companion.records import load_record, plain

T, N = 5, 6


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(seed=3, shuffled=False, n_tasks=T, **more):
    return draw_apprentices(seed, shuffled, n_tasks, N, **more)


def digits_of(x):
    """Which images of scikit-learn's these are, by the centred pixels; -1 where it is none."""
    digits = load_digits_tasks()
    pixels = digits.X / 16
    pixels = torch.tensor(pixels - pixels.mean(axis=1, keepdims=True)).float()
    distance, index = torch.cdist(x, pixels).min(dim=1)
    assert distance.max() < 1e-3
    return index.numpy(), digits.digit[index.numpy()]


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_a_task_is_a_pair_of_digits_with_as_many_images_of_either():
    data, pairs = drawn(noise=0.0), set()
    assert data.x.shape == (T, N, 64) and data.y.shape == (T, N) and len(data.tests) == T
    for x, y, (x_test, y_test) in zip(data.x, data.y, data.tests, strict=True):
        learned, digit = digits_of(x)
        tested, digit_test = digits_of(x_test)
        first, second = set(digit[y.numpy() == 1]), set(digit[y.numpy() == 0])
        assert len(first) == len(second) == 1 and first != second and y.sum() == N / 2
        assert set(digit_test[y_test.numpy() == 1]) == first and set(digit_test[y_test.numpy() == 0]) == second
        assert not set(learned) & set(tested) and len(set(learned)) == N
        pairs.add(frozenset(first | second))
    assert len(pairs) == T


def test_all_images_that_were_set_aside_are_for_tests():
    digits, data = load_digits_tasks(), drawn(noise=0.0, n_pool=1000)
    rest = np.random.default_rng(3).permutation(len(digits.X))[1000:]
    for x, _ in data.tests:
        index, digit = digits_of(x)
        assert len(index) == np.isin(digits.digit[rest], np.unique(digit)).sum()


def test_images_are_noisy_and_centred():
    clean, noisy = drawn(noise=0.0), drawn(noise=0.5)
    for x in (clean.x, noisy.x, *(x for x, _ in noisy.tests)):
        assert x.mean(dim=-1).abs().max() < 1e-6
    assert (noisy.x - clean.x).std().item() == pytest.approx(0.5 * (63 / 64) ** 0.5, rel=0.05)
    assert torch.equal(noisy.y, clean.y)


def test_shuffled_pixels_are_the_same_in_another_order_of_every_task():
    plain_world, shuffled = drawn(), drawn(shuffled=True)
    orders = set()
    for t in range(T):
        match = torch.cdist(shuffled.x[t].T, plain_world.x[t].T).argmin(dim=1)
        assert sorted(match.tolist()) == list(range(64))
        torch.testing.assert_close(shuffled.x[t], plain_world.x[t][:, match], rtol=0, atol=0)
        torch.testing.assert_close(shuffled.tests[t][0], plain_world.tests[t][0][:, match], rtol=0, atol=0)
        orders.add(tuple(match.tolist()))
    assert len(orders) == T and tuple(range(64)) not in orders
    assert torch.equal(plain_world.y, shuffled.y)


def test_more_tasks_leave_the_first_as_they_are():
    few, many = drawn(), drawn(n_tasks=T + 2)
    assert torch.equal(few.x, many.x[:T]) and torch.equal(few.tests[T - 1][0], many.tests[T - 1][0])
    assert not torch.equal(drawn(seed=4).x, few.x)


# --- what is compared -------------------------------------------------------------------------------------------------


def test_networks_of_the_methods():
    layers = lambda name: build(METHODS[name], 20, rng()).layers
    assert all(type(layer.weight) is Independent for layer in layers("separate, stopped").values())
    for name, n_tied in (("hard, first layer", 1), ("hard, first two", 2)):
        assert [type(layer.weight) is Tied for layer in layers(name).values()] == [n < n_tied for n in range(3)]
    for inputs in (16, 32):
        made = layers(f"TT, {inputs} directions")
        assert [layer.weight.ranks for layer in made.values()] == [(inputs, 20), (32, 20), (20, 20)]
        assert all(type(layer.weight) is TensorTrain for layer in made.values())
    for K in (20, 8, 2):
        assert [(type(layer.weight), layer.weight.ranks) for layer in layers(f"LAF, K = {K}").values()] == [
            (LAF, (K,))
        ] * 3
    first = list(layers("LAF, first layer, K = 3").values())
    assert first[0].weight.ranks == (3,) and [type(layer.weight) for layer in first[1:]] == [Independent] * 2


def test_products_of_their_own_share_nothing_and_begin_with_the_same_scale():
    network, plainly = build(METHODS["products of their own"], T, rng()), build(METHODS["separate"], T, rng())
    for layer, other in zip(network.layers.values(), plainly.layers.values(), strict=True):
        assert layer.weight.compose().std().item() == pytest.approx(other.weight.compose().std().item(), rel=0.15)
        L, codes = layer.weight.parametrizations.weight.original, layer.weight.parametrizations.weight[0].codes
        assert L.shape[:2] == codes.shape == (T, 20)
        expected = torch.einsum("tkio,tk->iot", L, codes)
        torch.testing.assert_close(layer.weight.compose(), expected)
        assert L.square().mean().item() == pytest.approx(codes.square().mean().item(), rel=0.2)
    network(drawn().x)[2].square().sum().backward()
    for name, parameter in network.named_parameters():
        moved = parameter.grad.flatten(1).any(1)
        assert moved.tolist() == [t == 2 for t in range(T)], name


def test_products_have_as_many_layers_as_asked():
    made = OwnProducts(3, 7, rng())
    L = made.right_inverse(torch.randn(3, 11, 13, generator=rng(1)))
    assert L.shape == (3, 7, 11, 13) and made(L).shape == (3, 11, 13)


def test_from_models_every_start_begins_as_they_are():
    data = drawn(n_tasks=20)
    models = separate_networks(data, False, rng(), 3)
    expected = torch.stack([model(x) for model, x in zip(models, data.x, strict=True)])
    for name, choices in STARTS.items():
        network = build(choices, 20, rng(), models)
        if name != "LAF, K = 8":
            off = (network(data.x) - expected).norm() / expected.norm()
            assert off < 0.2, name


def test_the_tolerance_is_that_of_the_start():
    models = separate_networks(drawn(n_tasks=20), False, rng(), 3)
    tight, loose = (build({"by": "LAF", "eps": eps}, 20, rng(), models).layers["0"].weight.ranks for eps in (0.1, 0.8))
    assert loose < tight


def test_separate_networks_begin_alike_only_where_asked():
    for alike in (True, False):
        models = separate_networks(drawn(), alike, rng(), steps=1, learning_rate=1e-9)
        first, second = (model[0].weight for model in models[:2])
        assert ((first - second).abs().max() < 1e-6) == alike


def test_errors_are_means_over_tasks_in_percent():
    class Signs(nn.Module):
        def forward(self, x):
            return [x_t[:, :1] for x_t in x]

    yes, no = torch.ones(4), torch.zeros(4)
    first = torch.zeros(4, 64)
    first[:, 0] = torch.tensor([1.0, 1.0, 1.0, -1.0])
    data = Apprentices(first[None], yes[None], [(first, yes), (first[:2], no[:2])])
    assert error(Signs(), data) == pytest.approx((25 + 100) / 2)


def test_training_takes_the_steps_and_may_keep_the_best():
    data = drawn()
    network = share(digit_network(), T, Independent, generator=rng())
    before = copy_of(network)
    losses = fit(network, data, steps=7)
    assert losses.shape == (7,) and losses[-1] < losses[0]
    assert losses[0].item() == pytest.approx(loss_of(before, data).item(), rel=1e-5)
    stopped = share(digit_network(), T, Independent, generator=rng())
    fit(stopped, data, steps=40, stopped=True)
    whole = share(digit_network(), T, Independent, generator=rng())
    fit(whole, data, steps=40)
    assert held_out_loss(stopped, data) <= held_out_loss(whole, data)


def copy_of(network):
    other = share(digit_network(), T, Independent)
    other.load_state_dict(network.state_dict())
    return other


def loss_of(network, data):
    outputs = network(data.x)[:, :, 0]
    return nn.functional.binary_cross_entropy_with_logits(outputs, data.y, reduction="none").mean(1).sum()


def held_out_loss(network, data):
    logits = network([x for x, _ in data.tests])
    with torch.no_grad():
        return sum(
            nn.functional.binary_cross_entropy_with_logits(o[:, 0], y).item()
            for o, (_, y) in zip(logits, data.tests, strict=True)
        )


@pytest.mark.parametrize("begun", [DRAWN, APART, ALIKE])
def test_all_methods_of_a_contest_take_the_same_steps(begun, monkeypatch):
    taken, real = [], dmtrl_digits.fit
    monkeypatch.setattr(dmtrl_digits, "fit", lambda n, d, steps, *more: taken.append(steps) or real(n, d, 1, *more))
    config = plain(DMTRLDigits().config(smoke=False), "config")
    for method in ("separate", "LAF, K = 8"):
        unit = {"condition": SHUFFLED, "begun": begun, "method": method, "seed": 1}
        found = DMTRLDigits().run_unit(unit, config, torch.device("cpu"))
        assert 0 < found["metrics"]["error"] < 60
    assert taken == ([60, 60] if begun == DRAWN else [30, 30, 30, 30])


# --- the record -------------------------------------------------------------------------------------------------------


def record():
    return load_record("dmtrl-digits")


def errors(method, world=DIGITS, begun=DRAWN):
    return record().values("error", {"condition": world, "begun": begun, "method": method})


def minus_separate(method, world=DIGITS, begun=DRAWN):
    return paired_difference(errors(method, world, begun), errors("separate", world, begun))


def relatedness(method):
    gains = [errors(method, world) - errors("separate", world) for world in (DIGITS, SHUFFLED)]
    return paired_difference(*gains)


def test_it_was_computed_with_what_the_code_chooses_now():
    config = plain(DMTRLDigits().config(smoke=False), "config")
    assert record().config == config and not record().smoke and not record().dirty
    assert [row["unit"] for row in record().results] == [plain(unit, "unit") for unit in DMTRLDigits().units(config)]
    assert record().data == DMTRLDigits().data_files()


def test_a_unit_comes_out_again():
    for begun, method in (
        (DRAWN, "separate, stopped"),
        (DRAWN, "LAF, K = 8"),
        (ALIKE, "TT, 10 %"),
        (APART, "LAF, K = 8"),
    ):
        unit = {"condition": SHUFFLED, "begun": begun, "method": method, "seed": 7}
        row = next(row for row in record().results if row["unit"] == unit)
        again = DMTRLDigits().run_unit(unit, record().config, torch.device("cpu"))["metrics"]
        assert again["error"] == pytest.approx(row["metrics"]["error"], abs=0.3)
        assert again["n_parameters"] == row["metrics"]["n_parameters"]


def test_what_lives_on_relatedness():
    """Hard sharing and trains gain only from related tasks; LAF gains more where there is nothing to share."""
    assert len(errors("separate")) == 30
    for method in ("hard, first layer", "TT, 32 directions"):
        assert minus_separate(method).high < 0 < minus_separate(method, SHUFFLED).mean
        assert relatedness(method).high < -2
    for method in ("LAF, K = 20", "LAF, K = 8", "LAF, first layer, K = 8"):
        assert minus_separate(method).high < 0 and minus_separate(method, SHUFFLED).high < 0
        assert relatedness(method).low > 0
    assert minus_separate("products of their own").low > 0


def test_shuffled_pixels_are_as_hard_for_separate_networks():
    worlds = paired_difference(errors("separate"), errors("separate", SHUFFLED))
    assert abs(worlds.mean) < 0.5


def test_a_tolerance_of_ten_percent_gains_nothing():
    for begun in (APART, ALIKE):
        for method in ("TT, 10 %", "LAF, 10 %"):
            assert minus_separate(method, begun=begun).mean > -0.2
    assert minus_separate("LAF, K = 8", begun=APART).high < 0 < minus_separate("LAF, K = 8", SHUFFLED, APART).low
