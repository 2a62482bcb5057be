"""Penalties: value, prox and what the dual needs. One file, one family."""

from companion.penalties._base import NormPenalty, Penalty, RowNorm
from companion.penalties.block_sparse import BlockSparse, project_l1_ball
from companion.penalties.dirty import Dirty
from companion.penalties.elementwise import L1, SquaredL2
from companion.penalties.trace_norm import RobustPair, SquaredTraceNorm, TraceNorm

__all__ = [
    "L1",
    "BlockSparse",
    "Dirty",
    "NormPenalty",
    "Penalty",
    "RobustPair",
    "RowNorm",
    "SquaredL2",
    "SquaredTraceNorm",
    "TraceNorm",
    "project_l1_ball",
]
