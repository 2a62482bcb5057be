"""Hard clusters: costs and changes against direct solves, watched alternation, moves, all partitions of few tasks."""

import numpy as np
import pytest

from companion import Tasks
from companion.losses import SquaredLoss
from companion.solvers import Problem
from companion.solvers.cluster_loss import Clustering, ClusterLoss
from companion.solvers.hard_clusters import _best_move, _finish, alternate_clusters, cluster_tasks, move_single_tasks
from companion.solvers.task_rows import TaskRows
from tests.oracles.partitions import (
    best_around_centroids,
    draw_groups,
    hard_clusters_objective,
    long_form,
    partitions,
)

RHO1, RHO2 = 0.7, 0.09
SIZES = {"tall": ((9, 6, 12, 8, 7, 10), 4), "mixed": ((3, 11, 1, 6, 8, 2), 5), "wide": ((3, 2, 4, 3, 5, 1), 23)}
each_size = pytest.mark.parametrize("name", SIZES)


def drawn(name, seed=0, **options):
    sizes, d = SIZES[name]
    blocks = draw_groups(seed, sizes, d, 2, 0.5, weighted=True)[1]
    problem = Problem.from_tasks(Tasks.from_long(*long_form(blocks)), SquaredLoss(), **options)
    return blocks, problem, ClusterLoss(TaskRows.of(problem), RHO1, RHO2)


def value(blocks, labels, **options):
    return best_around_centroids(blocks, labels, RHO1, RHO2, **options)[0]


# --- ridge regressions on clusters -----------------------------------------------------------------------------------


@each_size
def test_costs_have_the_weights_at_their_best(name):
    """Every task and centroid against the normal equations of w."""
    blocks, problem, loss = drawn(name)
    U = np.random.default_rng(1).normal(size=(loss.A.shape[1], 3))
    costs, full = loss.costs(U), loss.rows.original(U, problem.y).numpy()
    for c, u in enumerate(full.T):
        W = loss.rows.original(loss.weights(Clustering(np.full(6, c), U)), problem.y).numpy()
        for t, (X, y, s) in enumerate(blocks):
            v, d = s / s.sum(), len(u)
            X, y = X - v @ X, y - v @ y
            w = np.linalg.solve((v[:, None] * X).T @ X + 2 * (RHO1 + RHO2) * np.eye(d), X.T @ (v * y) + 2 * RHO1 * u)
            np.testing.assert_allclose(W[:, t], w, rtol=1e-8, atol=1e-11)
            expected = v @ (y - X @ w) ** 2 / 2 + RHO1 * (w - u) @ (w - u) + RHO2 * w @ w
            assert costs[t, c] == pytest.approx(expected, rel=1e-11)
    np.testing.assert_allclose(loss.alone, [value([block], np.zeros(1)) for block in blocks], rtol=1e-10)


