"""Weights of many tasks as factors that the tasks share, ready to be trained by backpropagation (DMTRL).

The weights of a layer of T networks, stacked along a last mode, are a tensor ``(D_1, ..., D_{N-1}, T)``. Every format
generates it from factors:

- :class:`LAF`: latent weights and codes, the matrix factorisation of GO-MTL
- :class:`Tucker`: a basis for every mode, and a core
- :class:`TensorTrain`, :class:`TensorRing`: a chain of cores, open or closed
- :class:`Independent`, :class:`Tied`: the two ends, nothing shared and everything

All of them have ``from_weights(W, eps=0.1)`` or ``from_weights(W, ranks=...)`` for the weights of trained networks,
``random(shape, ranks)`` for a fresh start, and ``compose()``, ``task_factor()``, ``ranks``, ``n_parameters`` and
``add_task()``.
"""

from companion.factorized._base import Chain, ChainSizes, FactorizedTensor
from companion.factorized.core_chains import TensorRing, TensorTrain
from companion.factorized.ends import Independent, Tied
from companion.factorized.laf import LAF
from companion.factorized.tucker import Tucker

__all__ = [
    "LAF",
    "Chain",
    "ChainSizes",
    "FactorizedTensor",
    "Independent",
    "TensorRing",
    "TensorTrain",
    "Tied",
    "Tucker",
]
