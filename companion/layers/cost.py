"""Which way is cheaper: composing the weights, or sending the activations through the factors?

Both give the same values and gradients. What is counted is one forward pass, in multiply-adds; the two products of the
backward pass cost twice that on either way. Numbers that have to be written to memory and read again count as
:data:`PASS` multiply-adds each.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from companion.factorized import FactorizedTensor

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


def composed_cost(weight: FactorizedTensor, sizes: Sizes) -> int:
    """Compose W, then apply it."""
    T, entries = weight.n_tasks, sizes.kernel * sizes.inputs * sizes.outputs
    apply = T * sizes.rows * entries
    written = weight.compose_cost() > 0
    return weight.compose_cost() + apply + PASS * T * entries * written


def activations_cost(weight: FactorizedTensor, sizes: Sizes) -> int:
    """Make the middle of the chain, then send the activations through left, middle and right."""
    chain, T = weight.chain_sizes(), weight.n_tasks
    all_first = chain.left == "kernel and channels"
    taps_left, taps = (sizes.kernel, 1) if all_first else (1, sizes.kernel)
    rows_left = sizes.rows if all_first else sizes.rows_in
    cost = weight.chain_cost() + T * taps * chain.inner * chain.outer * (sizes.rows + PASS)
    if chain.left is not None:
        cost += T * rows_left * chain.inner * (taps_left * sizes.inputs + PASS)
    if chain.right:
        cost += T * sizes.rows * chain.outer * (sizes.outputs + PASS)
    return cost


def choose(contraction: Contraction, weight: FactorizedTensor, sizes: Sizes) -> Contraction:
    """The cheaper way, unless one was asked for."""
    if contraction != "auto":
        return contraction
    chain = weight.chain_sizes()
    if not chain.middle:
        return "activations"  # one layer for all tasks
    if not (chain.left or chain.right):
        return "composed"
    return "activations" if activations_cost(weight, sizes) < composed_cost(weight, sizes) else "composed"


def check_contraction(contraction: str) -> None:
    """Refuse a way that does not exist."""
    if contraction not in CHOICES:
        raise ValueError(f"contraction must be one of {CHOICES}; got {contraction!r}")
