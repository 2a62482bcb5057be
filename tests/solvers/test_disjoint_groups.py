"""Disjoint groups: bounds that decide moves, moves until none gains, and all partitions of few tasks, by cvxpy."""

import numpy as np
import pytest

from companion import Tasks
from companion.losses import SquaredLoss
from companion.solvers import Problem, disjoint_groups
from companion.solvers.disjoint_groups import (
    Groups,
    Partition,
    _candidates,
    _finish,
    _try,
    group_tasks,
    move_single_tasks,
)
from companion.solvers.group_metrics import GroupMetric, search_groups
from companion.solvers.task_rows import TaskRows
from tests.oracles.partitions import draw_groups, group_values, long_form, partition_value, partitions

GAMMA = 0.06
SIZES = {"tall": ((9, 6, 12, 8, 7), 3), "mixed": ((3, 7, 1, 6, 4), 4), "wide": ((3, 2, 4, 3, 5), 9)}
each_size = pytest.mark.parametrize("name", SIZES)


def drawn(name, seed=0, **options):
    sizes, d = SIZES[name]
    blocks = draw_groups(seed, sizes, d, 2, 0.4, multiples=True, weighted=True)[1]
    problem = Problem.from_tasks(Tasks.from_long(*long_form(blocks)), SquaredLoss(), **options)
    return group_values(blocks, GAMMA, **options), problem


def parts_of(labels, G):
    return [tuple(np.flatnonzero(labels == g).tolist()) for g in range(G)]


def single_moves(labels, G):
    for t in range(len(labels)):
        for g in range(G):
            if g != labels[t]:
                yield np.where(np.arange(len(labels)) == t, g, labels)


@each_size
def test_values_of_groups_lie_between_their_bounds(name):
    value, problem = drawn(name)
    groups = Groups(TaskRows.of(problem), GAMMA, 10_000)
    W = groups.W_alone
    for part in ((0, 2, 3), (1, 4), (3,), ()):
        known = [groups.bounds(part, gap * groups.scale, W) for gap in (np.inf, 1e-3, 1e-8)]
        assert all(k.lower <= value(part) * (1 + 1e-8) and value(part) * (1 - 1e-8) <= k.upper for k in known)
        assert known[2].gap <= 1e-8 * groups.scale and known[0].gap >= known[1].gap >= known[2].gap
        assert groups.bounds(part, 1e-2 * groups.scale, W).gap == known[2].gap  # nothing is forgotten
    assert groups.n_iter > 10
    groups.drop_weights((0, 2, 3))
    assert groups.bounds((0, 2, 3), 1e-6 * groups.scale, W).W is None
    assert groups.solve((0, 2, 3), 1e-6 * groups.scale, W).W.shape == (W.shape[0], 3)


def test_a_group_is_solved_further_from_where_it_was_left():
    _, problem = drawn("tall")
    part, rows = (0, 1, 3), TaskRows.of(problem)
    groups, fresh = Groups(rows, GAMMA, 10_000), Groups(rows, GAMMA, 10_000)
    groups.bounds(part, 1e-8 * groups.scale, groups.W_alone)
    further = groups.bounds(part, 1e-9 * groups.scale, groups.W_alone)
    assert 0 < further.n_iter < fresh.bounds(part, 1e-9 * fresh.scale, fresh.W_alone).n_iter / 2


def test_a_move_is_decided_by_its_gain():
    """All moves of some partitions, thresholds around the gain that Clarabel finds."""
    value, problem = drawn("mixed", 1)
    groups = Groups(TaskRows.of(problem), GAMMA, 10_000)
    decided = set()
    for labels in (np.array([0, 1, 0, 1, 0]), np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 2, 2])):
        here = [value(part) for part in parts_of(labels, 3)]
        for other in single_moves(labels, 3):
            a, b = labels[labels != other][0], other[labels != other][0]
            now, after = here[a] + here[b], parts_of(other, 3)
            gain = now - value(after[a]) - value(after[b])
            for threshold in np.maximum(np.array([0.3, 1.0, 1.4, 3.0]) * abs(gain), 1e-5 * groups.scale):
                bound, worth_it = _try(groups, now, (after[a], after[b]), groups.W_alone, threshold)
                assert bound >= gain - 1e-7 * groups.scale
                if gain > threshold or gain < threshold / 2:
                    assert worth_it == (gain > threshold)
                    decided.add(worth_it)
                assert worth_it or bound <= threshold
    assert decided == {True, False}


