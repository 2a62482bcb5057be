"""What all formats of factorised weights have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from companion.factorized.ranks import Ranks

#: What the left map of a chain takes in: the channels (the last input mode), the taps of the kernel as well, or the
#: first axis of the kernel only, for every channel by itself.
Takes = Literal["channels", "kernel and channels", "first kernel axis"]


class Chain(NamedTuple):
    r"""Weights as a chain of maps, :math:`W_t = \mathrm{left} \cdot \mathrm{middle}_t \cdot \mathrm{right}`.

    Inputs can go through the chain without the weights ever being composed. ``None`` stands for the identity.
    """

    left: Tensor | None  #: ``(C, K)``, ``(*kernel, C, K)`` or ``(H, K)``, common to all tasks
    #: (T, ..., K_in, K_out), one per task, a kernel axis that left has taken in being of length 1; None where the tasks
    #: share one map, which is left
    middle: Tensor | None
    right: Tensor | None  #: (K_out, O), common to all tasks


class ChainSizes(NamedTuple):
    """Sizes of a :class:`Chain`, known before it is made; what a layer needs to count its cost."""

    left: Takes | None  #: what the left map takes in, None where there is none
    inner: int  #: K_in, channels between left and middle
    outer: int  #: K_out
    cost: int = 0  #: multiply-adds to make the maps
    taps: int = 1  #: taps of the kernel that the left map takes in
    right: bool = False  #: whether there is a right map
    middle: bool = True  #: whether the tasks differ at all


class FactorizedTensor(nn.Module, ABC):
    r"""Weights of T tasks, a tensor ``(D_1, ..., D_{N-1}, T)`` whose last mode is the task.

    Every format is :math:`W_{\cdot, t} = \sum_k L_{\cdot, k} S_{k, t}` with a basis L made of factors that all tasks
    share and a task factor S; the formats differ in how L is made. The latent axis k of stored factors comes first,
    so that composing is one matrix product with the tasks in front.

    Attributes
    ----------
    shape : tuple of int
        ``(D_1, ..., D_{N-1}, T)``.
    """

    shape: tuple[int, ...]

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(int(size) for size in shape)
        if len(self.shape) < 2 or min(self.shape) < 1:
            raise ValueError(f"shape must be (D_1, ..., T) with at least one mode beside the tasks; got {self.shape}")

    @classmethod
    def from_weights(
        cls,
        W: Any,
        eps: float = 0.1,
        ranks: Ranks | None = None,
        rule: str = "frobenius",
        fold: bool = True,
        balance: bool = False,
    ) -> Self:
        """Factorise the weights of trained tasks.

        Parameters
        ----------
        W : (D_1, ..., D_{N-1}, T) tensor or array
            Task mode last.
        eps : float in (0, 1], default 0.1
            Where no ranks are given: relative error that is allowed, under the given rule.
        ranks : int, float, or tuple of int, optional
            The format's ranks: a tuple is taken as it is, one integer caps each of them, a float in (0, 1] is a
            fraction of the largest each can be.
        rule : {"frobenius", "pivoted-qr"}
            What eps means: a bound on the true relative error, or the threshold on the pivots of a QR factorisation
            that the authors of DMTRL used.
        fold : bool, default True
            Let a factor of full rank go into its neighbour, which costs no expressive power and saves its parameters.
            The task factor never does.
        balance : bool, default False
            Scale the factors to equal root mean square entries, see :meth:`balance_`.

        Raises
        ------
        ValueError
            eps outside (0, 1], ranks above what the modes allow, W with NaN or infinity or without a task mode.
        """
        W = check_weights(W)
        given = None if ranks is None else cls._resolve_ranks(ranks, tuple(W.shape))
        made = cls._factorise(W, given, eps if given is None else None, rule, fold)
        return made.balance_() if balance else made

    @classmethod
    def random(
        cls,
        shape: Sequence[int],
        ranks: Ranks | None = None,
        fan_in: int | None = None,
        generator: torch.Generator | None = None,
        fold: bool = True,
        balance: bool = False,
    ) -> Self:
        """Draw factors whose composed weights have the scale of a plain layer.

        Parameters
        ----------
        shape : (D_1, ..., D_{N-1}, T)
        ranks : int, float, or tuple of int
            As in :meth:`from_weights`; may be left out by the formats that have none.
        fan_in : int, optional
            Inputs of one unit; by default the product of all modes but the last two. Composed weights have the mean
            square ``1 / (3 fan_in)``, the variance that :class:`torch.nn.Linear` begins with.
        generator : torch.Generator, optional
            Source of the draw.
        fold, balance : bool
            As in :meth:`from_weights`.

        Raises
        ------
        ValueError
            Ranks above what the modes allow, or none where the format needs them; fan_in below 1.
        """
        shape = tuple(shape)
        if fan_in is None:
            fan_in = prod(shape[:-2])
        if fan_in < 1:
            raise ValueError(f"fan_in must be at least 1; got {fan_in}")
        made = cls._draw(shape, cls._resolve_ranks(ranks, shape), generator, fold)
        made._scale_like_plain_layer(fan_in)
        return made.balance_() if balance else made

    @classmethod
    @abstractmethod
    def _resolve_ranks(cls, ranks: Ranks | None, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Ranks of the format, from what a user gave."""

    @classmethod
    @abstractmethod
    def _factorise(cls, W: Tensor, ranks: tuple[int, ...] | None, eps: float | None, rule: str, fold: bool) -> Self:
        """Factors of given ranks, or within eps; one of the two is None."""

    @classmethod
    @abstractmethod
    def _draw(
        cls, shape: tuple[int, ...], ranks: tuple[int, ...], generator: torch.Generator | None, fold: bool
    ) -> Self:
        """Draw factors of any scale."""

    @abstractmethod
    def basis(self) -> Tensor:
        """(K, D_1, ..., D_{N-1}) weights of the latent tasks, L."""

    @abstractmethod
    def task_factor(self) -> Tensor:
        """(K, T) task factor S; column t says how task t combines the latent tasks."""

    @property
    @abstractmethod
    def ranks(self) -> tuple[int, ...]:
        """Ranks of the format, those of factors that were folded away included."""

    @property
    def folded(self) -> tuple[int, ...]:
        """Positions in :attr:`ranks` that have no factor of their own, because it went into its neighbour."""
        return ()

    def chains(self) -> tuple[ChainSizes, ...]:
        """Ways to send activations through the factors; none where the weights have to be composed."""
        return ()

    def chain(self, sizes: ChainSizes) -> Chain:
        """Weights of a layer, ``(*kernel, C, O, T)`` or ``(I, O, T)``, as maps for activations to go through.

        Parameters
        ----------
        sizes : ChainSizes
            One of :meth:`chains`.
        """
        raise ValueError(f"{type(self).__name__} has no factors that activations could go through")

    def compose_cost(self) -> int:
        """Multiply-adds of :meth:`compose`."""
        return self.basis_cost() + self.task_factor().shape[0] * prod(self.shape)

    @abstractmethod
    def basis_cost(self) -> int:
        """Multiply-adds of :meth:`basis`."""

    @abstractmethod
    def _grow(self, code: Tensor) -> None:
        """Give the task factor one more column ``(K,)``."""

    def compose(self) -> Tensor:
        """(D_1, ..., D_{N-1}, T) the weights of all tasks; in memory the tasks lie one behind the other."""
        W = self.task_factor().T @ self.basis().flatten(1)  # (T, P)
        return W.view(self.n_tasks, *self.shape[:-1]).movedim(0, -1)

    def squared_norm(self) -> Tensor:
        """Squared Frobenius norm of the composed weights, from the factors."""
        return gram_norm(self.basis().flatten(1), self.task_factor())

    @property
    def n_tasks(self) -> int:
        """T."""
        return self.shape[-1]

    @property
    def n_parameters(self) -> int:
        """How many numbers the factors hold."""
        return sum(parameter.numel() for parameter in self.parameters())

    def add_task(self, code: Tensor | None = None) -> int:
        """Give one more task a column of the task factor, and nothing else.

        Optimizers that hold the old task factor have to be made anew.

        Parameters
        ----------
        code : (K,) tensor, optional
            How the new task combines the latent tasks; by default the mean of the codes of the others.

        Returns
        -------
        int
            Position of the new task.
        """
        S = self.task_factor().detach()
        if code is None:
            code = S.mean(dim=1)
        elif code.shape != S.shape[:1]:
            raise ValueError(
                f"code must have shape ({S.shape[0]},), one number per latent task; got {tuple(code.shape)}"
            )
        self._grow(code.detach().to(S))
        self.shape = (*self.shape[:-1], self.n_tasks + 1)
        return self.n_tasks - 1

    @torch.no_grad()
    def balance_(self) -> Self:
        """Scale the factors to equal root mean square entries; the composed weights stay as they are.

        Truncated SVDs leave orthonormal factors with tiny entries beside one that carries the whole scale. Adam moves
        all entries by steps of one size, so its first step throws such weights far off.
        """
        factors = [parameter for parameter in self.parameters() if parameter.numel()]
        scales = torch.stack([factor.square().mean().sqrt() for factor in factors])
        if len(factors) > 1 and bool((scales > 0).all()):
            common = scales.log().mean().exp()
            for factor, scale in zip(factors, scales, strict=True):
                factor.mul_(common / scale)
        return self

    @torch.no_grad()
    def _scale_like_plain_layer(self, fan_in: int) -> None:
        """Bring the composed weights to mean square ``1 / (3 fan_in)``, by way of the first factor."""
        mean_square = self.squared_norm() / prod(self.shape)
        next(iter(self.parameters())).mul_((3 * fan_in * mean_square).rsqrt())

    def extra_repr(self) -> str:
        folded = f", folded={self.folded}" if self.folded else ""
        return f"shape={self.shape}, ranks={self.ranks}{folded}, n_parameters={self.n_parameters}"


