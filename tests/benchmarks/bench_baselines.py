"""Cross-validated ridge on tasks of unequal size: the package against scikit-learn task by task, and against padding.

``python tests/benchmarks/bench_baselines.py`` runs the three in turn, several rounds, and prints ratios of the
medians. Sizes are those of the School data (139 tasks of 22 to 251 rows, 28 features); the inputs are random.
"""

import statistics
import time

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV

from companion import Tasks
from companion.linear import SingleTask

ALPHAS = np.logspace(-2, 5, 22)
ROUNDS = 5


def data(seed: int = 0) -> Tasks:
    """139 tasks with 22 to 251 rows and 28 features."""
    rng = np.random.default_rng(seed)
    sizes = np.linspace(22, 251, 139).round().astype(int)
    W = rng.normal(size=(139, 28))
    pairs = []
    for n, w in zip(sizes, W, strict=True):
        X = rng.normal(size=(n, 28))
        pairs.append((X, X @ w + 5 * rng.normal(size=n)))
    return Tasks.from_list(pairs)


def package(tasks: Tasks) -> np.ndarray:
    """One penalty per task by 3-fold cross-validation, with the package."""
    model = SingleTask(ALPHAS, per_task_alpha=True, reduction="sum", fit_intercept=False, cv=3)
    return model.fit(tasks).coef_


def scikit_learn(tasks: Tasks) -> np.ndarray:
    """The same by a grid search per task, on the package's folds."""
    folds = [[] for _ in range(tasks.n_tasks)]
    for _, held_out in tasks.folds(3, random_state=0):
        for t, out in enumerate(held_out):
            folds[t].append((np.flatnonzero(~out), np.flatnonzero(out)))
    weights = []
    for (X, y), cv in zip(tasks, folds, strict=True):
        ridge = Ridge(fit_intercept=False)
        search = GridSearchCV(ridge, {"alpha": ALPHAS}, cv=cv, scoring="neg_mean_squared_error")
        weights.append(search.fit(X, y).best_estimator_.coef_)
    return np.stack(weights)


def padded(tasks: Tasks) -> np.ndarray:
    """One fit of all tasks at one penalty from padded blocks, the batched way; no cross-validation."""
    X, y, _ = tasks.padded()
    gram = X.mT @ X + ALPHAS[11] * torch.eye(X.shape[-1], dtype=X.dtype)
    return torch.linalg.solve(gram, (X.mT @ y[..., None]).squeeze(-1)).numpy()


def ragged(tasks: Tasks) -> np.ndarray:
    """The fit of :func:`padded` with the package."""
    return SingleTask(ALPHAS[11], reduction="sum", fit_intercept=False).fit(tasks).coef_


def medians(contestants: tuple, tasks: Tasks) -> list[float]:
    """Median seconds of each, run in turn."""
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(ROUNDS):
        for run, seconds in zip(contestants, times, strict=True):
            start = time.perf_counter()
            run(tasks)
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def main() -> None:
    """Check that all compute the same, then time them."""
    tasks = data()
    agreement = np.abs(package(tasks) - scikit_learn(tasks)).max(axis=1) < 1e-6
    np.testing.assert_allclose(ragged(tasks), padded(tasks), rtol=1e-6, atol=1e-9)
    ours, theirs = medians((package, scikit_learn), tasks)
    print(f"cross-validated ridge, 139 tasks: package {ours:.3f} s, scikit-learn per task {theirs:.3f} s")
    print(f"  ratio {theirs / ours:.1f}; same penalty and weights in {agreement.sum()} of 139 tasks")
    one_huge = Tasks.from_list([(np.ones((n, 50)) + np.eye(n, 50), np.ones(n)) for n in [20_000] + [20] * 99])
    for name, case in (("School sizes", tasks), ("one task of 20 000 rows beside 99 of 20", one_huge)):
        slices, blocks = medians((ragged, padded), case)
        print(f"one fit, {name}: ragged {slices:.3f} s, padded {blocks:.3f} s, ratio {blocks / slices:.2f}")


if __name__ == "__main__":
    main()
