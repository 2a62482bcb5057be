"""Tensors that the tests of all formats share, of every order, and the error that they all speak of."""

import functools

import numpy as np

SHAPES = [(5, 7), (4, 3, 6), (3, 5, 2, 4), (2, 6, 3, 5, 4)]


def normal(*shape, seed=0):
    """Noise: nothing in it can be compressed."""
    return np.random.default_rng(seed).normal(size=shape)


def planted_tucker(shape, ranks, seed=0):
    """A tensor of these multilinear ranks, entry by entry a sum over the core."""
    W = normal(*ranks, seed=seed)
    for n, (D, K) in enumerate(zip(shape, ranks, strict=True)):
        W = np.moveaxis(np.tensordot(normal(D, K, seed=seed + n + 1), W, axes=(1, n)), 0, n)
    return W


def planted_ring(shape, ranks, seed=0):
    """A tensor of these ring ranks (r_0, ..., r_{N-1}); with r_0 = 1 it is a train."""
    ends = [*ranks, ranks[0]]
    cores = [normal(ends[n], D, ends[n + 1], seed=seed + n) for n, D in enumerate(shape)]
    chain = functools.reduce(lambda W, core: np.tensordot(W, core, axes=1), cores)
    return np.trace(chain, axis1=0, axis2=-1)


def fading(shape, seed=0):
    """A full tensor whose unfoldings have spectra that fade out: a few large singular values, many small ones."""
    W = normal(*shape, seed=seed)
    for n, D in enumerate(shape):
        W = np.moveaxis(np.moveaxis(W, n, -1) * 0.5 ** np.arange(D), -1, n)
    for n, D in enumerate(shape):  # turned, so that the axes mean nothing
        Q = np.linalg.qr(normal(D, D, seed=seed + n + 7))[0]
        W = np.moveaxis(np.tensordot(Q, W, axes=(1, n)), 0, n)
    return W


def many_tensors():
    """(name, tensor) of every order: noise, fading spectra, planted ranks with noise."""
    for shape in SHAPES:
        few = [max(1, D // 2) for D in shape]
        yield f"noise {shape}", normal(*shape, seed=1)
        yield f"fading {shape}", fading(shape, seed=2)
        yield f"tucker {shape}", planted_tucker(shape, few, seed=3) + 0.1 * normal(*shape, seed=9)
        yield f"ring {shape}", planted_ring(shape, [2] * len(shape), seed=4) + 0.1 * normal(*shape, seed=8)


def relative_error(found, W):
    """Frobenius norm of the difference, relative to that of W."""
    return np.linalg.norm(found - W) / np.linalg.norm(W)


def tail(A, rank):
    """Norm of the singular values of a matrix after the first ``rank``, by NumPy."""
    return np.linalg.norm(np.linalg.svd(A, compute_uv=False)[rank:])
