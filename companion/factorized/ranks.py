"""Ranks as a user may give them: a tuple, one number for all, or a fraction of the largest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Ranks = int | float | Sequence[int]


def resolve_ranks(ranks: Ranks | None, largest: Sequence[int], name: str = "ranks") -> tuple[int, ...]:
    """Turn what a user gave into one rank per place.

    Parameters
    ----------
    ranks : int, float or sequence of int
        A sequence is taken as it is; one integer caps every rank; a float in (0, 1] is a fraction of the largest
        each can be, rounded up.
    largest : sequence of int
        The largest rank of each place.

    Returns
    -------
    tuple of int

    Raises
    ------
    ValueError, TypeError
        A rank below 1 or above the largest, a fraction outside (0, 1], a sequence of wrong length.
    """
    if ranks is None:
        raise ValueError(f"{name} are needed to draw weights; a tolerance can choose them only for given weights")
    if isinstance(ranks, bool):
        raise TypeError(f"{name} must be an integer, a fraction or a sequence of integers; got {ranks!r}")
    if isinstance(ranks, int | np.integer):
        if not 1 <= ranks <= max(largest):
            raise ValueError(f"{name} must lie between 1 and {max(largest)}, the largest there is here; got {ranks}")
        return tuple(min(int(ranks), most) for most in largest)
    if isinstance(ranks, float | np.floating):
        if not 0 < ranks <= 1:
            raise ValueError(f"{name} given as a fraction must lie in (0, 1]; got {ranks}")
        return tuple(math.ceil(float(ranks) * most - 1e-9) for most in largest)
    return _check_sequence(ranks, largest, name)


def _check_sequence(ranks: Sequence[int], largest: Sequence[int], name: str) -> tuple[int, ...]:
    try:
        found = tuple(ranks)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, a fraction or a sequence of integers; got {type(ranks).__name__}"
        ) from None
    if not all(isinstance(rank, int | np.integer) and not isinstance(rank, bool) for rank in found):
        raise TypeError(f"{name} must hold integers; got {found}")
    if len(found) != len(largest):
        raise ValueError(f"{name} must hold {len(largest)} numbers, at most {tuple(largest)}; got {found}")
    for place, (rank, most) in enumerate(zip(found, largest, strict=True)):
        if not 1 <= rank <= most:
            raise ValueError(
                f"{name}[{place}] must lie between 1 and {most}, as the sizes of the modes allow; got {rank} in {found}"
            )
    return tuple(int(rank) for rank in found)
