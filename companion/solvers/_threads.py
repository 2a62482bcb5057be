"""Small matrices on one thread: starting and joining threads costs many times what the product does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager as Context
from contextlib import contextmanager, nullcontext
from functools import lru_cache

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

SMALL = 1 << 22  # numbers; a pass over more than this is worth a second thread


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    """Finding the libraries takes milliseconds: once is enough."""
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra on one thread inside; as before outside."""
    before = torch.get_num_threads()
    with _controller().limit(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def threads_for(X: Tensor) -> Context[None]:
    """One thread for work whose largest matrix is X, if X is small and on the CPU."""
    return one_thread() if X.device.type == "cpu" and X.numel() <= SMALL else nullcontext()
