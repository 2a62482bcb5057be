"""Block norms: their equivalences, the l1 ball, and the root finder on rows that are hard for it."""

import math

import numpy as np
import pytest
import torch

from companion.penalties import L1, BlockSparse, _rows, project_l1_ball
from companion.penalties._rows import dual_exponent, prox_row_norms, row_norms

EXPONENTS = [1, 1.01, 1.5, 1.999, 2, 2.001, 3, 50, 1000, math.inf]
ROOTS = [q for q in EXPONENTS if q not in (1, 2, math.inf)]


@pytest.fixture
def hard_rows(draw):
    """(7, 5) rows: plain, all tied, some tied and zeros, spread over a hundred decades, one weight, spread over ten."""
    rows = [
        [2.0, 2.0, -2.0, 2.0, 2.0],
        [3.0, -3.0, 0.0, 1e-9, 0.0],
        [1.0, 1e-3, -1e-6, 1e-12, 1e-100],
        [0.0, 0.0, -4.0, 0.0, 0.0],
    ]
    spread = draw(2, 5, seed=2).sign() * 10 ** (-10 * draw(2, 5, seed=3).abs())
    return torch.cat([draw(1, 5), torch.tensor(rows, dtype=torch.float64).to(spread), spread])


def error(v, w, q, tau):
    """Largest Newton step over max |v| that an entry of w still has to go for w + tau * (gradient of ||w||_q) = v.

    In long double, with ||w||_q held; for q < 2 the equation is solved for w first, for its derivative is infinite.
    """
    v, w = (np.abs(x.cpu().numpy()).astype(np.longdouble) for x in (v, w))
    s = w.max() * ((w / w.max()) ** q).sum() ** (1 / np.longdouble(q))
    k = np.longdouble(q - 1)
    if q >= 2:
        u = tau * (w / s) ** k
        steps = (w + u - v) / (1 + k * np.divide(u, w, where=w > 0, out=np.zeros_like(w)))
    else:
        u = v - w
        steps = (w - s * (u / tau) ** (1 / k)) / (1 + np.divide(w, k * u, where=u > 0, out=np.zeros_like(w)))
    return np.abs(steps).max() / v.max()


@pytest.mark.parametrize("power", [-0.6, 0.0, 0.6])
@pytest.mark.parametrize("q", ROOTS)
def test_roots_are_found_to_machine_precision(q, power, hard_rows, dtype):
    """Magnitudes whose squares under- and overflow among them."""
    for v in hard_rows * torch.finfo(dtype).max ** power:
        for fraction in (0.3, 0.9, 0.999):
            tau = fraction * float(row_norms(v[None], dual_exponent(q)))
            w = BlockSparse(tau, q).prox(v[None], 1.0)[0]
            assert error(v, w, q, tau) < 10 * torch.finfo(dtype).eps
            assert (w * v >= 0).all()


