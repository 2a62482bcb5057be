"""The figures that chapters share; the only module that imports matplotlib.

Every function draws on axes it is given (or makes) and returns them, so that a chapter can add to a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.sparse.csgraph import shortest_path

from companion.metrics import PairedDifference

#: Eight colours that stay apart for colour-blind readers (Okabe and Ito 2008), strongest contrast first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")


def gain_curve(
    ax: Axes,
    x: ArrayLike,
    gains: Sequence[PairedDifference],
    label: str | None = None,
    colour: str = COLOURS[0],
    percent: bool = True,
) -> Axes:
    """Mean paired gain against a knob, with its confidence interval and the line of no gain.

    Parameters
    ----------
    ax : Axes
    x : (S,) numbers
        Settings of the knob.
    gains : S paired differences
        One per setting, positive = better than the reference.
    percent : bool, default True
        Draw relative gains in percent.
    """
    x, scale = np.asarray(x, dtype=float), 100.0 if percent else 1.0
    if len(x) != len(gains):
        raise ValueError(f"x and gains must have the same length; got {len(x)} and {len(gains)}")
    mean, low, high = (scale * np.array([getattr(g, name) for g in gains]) for name in ("mean", "low", "high"))
    if not any(line.get_gid() == "no gain" for line in ax.lines):
        ax.axhline(0.0, color="0.4", linewidth=0.8, linestyle=(0, (4, 3)), gid="no gain")
    ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(x, mean, color=colour, marker="o", markersize=4, label=label)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def forest(ax: Axes, labels: Sequence[str], differences: Sequence[PairedDifference], colour: str = COLOURS[0]) -> Axes:
    """Paired differences as dots with intervals, one line each, first label on top, around the line of no difference.

    Parameters
    ----------
    ax : Axes
    labels : S strings
    differences : S paired differences
    """
    if len(labels) != len(differences):
        raise ValueError(f"labels and differences must have the same length; got {len(labels)} and {len(differences)}")
    place = np.arange(len(labels))[::-1]
    mean, low, high = (np.array([getattr(d, name) for d in differences]) for name in ("mean", "low", "high"))
    ax.axvline(0.0, color="0.4", linewidth=0.8, linestyle=(0, (4, 3)))
    ax.errorbar(mean, place, xerr=[mean - low, high - mean], fmt="o", color=colour, capsize=3, markersize=5)
    ax.set_yticks(place, labels)
    ax.set_ylim(-0.6, len(labels) - 0.4)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def image_grid(images: ArrayLike, titles: Sequence[str] | None = None, columns: int = 10, size: float = 0.8) -> Figure:
    """Grey images in rows of ``columns``, dark ink on white.

    Parameters
    ----------
    images : (n, height, width) array
        Larger = more ink.
    titles : n strings, optional
    size : float
        Width of one image in inches.
    """
    images = np.asarray(images)
    if images.ndim != 3:
        raise ValueError(f"images must have shape (n, height, width); got {images.shape}")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"titles must have {len(images)} entries, one per image; got {len(titles)}")
    rows = -(-len(images) // columns)
    extra = 0.25 if titles is not None else 0.0
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * (size + extra)), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for i, image in enumerate(images):
        ax = axes.flat[i]
        ax.imshow(image, cmap="gray_r", interpolation="nearest")
        if titles is not None:
            ax.set_title(titles[i], fontsize=9, pad=2)
    return figure


def matrix(ax: Axes, values: ArrayLike, row_label: str, column_label: str, limit: float | None = None) -> Any:
    """A matrix of signed numbers: white is zero, blue positive, red negative, limits symmetric.

    Returns
    -------
    The image, for a colour bar.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2:
        raise ValueError(f"values must be a matrix; got shape {values.shape}")
    limit = float(np.abs(values).max()) if limit is None else limit
    image = ax.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    ax.set_ylabel(row_label)
    ax.set_xlabel(column_label)
    return image


