"""Hard parameter sharing: the same first layers for all tasks, own ones after that (Caruana 1993)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from companion.factorized import FactorizedTensor, Independent, Tied
from companion.networks.conversion import LINEAR, is_layer
from companion.networks.share import share
from companion.networks.shared_network import SharedNetwork


def hard_sharing(
    template: nn.Module,
    n_tasks: int,
    n_shared: int,
    *,
    from_models: Sequence[nn.Module] | None = None,
    heads: Sequence[int] | None = None,
    sample_ndim: int | None = None,
    generator: torch.Generator | None = None,
) -> SharedNetwork:
    """Share the first layers of a network wholly and the others not at all (UD-MTL: the split is the user's).

    Parameters
    ----------
    template : nn.Module
        Network of one task, as for :func:`~companion.networks.share`.
    n_tasks : int
        T.
    n_shared : int
        N, how many of its Linear and convolutional layers all tasks have in common, counted from the input. What
        normalises before the first layer that is not shared is common too.
    from_models, heads, sample_ndim, generator
        As for :func:`~companion.networks.share`; shared layers begin with the mean of the given models.

    Returns
    -------
    SharedNetwork
    """
    layers = [(name, module) for name, module in template.named_modules() if is_layer(module)]
    n_layers = sum(isinstance(module, LINEAR) for _, module in layers)
    most = n_layers - (heads is not None)
    if not 0 <= n_shared <= most:
        raise ValueError(f"n_shared must be from 0 to {most}, the layers that can be shared; got {n_shared}")
    by: dict[str, type[FactorizedTensor]] = {}
    seen = 0
    for name, module in layers:
        seen += isinstance(module, LINEAR)
        by[name] = Tied if seen <= n_shared and n_shared else Independent
    return share(
        template, n_tasks, by, from_models=from_models, heads=heads, sample_ndim=sample_ndim, generator=generator
    )


class HardSharing(nn.Module):
    r"""One hidden layer shared by T tasks, and a linear head for each.

    Task t predicts :math:`B_t^\top \phi(A x + c) + b_t`; the trunk :math:`(A, c)` learns from the errors of all tasks,
    the head :math:`(B_t, b_t)` from its own.

    Parameters
    ----------
    n_features, n_hidden, n_tasks : int
        d, H, T.
    n_outputs : int, default 1
        O, outputs per task.
    activation : module, default Tanh
        :math:`\phi`; ``torch.nn.Identity()`` makes the model linear with weights of rank at most H.
    generator : torch.Generator, optional
        Source of the first weights, which are uniform with the variance one over the number of inputs.
    """

    def __init__(
        self,
        n_features: int,
        n_hidden: int,
        n_tasks: int,
        n_outputs: int = 1,
        activation: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"n_features": n_features, "n_hidden": n_hidden, "n_tasks": n_tasks, "n_outputs": n_outputs}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}")
        self.activation = nn.Tanh() if activation is None else activation
        self.trunk_weight = _uniform((n_features, n_hidden), n_features, generator)
        self.trunk_bias = nn.Parameter(torch.zeros(n_hidden))
        self.head_weight = _uniform((n_tasks, n_hidden, n_outputs), n_hidden, generator)
        self.head_bias = nn.Parameter(torch.zeros(n_tasks, 1, n_outputs))

    def features(self, X: Tensor) -> Tensor:
        """Hidden layer of the trunk: ``(..., n, d) -> (..., n, H)``."""
        return self.activation(X @ self.trunk_weight + self.trunk_bias)

    def forward(self, X: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Outputs of all tasks.

        Parameters
        ----------
        X : (n, d) shared inputs, (T, n, d) stacked inputs, or a list of T tensors (n_t, d)

        Returns
        -------
        (T, n, O) tensor, or a list of T tensors (n_t, O) for a list
        """
        if isinstance(X, Tensor):
            n_tasks = self.head_weight.shape[0]
            d = self.trunk_weight.shape[0]
            if X.ndim not in (2, 3) or X.shape[-1] != d or (X.ndim == 3 and X.shape[0] != n_tasks):
                raise ValueError(f"X must be (n, {d}), ({n_tasks}, n, {d}) or a list; got {tuple(X.shape)}")
            return self.features(X) @ self.head_weight + self.head_bias
        if len(X) != self.head_weight.shape[0]:
            raise ValueError(f"expected inputs of {self.head_weight.shape[0]} tasks, one tensor each; got {len(X)}")
        heads = zip(X, self.head_weight, self.head_bias, strict=True)
        return [self.features(X_t) @ weight + bias for X_t, weight, bias in heads]


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator | None) -> nn.Parameter:
    """Uniform with variance ``1 / fan_in``."""
    bound = (3 / fan_in) ** 0.5
    return nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * bound)
