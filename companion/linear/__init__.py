"""Linear multi-task models as scikit-learn estimators.

All share one contract: ``fit(X, y, task=None, sample_weight=None)`` on the long form (one row per sample, any hashable
task ids) or ``fit(tasks)``; ``predict(X, task=None)`` or ``predict(tasks)``; ``coef_ (T, d)``, ``intercept_ (T,)``,
``task_ids_``, ``objective_``, ``dual_gap_``, ``n_iter_``.
"""

from companion.linear.baselines import Pooled, PooledClassifier, SingleTask, SingleTaskClassifier

__all__ = ["Pooled", "PooledClassifier", "SingleTask", "SingleTaskClassifier"]
