"""Penalties: value, prox and what the dual needs. One file, one family."""

from companion.penalties.elementwise import L1, SquaredL2

__all__ = ["L1", "SquaredL2"]
