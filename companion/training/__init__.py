"""Training of multi-task networks: one loop, on one process or many, that can be interrupted and gone on with.

:func:`train` takes batches of T tasks, with shared, stacked or ragged inputs and missing labels. It records the losses
of every task in a :class:`History`, stops early on validation data if asked to, and keeps a checkpoint from which it
goes on as if nothing had happened. Underneath is the library accelerate, which knows devices, mixed precision and
processes.
"""

from companion.training.data import SharedData, StackedData, TaskData
from companion.training.evaluation import evaluate
from companion.training.history import History
from companion.training.loaders import BatchOrder, TaskLoaders, make_loader
from companion.training.loop import train
from companion.training.optimizers import adam

__all__ = [
    "BatchOrder",
    "History",
    "SharedData",
    "StackedData",
    "TaskData",
    "TaskLoaders",
    "adam",
    "evaluate",
    "make_loader",
    "train",
]
