"""Penalties: value, prox and what the dual needs. One file, one family."""

from companion.penalties._base import NormPenalty, Penalty, RowNorm
from companion.penalties.block_sparse import BlockSparse, project_l1_ball
from companion.penalties.clustered import SquaredBoxNorm, SquaredClusterNorm
from companion.penalties.dirty import Dirty
from companion.penalties.elementwise import L1, SquaredL2
from companion.penalties.graph import GraphDifference, MeanDeviation, complete_graph, laplacian, path_graph
from companion.penalties.trace_norm import RobustPair, SquaredTraceNorm, TraceNorm

__all__ = [
    "L1",
    "BlockSparse",
    "Dirty",
    "GraphDifference",
    "MeanDeviation",
    "NormPenalty",
    "Penalty",
    "RobustPair",
    "RowNorm",
    "SquaredBoxNorm",
    "SquaredClusterNorm",
    "SquaredL2",
    "SquaredTraceNorm",
    "TraceNorm",
    "complete_graph",
    "laplacian",
    "path_graph",
    "project_l1_ball",
]
