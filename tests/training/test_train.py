"""The training loop against the obvious one: objective, budgets, early stopping, modes, precision, messages."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from torch import nn
from torch.nn import functional as F

from companion.networks import HardSharing
from companion.training import SharedData, TaskLoaders, adam, evaluate, make_loader, train
from tests.training.oracle import Heads, objective, same_parameters, train_by_hand

T, D, H, N, B = 3, 5, 2, 17, 4
WEIGHTS = [0.5, 2.0, 0.0]
MSE = nn.MSELoss(reduction="none")


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(seed=0, n_outputs=1):
    return HardSharing(D, H, T, n_outputs, generator=torch.Generator().manual_seed(seed)).double()


def squared(output, y):
    return (output.reshape(y.shape) - y) ** 2


def holes(shape, seed=7):
    """A mask in which the first task has no label at all in the first batch."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    mask[0, :B] = False
    return mask


def cut(x, y, mask, shared=False):
    """Batches of B of data with the task axis first, the last of them smaller."""
    parts = [slice(k, k + B) for k in range(0, N, B)]
    return [(x[p] if shared else x[:, p], y[:, p], None if mask is None else mask[:, p]) for p in parts]


@pytest.fixture
def free_accelerate():
    """Accelerate without its state of the process, before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


# --- the objective and its steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["nothing", "mask", "nan", "both"])
@pytest.mark.parametrize("form", ["shared", "stacked", "ragged"])
def test_the_loop_takes_the_steps_of_the_obvious_one(form, missing):
    x = random(N, D) if form == "shared" else random(T, N, D)
    y, mask = random(T, N, seed=1), None
    if missing in ("mask", "both"):
        mask = holes((T, N))
    if missing in ("nan", "both"):
        y = y.masked_fill(~holes((T, N), seed=8), torch.nan)
    batches = cut(x, y, mask, form == "shared")
    if form == "ragged":  # as many rows of each task as its number allows
        short = lambda parts: None if parts is None else [part[: B - t] for t, part in enumerate(parts)]
        batches = [tuple(short(part) for part in batch) for batch in batches]
    by_hand, ours = network(), network()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    expected = train_by_hand(by_hand, [batches] * 3, [squared] * T, optimizer, 13, WEIGHTS)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    history = train(ours, batches, MSE, steps=13, optimizer=optimizer, task_weights=WEIGHTS)
    same_parameters(ours, by_hand, 1e-10)
    torch.testing.assert_close(history.training, expected, rtol=1e-10, atol=1e-12, equal_nan=True)
    assert torch.isnan(history.training[0, 0]) == (missing != "nothing")


def test_one_loss_for_each_task_and_heads_of_different_sizes():
    """Regression, classes, and two outputs at once, with labels of three types."""
    x = random(N, D)
    generator = torch.Generator().manual_seed(3)
    labels = [random(N, seed=1), torch.randint(4, (N,), generator=generator), random(N, 2, seed=2)]
    labels[2][3, 1] = torch.nan  # one of two outputs: the example does not count
    labels[1][5] = -7  # no class at all: it is masked
    mask = [torch.ones(N, dtype=torch.bool) for _ in range(T)]
    mask[1][5] = False
    parts = [slice(k, k + B) for k in range(0, N, B)]
    batches = [(x[p], [y[p] for y in labels], [m[p] for m in mask]) for p in parts]
    losses = [MSE, nn.CrossEntropyLoss(reduction="none"), MSE]
    by_hand, ours = Heads(D, [1, 4, 2]).double(), Heads(D, [1, 4, 2]).double()
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    plain = [squared, F.cross_entropy, squared]
    expected = train_by_hand(by_hand, [batches] * 2, plain, optimizer, 8, [1.0] * T)
    history = train(ours, batches, losses, steps=8, learning_rate=0.01)
    same_parameters(ours, by_hand, 1e-10)
    torch.testing.assert_close(history.training, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("poison", [torch.nan, 1e300])
def test_what_stands_where_a_label_is_missing_does_not_matter(poison):
    x, y, mask = random(T, N, D), random(T, N, seed=1), holes((T, N))
    clean, poisoned = network(), network()
    first = train(clean, cut(x, y, mask), MSE, steps=6)
    second = train(poisoned, cut(x, y.masked_fill(~mask, poison), mask), MSE, steps=6)
    same_parameters(clean, poisoned, 0)
    torch.testing.assert_close(first.training, second.training, rtol=0, atol=0, equal_nan=True)


def test_a_task_without_labels_leaves_its_head_alone():
    net = network()
    before = copy.deepcopy(net)
    mask = torch.ones(T, N, dtype=torch.bool)
    mask[1] = False
    train(net, [(random(T, N, D), random(T, N), mask)], MSE, steps=3, learning_rate=0.1)
    torch.testing.assert_close(net.head_weight[1], before.head_weight[1], rtol=0, atol=0)
    assert (net.head_weight[0] != before.head_weight[0]).all()
    assert (net.trunk_weight != before.trunk_weight).all()


def test_a_ragged_batch_may_have_no_example_of_a_task():
    """The step is that of a batch with an example that is not labelled."""
    x, y = list(random(T, B, D)), list(random(T, B, seed=1))
    mask = [torch.ones(B, dtype=torch.bool) for _ in range(T)]
    mask[1][:] = False
    masked, empty = network(), network()
    first = train(masked, [(x, y, mask)], MSE, steps=2)
    x[1], y[1] = x[1][:0], y[1][:0]
    second = train(empty, [(x, y)], MSE, steps=2)
    same_parameters(empty, masked, 1e-12)
    torch.testing.assert_close(second.training, first.training, equal_nan=True)
    assert torch.isnan(second.training[:, 1]).all() and not torch.isnan(second.training[:, [0, 2]]).any()


def test_adam_is_adam():
    """One kernel or many operations: the same steps, for several types, and where there is no fused kernel."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5), (torch.complex128, 1e-10)):
        start = random(7, 3).to(dtype)
        target = random(7, 3, seed=1).to(dtype)
        ends = []
        for make in (
            lambda p: adam([p], 0.03, weight_decay=0.2),
            lambda p: torch.optim.Adam([p], lr=0.03, weight_decay=0.2, fused=False, foreach=False),
        ):
            parameter = nn.Parameter(start.clone())
            optimizer = make(parameter)
            for _ in range(40):
                optimizer.zero_grad()
                ((parameter - target).abs() ** 2).sum().backward()
                optimizer.step()
            ends.append(parameter.detach())
        torch.testing.assert_close(*ends, rtol=tolerance, atol=tolerance)
        assert (ends[0] != start).all()
    assert adam([nn.Parameter(torch.ones(2))], 0.1).defaults["fused"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([nn.Parameter(torch.ones(1))], 0.0), "learning_rate must be a number > 0; got 0.0"),
        (([nn.Parameter(torch.ones(1))], float("inf")), "learning_rate must be a number > 0; got inf"),
        (([nn.Parameter(torch.ones(1))], 0.1, -1.0), "weight_decay must be a number >= 0; got -1.0"),
        (([], 0.1), "parameters must hold at least one parameter; got none"),
    ],
)
def test_adam_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        adam(*arguments)


