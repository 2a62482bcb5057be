"""Checkpoints: a run that goes on is the run that was not interrupted, and nothing else is loaded."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from companion.networks import HardSharing
from companion.training import History, SharedData, adam, make_loader, train
from tests.training import killed_run
from tests.training.oracle import Heads, same_parameters

ROOT = Path(__file__).resolve().parents[2]
T, D, N, B = 3, 5, 17, 4
MSE = nn.MSELoss(reduction="none")


@pytest.fixture(autouse=True)
def own_random_numbers():
    """Dropout draws from torch's default generator, which these tests seed."""
    with torch.random.fork_rng(devices=[]):
        yield


def same_history(a, b):
    for name, value in a.state().items():
        if name != "seconds":
            torch.testing.assert_close(value, getattr(b, name), rtol=0, atol=0, equal_nan=True)


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "number", "kept"),
    [("step", 30, 27), ("move", 6, 15)],  # of eight batches in an epoch: in the middle, and one before the end
)
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path, when, number, kept):
    whole, expected = killed_run.run(None, seed=0)
    path = tmp_path / "run.pt"
    command = [sys.executable, killed_run.__file__, str(path), when, str(number)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(path, weights_only=True)["history"]["training"].shape == (kept, T)
    steps = []
    resumed, history = killed_run.run(path, seed=99, before_step=steps.append)
    assert max(steps) == killed_run.STEPS - kept  # the others were not taken again
    same_parameters(resumed, whole, 0)
    same_history(history, expected)


@pytest.mark.parametrize("kind", ["shared", "ragged"])
@pytest.mark.parametrize("stop", [5, 8, 9, 16])
def test_a_run_can_be_divided_anywhere(tmp_path, kind, stop):
    """In an epoch of eight batches, at its end, one later; with ragged tasks of which two start again within it."""
    whole, expected = killed_run.run(None, 0, kind, steps=20)
    path = tmp_path / "new" / "folder" / "run.pt"
    _, first = killed_run.run(path, 0, kind, steps=stop)
    resumed, history = killed_run.run(path, 99, kind, steps=20)
    torch.testing.assert_close(history.training, expected.training, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(history.training[:stop], first.training, rtol=0, atol=0, equal_nan=True)
    if stop % 5 == 0:  # else the first part ends with one more evaluation
        same_parameters(resumed, whole, 0)
        same_history(history, expected)
    assert history.seconds > first.seconds


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW])
def test_every_optimizer_keeps_its_state(tmp_path, make):
    """And batch normalisation its averages; with a shuffling loader of torch, and one generator for both its uses."""
    X, Y = (torch.randn(N, k, generator=torch.Generator().manual_seed(k)) for k in (D, T))

    def run(steps, checkpoint, seed):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.BatchNorm1d(D), Heads(D, [1] * T, dropout=0.3))
        settings = {"lr": 0.05, "momentum": 0.9} if make is not torch.optim.AdamW else {"lr": 0.05, "amsgrad": True}
        optimizer = make(net.parameters(), **settings)
        data, generator = TensorDataset(X, Y), torch.Generator().manual_seed(seed)
        loader = DataLoader(data, B, True, drop_last=True, generator=generator, collate_fn=tasks_first)
        history = train(
            net,
            loader,
            MSE,
            steps=steps,
            optimizer=optimizer,
            validation=loader,
            evaluate_every=3,
            checkpoint=checkpoint,
        )
        return net, history

    whole, expected = run(12, None, 0)
    run(9, tmp_path / "run.pt", 0)
    resumed, history = run(12, tmp_path / "run.pt", 99)
    same_parameters(resumed, whole, 0)
    torch.testing.assert_close(resumed[0].running_var, whole[0].running_var, rtol=0, atol=0)
    torch.testing.assert_close(history.training, expected.training, rtol=0, atol=0)


def tasks_first(examples):
    x, y = (torch.stack(part) for part in zip(*examples, strict=True))
    return x, y.T


