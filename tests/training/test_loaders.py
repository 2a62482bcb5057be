"""Data and batches: what a batch holds, which examples make it, in what order, and where it can be gone on with."""

from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from companion import Tasks
from companion.training import BatchOrder, SharedData, StackedData, TaskData, TaskLoaders, make_loader
from companion.training.loaders import pick, splittable
from companion.training.stream import Stream

T, D, N, B = 3, 5, 11, 4
CPU = torch.device("cpu")


def rng(seed=0):
    return np.random.default_rng(seed)


def equal(a, b):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=0, equal_nan=True)


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_batch_has_the_task_axis_first(library):
    """Inputs are images (2, 3); the rows of a batch in the order of the indices, repeated ones too."""
    of = torch.from_numpy if library == "torch" else lambda array: array
    X, Y = rng().normal(size=(N, 2, 3)), rng(1).normal(size=(N, T))
    known = rng(2).random((N, T)) < 0.6
    Y[2, 1] = np.nan
    rows = [7, 2, 2, 0]
    x, y, mask = SharedData(of(X), of(Y), of(known)).__getitems__(rows)
    equal(x, X[rows])
    equal(y, Y[rows].T)
    equal(mask, known[rows].T)
    assert len(SharedData(X, Y)) == N and len(SharedData(X, Y).__getitems__(rows)) == 2
    x, y, mask = StackedData(of(np.stack([X] * T)), of(Y.T.copy()), of(known.T.copy())).__getitems__(rows)
    equal(x, np.stack([X[rows]] * T))
    equal(y, Y[rows].T)
    equal(mask, known[rows].T)
    assert len(StackedData(np.stack([X] * T), Y.T)) == N
    x, y, mask = TaskData(of(X), of(Y[:, 0].copy()), of(known[:, 0].copy())).__getitems__(rows)
    equal(x, X[rows])
    equal(y, Y[rows, 0])
    equal(mask, known[rows, 0])


def test_labels_may_have_further_axes_and_types_stay():
    X, Y = rng().normal(size=(N, D)).astype(np.float32), rng().integers(9, size=(N, T, 2, 6))
    x, y = SharedData(X, Y).__getitems__([3, 1])
    equal(y, Y[[3, 1]].swapaxes(0, 1))
    assert x.dtype == torch.float32 and y.dtype == torch.int64


X, Y = np.zeros((N, D)), np.zeros((N, T))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SharedData(X, Y[:7]), r"one row per example of X, \(11, T, ...\); got \(7, 3\)"),
        (lambda: SharedData(X, Y[:, 0]), r"Y must have at least 2 axes; got the shape \(11,\)"),
        (lambda: SharedData(X[:0], Y[:0]), r"X must hold at least one example; got \(0, 5\)"),
        (lambda: SharedData(X + np.inf, Y), "X must be finite; it contains NaN or infinity"),
        (lambda: SharedData(X.astype(str), Y), "X must hold real numbers; got <U32 values"),
        (
            lambda: SharedData(X, Y, Y == 0).__class__(X, Y, Y),
            r"mask must be bool of shape \(11, 3\); got torch.float64",
        ),
        (lambda: SharedData(X, Y, (Y == 0).T), r"mask must be bool of shape \(11, 3\); got torch.bool, \(3, 11\)"),
        (lambda: StackedData(X, Y), r"tasks and examples of X, \(11, 5\); got \(11, 3\)"),
        (lambda: StackedData(X[0], Y), "X must have at least 2 axes"),
        (lambda: TaskData(X, Y[:7, 0]), r"one label per example of X, \(11, ...\); got \(7,\)"),
        (lambda: TaskData(X, Y[:, 0], Y == 0), r"mask must be bool of shape \(11,\); got torch.bool, \(11, 3\)"),
        (lambda: TaskLoaders.from_data([(X, Y[:, 0]), (X, Y[:7, 0])], B), r"data of task 1: y must have one label"),
        (lambda: TaskLoaders.from_data([], B), "loaders must hold one loader per task; got none"),
        (lambda: TaskLoaders([[1], []]), "the loader of task 1 must have at least one batch; got none"),
        (lambda: BatchOrder(0, B), "n_examples must be at least 1; got 0"),
        (lambda: BatchOrder(N, 0), "batch_size must be at least 1; got 0"),
        (lambda: BatchOrder(N, B, seed=-1), "seed must be at least 0; got -1"),
        (lambda: BatchOrder(3, B, drop_last=True), "drop_last leaves no batch: batch_size is 4, with 3 examples"),
    ],
)
def test_data_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_things_that_are_no_loaders_are_refused():
    with pytest.raises(TypeError, match=r"data must have __getitems__.*got .*TensorDataset"):
        make_loader(TensorDataset(torch.zeros(N, D)), B)
    with pytest.raises(
        TypeError, match="loader of task 0 must have a length, the number of its batches; got generator"
    ):
        TaskLoaders([(batch for batch in [])])
    with pytest.raises(TypeError, match=r"the loader of task 1 must give \(x, y\) or \(x, y, mask\); got .*Tensor"):
        list(TaskLoaders([[(torch.zeros(1, D), torch.zeros(1))], [torch.zeros(2, D)]]))
    with pytest.raises(ValueError, match="as many batches as its length says, 4; got 3"):
        list(pick(DataLoaderThatLies(torch.zeros(6, D), batch_size=2), 0, range(4)))