def unit_ball(
    ax: Axes, norm: Callable[[np.ndarray], ArrayLike], label: str | None = None, colour: str = COLOURS[0]
) -> Axes:
    """The points of the plane at which a norm is one.

    Parameters
    ----------
    ax : Axes
    norm : callable
        From points ``(n, 2)`` to their norms ``(n,)``.
    """
    angle = np.linspace(0, 2 * np.pi, 721)  # every multiple of 90 and of 45 degrees is among them
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = direction / np.asarray(norm(direction), dtype=float)[:, None]
    ax.plot(*points.T, color=colour, label=label)
    ax.set_aspect("equal")
    return ax


def shrinkage(ax: Axes, prox: Callable[[np.ndarray], ArrayLike], reach: float = 3.0, colour: str = COLOURS[0]) -> Axes:
    """Where a proximal operator moves the points of a grid in the plane; points that it sends to zero are grey.

    Parameters
    ----------
    ax : Axes
    prox : callable
        From points ``(n, 2)`` to where they go ``(n, 2)``.
    reach : float
        Largest coordinate of the grid.
    """
    side = np.linspace(-reach, reach, 13)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    moved = np.asarray(prox(points), dtype=float)
    gone = (moved == 0).all(axis=1)
    ax.plot(*points[gone].T, ".", color="0.55", markersize=6, zorder=3)
    kept, step = points[~gone], (moved - points)[~gone]
    ax.quiver(*kept.T, *step.T, color=colour, angles="xy", scale_units="xy", scale=1, width=0.006, headwidth=4.5)
    ax.set_aspect("equal")
    return ax


def success_curve(
    ax: Axes,
    x: ArrayLike,
    share: ArrayLike,
    trials: int,
    label: str | None = None,
    colour: str = COLOURS[0],
    linestyle: str = "-",
) -> Axes:
    """Shares of successes against a knob, with their 95 % Wilson intervals, which stay inside 0..1.

    Parameters
    ----------
    ax : Axes
    x : (S,) numbers
        Settings of the knob.
    share : (S,) numbers in 0..1
        Successes over trials.
    trials : int
        Trials at each setting.
    """
    x, share = np.asarray(x, dtype=float), np.asarray(share, dtype=float)
    if x.shape != share.shape:
        raise ValueError(f"x and share must have the same shape; got {x.shape} and {share.shape}")
    z2 = 1.959964**2 / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    ax.fill_between(x, centre - half, centre + half, color=colour, alpha=0.15, linewidth=0)
    ax.plot(x, share, color=colour, linestyle=linestyle, marker="o", markersize=3, label=label)
    ax.set_ylim(-0.03, 1.03)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def task_places(weights: ArrayLike, least: float = 0.0) -> np.ndarray:
    """Places in the plane at which tasks that are strongly related lie close together (Kamada and Kawai, 1989).

    The distance to be matched is that of the shortest way through the graph, where an edge is as long as it is weak;
    parts that no edge connects are set well apart. Stress is lowered by majorisation, from the principal coordinates
    of these distances. Nothing is drawn at random.

    Parameters
    ----------
    weights : (T, T) array
        Symmetric; the sign and the diagonal do not matter.
    least : float
        Edges whose size is at most this part of the largest are left out.

    Returns
    -------
    (T, 2) array
        Between -1 and 1, centred.
    """
    edges = _edges(weights, least)
    T = len(edges)
    lengths = np.where(edges != 0, 1 / np.maximum(np.abs(edges), 1e-300), 0.0)
    distance = shortest_path(lengths, directed=False)
    reached = distance[np.isfinite(distance)]
    distance[~np.isfinite(distance)] = 2.5 * max(reached.max(), 1.0)
    angle = 2 * np.pi * np.arange(T) / T
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if T < 3:
        return ring * (T - 1)
    centring = np.eye(T) - 1 / T
    values, vectors = np.linalg.eigh(-centring @ distance**2 @ centring / 2)
    places = vectors[:, -2:] * np.sqrt(values[-2:].clip(min=0)) + 1e-3 * distance.max() * ring  # no two on one spot
    counts = np.divide(1, distance**2, out=np.zeros((T, T)), where=~np.eye(T, dtype=bool))
    inverse = np.linalg.pinv(np.diag(counts.sum(1)) - counts)
    for _ in range(300):
        now = np.linalg.norm(places[:, None] - places[None], axis=2)
        pull = np.divide(counts * distance, now, out=np.zeros((T, T)), where=now > 0)
        places = inverse @ ((np.diag(pull.sum(1)) - pull) @ places)
    places = places - places.mean(axis=0)
    places = places @ np.linalg.svd(places, full_matrices=False)[2].T  # widest from left to right
    return places / np.abs(places).max()