@each_size
def test_moves_end_where_none_gains(name):
    moved = 0
    for seed in range(2):
        value, problem = drawn(name, seed)
        groups = Groups(TaskRows.of(problem), GAMMA, 10_000)
        first = np.random.default_rng(seed).permutation(5) % 3
        threshold = 1e-6 * groups.scale
        found = move_single_tasks(groups, parts_of(first, 3), threshold)
        labels = np.empty(5, dtype=np.int64)
        for g, part in enumerate(found.parts):
            labels[list(part)] = g
        here = partition_value(labels, value)
        assert (
            found.value == pytest.approx(here, abs=2 * threshold) and here <= partition_value(first, value) + threshold
        )
        gains = [here - partition_value(other, value) for other in single_moves(labels, 3)]
        assert max(gains) <= found.gain + threshold and found.gain <= threshold
        # All moves but those of a task that is alone into nothing; of groups that are empty, one counts.
        assert found.tried == found.possible <= 10
        moved += not np.array_equal(labels, first)
    assert moved > 0


def test_candidates_come_by_what_they_cost_with_all_metrics_as_they_are():
    _, problem = drawn("tall", 1)
    groups = Groups(TaskRows.of(problem), GAMMA, 10_000)
    parts, W = [(0, 2), (3,), (), (1, 4), ()], groups.W_alone
    fits = [GroupMetric.of(W[:, list(p)], 1e-6 * (W**2).mean()).ridge(groups.rows, GAMMA) for p in parts]
    found = _candidates(groups, parts, W)
    moves = {(t, a, b) for a, part in enumerate(parts) for t in part for b in range(4) if b != a}
    assert {move[:3] for move in found} == moves - {(3, 1, 2)} and len(found) == len(moves) - 1  # 3 is alone already
    assert (np.diff([fits[b][0][t] - fits[a][0][t] for t, a, b, _ in found]) > 0).all()
    for t, _, b, w in found:
        np.testing.assert_array_equal(w, fits[b][1][:, t])


@pytest.mark.parametrize("seed", [0, 2])
def test_of_many_tasks_only_the_best_proposal_is_improved(seed, monkeypatch):
    """It is neither the first nor the last of some; weights of separate tasks would take another one of others."""
    monkeypatch.setattr(disjoint_groups, "_MOVED_TASKS", 4)
    _, problem = drawn("wide", seed)
    groups = Groups(TaskRows.of(problem), GAMMA, 10_000)
    values = [
        sum(groups.bounds(part, 1e-7 * groups.scale, groups.W_alone).upper for part in parts_of(labels, 3))
        for labels in search_groups(groups.rows, GAMMA, 3, 10, 0)
    ]
    found = group_tasks(problem, 3, GAMMA, n_candidates=0)
    assert len(values) > 3
    assert found.objective == pytest.approx(min(values), abs=2e-6 * found.null_objective)


def test_labels_and_gap_of_weights_that_are_not_the_best():
    _, problem = drawn("mixed")
    groups = Groups(TaskRows.of(problem), GAMMA, 10_000)
    parts, W = [(1, 4), (0, 2), (), (3,)], 0.8 * groups.W_alone
    found = _finish(problem, groups, Partition(parts, W, 0.0, 0.0, 0, 8))
    assert found.labels.tolist() == [0, 1, 0, 2, 1]
    # Primal less the dual at the best multiple of the residuals, of every group.
    point = problem.at(found.W)
    r, C = problem.y - point.margin, problem.descent(point).numpy()
    yr, rr = (problem.rows.sums(problem.v * a * r).numpy() for a in (problem.y, r))
    gap = 0.0
    for part in map(list, filter(None, parts)):
        penalty = GAMMA * np.linalg.svd(found.W.numpy()[:, part])[1].sum() ** 2
        bend = rr[part].sum() + np.linalg.norm(C[:, part], 2) ** 2 / (2 * GAMMA)
        gap += penalty + rr[part].sum() / 2 - yr[part].sum() ** 2 / (2 * bend)
    assert found.gap == pytest.approx(gap, rel=1e-9) and gap > 1e-2 * groups.scale