@each_size
@pytest.mark.parametrize("options", [{}, {"reduction": "sum", "fit_intercept": False}])
def test_centroids_and_values_are_those_of_one_least_squares_problem(name, options):
    blocks, problem, loss = drawn(name, **options)
    labels = np.array([0, 1, 0, 0, 2, 1])
    expected, W, U = best_around_centroids(blocks, labels, RHO1, RHO2, **options)
    clustering = loss.centroids(labels, 3)
    np.testing.assert_allclose(loss.rows.original(clustering.U, problem.y).numpy().T, U, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(loss.rows.original(loss.weights(clustering), problem.y), W, rtol=1e-7, atol=1e-9)
    assert sum(loss.value(labels == c) for c in range(3)) == pytest.approx(expected, rel=1e-11)
    assert not loss.centroid(np.zeros(6, dtype=bool)).any() and loss.value(np.zeros(6, dtype=bool)) == 0


@each_size
@pytest.mark.parametrize("members", [(0, 2, 3), (4,), (), (0, 1, 2, 3, 4, 5)])
def test_changes_are_differences_of_values(name, members):
    _, _, loss = drawn(name)
    inside = np.isin(np.arange(6), members)
    changes = loss.changes(inside)
    for t in range(6):
        switched = inside.copy()
        switched[t] = not switched[t]
        assert changes[t] == pytest.approx(loss.value(switched) - loss.value(inside), rel=1e-9)


# --- alternation -----------------------------------------------------------------------------------------------------


@each_size
def test_every_half_step_lowers_the_objective_until_both_are_at_their_best(name):
    for seed in range(5):
        _, _, loss = drawn(name, seed)
        start = loss.centroids(np.random.default_rng(seed).permutation(6) % 3, 3)
        history = alternate_clusters(loss, start, 100)
        falls, state = np.diff(history.objective), history.state
        assert (falls <= 1e-13 * history.objective[0]).all() and history.n_iter < 100
        costs = loss.costs(state.U)
        assert costs.min(1).sum() == pytest.approx(history.objective[-1], rel=1e-12)
        np.testing.assert_allclose(loss.centroids(state.labels, 3).U, state.U, rtol=1e-12)
        assert history.objective[-1] == pytest.approx(sum(loss.value(state.labels == c) for c in range(3)), rel=1e-11)


def test_the_first_assignment_is_the_cheapest():
    _, _, loss = drawn("mixed", 2)
    U = loss.W_alone[:, [0, 3, 4]]  # each has its own task
    history = alternate_clusters(loss, Clustering(np.zeros(6, dtype=np.int64), U), 1)
    assert history.objective[0] == pytest.approx(loss.costs(U)[:, 0].sum())
    assert history.objective[1] == pytest.approx(loss.costs(U).min(1).sum())


def test_an_empty_cluster_gets_the_task_that_pays_most():
    _, _, loss = drawn("tall", 1)
    together = loss.centroids(np.zeros(6, dtype=np.int64), 1)
    far = 1e6 * np.ones((4, 2))  # centroids that nobody takes
    history = alternate_clusters(loss, Clustering(together.labels, np.hstack([together.U, far])), 1)
    excess = loss.costs(together.U)[:, 0] - loss.alone
    first, second = np.argsort(excess)[:-3:-1]
    labels = history.state.labels
    assert labels[first] == 1 and labels[second] == 2 and (np.delete(labels, [first, second]) == 0).all()
    assert history.objective[1] == pytest.approx(history.objective[0] - excess[[first, second]].sum())


def test_a_cluster_stays_empty_where_nobody_would_gain():
    """Two tasks twice each: with three clusters nobody pays for company."""
    blocks = draw_groups(0, (7, 9), 3, 2, 0.5)[1]
    tasks = Tasks.from_list([block[:2] for block in blocks * 2])
    loss = ClusterLoss(TaskRows.of(Problem.from_tasks(tasks, SquaredLoss())), RHO1, RHO2)
    start = loss.centroids(np.array([0, 1, 0, 1]), 3)
    np.testing.assert_array_equal(alternate_clusters(loss, start, 10).state.labels, [0, 1, 0, 1])
    found = cluster_tasks(Problem.from_tasks(tasks, SquaredLoss()), 3, RHO1, RHO2)
    np.testing.assert_array_equal(found.labels, [0, 1, 0, 1])
    assert found.centroids.shape == (3, 2) and found.gain < 1e-13


# --- moves -----------------------------------------------------------------------------------------------------------


def single_moves(labels, k):
    for t in range(len(labels)):
        for c in range(k):
            if c != labels[t]:
                yield np.where(np.arange(len(labels)) == t, c, labels)


@each_size
def test_moves_end_where_no_single_one_gains(name):
    moved = 0
    for seed in range(6):
        blocks, _, loss = drawn(name, seed)
        first = np.random.default_rng(seed).permutation(6) % 3
        labels, gain, n_moves = move_single_tasks(loss, first, 3, 1e-12, 100)
        moved += n_moves
        before, after = value(blocks, first), value(blocks, labels)
        assert gain == 0 and (after < before) == (n_moves > 0)
        assert all(value(blocks, other) >= after * (1 - 1e-12) for other in single_moves(labels, 3))
    assert moved > 5


def test_moves_go_on_where_alternation_stops():
    """The steepest single move comes first; cut short, the gain that was left is reported."""
    stuck = 0
    for seed in range(12):
        blocks, _, loss = drawn("mixed", seed)
        start = loss.centroids(np.random.default_rng(seed).permutation(6) % 2, 2)
        labels = alternate_clusters(loss, start, 100).state.labels
        here = value(blocks, labels)
        gains = [here - value(blocks, other) for other in single_moves(labels, 2)]
        same, gain, n_moves = move_single_tasks(loss, labels, 2, 1e-12, 0)
        np.testing.assert_array_equal(same, labels)
        assert n_moves == 0 and gain == pytest.approx(max(0.0, *gains), rel=1e-8)
        if max(gains) > 1e-9:
            stuck += 1
            once, _, n_moves = move_single_tasks(loss, labels, 2, 1e-12, 1)
            assert n_moves == 1 and here - value(blocks, once) == pytest.approx(max(gains), rel=1e-8)
    assert stuck > 0


def test_changes_within_rounding_of_zero_are_computed_again():
    """Made-up changes: one move seems to gain and does not, another seems to lose that little and gains."""
    blocks, _, loss = drawn("mixed", 0)
    labels = np.array([0, 1, 0, 1, 0, 1])
    gains = {other.tobytes(): value(blocks, labels) - value(blocks, other) for other in single_moves(labels, 2)}
    loses, wins = min(gains, key=gains.get), max(gains, key=gains.get)
    assert gains[loses] < 0 < gains[wins]
    changes = np.ones((6, 2))
    changes[np.arange(6), labels] = 0.0
    for move, seeming in ((loses, -1e-10), (wins, 1e-10)):
        t = int(np.flatnonzero(np.frombuffer(move, dtype=np.int64) != labels)[0])
        changes[t, 1 - labels[t]] = seeming * loss.scale
    gain, task, cluster = _best_move(loss, labels, changes, 1e-12)
    assert gain == pytest.approx(gains[wins], rel=1e-9)
    assert np.where(np.arange(6) == task, cluster, labels).tobytes() == wins
    changes[task, cluster] = 1.0  # beyond rounding it is believed
    assert _best_move(loss, labels, changes, 1e-12)[0] == 0


# --- the whole search ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k, name, options", [(2, "tall", {}), (3, "mixed", {"reduction": "sum"}), (2, "wide", {})])
def test_best_of_all_partitions(k, name, options):
    for seed in range(4):
        blocks, problem, _ = drawn(name, seed, **options)
        found = cluster_tasks(problem, k, RHO1, RHO2)
        everything = {tuple(labels.tolist()): value(blocks, labels, **options) for labels in partitions(6, k)}
        best = min(everything, key=everything.get)
        assert len(everything) == {2: 32, 3: 122}[k]
        assert found.objective == pytest.approx(everything[best], rel=1e-10)
        np.testing.assert_array_equal(found.labels, best)
        # The numbers that are reported, from the weights.
        W, b = found.W.numpy(), problem.original_intercepts(problem.at(found.W)).numpy()
        objective = hard_clusters_objective(blocks, W, b, found.labels, RHO1, RHO2, options.get("reduction", "mean"))
        assert found.objective == pytest.approx(objective, rel=1e-12)
        means = np.stack([W[:, found.labels == c].mean(1) for c in range(max(found.labels) + 1)], axis=1)
        np.testing.assert_allclose(found.centroids, means, rtol=1e-10)
        assert found.gain == 0 and found.gap < 1e-20 * found.null_objective
        assert found.null_objective == pytest.approx(problem.null_objective)


def test_restarts_find_what_one_start_misses():
    problems = [drawn("mixed", seed)[1] for seed in range(8)]
    runs = {n: [cluster_tasks(p, 2, RHO1, RHO2, n_init=n) for p in problems] for n in (1, 2, 6)}
    one, two, six = (np.array([found.objective for found in runs[n]]) for n in (1, 2, 6))
    assert (two <= one * (1 + 1e-12)).all() and (six <= two * (1 + 1e-12)).all()
    assert (six < one * (1 - 1e-6)).any()
    seeds = {cluster_tasks(problems[0], 2, RHO1, RHO2, n_init=1, random_state=s).objective for s in range(8)}
    assert len(seeds) > 1  # other starts


def test_the_first_start_can_be_given():
    """One start in a partition where neither alternation nor moves gain stays there; more starts leave it behind."""
    _, problem, _ = drawn("mixed", 0)
    start = np.array([0, 1, 0, 2, 0, 0])
    stuck = cluster_tasks(problem, 3, RHO1, RHO2, n_init=1, start=start)
    np.testing.assert_array_equal(stuck.labels, start)
    assert stuck.gain == 0 and stuck.n_iter == 1
    found = cluster_tasks(problem, 3, RHO1, RHO2, n_init=3, start=start)
    assert found.objective < stuck.objective * (1 - 1e-3)


def test_the_gap_tells_how_far_other_weights_are_off():
    """Weights solved for with another rho2: the bound holds, and is not far off."""
    _, problem, _ = drawn("tall", 0)
    found = cluster_tasks(problem, 2, RHO1, RHO2)
    for factor in (0.9, 1.2):
        other = ClusterLoss(TaskRows.of(problem), RHO1, RHO2 * factor)
        off = _finish(problem, other, found.labels, 0.0, 1, RHO1, RHO2)
        excess = off.objective - found.objective
        assert excess > 0 and excess <= off.gap <= 10 * excess


def test_one_cluster_and_one_for_every_task():
    blocks, problem, loss = drawn("mixed", 3)
    one, all_ = (cluster_tasks(problem, k, RHO1, RHO2) for k in (1, 6))
    assert not one.labels.any() and one.objective == pytest.approx(value(blocks, np.zeros(6)), rel=1e-11)
    np.testing.assert_array_equal(all_.labels, np.arange(6))
    np.testing.assert_allclose(all_.W, loss.rows.original(loss.W_alone, problem.y), rtol=1e-9, atol=1e-12)
    assert all_.objective == pytest.approx(loss.alone.sum(), rel=1e-11)
    np.testing.assert_allclose(cluster_tasks(problem, 9, RHO1, RHO2).W, all_.W, rtol=1e-12)  # at most one per task


def test_the_names_of_the_tasks_do_not_matter():
    """Twelve tasks whose clusters are hard to tell, few starts: any order, the same partition."""
    blocks = draw_groups(5, (4, 6, 3, 8, 5, 7, 4, 9, 6, 5, 3, 8), 5, 3, 1.5)[1]
    found = {}
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(12)
        tasks = Tasks.from_list([blocks[t][:2] for t in order])
        result = cluster_tasks(Problem.from_tasks(tasks, SquaredLoss()), 4, RHO1, RHO2, n_init=2)
        groups = {frozenset(order[result.labels == c].tolist()) for c in range(4)}
        found[frozenset(groups)] = result.objective
    assert len(found) == 1


FAR_APART = [(1e6, 1e-6), (1e-9, 1e6), (1e-10, 1e-10), (1e9, 1e9), (1e12, 1e-9), (1.0, 1e-290)]


@pytest.mark.parametrize("rho1, rho2", FAR_APART)
@pytest.mark.parametrize("name", ["mixed", "wide"])
def test_weights_of_the_penalty_far_apart(name, rho1, rho2):
    """A ridge beyond float64's reach is reported as a gap, which is still a bound."""
    blocks, problem, _ = drawn(name, 1)
    found, null = cluster_tasks(problem, 2, rho1, rho2), problem.null_objective
    best = best_around_centroids(blocks, found.labels, rho1, rho2)[0]
    assert found.gain <= 1e-10 * null and found.objective - best <= found.gap + 1e-9 * null
    assert found.gap <= 1e-9 * null or rho2 < 1e-200
    assert found.objective == pytest.approx(best, rel=1e-5, abs=1e-8 * null)


def test_weights_of_the_penalty_below_all_bounds():
    _, problem, loss = drawn("mixed", 1)
    found = cluster_tasks(problem, 2, 1e-300, RHO2)  # no pull to any centroid
    assert found.objective == pytest.approx(loss.alone.sum(), rel=1e-12) and found.gap < 1e-12