@pytest.mark.parametrize("q", EXPONENTS)
def test_rows_are_treated_one_by_one_at_any_magnitude(q, hard_rows, dtype):
    """Rows 2^k times as large, under a penalty 2^k times as strong, give 2^k times the weights, in any company."""
    together = BlockSparse(1.5, q).prox(hard_rows, 1.0)
    assert together.isfinite().all()
    for k in (-400, -7, 7, 400) if dtype == torch.float64 else (-40, 7, 40):
        large = BlockSparse(1.5, q).prox(hard_rows[::2] * 2.0**k, 2.0**k)
        torch.testing.assert_close(large / 2.0**k, together[::2], rtol=0, atol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("q", ROOTS)
def test_next_to_the_dual_ball(q, hard_rows, dtype):
    """A row outside the ball by a few units of the last place is nearly zero, and there is no other trouble."""
    for v in hard_rows:
        tau = float(row_norms(v[None], dual_exponent(q)))
        w = prox_row_norms(v[None], q, tau * (1 - 8 * torch.finfo(dtype).eps))
        assert w.abs().max() <= 100 * torch.finfo(dtype).eps * v.abs().max()


@pytest.mark.parametrize("q", [1 + 1e-6, *ROOTS, 1e6])
def test_every_entry_is_shared_out_in_full(q, dtype):
    """Both parts of an entry add up to it and obey their equation, over as many decades as the type has."""
    info = torch.finfo(dtype)
    v = torch.logspace(math.log10(info.tiny) / 1.1, 0, 60, dtype=dtype)
    for s, tau in ((1.0, 1.0), (1e-3, 0.5), (2.0, 1e-6), (1e-12, 1.0)):
        w, u = _rows._share(v, q, *(torch.tensor(x, dtype=dtype) for x in (s, tau)))
        torch.testing.assert_close(w + u, v, rtol=8 * info.eps, atol=0)
        ratio = (u / tau).log() - (q - 1) * (w / s).log()
        seen = (w > info.tiny) & (u > info.tiny)
        assert (ratio.abs() < 1e3 * info.eps * max(q, dual_exponent(q)))[seen].all()


@pytest.mark.parametrize("q", [1.5, 2, 3])
def test_weak_penalty_changes_little(q, hard_rows, dtype):
    """Penalties below the last place of the weights leave them as they are."""
    tiny = 1e-3 * torch.finfo(dtype).eps * hard_rows.abs().max(dim=1).values.min()
    torch.testing.assert_close(BlockSparse(float(tiny), q).prox(hard_rows, 1.0), hard_rows, rtol=1e-6, atol=float(tiny))


def test_root_finder_agrees_with_the_closed_form_at_two(draw, tol):
    V = draw(6, 4)
    torch.testing.assert_close(prox_row_norms(V, 2, 1.3), BlockSparse(1.3, 2).prox(V, 1.0), rtol=0, atol=tol)


@pytest.mark.parametrize(("near", "q"), [(1 + 1e-9, 1), (2 + 1e-9, 2), (2 - 1e-9, 2), (1e9, math.inf)])
def test_roots_have_the_closed_forms_as_limits(near, q, draw, tol):
    V = draw(6, 4)
    near, limit = (BlockSparse(0.8, exponent) for exponent in (near, q))
    torch.testing.assert_close(near.prox(V, 1.0), limit.prox(V, 1.0), rtol=0, atol=10 * tol)
    torch.testing.assert_close(near.value(V), limit.value(V), rtol=10 * tol, atol=0)
    assert near.dual_norm(V) == pytest.approx(limit.dual_norm(V), rel=10 * tol)


@pytest.mark.parametrize("q", EXPONENTS)
def test_one_task_makes_every_block_norm_the_lasso(q, draw, tol):
    V = draw(7, 1)
    block, lasso = BlockSparse(0.4, q), L1(0.4)
    torch.testing.assert_close(block.prox(V, 1.3), lasso.prox(V, 1.3), rtol=0, atol=tol)
    torch.testing.assert_close(block.value(V), lasso.value(V), rtol=tol, atol=0)
    assert block.dual_norm(V) == pytest.approx(lasso.dual_norm(V), rel=tol)


def test_exponent_one_is_the_lasso(draw, tol):
    V = draw(5, 3)
    block, lasso = BlockSparse(0.4, 1), L1(0.4)
    assert torch.equal(block.prox(V, 1.3), lasso.prox(V, 1.3))
    torch.testing.assert_close(block.value(V), lasso.value(V), rtol=tol, atol=0)
    assert block.dual_norm(V) == lasso.dual_norm(V)


@pytest.mark.parametrize("q", EXPONENTS)
def test_dual_norm_by_hand(q, draw, tol):
    C = draw(5, 3)
    p = {1: math.inf, math.inf: 1}.get(q, q / (q - 1) if 1 < q < math.inf else None)
    rows = np.linalg.norm(C.cpu().double().numpy(), p, axis=1)
    assert BlockSparse(0.4, q).dual_norm(C) == pytest.approx(rows.max() / 0.4, rel=tol)


def test_clipped_weights_are_tied_exactly(draw):
    """At q = inf the weights above the level are equal to the last bit, so that "attains the maximum" can be asked."""
    V = torch.tensor([[1000 / 3, -100 / 7, 0.2, 10 / 9]], dtype=torch.float64).to(draw(1))
    tau = float((V.abs() - 0.3).clamp(min=0.0).sum())
    W = BlockSparse(tau, math.inf).prox(V, 1.0).abs()
    assert (W.amax() == W).tolist() == [[True, True, False, True]]


def test_l1_ball_against_the_exact_threshold(draw, tol):
    """Every row against all ways to choose which weights stay positive; the projection is the nearest feasible one."""
    V = draw(6, 5)
    for radius in (0.1, 1.0, 3.0, 100.0):
        U = project_l1_ball(V, radius)
        for v, u in zip(V.cpu().double().numpy(), U.cpu().double().numpy(), strict=True):
            if np.abs(v).sum() <= radius:
                np.testing.assert_array_equal(u, v)
                continue
            a, candidates = np.abs(v), []
            for k in range(1, 6):
                top = np.argsort(-a)[:k]
                guess = np.zeros(5)
                guess[top] = a[top] - (a[top].sum() - radius) / k
                if (guess >= 0).all():
                    candidates.append(np.sign(v) * guess)
            best = min(candidates, key=lambda c: ((c - v) ** 2).sum())
            np.testing.assert_allclose(u, best, atol=tol)


def test_l1_ball_of_radius_zero_is_a_point(draw):
    V = draw(4, 3)
    assert project_l1_ball(V, 0.0).abs().max() <= 4 * torch.finfo(V.dtype).eps


def test_rows_in_numbers():
    assert tuple(BlockSparse(0.3, 3.0).rows) == (0.3, math.inf, 3.0)
    assert BlockSparse(0.3).rows.q == 2
    assert tuple(L1(0.3).rows) == (0.3, math.inf, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("q", EXPONENTS)
def test_a_diverging_row_is_seen_and_alone(q, bad, draw, tol):
    V = draw(4, 3)
    expected = BlockSparse(0.5, q).prox(V, 1.0)
    V[1, 2] = bad
    found = BlockSparse(0.5, q).prox(V, 1.0)
    assert not found[1].isfinite().all()
    torch.testing.assert_close(found[[0, 2, 3]], expected[[0, 2, 3]], rtol=0, atol=tol)