class DataLoaderThatLies(DataLoader):
    def __len__(self):
        return 4


# --- order ------------------------------------------------------------------------------------------------------------


def joined(lists):
    return list(chain.from_iterable(lists))


def epoch_of(order, epoch):
    order.set_epoch(epoch)
    return [batch.tolist() for batch in order]


def test_the_order_depends_on_seed_and_epoch_only():
    order = BatchOrder(N, B, seed=5)
    first, second = epoch_of(order, 0), epoch_of(order, 1)
    assert [len(batch) for batch in first] == [4, 4, 3] and len(order) == 3
    assert sorted(joined(first)) == sorted(joined(second)) == list(range(N))
    assert first != second != epoch_of(order, 2)
    torch.manual_seed(1)
    assert epoch_of(BatchOrder(N, B, seed=5), 1) == second == epoch_of(order, 1)
    assert epoch_of(BatchOrder(N, B, seed=6), 1) != second
    assert joined(epoch_of(BatchOrder(N, B, shuffle=False), 9)) == list(range(N))
    assert epoch_of(BatchOrder(N, B, seed=5, drop_last=True), 1) == second[:2]


def test_a_loader_gives_the_batches_of_its_order():
    data = SharedData(rng().normal(size=(N, D)), rng(1).normal(size=(N, T)))
    rows = [9, 1, 4, 6, 8, 2]
    for examples in (data, Subset(data, rows)):
        loader = make_loader(examples, B, seed=3)
        random = torch.get_rng_state()
        for epoch in (0, 2):
            loader.batch_sampler.set_epoch(epoch)
            for indices, (x, y) in zip(epoch_of(BatchOrder(len(examples), B, seed=3), epoch), loader, strict=True):
                places = indices if examples is data else [rows[i] for i in indices]
                equal(x, data.__getitems__(places)[0])
                equal(y, data.__getitems__(places)[1])
        equal(torch.get_rng_state(), random)  # torch's default generator is not drawn from


@pytest.mark.parametrize("workers", [0, 2])
def test_any_batches_of_an_epoch_can_be_picked(workers):
    data = TensorDataset(torch.arange(N), -torch.arange(N))
    loader = DataLoader(data, batch_sampler=BatchOrder(N, B, seed=3), num_workers=workers)
    expected = epoch_of(BatchOrder(N, B, seed=3), 7)
    assert [x.tolist() for x, _ in pick(loader, 7, [0, 2])] == [expected[0], expected[2]]
    assert [x.tolist() for x, _ in loader] == expected  # afterwards the loader is whole
    assert splittable(loader) and splittable([1, 2]) and not splittable(DataLoader(data, batch_size=B))


