r"""Cutting a matrix off at a rank: the only step of every decomposition that loses something.

Two rules choose the rank from a tolerance. ``"frobenius"`` means what it says: the error of the whole decomposition is
at most eps. ``"pivoted-qr"`` is the rule of the code that Yang and Hospedales (2017) published with their paper; its
eps bounds no error, and it is here so that their ranks can be repeated.
"""

from __future__ import annotations

import math

import scipy.linalg
import torch
from torch import Tensor

from companion.tensors._arrays import Array, any_library, check_choice, check_eps, check_rank, check_tensor

RULES = ("frobenius", "pivoted-qr")


@any_library("A")
def truncate(
    A: Array,
    *,
    rank: int | None = None,
    eps: float | None = None,
    n_truncations: int = 1,
    norm: float | None = None,
    rule: str = "frobenius",
) -> tuple[Array, Array, Array]:
    r"""Singular value decomposition of A, cut off at a given rank or at a tolerance.

    Parameters
    ----------
    A : (m, n) tensor or array
    rank : int, optional
        Number of singular values to keep, at most min(m, n).
    eps : float in (0, 1], optional
        Tolerance, in place of the rank. With ``rule="frobenius"`` the singular values that are cut off have a root of
        the sum of squares of at most ``eps / sqrt(n_truncations) * norm``, so that n truncations together are off by
        at most ``eps * norm``. For ``rule="pivoted-qr"`` see :func:`pivoted_qr_svd`.
    n_truncations : int
        Number of truncations that share the error.
    norm : float, optional
        Norm that eps is relative to: of the whole tensor of which A is a part. That of A, if not given.
    rule : "frobenius" or "pivoted-qr"
        How eps chooses the rank.

    Returns
    -------
    U : (m, r) tensor or array
        Orthonormal columns; r is at least 1.
    s : (r,) tensor or array
        Singular values in falling order.
    Vh : (r, n) tensor or array
        Orthonormal rows. ``U @ diag(s) @ Vh`` is near A.
    """
    check_tensor(A, "A", order=2)
    check_choice(rank, eps, "rank")
    check_rule(rule)
    check_rank(n_truncations, None, "n_truncations")
    if eps is not None and rule == "pivoted-qr":
        return pivoted_qr_svd(A, eps)
    if eps is None:
        return truncated_svd(A, rank=rank)
    size = frobenius_norm(A) if norm is None else norm
    return truncated_svd(A, tail=eps / math.sqrt(n_truncations) * size)


@any_library("A")
def truncated_svd(A: Array, rank: int | None = None, tail: float | None = None) -> tuple[Array, Array, Array]:
    r"""Singular value decomposition of A without the smallest singular values.

    No matrix of the same rank is nearer to A, in the Frobenius norm (Eckart and Young, 1936).

    Parameters
    ----------
    A : (m, n) tensor or array
    rank : int, optional
        Number of singular values to keep, at most min(m, n). All, if neither rank nor tail is given.
    tail : float, optional
        Or: keep the smallest number, at least one, for which the root of the sum of squares of the others is at most
        ``tail``, an absolute number.

    Returns
    -------
    U, s, Vh : (m, r), (r,), (r, n) tensors or arrays
        As in :func:`truncate`.
    """
    check_tensor(A, "A", order=2)
    if rank is not None and tail is not None:
        raise ValueError("at most one of rank and tail may be given; got both")
    if tail is not None and not tail >= 0:
        raise ValueError(f"tail must be >= 0; got {tail!r}")
    if rank is not None:
        check_rank(rank, min(A.shape), "rank", f"as A has shape {tuple(A.shape)}")
    U, s, Vh = torch.linalg.svd(A, full_matrices=False)
    if tail is not None:
        rank = rank_for_tail(s, tail)
    return U[:, :rank], s[:rank], Vh[:rank]


def rank_for_tail(s: Tensor, tail: float) -> int:
    r"""Smallest rank r >= 1 for which :math:`(\sum_{k > r} s_k^2)^{1/2}` is at most ``tail``; ``s (m,)`` falls."""
    size = s[0].clamp(min=torch.finfo(s.dtype).tiny)  # squares of s / size do not overflow
    tails = size * (s / size).square().flip(0).cumsum(0).flip(0).sqrt()  # tails[r]: norm of s[r:], small ones first
    return 1 + int((tails[1:] > tail).sum())


def frobenius_norm(W: Tensor) -> float:
    """Root of the sum of squares of the entries of a tensor, however large or small they are."""
    size = W.detach().abs().max().clamp(min=torch.finfo(W.dtype).tiny)
    return float(size) * float(torch.linalg.vector_norm(W.detach() / size))


@any_library("A")
def pivoted_qr_svd(A: Array, eps: float) -> tuple[Array, Array, Array]:
    r"""Singular value decomposition of the leading part of a QR decomposition with column pivoting.

    In :math:`A \Pi = Q R` the diagonal of R falls in absolute value. The rank is the number of j with
    :math:`|R_{jj}| > \epsilon |R_{11}|`, at least 1, and what is decomposed is the product of that many columns of Q
    and rows of R. So does the code of Yang and Hospedales (2017). The result may be off by more than eps, and it is not
    the nearest matrix of its rank. The QR decomposition runs on the CPU.

    Parameters
    ----------
    A : (m, n) tensor or array
    eps : float in (0, 1]

    Returns
    -------
    U, s, Vh : (m, r), (r,), (r, n) tensors or arrays
        As in :func:`truncate`.
    """
    check_tensor(A, "A", order=2)
    check_eps(eps)
    Q, R, columns = scipy.linalg.qr(A.detach().cpu().numpy(), mode="economic", pivoting=True)
    diagonal = abs(R.diagonal())
    rank = max(1, int((diagonal > eps * diagonal[0]).sum()))
    leading = torch.empty(rank, A.shape[1], dtype=A.dtype)
    leading[:, torch.from_numpy(columns).long()] = torch.from_numpy(R[:rank])
    U, s, Vh = torch.linalg.svd(leading, full_matrices=False)
    parts = torch.from_numpy(Q[:, :rank]) @ U, s, Vh
    return tuple(part.to(A.device) for part in parts)  # type: ignore[return-value]


def check_rule(rule: str) -> None:
    """Refuse a rule that does not exist."""
    if rule not in RULES:
        raise ValueError(f'rule must be "frobenius" or "pivoted-qr"; got {rule!r}')
