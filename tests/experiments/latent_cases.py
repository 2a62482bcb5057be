"""Made-up tasks and exact settings for the tests of the experiments with latent tasks."""

import numpy as np
import torch

from companion.experiments._latent import LATENT, OTHERS
from companion.experiments._relations import inner_folds, log_loss, squared_error
from companion.tasks import Tasks

CPU = torch.device("cpu")
EXACT = {name: 1e-9 for name in ("tol", "tol_in_folds", "latent_tol", "latent_tol_in_folds")}
EXACT |= {name: 50_000 for name in ("max_iter", "max_iter_in_folds")}
CONFIG = {**LATENT, **OTHERS, **EXACT, "latent_n_init": 2, "n_init": 3, "n_init_in_folds": 2}
CONFIG |= {"tol_in_folds": 1e-8, "max_iter_in_folds": 40_000}


def tasks_of(sizes, d=4, classify=False, seed=0, level=2.0):
    """Tasks of unequal sizes on two latent tasks, with levels; labels -1 and +1 if asked."""
    rng = np.random.default_rng(seed)
    W = np.random.default_rng(99).normal(size=(d, 2)) @ np.random.default_rng(98).normal(size=(2, len(sizes)))
    pairs = []
    for t, n in enumerate(sizes):
        X = rng.normal(size=(n, d))
        y = X @ W[:, t] + (0.3 if classify else level) * t + 0.4 * rng.normal(size=n)
        pairs.append((X, np.where(y > y.mean(), 1.0, -1.0) if classify else y))
    return Tasks.from_list(pairs)


SIZES = (16, 12, 19, 14, 17)
MU_RATIOS = [0.03, 0.06, 0.12, 0.24, 0.48]


def folds_of(train, classify, n_folds=3):
    return [fold._replace(error=log_loss if classify else squared_error) for fold in inner_folds(train, n_folds, 5)]