# --- budgets, early stopping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_budgets_are_exact(steps):
    """Five batches in an epoch: less than one, one, and two and a bit."""
    net, taken = network(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: taken.append(1))
    history = train(net, cut(random(T, N, D), random(T, N), None), MSE, steps=steps, optimizer=optimizer)
    assert len(taken) == steps == history.steps
    assert history.training.shape == (steps, T)
    assert history.validation.numel() == 0 and history.best_step is None and history.seconds > 0
    assert all(parameter.grad is None for parameter in net.parameters())


class Counter(nn.Module):
    """Its one parameter counts the steps: the slope of the training loss is -1, and the learning rate 1."""

    def __init__(self):
        super().__init__()
        self.count = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.count.expand(2, len(x), 1)


def planted(series):
    """A loss that is minus the output in training (label 0), and in validation the series at the count of steps."""
    table = torch.tensor(series)

    def loss(output, y):
        values = table[output.detach().round().long().clamp(max=len(table) - 1)]
        return torch.where(y == 0, -output, values)

    return loss


def count_steps(series, steps, **settings):
    net = Counter()
    y = torch.zeros(2, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)  # two tasks: the slope is -2
    validation = [(torch.ones(3, 1), y + 1), (torch.ones(1, 1), y[:, :1] + 1)]
    batches = [(torch.ones(3, 1), y)]
    history = train(net, batches, planted(series), steps=steps, optimizer=optimizer, validation=validation, **settings)
    return history, float(net.count.detach())


