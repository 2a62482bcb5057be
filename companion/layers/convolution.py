"""Convolutions of T tasks whose kernels are factors that the tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.factorized import ChainSizes, FactorizedTensor, Tied
from companion.layers._base import TaskLayer
from companion.layers.cost import Contraction, Sizes
from companion.layers.stacking import (
    channels_last,
    check_stacked,
    expand_tasks,
    fold_channels,
    from_rows,
    is_shared,
    to_rows,
    unfold_channels,
)


class _TaskConv(TaskLayer):
    """T convolutions at once, over one or two spatial axes."""

    n_space: ClassVar[int]

    def __init__(
        self,
        weight: FactorizedTensor,
        bias: bool = True,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        contraction: Contraction = "auto",
    ) -> None:
        if len(weight.shape) != self.n_space + 3:
            wanted = "(W, C, M, T)" if self.n_space == 1 else "(H, W, C, M, T)"
            raise ValueError(f"the weight of this convolution must have shape {wanted}; got {weight.shape}")
        super().__init__(weight, bias, contraction)
        self.kernel = weight.shape[: self.n_space]
        self.stride = _per_axis(stride, self.n_space, "stride", 1)
        self.dilation = _per_axis(dilation, self.n_space, "dilation", 1)
        self.padding = self._margins(padding)
        self.groups, self.padding_mode = _check_groups(groups, weight.shape[-2]), _check_padding_mode(padding_mode)

    def _margins(self, padding: int | Sequence[int] | str) -> tuple[tuple[int, int], ...]:
        """Padding before and after, per axis."""
        if padding == "valid":
            return ((0, 0),) * self.n_space
        if padding == "same":
            if set(self.stride) != {1}:
                raise ValueError(f'padding="same" goes with stride 1 only; got stride {self.stride}')
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
            return tuple((total // 2, total - total // 2) for total in totals)
        if isinstance(padding, str):
            raise ValueError(f'padding must be a number, one per axis, "same" or "valid"; got {padding!r}')
        return tuple((p, p) for p in _per_axis(padding, self.n_space, "padding", 0))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all tasks.

        Parameters
        ----------
        x : (T, B, C, L) or (T, B, C, H, W) tensor
            An input that is expanded over the task axis counts as shared: what all tasks do with it is done once.

        Returns
        -------
        (T, B, M, L') or (T, B, M, H', W') tensor
        """
        *_, C, M, T = self.weight.shape
        check_stacked(x, T, C * self.groups, 2, (self.n_space + 3,), type(self).__name__)
        chain = self._chain(x)
        if chain is None:
            return self._convolve(x, self.weight.compose().movedim(-1, 0), self.bias)
        left, middle, right = self.weight.chain(chain)
        if chain.left == "kernel and channels":
            assert left is not None
            return self._kernel_first(x, left, middle)
        assert middle is not None  # only a common kernel does without
        if chain.left == "first kernel axis":
            assert left is not None
            return self._convolve(self._first_axis(x, left), middle, self.bias, skip=1)
        if left is not None:
            x = _map_channels(x, left)
        if right is None:
            return self._convolve(x, middle, self.bias)
        y = _map_channels(self._convolve(x, middle, None), right)
        return y if self.bias is None else y + self.bias.view(T, 1, M, *[1] * self.n_space)

    def _chain(self, x: Tensor) -> ChainSizes | None:
        if self.groups > 1 and not isinstance(self.weight, Tied):
            return None  # a basis of the channels would have to respect the groups
        *kernel, C, M, _ = self.weight.shape
        B, space, out = x.shape[1], x.shape[3:], self._space_out(x.shape[3:])
        if min(out) < 1:
            return None  # torch says that the image is smaller than the kernel
        first = B * out[0] * prod(space[1:])
        length = space[0] + sum(self.padding[0])
        return self.choose(Sizes(B * prod(out), B * prod(space), prod(kernel), C, M, first, length))

    def _space_out(self, space: Sequence[int]) -> list[int]:
        axes = zip(space, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(n + sum(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]

    def _convolve(self, x: Tensor, W: Tensor, bias: Tensor | None, skip: int = 0) -> Tensor:
        """One grouped convolution with kernels W (T, ..., C, M), or a plain one where all tasks share the input."""
        T = W.shape[0]
        kernels = W.permute(0, -1, -2, *range(1, W.ndim - 2)).flatten(0, 1)  # (T M, C, ...)
        if bias is not None:
            bias = bias.expand(T, -1).flatten()
        if is_shared(x) and self.groups == 1:
            y = self._plain(channels_last(x[0]), kernels, bias, 1, skip)
        else:
            y = self._plain(fold_channels(x), kernels, bias, T * self.groups, skip)
        return unfold_channels(y, T)

    def _kernel_first(self, x: Tensor, left: Tensor, middle: Tensor | None) -> Tensor:
        """A convolution with kernels (..., C, K) that are common to all tasks, then a matrix (K, M) for each."""
        T = x.shape[0]
        kernels = left.movedim((-1, -2), (0, 1))  # (K, C, ...)
        if middle is None:  # one layer for all tasks: their samples are one batch
            y = self._plain(channels_last(x[0] if is_shared(x) else x.flatten(0, 1)), kernels, self.bias, self.groups)
            return expand_tasks(y, T) if is_shared(x) else y.unflatten(0, x.shape[:2])
        if is_shared(x):
            h = expand_tasks(self._plain(channels_last(x[0]), kernels, None, 1), T)
        else:
            repeated = kernels.unsqueeze(0).expand(T, *kernels.shape).flatten(0, 1)
            h = unfold_channels(self._plain(fold_channels(x), repeated, None, T), T)
        return self._one_tap(h, middle, self.bias)

    def _first_axis(self, x: Tensor, taps: Tensor) -> Tensor:
        """Convolve channels with taps (h, K) along the first axis, (T, B, C, H, ...) to (T, B, K C, H', ...).

        It is one product with a banded matrix: there are no fast kernels for so thin a convolution.
        """
        T = x.shape[0]
        if is_shared(x):
            return expand_tasks(self._first_axis(x[:1], taps)[0], T)
        images = fold_channels(x)  # (B, T C, H, ...)
        if any(self.padding[0]):
            images = self._pad(images, (self.padding[0], *((0, 0),) * (self.n_space - 1)))
        rows = images.movedim(1, -1).flatten(2)  # (B, H, ... T C)
        bands = self._bands(taps, rows.shape[1])  # (H', K, H)
        z = torch.bmm(bands.flatten(0, 1).expand(len(rows), -1, -1), rows)
        z = z.view(len(rows), *bands.shape[:2], *x.shape[4:], T, x.shape[2])  # (B, H', K, ..., T, C)
        return from_rows(z.movedim(2, -2).flatten(-2))

    def _bands(self, taps: Tensor, length: int) -> Tensor:
        """(H', K, H) what input h adds to output h', in each of K mixtures."""
        n, stride, dilation = len(taps), self.stride[0], self.dilation[0]
        starts = torch.arange(0, length - dilation * (n - 1), stride, device=taps.device)
        offset = torch.arange(length, device=taps.device) - starts[:, None]  # (H', H)
        read = (offset % dilation == 0) & (offset >= 0) & (offset < dilation * n)
        with_none = F.pad(taps, (0, 0, 0, 1))  # one more tap, for inputs that are not read
        return with_none[torch.where(read, offset // dilation, n)].movedim(-1, 1)

    def _one_tap(self, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply the channels of x (T, B, K, ...) by a matrix per task, W (T, K, M)."""
        T, _, M = W.shape
        kernels = W.transpose(1, 2).flatten(0, 1).view(T * M, -1, *[1] * self.n_space)
        bias = None if bias is None else bias.flatten()
        convolve = F.conv1d if self.n_space == 1 else F.conv2d
        if is_shared(x):
            return unfold_channels(convolve(channels_last(x[0]), kernels, bias), T)
        return unfold_channels(convolve(fold_channels(x), kernels, bias, groups=T), T)

    def _plain(self, x: Tensor, kernels: Tensor, bias: Tensor | None, groups: int, skip: int = 0) -> Tensor:
        """torch's convolution with the settings of this layer, but for axes that were dealt with before."""
        convolve = F.conv1d if self.n_space == 1 else F.conv2d
        margins = (*((0, 0),) * skip, *self.padding[skip:])
        stride, dilation = ((*(1,) * skip, *setting[skip:]) for setting in (self.stride, self.dilation))
        padding = [before for before, _ in margins]
        if any(map(any, margins)) and (
            self.padding_mode != "zeros" or any(before != after for before, after in margins)
        ):
            x, padding = self._pad(x, margins), [0] * self.n_space
        return convolve(x, kernels, bias, stride, padding, dilation, groups)

    def _pad(self, x: Tensor, margins: Sequence[tuple[int, int]]) -> Tensor:
        """Images with margins before and after, per axis."""
        flat = [margin for pair in reversed(margins) for margin in pair]
        return F.pad(x, flat, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)

    def task_weights(self) -> Tensor:
        """(T, M, C, ...) kernels of every task, laid out as torch's convolutions have them."""
        W = self.weight.compose()
        return W.permute(-1, -2, -3, *range(self.n_space))

    def extra_repr(self) -> str:
        settings = f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}"
        mode = "" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode!r}"
        return f"{settings}{mode}, bias={self.bias is not None}, contraction={self.contraction!r}"


class TaskConv1d(_TaskConv):
    """T convolutions over one axis; arguments as for :class:`TaskConv2d`.

    Parameters
    ----------
    weight : FactorizedTensor of shape (W, C, M, T)
        Kernels of all tasks: taps, input channels per group, filters, tasks.
    bias, stride, padding, dilation, groups, padding_mode, contraction
        As for :class:`TaskConv2d`.
    """

    n_space = 1


class TaskConv2d(_TaskConv):
    """T convolutions over two axes.

    Composed kernels of all tasks make one grouped convolution with channels last in memory. Through a Tucker core,
    channels go into their basis, through small kernels and out again; through a train, one common kernel is followed
    by a matrix per task, or common taps along the first axis by a kernel per task for the other one.

    Parameters
    ----------
    weight : FactorizedTensor of shape (H, W, C, M, T)
        Kernels of all tasks: height, width, input channels per group, filters, tasks.
    bias : bool, default True
        One bias per task and filter; tied weights have one for all tasks.
    stride, padding, dilation, groups, padding_mode
        As for :class:`torch.nn.Conv2d`, for every task.
    contraction : {"auto", "composed", "activations"}
        Whether kernels are composed or activations go through the factors; by default what costs less.
    """

    n_space = 2


def _map_channels(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the channels of x (T, B, C, ...) by a matrix (C, K) that all tasks share; shared stays shared."""
    if is_shared(x):
        return expand_tasks(_multiply_last(x[0].movedim(1, -1), matrix).movedim(-1, 1), x.shape[0])
    return from_rows(_multiply_last(to_rows(x), matrix))


def _multiply_last(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows (B, ..., C) times (C, K), as a convolution with one tap: up to twice as fast for so thin a product."""
    image = rows.reshape(len(rows), -1, 1, rows.shape[-1]).movedim(-1, 1)  # (B, C, positions, 1), channels last
    y = F.conv2d(image, matrix.T[..., None, None])
    return y.movedim(1, -1).reshape(*rows.shape[:-1], -1)


def _per_axis(value: int | Sequence[int], n: int, name: str, least: int) -> tuple[int, ...]:
    found = tuple(value) if isinstance(value, Sequence) else (value,) * n
    if len(found) != n or not all(isinstance(v, int) and v >= least for v in found):
        raise ValueError(f"{name} must be an integer >= {least}, or {n} of them; got {value!r}")
    return found


def _check_groups(groups: int, n_filters: int) -> int:
    if groups < 1 or n_filters % groups:
        raise ValueError(f"groups must be at least 1 and divide the {n_filters} filters; got {groups}")
    return groups


def _check_padding_mode(mode: str) -> str:
    known = ("zeros", "reflect", "replicate", "circular")
    if mode not in known:
        raise ValueError(f"padding_mode must be one of {known}; got {mode!r}")
    return mode