def test_only_the_most_promising_moves_are_tried():
    value, problem = drawn("mixed", 0)
    first = np.array([0, 1, 1, 0, 2])
    for n, tried in ((0, 0), (4, 4), (None, 10), (50, 10)):
        groups = Groups(TaskRows.of(problem), GAMMA, 10_000)
        found = move_single_tasks(groups, parts_of(first, 3), 1e-6 * groups.scale, n)
        assert found.tried == min(tried, found.possible)
        if n == 0:
            assert found.parts == parts_of(first, 3) and found.gain == 0
            assert found.value == pytest.approx(partition_value(first, value), abs=1e-6 * groups.scale)


def test_an_empty_group_takes_a_task():
    value, problem = drawn("tall", 0)
    groups = Groups(TaskRows.of(problem), GAMMA, 10_000)
    found = move_single_tasks(groups, [(0, 1, 2, 3, 4), (), ()], 1e-6 * groups.scale)
    assert all(found.parts) and sorted(t for part in found.parts for t in part) == list(range(5))
    assert found.value < value((0, 1, 2, 3, 4)) - 1e-3 * groups.scale


@pytest.mark.parametrize("G, name, options", [(2, "tall", {"reduction": "sum"}), (3, "mixed", {}), (2, "wide", {})])
def test_best_of_all_partitions(G, name, options):
    for seed in range(2):
        value, problem = drawn(name, seed, **options)
        found = group_tasks(problem, G, GAMMA, tol=1e-7)
        everything = {tuple(labels.tolist()): partition_value(labels, value) for labels in partitions(5, G)}
        best = min(everything, key=everything.get)
        assert len(everything) == {2: 16, 3: 41}[G]
        null = found.null_objective
        assert found.objective == pytest.approx(everything[best], abs=2e-7 * null)
        # A task of one row has no signal, and belongs anywhere.
        assert partition_value(found.labels, value) == pytest.approx(everything[best], abs=1e-7 * null)
        assert found.gap <= 1e-7 * null and found.gain <= 1e-7 * null and found.n_iter > 1
        # The numbers that are reported, from the weights.
        W, objective = found.W.numpy(), problem.at(found.W).value
        for g, D in enumerate(found.metrics.numpy()):
            V = W[:, found.labels == g]
            objective += GAMMA * np.linalg.svd(V)[1].sum() ** 2
            values, Q = np.linalg.eigh(V @ V.T)
            root = (Q * np.sqrt(values.clip(min=0))) @ Q.T
            np.testing.assert_allclose(D, root / np.trace(root), atol=1e-7)
        assert found.objective == pytest.approx(objective, rel=1e-12) and null == problem.null_objective


def test_one_start_is_where_it_was_told_to_start():
    """Without moves, from the truth, from its opposite, and from what the search likes."""
    _, problem = drawn("tall", 1)
    ends = {group_tasks(problem, 2, GAMMA, n_init=1, n_candidates=0, start=p).objective for p in partitions(5, 2)}
    free = group_tasks(problem, 2, GAMMA, n_candidates=0)
    moved = group_tasks(problem, 2, GAMMA, n_init=1)
    assert len({round(e, 8) for e in ends}) > 1 and free.objective <= max(ends)
    assert free.tried == 0 and moved.tried == moved.possible == 5
    assert moved.objective <= max(ends)


def test_weights_of_zero_have_the_metric_of_no_preference():
    blocks = draw_groups(0, (7, 5, 6), 4, 2, 0.3)[1]
    flat = Problem.from_tasks(Tasks.from_list([(X, np.ones(len(y))) for X, y, _ in blocks]), SquaredLoss())
    found = group_tasks(flat, 2, GAMMA)
    np.testing.assert_array_equal(found.metrics, [np.eye(4) / 4])
    assert not found.W.any() and found.objective == found.gap == found.gain == 0


def test_the_names_of_the_tasks_do_not_matter():
    blocks = draw_groups(5, (4, 6, 3, 8, 5, 7, 4, 9), 5, 3, 0.8, multiples=True)[1]
    found = {}
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(8)
        problem = Problem.from_tasks(Tasks.from_list([blocks[t][:2] for t in order]), SquaredLoss())
        result = group_tasks(problem, 3, GAMMA, n_init=2, n_candidates=0)
        found[frozenset(frozenset(order[result.labels == g].tolist()) for g in range(3))] = result.objective
    assert len(found) == 1