# --- one loader per task ----------------------------------------------------------------------------------------------


def labels(batches):
    """Labels of every task, as one list per task."""
    rows = [[part.tolist() for part in y] for _, y, *_ in batches]
    return [joined(task) for task in zip(*rows, strict=True)]


def numbered(sizes, batch_size=2, **settings):
    """Tasks whose labels are 0, 1, 2, ..."""
    return TaskLoaders.from_data([(np.zeros((n, D)), np.arange(n)) for n in sizes], batch_size, **settings)


def test_an_epoch_is_as_long_as_the_longest_and_the_others_start_again():
    loaders = numbered([3, 9, 4], shuffle=False)
    assert len(loaders) == 5
    batches = list(loaders)
    assert labels(batches) == [[0, 1, 2, 0, 1, 2, 0, 1], list(range(9)), [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]]
    assert [x[1].shape for x, _ in batches] == [(2, D)] * 4 + [(1, D)]


def test_every_pass_through_a_task_has_an_order_of_its_own():
    """Seven passes through 30 examples in two epochs: all different, all complete, and other tasks in other orders."""
    loaders, passes = numbered([30, 100, 30], batch_size=10, seed=4), []
    for epoch in (0, 1):
        loaders.set_epoch(epoch)
        tasks = labels(list(loaders))
        passes += [task[k : k + 30] for task in (tasks[0], tasks[2]) for k in (0, 30, 60)]
    assert len({tuple(order) for order in passes}) == 12
    assert all(sorted(order) == list(range(30)) for order in passes)
    loaders.set_epoch(1)
    assert labels(list(loaders)) == labels(list(numbered([30, 100, 30], 10, seed=4).pick(1, range(10))))


@pytest.mark.parametrize("numbers", [[4], [1, 2, 3, 4], [0, 3], [2, 4]])
def test_batches_of_all_tasks_can_be_picked(numbers):
    whole = list(numbered([3, 9, 4], seed=8).pick(2, range(5)))
    part = list(numbered([3, 9, 4], seed=8).pick(2, numbers))
    assert labels(part) == labels([whole[k] for k in numbers])


def test_masks_of_some_tasks_and_repeated_examples():
    some = [(torch.zeros(2, D), torch.tensor([1.0, 2.0]), torch.tensor([True, False]))]
    other = [(torch.zeros(3, D), torch.zeros(3)), (torch.zeros(1, D), torch.zeros(1))]
    for once, second in ((False, [True, False]), (True, [False, False])):
        masks = [mask for _, _, mask in TaskLoaders([some, other], once=once)]
        assert [m.tolist() for m in masks[0]] == [[True, False], [True] * 3]
        assert [m.tolist() for m in masks[1]] == [second, [True]]


def test_tasks_of_the_package_can_be_loaded():
    pairs = [(rng(n).normal(size=(n, D)), rng(n + 1).normal(size=n)) for n in (3, 6)]
    for x, y in TaskLoaders.from_data(Tasks.from_list(pairs), 6, shuffle=False):
        for t in range(2):
            equal(x[t], pairs[t][0])
            equal(y[t], pairs[t][1])


# --- streams ----------------------------------------------------------------------------------------------------------


def seen(stream, first, last):
    return [batch.y.flatten().tolist() for batch in stream.between(first, last)]


def listed(n_batches):
    return [(torch.zeros(1, D), torch.full((T, 1), float(k))) for k in range(n_batches)]