#        step 0    1    2    3    4    5    6    7    8    9   10
SERIES = [9.0, 8.0, 5.0, 7.0, 6.0, 9.0, 5.0, 9.0, 4.0, 9.0, 1.0]


@pytest.mark.parametrize(
    ("patience", "steps", "every", "evaluated", "best"),
    [
        (None, 10, 2, [2, 4, 6, 8, 10], 10),  # to the end
        (None, 9, 2, [2, 4, 6, 8, 9], 8),  # the last step is evaluated, too, and the best weights come back
        (2, 10, 2, [2, 4, 6], 2),  # a tie is not better
        (3, 10, 2, [2, 4, 6, 8, 10], 10),  # three without gain would stop it, but the third brings one
        (1, 10, 1, [1, 2, 3], 2),
        (1, 10, 10, [10], 10),
    ],
)
def test_early_stopping_on_a_planted_series(patience, steps, every, evaluated, best):
    history, count = count_steps(SERIES, steps, evaluate_every=every, patience=patience)
    assert history.validation_steps.tolist() == evaluated
    assert history.steps == evaluated[-1]
    assert history.best_step == best == count
    expected = torch.tensor([[SERIES[k]] * 2 for k in evaluated])
    torch.testing.assert_close(history.validation, expected)
    torch.testing.assert_close(history.validation_loss, expected.double().sum(1))


def test_a_loss_that_is_nan_is_never_the_best():
    nan = float("nan")
    history, count = count_steps([9.0, nan, 3.0, nan, 2.5, nan], 5, evaluate_every=1)
    assert history.best_step == 4 == count
    history, count = count_steps([nan] * 6, 5, evaluate_every=1, patience=3)
    assert history.steps == 3 == count and history.best_step is None


def test_the_best_weights_are_chosen_by_the_weighted_loss():
    """Two planted tasks that disagree on the best step: the weights decide."""
    table = torch.tensor([[9.0, 9.0], [1.0, 5.0], [4.0, 1.0]])  # (step, task)

    def task_loss(t):
        return lambda output, y: torch.where(y == 0, -output, table[output.detach().round().long(), t])

    for weights, best in (([1.0, 0.5], 1), ([0.5, 1.0], 2)):
        net = Counter()
        optimizer = torch.optim.SGD(net.parameters(), lr=1 / 1.5)
        zero = torch.zeros(2, 3)
        history = train(
            net,
            [(torch.ones(3, 1), zero)],
            [task_loss(0), task_loss(1)],
            steps=2,
            optimizer=optimizer,
            task_weights=weights,
            validation=[(torch.ones(3, 1), zero + 1)],
            evaluate_every=1,
        )
        assert history.best_step == best == float(net.count.detach())
        torch.testing.assert_close(history.validation, table[1:])
        torch.testing.assert_close(history.validation_loss, (table[1:] @ torch.tensor(weights)).double())


