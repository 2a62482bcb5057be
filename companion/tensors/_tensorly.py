"""What tensorly computes for the package, always with its NumPy back end, whichever one the user has set."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sklearn.exceptions import ConvergenceWarning


@contextmanager
def numpy_backend() -> Iterator[None]:
    """Load tensorly and switch this thread to NumPy, until the block ends."""
    import tensorly

    with tensorly.backend_context("numpy", local_threadsafe=True):
        yield


def warn_unless_settled(name: str, errors: Sequence[float], tol: float, max_iter: int) -> None:
    """Say so when the relative error still changed by tol or more in the last of ``max_iter`` sweeps."""
    change = abs(errors[-2] - errors[-1]) if len(errors) > 1 else float("inf")
    if len(errors) >= max_iter and not change < tol:
        warnings.warn(
            f"{name} did not settle: the relative error still changed by {change:.1e} in the last of {max_iter} "
            f"sweeps (tol={tol:g}); raise max_iter or tol",
            ConvergenceWarning,
            stacklevel=4,
        )