def test_a_stream_goes_on_from_any_step():
    data = SharedData(np.zeros((N, D)), np.arange(N)[:, None])
    whole = seen(Stream(make_loader(data, B, seed=2), 0, 1, CPU), 0, 10)
    assert [sorted(joined(whole[k : k + 3])) for k in (0, 3, 6)] == [list(range(N))] * 3
    for first in range(10):
        assert seen(Stream(make_loader(data, B, seed=2), 0, 1, CPU), first, 10) == whole[first:]


@pytest.mark.parametrize("kind", ["default generator", "own generator", "per task"])
def test_shuffling_loaders_of_torch_go_on_in_their_order(kind):
    """Their order comes from random states, which are kept; the network draws from the default one in between."""
    data = TensorDataset(torch.zeros(N, D), torch.arange(N))

    def fresh(seed):
        generator = None if kind == "default generator" else torch.Generator().manual_seed(seed)
        loader = DataLoader(data, batch_size=2, shuffle=True, generator=generator, collate_fn=one_task)
        if kind == "per task":
            loaders = [(data, generator), (Subset(data, range(5)), None)]  # 6 batches, and 3 that come twice
            return TaskLoaders([DataLoader(part, batch_size=2, shuffle=True, generator=g) for part, g in loaders])
        return loader

    def step(batch):
        return [part.tolist() for part in batch.y], torch.rand(()).item()

    torch.manual_seed(0)
    stream, whole, states = Stream(fresh(1), 0, 1, CPU), [], []
    for batch in stream.between(0, 14):
        whole.append(step(batch))
        states.append((stream.random_state(), stream.epoch_start))
    assert sorted(label for rows, _ in whole[:6] for label in rows[0]) == list(range(N))
    assert [rows for rows, _ in whole[:6]] != [rows for rows, _ in whole[6:12]]
    for first in range(1, 14):
        torch.manual_seed(99)
        stream = Stream(fresh(2), 0, 1, CPU)
        stream.go_on(*states[first - 1])
        assert [step(batch) for batch in stream.between(first, 14)] == whole[first:]


def one_task(examples):
    x, y = default_collate(examples)
    return x, y[None]


def test_loaders_leave_the_numbers_of_the_network_alone():
    """With or without batches of validation in between, dropout draws the same."""
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    data = TensorDataset(torch.zeros(N, D), torch.arange(N))
    for loader in (DataLoader(data, 2, shuffle=True), DataLoader(data, batch_sampler=BatchOrder(N, 2))):
        list(Stream(TaskLoaders([loader]), 0, 1, CPU).between(0, 9))
    equal(torch.rand(4), expected)


def test_processes_divide_the_batches_of_an_epoch():
    """Seven batches for three processes: the last step has one, and the others take it without its labels."""
    parts = [list(Stream(listed(7), process, 3, CPU).between(0, 5)) for process in range(3)]
    owners = [[float(batch.y[0, 0]) for batch in part] for part in parts]
    assert owners == [[0, 3, 6, 0, 3], [1, 4, 6, 1, 4], [2, 5, 6, 2, 5]]
    for process, part in enumerate(parts):
        last = part[2].mask
        assert last is None if process == 0 else last.tolist() == [[False]] * T
        assert all(batch.mask is None for batch in part[:2] + part[3:])


def test_few_ragged_batches_for_many_processes():
    lists = [(list(torch.zeros(2, 1, D)), [torch.zeros(1), torch.zeros(1)])]
    (batch,) = Stream(lists, 1, 2, CPU).between(0, 1)
    assert [mask.tolist() for mask in batch.mask] == [[False], [False]]
    loader = DataLoader(TensorDataset(torch.zeros(N, D), torch.zeros(N)), batch_size=B, shuffle=True)
    with pytest.raises(ValueError, match=r"the same order in every process: use make_loader.*got DataLoader"):
        Stream(loader, 0, 2, CPU)
    with pytest.raises(ValueError, match=r"the same order in every process.*got TaskLoaders"):
        Stream(TaskLoaders([loader, loader]), 0, 2, CPU)