# --- evaluation, modes ------------------------------------------------------------------------------------------------


def test_evaluate_is_the_mean_over_all_labelled_examples():
    x, y, mask = random(T, N, D), random(T, N, seed=1), holes((T, N))
    mask[2] = False
    net = Heads(D, [1] * T, dropout=0.5).double()
    net.heads[1].requires_grad_(False)
    _, expected = objective(net.eval()(x), y, mask, [squared] * T, [1.0] * T)
    net.train()
    net.dropout.eval()  # one module in another mode than the rest
    losses = evaluate(net, cut(x, y, mask), MSE)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), equal_nan=True)
    assert torch.isnan(losses[2]) and not losses.requires_grad
    assert net.training and not net.dropout.training


def test_evaluate_counts_ragged_examples_once():
    """Tasks of 2, 5 and 17 examples: in training the small ones start again, in evaluation they do not count again."""
    data = [(random(n, D, seed=n), random(n, seed=n + 1)) for n in (2, 5, N)]
    net = Heads(D, [1] * T).double()
    _, expected = objective(net([X for X, _ in data]), [y for _, y in data], None, [squared] * T, [1.0] * T)
    loaders = TaskLoaders.from_data(data, B, seed=1)
    torch.testing.assert_close(evaluate(net, loaders, MSE), torch.tensor(expected, dtype=torch.float64))


def test_training_is_in_training_mode_and_leaves_the_modes_as_they_were():
    net, seen = Heads(D, [1] * T, dropout=0.5).double(), []
    net.dropout.register_forward_hook(lambda module, *_: seen.append(module.training))
    net.eval()
    batches = cut(random(T, N, D), random(T, N), None)
    train(net, batches, MSE, steps=2, validation=batches, evaluate_every=1)
    assert seen == ([True] * T + [False] * T * len(batches)) * 2
    assert not net.training and not net.dropout.training


def test_progress_is_shown_on_request(capsys):
    batches = cut(random(T, N, D), random(T, N), None)
    train(network(), batches, MSE, steps=3)
    assert capsys.readouterr().err == ""
    train(network(), batches, MSE, steps=7, progress=True)
    assert "7/7" in capsys.readouterr().err


# --- accelerate -------------------------------------------------------------------------------------------------------


def test_bf16_comes_near_float32(free_accelerate):
    """bf16 has 8 bits: losses that fall by a factor of ten agree to a few per cent of the first."""
    X = random(200, D).float()
    Y = torch.tanh(X @ random(D, T, seed=1).float())
    loader = lambda: make_loader(SharedData(X, Y), 50, seed=4)
    exact, rough = Heads(D, [1] * T), Heads(D, [1] * T)
    reference = train(exact, loader(), MSE, steps=200, learning_rate=0.02)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    types = []
    handle = rough.register_forward_hook(lambda module, inputs, output: types.append(output[0].dtype))
    history = train(rough, loader(), MSE, steps=200, learning_rate=0.02, accelerator=accelerator)
    handle.remove()
    assert set(types) == {torch.bfloat16} and history.training.dtype == torch.float32
    first, last = reference.training[0], reference.training[-1]
    assert (last < 0.3 * first).all()
    assert ((history.training[-1] - last).abs() < 0.05 * first).all()
    assert not torch.equal(history.training, reference.training)
    assert all(parameter.dtype == torch.float32 for parameter in rough.parameters())
    plain, mixed = evaluate(rough, loader(), MSE), evaluate(rough, loader(), MSE, accelerator=accelerator)
    torch.testing.assert_close(mixed, plain, rtol=0.1, atol=0.01)
    assert mixed.dtype == torch.float32 and not torch.equal(mixed, plain)