def gram_norm(basis: Tensor, S: Tensor) -> Tensor:
    """Squared norm of ``basis.T @ S`` for basis (K, P) and S (K, T), by way of K x K products."""
    return (S * ((basis @ basis.T) @ S)).sum()


def check_weights(W: Any) -> Tensor:
    """A finite floating-point tensor with at least one mode beside the tasks.

    Raises
    ------
    ValueError, TypeError
        Fewer than two modes, an empty mode, NaN or infinity; not of a floating-point type.
    """
    W = torch.as_tensor(W).detach()
    if not W.is_floating_point():
        raise TypeError(f"W must hold floating-point numbers; got {W.dtype}")
    if W.ndim < 2 or W.numel() == 0:
        raise ValueError(
            f"W must have shape (D_1, ..., T) with at least one mode beside the tasks; got {tuple(W.shape)}"
        )
    if not bool(torch.isfinite(W).all()):
        raise ValueError("W must be finite; it contains NaN or infinity")
    return W


def unit_codes(K: int, T: int, generator: torch.Generator | None) -> Tensor:
    """(K, T) random codes of length one, so that every task begins with weights of the same size."""
    S = torch.randn(K, T, generator=generator)
    return S / S.norm(dim=0)


def orthonormal(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """(rows, columns) random matrix with orthonormal columns, or rows where it is wide."""
    return nn.init.orthogonal_(torch.empty(rows, columns), generator=generator)
