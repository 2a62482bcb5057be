"""What a convex fit costs, and that it runs on an accelerator as it does on a CPU."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from companion import Tasks, linear
from companion.penalties import path_graph

DEVICE = os.environ.get("COMPANION_TEST_DEVICE", "cpu")
MODELS = [
    linear.MultiTaskLasso(0.05),
    linear.MultiTaskLasso(0.05, q=np.inf),
    linear.MultiTaskLassoClassifier(0.02, q=1.5),
    linear.DirtyModel(0.08, 0.05),
    linear.DirtyModelClassifier(0.02, 0.015, q=2),
    linear.TraceNorm(0.05),
    linear.TraceNormClassifier(0.02),
    linear.RobustMTL(0.05, 0.03),
    linear.ConvexFeatureLearning(0.02),
    linear.MeanRegularized(0.02, 0.5),
    linear.MeanRegularizedClassifier(0.02, 0.1),
    linear.GraphRegularized(0.02, 0.5, path_graph(3)),
    linear.MultiTaskLassoCV(n_alphas=5),
    linear.TraceNormCV(n_alphas=5),
]


def _fit_on(device, model):
    rng = np.random.default_rng(0)
    task = np.repeat([0, 1, 2], [9, 17, 31])
    X = rng.normal(size=(len(task), 5)) + 1
    y = X @ rng.normal(size=5) + rng.normal(size=len(task))
    if "Classifier" in type(model).__name__:
        y = (y > np.median(y)).astype(int)
        y[[0, 1, 9, 10, 26, 27]] = [0, 1, 0, 1, 0, 1]
    inputs = torch.from_numpy(X).to(device)
    return model.set_params(tol=1e-10).fit(inputs, torch.from_numpy(y).to(device), task)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_weights_live_where_the_data_live(model):
    fitted = _fit_on(DEVICE, model)
    assert fitted.coef_.device.type == torch.device(DEVICE).type
    assert abs(fitted.dual_gap_) <= 1e-9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_cuda_gives_the_objective_of_the_cpu(model):
    here, there = (_fit_on(device, model) for device in ("cpu", "cuda"))
    objective = here.objective_
    assert there.coef_.is_cuda
    assert there.objective_ == pytest.approx(objective, rel=1e-8)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak memory of one process")
@pytest.mark.parametrize("model", ["MultiTaskLasso", "TraceNorm"])
def test_a_wide_problem_fits_in_500_mb_above_the_data(model):
    """100 tasks of 50-200 rows, 2000 features: one matrix of second moments per task would take 3.2 GB."""
    program = f"""
        import numpy as np
        import torch
        from companion import Tasks
        from companion.experiments._provenance import peak_memory_mb
        from companion.linear import {model}
        rng = np.random.default_rng(0)
        peak = lambda: peak_memory_mb(torch.device("cpu"))
        small = Tasks.from_list([(rng.normal(size=(9, 5)), rng.normal(size=9)) for _ in range(3)])
        {model}(0.1).fit(small)  # loads the libraries
        task = np.repeat(np.arange(100), rng.integers(50, 201, 100))
        X = rng.normal(size=(len(task), 2000))
        y = X[:, :30] @ rng.normal(size=30) + rng.normal(size=len(task))
        tasks, before = Tasks.from_long(X, y, task), peak()
        model = {model}(tol=1e-4).set_params(alpha={model}().alpha_max(tasks) / 10).fit(tasks)
        assert (model.coef_ != 0).any()
        print(peak() - before)
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 500


def test_many_small_tasks_do_not_wait_for_python():
    """1000 tasks of 100 x 50, a tenth of the largest penalty, gap 1e-6: well under ten seconds."""
    from time import process_time

    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(100_000, 50)), np.repeat(np.arange(1000), 100)
    W = np.zeros((1000, 50))
    W[:, :10] = rng.normal(size=(1000, 10))
    y = (X * W[task]).sum(1) + rng.normal(size=len(task))
    tasks = Tasks.from_long(X, y, task)
    model = linear.MultiTaskLasso(tol=1e-6)
    model.set_params(alpha=model.alpha_max(tasks) / 10).fit(tasks)  # compiles, if nothing has before
    start = process_time()
    model.fit(tasks)
    assert process_time() - start < 10
    assert model.dual_gap_ <= 1e-6 * (y**2).sum() / 200
    assert (np.abs(model.coef_).sum(0) > 0).sum() >= 10
