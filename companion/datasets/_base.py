"""What the data sets have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

# Rows of a published split: (training rows, test rows), 0-based, disjoint.
Split = tuple[NDArray[np.int64], NDArray[np.int64]]


class ShapesInRepr:
    """A representation that gives the shapes of the arrays: rows of data are no use in a notebook."""

    def __repr__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        parts = [f"{name} {value.shape}" for name, value in values.items() if isinstance(value, np.ndarray)]
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Dataset(ShapesInRepr):
    """Inputs with names, published splits, and the proof of what was read.

    Attributes
    ----------
    X : (n, d) float64 array, float32 for many images
        One row per sample.
    feature_names : tuple of d str
        One name per column of X.
    sha256 : mapping of str to str
        Name of each source -> sha256 of the bytes that were read.
    splits : tuple of (train_rows, test_rows)
        Published splits as 0-based rows of X; empty where none is published.
    """

    X: NDArray[np.floating]
    feature_names: tuple[str, ...]
    sha256: Mapping[str, str]
    splits: tuple[Split, ...] = field(default=())