def test_a_finished_run_returns_at_once(tmp_path):
    path, calls = tmp_path / "run.pt", []
    network, history = killed_run.run(path, seed=0)
    before = path.read_bytes()
    again, same = killed_run.run(path, seed=5, before_step=calls.append)
    assert calls == [] and path.read_bytes() == before and same.seconds == history.seconds
    same_history(same, history)
    same_parameters(again, network, 0)
    assert history.best_step < killed_run.STEPS  # the best weights, not the last, which the file holds, too
    content = torch.load(path, weights_only=True)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(content["best"][name], value, rtol=0, atol=0)
    assert not torch.equal(content["network"]["trunk"], content["best"]["trunk"])


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    X, Y = killed_run.data()
    zero = [(X, torch.zeros(T, N_ROWS, dtype=torch.float64))]

    def run():
        net = Heads(D, [1] * T).double()
        history = train(
            net,
            make_loader(SharedData(X, Y + 5), B),
            MSE,
            steps=50,
            validation=zero,
            evaluate_every=2,
            patience=3,
            checkpoint=tmp_path / "run.pt",
        )
        return net, history

    first, history = run()
    assert history.steps == 8 and history.best_step == 2
    again, same = run()
    same_history(same, history)
    same_parameters(again, first, 0)


N_ROWS = killed_run.N


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background and inherited that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_after_the_step_and_keeps_it(tmp_path, times):
    """The signal comes within the seventh step, between two checkpoints; a second one acts at once."""
    path, handler = tmp_path / "run.pt", signal.getsignal(signal.SIGINT)

    def interrupt(step):
        for _ in range(times * (step == 7)):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        killed_run.run(path, seed=0, before_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    steps = len(torch.load(path, weights_only=True)["history"]["training"])
    if times == 1:
        assert str(caught.value) == f"after 7 of 41 steps; the same call goes on from {path}" and steps == 7
    else:
        assert steps == 6  # the last regular one
    whole, expected = killed_run.run(None, seed=0)
    resumed, history = killed_run.run(path, seed=99)
    same_parameters(resumed, whole, 0)
    same_history(history, expected)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_without_a_checkpoint_acts_at_once():
    steps = []

    def interrupt(step):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        steps.append(step)

    with pytest.raises(KeyboardInterrupt):
        killed_run.run(None, seed=0, before_step=interrupt)
    assert steps == [1]


def test_a_thread_that_may_not_hold_back_signals_trains_all_the_same(tmp_path):
    thread = threading.Thread(target=killed_run.run, args=(tmp_path / "run.pt", 0), kwargs={"steps": 4})
    thread.start()
    thread.join()
    assert len(torch.load(tmp_path / "run.pt", weights_only=True)["history"]["training"]) == 4


# --- what is refused --------------------------------------------------------------------------------------------------


def network(n_hidden=2):
    return HardSharing(D, n_hidden, T, generator=torch.Generator().manual_seed(0))


def loader(batch_size=B, seed=0, n=N):
    generator = torch.Generator().manual_seed(1)
    X, Y = torch.randn(n, D, generator=generator), torch.randn(n, T, generator=generator)
    return make_loader(SharedData(X, Y), batch_size, seed=seed)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of six steps."""
    path = tmp_path / "run.pt"
    train(network(), loader(), MSE, steps=6, checkpoint=path)
    return path


def refuse(path, message, **changed):
    """Going on from the file fails, and changes neither network, optimizer, random numbers nor file."""
    net = changed.pop("network", network())
    optimizer = changed.pop("optimizer", adam)(net.parameters(), 1e-3)
    arguments = {"batches": loader(), "loss": MSE, "steps": 9, "optimizer": optimizer, **changed}
    parameters, state = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict())
    random, content = torch.get_rng_state(), path.read_bytes()
    with pytest.raises(ValueError, match=message):
        train(net, checkpoint=path, **arguments)
    same_parameters(net, parameters, 0)
    assert optimizer.state_dict() == state and net.training
    assert torch.equal(torch.get_rng_state(), random) and path.read_bytes() == content


def test_a_file_that_was_cut_off_or_damaged_is_refused(saved):
    whole, message = saved.read_bytes(), "run.pt is not a complete checkpoint; it was cut off or damaged, or is"
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        refuse(saved, message)
    saved.write_text("Not a checkpoint at all.\n")
    refuse(saved, message)
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("something", "else")
    refuse(saved, "run.pt is not a checkpoint but another archive")


def test_a_flipped_bit_among_the_weights_is_refused(saved):
    content = saved.read_bytes()
    weights = torch.load(saved, weights_only=True)["network"]["trunk_weight"].numpy().tobytes()
    place = content.index(weights)
    saved.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    refuse(saved, "run.pt is not a complete checkpoint; it was cut off or damaged, or is")


class Runs:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["pickle", "torch", "inside"])
def test_code_in_a_file_is_never_run(saved, tmp_path, how):
    trace = tmp_path / "trace"
    if how == "pickle":
        saved.write_bytes(pickle.dumps(Runs(trace)))
    elif how == "torch":
        torch.save({"format": 1, "network": Runs(trace)}, saved)
    else:
        torch.save(torch.load(saved, weights_only=True) | {"history": Runs(trace)}, saved)
    refuse(saved, f"run.pt is not a {'complete ' * (how == 'pickle')}checkpoint")
    assert not trace.exists()
    torch.load(saved, weights_only=False) if how != "pickle" else pickle.loads(saved.read_bytes())
    assert trace.exists()  # it would have been


def sgd(parameters, learning_rate):
    return torch.optim.SGD(parameters, lr=learning_rate)


def slower(parameters, learning_rate):
    return adam(parameters, learning_rate / 2)


def part_of_it(parameters, learning_rate):
    return adam(list(parameters)[1:], learning_rate)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"network": network(n_hidden=4)},
            r"another network: trunk_weight is \(5, 2\) float32 there, \(5, 4\) float32 here",
        ),
        ({"network": network().double()}, r"another network: trunk_weight is .* float32 there, .* float64 here"),
        ({"optimizer": sgd}, 'another optimizer: .*"Adam".* there, .*"SGD".* here'),
        ({"optimizer": slower}, 'another optimizer: .*"lr": "0.001".* there, .*"lr": "0.0005".* here'),
        ({"optimizer": part_of_it}, "another optimizer"),
        (
            {"batches": loader(batch_size=5)},
            'another order of the data: .*"batch_size": 4.* there, .*"batch_size": 5.* here',
        ),
        ({"batches": loader(seed=1)}, 'another order of the data: .*"seed": 0'),
        ({"batches": loader(n=19)}, 'another order of the data: .*"n_examples": 17.* there, .*"n_examples": 19.* here'),
        ({"task_weights": [1.0, 2.0, 1.0]}, r"another weights of the tasks: null there, \[1.0, 2.0, 1.0\] here"),
        ({"validation": loader()}, "another use of validation data: false there, true here"),
        ({"steps": 5}, "has taken 6 steps, more than steps=5"),
    ],
)
def test_a_file_of_another_run_is_refused(saved, changed, message):
    refuse(saved, message, **changed)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("format", 2, "not a checkpoint of format 1"),
        ("extra", 1, "not a checkpoint of format 1"),
        ("key", {}, "does not say what run it belongs to"),
        ("key", [1], "does not say what run it belongs to"),
        (
            "network",
            {"trunk": torch.ones(1)},
            r"another network: it lacks \['head_bias', .*\] and has \['trunk'\] too many",
        ),
        ("network", 3, "another network: it lacks"),
        ("best", {}, "another network: it lacks"),
        ("optimizer", {"state": {}}, r"state of an optimizer with groups of \[4\] parameters"),
        (
            "optimizer",
            {"state": {}, "param_groups": [{"params": [0]}]},
            r"an optimizer with groups of \[4\] parameters",
        ),
        ("random", [], "states of the random generators"),
        ("random", [{"now": [torch.zeros(3)], "epoch": []}], "states of the random generators"),
        ("random", [3], "states of the random generators"),
        ("history", {}, "a history has .*; found"),
        ("history", {**History().state(), "training": torch.zeros(3)}, "training of a history must be a tensor with 2"),
        ("history", {**History().state(), "seconds": 3}, "as many validation losses as steps, and seconds"),
        ("history", {**History().state(), "validation": torch.zeros(2, T)}, "as many validation losses as steps"),
    ],
)
def test_a_file_with_other_contents_is_refused(saved, part, value, message):
    content = torch.load(saved, weights_only=True)
    torch.save(content | {part: value}, saved)
    refuse(saved, message)
    torch.save(content, saved)
    history = train(network(), loader(), MSE, steps=7, optimizer=None, learning_rate=1e-3, checkpoint=saved)
    assert history.steps == 7  # it was that part


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    class Odd(Heads):
        def get_extra_state(self):
            return {"path": Path("somewhere")}

        def set_extra_state(self, state):
            raise AssertionError("never read")

    with pytest.raises(
        TypeError, match=r"checkpoint\['network'\]\['_extra_state'\]\['path'\] must be tensors and plain"
    ):
        train(Odd(D, [1] * T), loader(), MSE, steps=1, checkpoint=tmp_path / "run.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_file_before(saved, monkeypatch):
    before = saved.read_bytes()

    def full(content, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space left"):
        train(network(), loader(), MSE, steps=7, learning_rate=1e-3, checkpoint=saved)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]
