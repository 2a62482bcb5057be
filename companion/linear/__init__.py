"""Linear multi-task models with scikit-learn's interface.

Single tasks and pooling (``baselines``), shared features (``block_sparse``, ``dirty``), a shared subspace
(``trace_norm``, ``feature_learning``), shared means and neighbours (``mean_graph``, ``kernel``), learned relations
(``relationships``, ``bayesian``), clusters and groups (``clustered``, ``hard_clustered``, ``disjoint_groups``), groups
that overlap (``go_mtl``, ``go_mtl_cv``, ``ella`` for streams of tasks, ``buffet`` for
their number), and paths of norms (:func:`multi_task_path`).

All share one contract: ``fit(X, y, task=None, sample_weight=None)`` on the long form (one row per sample, any hashable
task ids) or ``fit(tasks)``; ``predict(X, task=None)`` or ``predict(tasks)``; ``coef_ (T, d)``, ``intercept_ (T,)``,
``task_ids_``, ``objective_``, ``dual_gap_``, ``n_iter_``.
"""

from companion.linear.baselines import Pooled, PooledClassifier, SingleTask, SingleTaskClassifier
from companion.linear.bayesian import BayesianMTL
from companion.linear.block_sparse import MultiTaskLasso, MultiTaskLassoClassifier, MultiTaskLassoCV
from companion.linear.buffet import LatentTaskPosterior, sample_latent_tasks
from companion.linear.clustered import ASO, ClusteredMTL, ClusteredMTLClassifier, JacobClusteredMTL
from companion.linear.dirty import DirtyModel, DirtyModelClassifier
from companion.linear.disjoint_groups import DisjointGroups
from companion.linear.ella import ELLA
from companion.linear.feature_learning import ConvexFeatureLearning
from companion.linear.go_mtl import GOMTL, GOMTLClassifier
from companion.linear.go_mtl_cv import GOMTLCV, GOMTLClassifierCV
from companion.linear.hard_clustered import HardClusteredMTL
from companion.linear.kernel import MultiTaskKernelRidge, MultiTaskSVC
from companion.linear.mean_graph import GraphRegularized, MeanRegularized, MeanRegularizedClassifier
from companion.linear.path import MultiTaskPath, multi_task_path
from companion.linear.relationships import TaskRelationship
from companion.linear.stability import ClusterStability, cluster_stability
from companion.linear.trace_norm import RobustMTL, TraceNorm, TraceNormClassifier, TraceNormCV

__all__ = [
    "ASO",
    "ELLA",
    "GOMTL",
    "GOMTLCV",
    "BayesianMTL",
    "ClusterStability",
    "ClusteredMTL",
    "ClusteredMTLClassifier",
    "ConvexFeatureLearning",
    "DirtyModel",
    "DirtyModelClassifier",
    "DisjointGroups",
    "GOMTLClassifier",
    "GOMTLClassifierCV",
    "GraphRegularized",
    "HardClusteredMTL",
    "JacobClusteredMTL",
    "LatentTaskPosterior",
    "MeanRegularized",
    "MeanRegularizedClassifier",
    "MultiTaskKernelRidge",
    "MultiTaskLasso",
    "MultiTaskLassoCV",
    "MultiTaskLassoClassifier",
    "MultiTaskPath",
    "MultiTaskSVC",
    "Pooled",
    "PooledClassifier",
    "RobustMTL",
    "SingleTask",
    "SingleTaskClassifier",
    "TaskRelationship",
    "TraceNorm",
    "TraceNormCV",
    "TraceNormClassifier",
    "cluster_stability",
    "multi_task_path",
    "sample_latent_tasks",
]