def test_sums_of_a_half_precision_network_are_not_in_half_precision():
    """In bf16, ones add up to 256 and no further."""
    net = HardSharing(D, H, T).bfloat16()
    nn.init.zeros_(net.head_weight)
    x, y = torch.zeros(T, 700, D, dtype=torch.bfloat16), torch.ones(T, 700, dtype=torch.bfloat16)
    y[:, :300] = 0
    expected = torch.full((T,), 4 / 7)
    torch.testing.assert_close(evaluate(net, [(x, y)], MSE), expected)
    history = train(net, [(x, y)], MSE, steps=1, task_weights=[1.0, 0.5, 2.0])
    torch.testing.assert_close(history.training, expected[None])


def test_the_objective_is_the_weighted_sum_and_a_task_without_labels_adds_zero(free_accelerate, monkeypatch):
    accelerator, seen, net = Accelerator(cpu=True), [], network()
    x, y, mask = random(T, N, D), random(T, N, seed=1), holes((T, N))
    expected = [float(objective(net(x), y, mask, [squared] * T, WEIGHTS)[0].detach())]
    mask[1] = False
    expected += [float(objective(net(x), y, mask, [squared] * T, WEIGHTS)[0].detach())]
    monkeypatch.setattr(accelerator, "backward", lambda loss: (seen.append(float(loss.detach())), loss.backward()))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    batches = [(x, y, holes((T, N))), (x, y, mask)]
    train(net, batches, MSE, steps=2, optimizer=optimizer, task_weights=WEIGHTS, accelerator=accelerator)
    assert seen == pytest.approx(expected, rel=1e-12)


def test_neither_network_nor_process_keep_marks(free_accelerate):
    """The network can be copied and trained otherwise, and accelerate is as free as before."""
    net, batches = network(), cut(random(T, N, D), random(T, N), None)
    marks = set(vars(net))
    train(net, batches, MSE, steps=1)
    assert set(vars(net)) == marks and not is_initialized()
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)  # refused, had the first run left its state
    train(net, batches, MSE, steps=1, accelerator=accelerator)
    assert set(vars(net)) == marks and accelerator._models == []
    assert net(batches[0][0]).dtype == torch.float64