def task_graph(
    ax: Axes,
    weights: ArrayLike,
    groups: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    least: float = 0.1,
    places: ArrayLike | None = None,
) -> Axes:
    """Tasks as dots and their relations as lines: blue and solid for positive ones, red and dashed for negative ones.

    Parameters
    ----------
    ax : Axes
    weights : (T, T) array
        Symmetric relations, such as correlations or an adjacency matrix; the diagonal is not looked at.
    groups : T ints, optional
        Colour of each dot, by number.
    names : T strings, optional
        Written into the dots.
    least : float
        Relations whose size is at most this part of the largest are not drawn.
    places : (T, 2) array, optional
        Where the dots go, by default :func:`task_places`.
    """
    edges = _edges(weights, least)
    T = len(edges)
    for name, given in (("groups", groups), ("names", names)):
        if given is not None and len(given) != T:
            raise ValueError(f"{name} must have {T} entries, one per task; got {len(given)}")
    places = task_places(weights, least) if places is None else np.asarray(places, dtype=float)
    if places.shape != (T, 2):
        raise ValueError(f"places must have shape ({T}, 2); got {places.shape}")
    s, t = np.nonzero(np.triu(edges, 1))
    for sign, colour, style in ((1, COLOURS[0], "solid"), (-1, COLOURS[1], (0, (3, 2)))):
        drawn = np.sign(edges[s, t]) == sign
        if not drawn.any():
            continue
        ends, size = np.stack([places[s[drawn]], places[t[drawn]]], axis=1), np.abs(edges[s, t])[drawn]
        lines = LineCollection(list(ends), linewidths=2.2 * size, alpha=0.15 + 0.7 * size, linestyles=[style])
        lines.set(color=colour, zorder=1)
        ax.add_collection(lines)
    colours = ["0.3"] * T if groups is None else [COLOURS[int(g) % len(COLOURS)] for g in groups]
    size_of_dot = 40 if names is None else 190
    ax.scatter(places[:, 0], places[:, 1], size_of_dot, colours, edgecolors="white", linewidths=0.8, zorder=2)
    for (x, y), name in zip(places.tolist(), names or [""] * T, strict=True):
        ax.text(x, y, name, ha="center", va="center", fontsize=8, color="white", zorder=3)
    middle = (places.max(axis=0) + places.min(axis=0)) / 2
    reach = 1.15 * max(np.abs(places - middle).max(), 1e-9)
    ax.set(xlim=middle[0] + [-reach, reach], ylim=middle[1] + [-reach, reach], aspect="equal")
    ax.axis("off")
    return ax


def _edges(weights: ArrayLike, least: float) -> np.ndarray:
    """(T, T) relations over the largest of them, zero on the diagonal and where they are at most ``least``."""
    edges = np.array(weights, dtype=float)
    if edges.ndim != 2 or edges.shape[0] != edges.shape[1] or len(edges) == 0 or not np.isfinite(edges).all():
        raise ValueError(f"weights must be a finite (T, T) matrix; got shape {edges.shape}")
    if not np.allclose(edges, edges.T, rtol=1e-6, atol=1e-6 * np.abs(edges).max()):
        raise ValueError("weights must be symmetric")
    np.fill_diagonal(edges, 0.0)
    largest = np.abs(edges).max()
    edges = edges / largest if largest > 0 else edges
    return np.where(np.abs(edges) > least, edges, 0.0)
