"""What enters is checked here: arrays of either library, tensors to decompose, ranks or a tolerance."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from companion._checks import share_memory

Array: TypeAlias = Any  # a torch tensor or a NumPy array: what goes in comes out

P = ParamSpec("P")
R = TypeVar("R")


def any_library(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function that is written for torch take NumPy arrays too, and give back what it was given.

    Parameters
    ----------
    names : str
        Arguments that are arrays, or sequences of arrays. All must be of one library, dtype and device.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            given = [found for name in names for found in _named_arrays(name, bound.arguments[name])]
            _check_alike(given)
            for name in names:
                bound.arguments[name] = _to_torch(bound.arguments[name])
            result = function(*bound.args, **bound.kwargs)
            return result if isinstance(given[0][1], Tensor) else _to_numpy(result)

        return call

    return decorate


def check_tensor(W: Tensor, name: str = "W", order: int | None = None) -> None:
    """Refuse what has no decomposition: too few modes, no entries, numbers that are not float32 or float64, NaN."""
    if order is not None and W.ndim != order:
        raise ValueError(f"{name} must have exactly {order} modes; got shape {tuple(W.shape)}")
    if W.ndim < 2:
        raise ValueError(f"{name} must have at least two modes; got shape {tuple(W.shape)}")
    if W.numel() == 0:
        raise ValueError(f"{name} must have entries; got shape {tuple(W.shape)}")
    if W.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must hold float32 or float64 numbers; got {W.dtype}")
    if not bool(torch.isfinite(W).all()):
        raise ValueError(f"{name} must be finite; it contains NaN or infinity")


def check_mode(mode: int, order: int) -> int:
    """The mode counted from zero; as elsewhere in Python, -1 is the last."""
    if isinstance(mode, bool) or not isinstance(mode, (int, np.integer)) or not -order <= mode < order:
        raise ValueError(f"mode must be an integer in 0..{order - 1} (or -1 for the last); got {mode!r}")
    return int(mode) % order


def check_choice(ranks: Any, eps: float | None, name: str = "ranks") -> None:
    """Refuse both ranks and eps, and neither."""
    if (ranks is None) == (eps is None):
        came = "neither" if eps is None else "both"
        raise ValueError(f"exactly one of {name} and eps must be given; got {came}")
    if eps is not None:
        check_eps(eps)


def check_eps(eps: float) -> None:
    """Refuse what is no relative error."""
    if not 0 < eps <= 1:
        raise ValueError(f"eps must be in (0, 1], relative to the norm of what is decomposed; got {eps!r}")


def check_ranks(ranks: Sequence[int] | None, number: int) -> list[int | None]:
    """As many ranks as are needed, or as many times None."""
    if ranks is None:
        return [None] * number
    try:
        found: list[int | None] = list(ranks)
    except TypeError:
        raise ValueError(f"ranks must be {number} integers; got {ranks!r}") from None
    if len(found) != number:
        raise ValueError(f"ranks must be {number} integers; got {len(found)}: {ranks!r}")
    return found


def check_rank(rank: Any, limit: int | None, name: str, reason: str = "") -> int:
    """A rank in 1..limit; the message gives the reason of the limit."""
    whole = isinstance(rank, (int, np.integer)) and not isinstance(rank, bool)
    if not whole or rank < 1 or (limit is not None and rank > limit):
        wanted = "a positive integer" if limit is None else f"an integer in 1..{limit}"
        raise ValueError(f"{name} must be {wanted}{reason and ', '}{reason}; got {rank!r}")
    return int(rank)


def check_sweeps(max_iter: int, tol: float) -> None:
    """Refuse an iteration that cannot begin or cannot stop."""
    check_rank(max_iter, None, "max_iter")
    if not tol > 0:
        raise ValueError(f"tol must be > 0; got {tol!r}")


def _named_arrays(name: str, value: Any) -> list[tuple[str, Any]]:
    """(name, array) of every array in an argument."""
    if isinstance(value, (Tensor, np.ndarray)):
        return [(name, value)]
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name} must be a torch tensor or a NumPy array; got {type(value).__name__}")
    return [found for n, one in enumerate(value) for found in _named_arrays(f"{name}[{n}]", one)]


def _check_alike(given: list[tuple[str, Any]]) -> None:
    def kind(array: Any) -> tuple[str, ...]:
        if isinstance(array, Tensor):
            return ("torch", str(array.dtype), str(array.device))
        return ("numpy", str(array.dtype))

    (first, like), *others = given
    for name, array in others:
        if kind(array) != kind(like):
            came = f"{first} is {' '.join(kind(like))} and {name} is {' '.join(kind(array))}"
            raise ValueError(f"arrays must be of one library, dtype and device; {came}")


def _to_torch(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return share_memory(value)
    return [_to_torch(one) for one in value] if isinstance(value, (list, tuple)) else value


def _to_numpy(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.numpy()
    return type(result)(_to_numpy(one) for one in result) if isinstance(result, (list, tuple)) else result