def test_accelerators_that_would_change_the_meaning_are_refused(free_accelerate):
    net, batches = network(), cut(random(T, N, D), random(T, N), None)
    before = copy.deepcopy(net)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="must not accumulate gradients, for a batch is a step; got 2 batches"):
        train(net, batches, MSE, steps=1, accelerator=accelerator)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    with pytest.raises(ValueError, match=r"an accelerator with mixed_precision='bf16'.*pass it as accelerator"):
        train(net, batches, MSE, steps=1)
    accelerator.state._mixed_precision = "fp16"
    with pytest.raises(ValueError, match="mixed_precision must be 'no' or 'bf16'; got 'fp16'"):
        train(net, batches, MSE, steps=1, accelerator=accelerator)
    accelerator.state._mixed_precision = "no"
    accelerator.state.distributed_type = type(accelerator.distributed_type).FSDP
    with pytest.raises(ValueError, match="one process or data-parallel ones; got FSDP"):
        train(net, batches, MSE, steps=1, accelerator=accelerator)
    same_parameters(net, before, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_the_network_stays_on_its_device(tmp_path, free_accelerate):
    """First on the CPU, then on the GPU, then on the CPU again: the device of accelerate's state does not matter."""
    ends, file = [], tmp_path / "run.pt"
    X, Y = random(N, D), random(N, T, seed=1)
    for device in ("cpu", "cuda", "cpu"):
        net = network().to(device)
        history = train(net, make_loader(SharedData(X, Y), B, seed=2), MSE, steps=11, learning_rate=0.05)
        assert {parameter.device.type for parameter in net.parameters()} == {device}
        assert history.training.device.type == "cpu"
        ends.append(net.cpu())
    same_parameters(ends[1], ends[0], 1e-8)
    same_parameters(ends[2], ends[0], 0)
    whole, parts = (Heads(D, [1] * T, dropout=0.5).double().cuda() for _ in range(2))
    loader = lambda: make_loader(SharedData(X, Y), B, seed=2)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        train(whole, loader(), MSE, steps=13)
        torch.manual_seed(5)
        train(parts, loader(), MSE, steps=7, checkpoint=file)
        torch.manual_seed(6)
        train(parts, loader(), MSE, steps=13, checkpoint=file)  # dropout goes on where it was
    same_parameters(parts, whole, 1e-12)


# --- messages ---------------------------------------------------------------------------------------------------------

GOOD = (random(T, B, D), random(T, B))


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (
            (GOOD[0], GOOD[1][:2]),
            ValueError,
            r"y must have the tasks and examples of the output, \(3, 4\); got \(2, 4\)",
        ),
        ((GOOD[0], GOOD[1][:, :3]), ValueError, r"of the output, \(3, 4\); got \(3, 3\)"),
        ((GOOD[0], GOOD[1][0]), ValueError, r"of the output, \(3, 4\); got \(4,\)"),
        ((list(GOOD[0]), list(GOOD[1][:2])), ValueError, "inputs and labels for the same tasks; got 3 and 2"),
        ((GOOD[0][0], list(GOOD[1][:2])), ValueError, "labels for the 3 tasks in the network's output; got 2"),
        ((list(GOOD[0]), [*GOOD[1][:2], GOOD[1][2, :1]]), ValueError, "y of task 2 must have 4 labels.*; got 1"),
        ((*GOOD, torch.ones(T, B)), ValueError, r"mask must be bool of shape \(12,\); got torch.float32"),
        ((*GOOD, torch.ones(T, 1, dtype=torch.bool)), ValueError, r"tasks and examples of y, \(3, 4\); got \(3, 1\)"),
        ((*GOOD, list(torch.ones(2, B, dtype=torch.bool))), ValueError, "one entry for each of the 3 tasks; got 2"),
        ((*GOOD, list(torch.ones(T, 2, dtype=torch.bool))), ValueError, r"mask of task 0 must be bool of shape \(4,\)"),
        (GOOD[0], TypeError, r"a batch must be \(x, y\) or \(x, y, mask\); got Tensor"),
        ((GOOD[0], None), TypeError, "y of a batch must be a tensor or a list of tensors; got NoneType"),
        (([], []), TypeError, "x of a batch must be a tensor or a list of tensors; got list"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(batch, error, message):
    net = network()
    before = copy.deepcopy(net)
    with pytest.raises(error, match=message):
        train(net, [batch], MSE, steps=1)
    same_parameters(net, before, 0)


def test_a_later_batch_without_a_task_is_refused():
    class Zip(nn.Module):
        """Takes the tasks that come, as a network must not."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(D, 1, dtype=torch.float64))

        def forward(self, x):
            return [part @ self.w for part in x]

    batches = [(list(GOOD[0]), list(GOOD[1])), (list(GOOD[0][:2]), list(GOOD[1][:2]))]
    with pytest.raises(ValueError, match="every batch must have labels for 3 tasks; got 2"):
        train(Zip(), batches, MSE, steps=2)
    with pytest.raises(ValueError, match="every batch must have labels for 3 tasks; got 2"):
        train(Zip(), batches[1:], MSE, steps=2, task_weights=[1.0] * T)
    with pytest.raises(ValueError, match="every batch must have labels for 3 tasks; got 2"):
        train(Zip(), batches[1:], [MSE] * T, steps=2)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (nn.MSELoss(), ValueError, r"one number per example.*of shape \(12,\); got \(\)"),
        (lambda output, y: 1.0, ValueError, "got float"),
        (lambda output, y: torch.ones(5), ValueError, r"got \(5,\) from outputs \(12,\) and labels \(12,\)"),
        ([MSE] * 2, ValueError, "every batch must have labels for 2 tasks; got 3"),
        ([MSE, MSE, nn.MSELoss()], ValueError, "loss of task 2 must return one number per example"),
        ("mse", TypeError, "loss must be a callable or a list of one per task; got 'mse'"),
        ([], TypeError, "loss must be a callable"),
    ],
)
def test_losses_that_are_not_one_number_per_example_are_refused(loss, error, message):
    with pytest.raises(error, match=message):
        train(network(), [GOOD], loss, steps=1)


def test_one_output_and_one_label_do_not_broadcast():
    """(N, 1) against (N,) would be (N, N); other outputs reach the loss as they are."""
    shapes = []

    def loss(output, y):
        shapes.append((tuple(output.shape), tuple(y.shape)))
        return output.reshape(len(y), -1).sum(1)

    integers = torch.zeros(T, B, dtype=torch.int64)
    train(network(), [GOOD], loss, steps=1)
    train(network(), [(GOOD[0], integers)], loss, steps=1)
    train(network(n_outputs=6), [GOOD], loss, steps=1)
    train(network(), [(list(GOOD[0]), list(GOOD[1]))], loss, steps=1)
    assert shapes == [((12,), (12,)), ((12, 1), (12,)), ((12, 6), (12,)), *[((4,), (4,))] * T]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1; got 0"),
        ({"steps": 2.0}, "steps must be an integer of at least 1; got 2.0"),
        ({"evaluate_every": 0}, "evaluate_every must be an integer of at least 1; got 0"),
        ({"checkpoint_every": True}, "checkpoint_every must be an integer of at least 1; got True"),
        ({"patience": 0, "validation": [GOOD]}, "patience must be an integer of at least 1; got 0"),
        ({"patience": 2}, "patience=2 needs validation data"),
        ({"learning_rate": -1.0}, "learning_rate must be a number > 0; got -1.0"),
        ({"task_weights": [1.0, 2.0]}, "every batch must have labels for 2 tasks; got 3"),
        ({"task_weights": [[1.0, 2.0, 3.0]]}, r"task_weights must be one number per task; got the shape \(1, 3\)"),
        ({"task_weights": [1.0, -2.0, 3.0]}, r"task_weights must be finite and >= 0; got \[1.0, -2.0, 3.0\]"),
        ({"task_weights": [1.0, np.inf, 3.0]}, "task_weights must be finite and >= 0"),
        (
            {"task_weights": [1.0], "loss": [MSE] * T},
            r"task_weights must be 3 numbers, one per task; got the shape \(1,\)",
        ),
        ({"batches": []}, "batches must hold at least one batch; got none"),
        ({"network": nn.Tanh()}, "network must have parameters; Tanh has none"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    arguments = {"network": network(), "batches": [GOOD], "loss": MSE, "steps": 1, **settings}
    with pytest.raises(ValueError, match=message):
        train(**arguments)


def test_no_parameter_is_printed_to_describe_a_run(monkeypatch):
    """Printing all of them took longer than sixty steps of a small network."""

    def printed(self, **settings):
        raise AssertionError("a parameter was printed")

    monkeypatch.setattr(nn.Parameter, "__repr__", printed)
    made = network()
    train(made, cut(random(T, N, D), random(T, N), None), squared, steps=2, progress=False)


def test_optimizers_that_do_not_fit_are_refused():
    net, other = network(), network(1)
    with pytest.raises(ValueError, match="give either it or an optimizer, not both"):
        train(net, [GOOD], MSE, steps=1, optimizer=adam(net.parameters(), 0.1), learning_rate=0.1)
    with pytest.raises(
        ValueError, match=r"optimizer must be of parameters of the network; one of shape \(5, 2\) is not"
    ):
        train(net, [GOOD], MSE, steps=1, optimizer=adam(other.parameters(), 0.1))
    with pytest.raises(TypeError, match="batches must have a length, the number of its batches; got generator"):
        train(net, (GOOD for _ in range(3)), MSE, steps=1)
