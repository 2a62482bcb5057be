"""Layers of T tasks, task axis first, whose weights are factors that the tasks share.

- :class:`TaskLinear`, :class:`TaskConv1d`, :class:`TaskConv2d` (each a :class:`TaskLayer`): T layers in one, from any
  format of :mod:`companion.factorized`; biases are every task's own
- :class:`TaskHeads`: a last layer per task, of different sizes
- :class:`TaskBatchNorm`, :class:`TaskAffineNorm`, :class:`TiedNorm` (each a :class:`TaskNorm`): normalisation per
  task, or one for all

Activations have shape ``(T, B, ...)``. An input that all tasks share is expanded over the task axis
(``x.expand(T, *x.shape)``), which copies nothing; layers see that and do common work once.
"""

from companion.layers._base import TaskLayer
from companion.layers.convolution import TaskConv1d, TaskConv2d
from companion.layers.heads import TaskHeads
from companion.layers.linear import TaskLinear
from companion.layers.normalisation import TaskAffineNorm, TaskBatchNorm, TaskNorm, TiedNorm

__all__ = [
    "TaskAffineNorm",
    "TaskBatchNorm",
    "TaskConv1d",
    "TaskConv2d",
    "TaskHeads",
    "TaskLayer",
    "TaskLinear",
    "TaskNorm",
    "TiedNorm",
]
