"""Linear multi-task models with scikit-learn's interface.

Single tasks and pooling (:mod:`~companion.linear.baselines`), shared features (:mod:`~companion.linear.block_sparse`,
:mod:`~companion.linear.dirty`), a shared subspace (:mod:`~companion.linear.trace_norm`,
:mod:`~companion.linear.feature_learning`), and paths of all of them (:func:`multi_task_path`).
"""

from companion.linear.baselines import Pooled, PooledClassifier, SingleTask, SingleTaskClassifier
from companion.linear.block_sparse import MultiTaskLasso, MultiTaskLassoClassifier, MultiTaskLassoCV
from companion.linear.dirty import DirtyModel, DirtyModelClassifier
from companion.linear.feature_learning import ConvexFeatureLearning
from companion.linear.path import MultiTaskPath, multi_task_path
from companion.linear.trace_norm import RobustMTL, TraceNorm, TraceNormClassifier, TraceNormCV

__all__ = [
    "ConvexFeatureLearning",
    "DirtyModel",
    "DirtyModelClassifier",
    "MultiTaskLasso",
    "MultiTaskLassoCV",
    "MultiTaskLassoClassifier",
    "MultiTaskPath",
    "Pooled",
    "PooledClassifier",
    "RobustMTL",
    "SingleTask",
    "SingleTaskClassifier",
    "TraceNorm",
    "TraceNormCV",
    "TraceNormClassifier",
    "multi_task_path",
]
