"""Which way is cheaper: composing the weights, or sending the activations through the factors?

Both give the same values and gradients. What is counted is one forward pass, in multiply-adds; the two products of the
backward pass cost twice that on either way. Numbers that have to be written to memory and read again count as
:data:`PASS` multiply-adds each.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from companion.factorized import ChainSizes, FactorizedTensor

Contraction = Literal["auto", "composed", "activations"]
CHOICES = ("auto", "composed", "activations")

#: Multiply-adds in the time that a number takes which is written and read again, and its gradient as well. Measured: a
#: core does about fifteen in the time of one pass over memory, and thin products are slower than their arithmetic.
PASS = 64


class Sizes(NamedTuple):
    """What the cost of a layer depends on beside its weights."""

    rows: int  #: B times the positions of the output
    rows_in: int  #: B times the positions of the input
    kernel: int  #: taps of the kernel; 1 for a linear layer
    inputs: int  #: input units or channels
    outputs: int  #: output units or channels
    rows_first: int = 0  #: B times the positions after a convolution along the first axis only
    length: int = 0  #: length of the first axis of the input, padding included


def composed_cost(weight: FactorizedTensor, sizes: Sizes) -> int:
    """Compose W, then apply it."""
    T, entries = weight.n_tasks, sizes.kernel * sizes.inputs * sizes.outputs
    apply = T * sizes.rows * entries
    written = weight.compose_cost() > 0
    return weight.compose_cost() + apply + PASS * T * entries * written


def activations_cost(weight: FactorizedTensor, chain: ChainSizes, sizes: Sizes) -> int:
    """Make the maps of the chain, then send the activations through left, middle and right."""
    T, taps = weight.n_tasks, sizes.kernel // chain.taps
    cost = chain.cost + T * taps * chain.inner * chain.outer * (sizes.rows + PASS)
    if chain.left == "channels":
        cost += T * sizes.rows_in * chain.inner * (sizes.inputs + PASS)
    elif chain.left == "kernel and channels":
        cost += T * sizes.rows * chain.inner * (chain.taps * sizes.inputs + PASS)
    elif chain.left == "first kernel axis":
        cost += T * sizes.rows_first * chain.inner * (sizes.length + PASS)
    if chain.right:
        cost += T * sizes.rows * chain.outer * (sizes.outputs + PASS)
    return cost


def choose(contraction: Contraction, weight: FactorizedTensor, sizes: Sizes) -> ChainSizes | None:
    """The cheapest chain for the activations to go through; None where weights are to be composed.

    Weights without a chain are composed even where one is asked for, and weights that all tasks share never are: they
    are one layer for all tasks.
    """
    costs = {chain: activations_cost(weight, chain, sizes) for chain in weight.chains()}
    if contraction == "composed" or not costs:
        return None
    best = min(costs, key=costs.__getitem__)
    if contraction == "activations" or not best.middle:
        return best
    return best if costs[best] < composed_cost(weight, sizes) else None


def check_contraction(contraction: str) -> None:
    """Refuse a way that does not exist."""
    if contraction not in CHOICES:
        raise ValueError(f"contraction must be one of {CHOICES}; got {contraction!r}")
