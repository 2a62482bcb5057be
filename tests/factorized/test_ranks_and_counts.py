"""Ranks that a user may ask for, ranks that a tolerance gives, and how many parameters they cost."""

from math import prod

import pytest
import scipy.linalg
import torch

from companion.factorized import LAF, Independent, TensorRing, TensorTrain, Tied, Tucker
from companion.factorized.ranks import resolve_ranks
from companion.tensors import tt_to_tensor, tucker_to_tensor, unfold

FORMATS = [LAF, Tucker, TensorTrain, TensorRing]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=rng(seed))


# --- counts -----------------------------------------------------------------------------------------------------------


def test_counts_of_the_second_convolution_of_mnist():
    """Yang & Hospedales' network: 4 x 4 kernels, 32 channels, 64 filters, ten tasks; by hand from the shapes."""
    shape = (4, 4, 32, 64, 10)
    counts = {cls: cls.random(shape, 1.0, generator=rng(), fold=False).n_parameters for cls in FORMATS[:3]}
    assert counts == {LAF: 327_780, Tucker: 332_932, TensorTrain: 590_196}
    assert Independent.random(shape, generator=rng()).n_parameters == 327_680
    assert Tied.random(shape, generator=rng()).n_parameters == 32_768


@pytest.mark.parametrize("shape", [(7, 5, 3), (3, 2, 4, 6, 5)], ids=str)
def test_counts_are_the_formulas(shape):
    *D, T = shape
    P = prod(D)
    for ranks in (0.5, 2):
        (K,) = (laf := LAF.random(shape, ranks, generator=rng())).ranks
        assert laf.n_parameters == K * (P + T)
        K = (tucker := Tucker.random(shape, ranks, generator=rng(), fold=False)).ranks
        assert tucker.n_parameters == prod(K) + sum(d * k for d, k in zip(shape, K, strict=True))
        K = (train := TensorTrain.random(shape, ranks, generator=rng(), fold=False)).ranks
        inner = sum(a * d * b for a, d, b in zip(K, shape[1:], K[1:], strict=False))
        assert train.n_parameters == D[0] * K[0] + inner + K[-1] * T
        r = (ring := TensorRing.random(shape, ranks, generator=rng(), fold=False)).ranks
        assert ring.n_parameters == sum(a * d * b for a, d, b in zip(r, shape, [*r[1:], r[0]], strict=True))


def test_folding_is_reported_and_saves_parameters():
    shape = (7, 5, 3)
    for cls, folded in ((Tucker, (0, 1)), (TensorTrain, (0,)), (TensorRing, (1,))):
        whole, plain = (cls.random(shape, 1.0, generator=rng(), fold=fold) for fold in (True, False))
        assert whole.folded == folded and plain.folded == () and whole.ranks == plain.ranks
        assert whole.n_parameters == 3 * 35 + 9 < plain.n_parameters  # what LAF has
        assert "folded" in repr(whole) and "folded" not in repr(plain) and str(whole.ranks) in repr(whole)
    wide = (3, 2, 4, 6, 3)
    for cls in (Tucker, TensorTrain):
        assert cls.random(wide, 1.0, generator=rng()).ranks == cls.random(wide, 1.0, generator=rng(), fold=False).ranks
    assert TensorTrain.random(wide, 1.0, generator=rng()).ranks == (3, 6, 18, 3)
    half = Tucker.random(shape, (7, 2, 3), generator=rng())
    assert half.folded == (0,) and half.U1 is None and half.U2.shape == (5, 2)
    assert half.n_parameters == 7 * 2 * 3 + 5 * 2 + 9
    assert half.task_factor().shape == (3, 3)  # of full rank, and kept


# --- ranks ------------------------------------------------------------------------------------------------------------


def test_ranks_may_be_given_in_three_ways():
    assert resolve_ranks((2, 5), (4, 5)) == (2, 5)
    assert resolve_ranks(3, (4, 2)) == (3, 2)
    assert resolve_ranks(0.5, (4, 5)) == (2, 3)  # rounded up
    assert 0.07 * 100 > 7 and resolve_ranks(0.07, (100, 1)) == (7, 1)  # seven, up to rounding
    assert resolve_ranks(1.0, (4, 5)) == (4, 5)


@pytest.mark.parametrize(
    ("ranks", "error", "message"),
    [
        (None, ValueError, "ranks are needed"),
        (0, ValueError, r"ranks must lie between 1 and 5, .*got 0"),
        (6, ValueError, r"ranks must lie between 1 and 5, .*got 6"),
        (1.5, ValueError, r"ranks given as a fraction must lie in \(0, 1\]; got 1.5"),
        (0.0, ValueError, r"fraction must lie in \(0, 1\]; got 0.0"),
        (float("nan"), ValueError, r"fraction must lie in \(0, 1\]; got nan"),
        (True, TypeError, "must be an integer, a fraction or a sequence of integers; got True"),
        ("3", TypeError, "must hold integers"),
        ((2, 2.0), TypeError, r"must hold integers; got \(2, 2.0\)"),
        ((2,), ValueError, r"must hold 2 numbers, at most \(4, 5\); got \(2,\)"),
        ((5, 5), ValueError, r"ranks\[0\] must lie between 1 and 4, .*got 5 in \(5, 5\)"),
        ((4, 0), ValueError, r"ranks\[1\] must lie between 1 and 5, .*got 0"),
        (object(), TypeError, "sequence of integers; got object"),
    ],
)
def test_bad_ranks(ranks, error, message):
    with pytest.raises(error, match=message):
        resolve_ranks(ranks, (4, 5))


@pytest.mark.parametrize(
    ("cls", "ranks"),
    [(LAF, 4), (LAF, (4,)), (Tucker, (6, 4, 3)), (Tucker, (5, 4, 4)), (TensorTrain, (5, 4)), (TensorTrain, (13, 3))],
)
def test_ranks_above_the_modes_are_refused(cls, ranks):
    """Shape (5, 4, 3): LAF at most 3, Tucker (5, 4, 3), train (5, 3)."""
    for make in (lambda: cls.from_weights(weights((5, 4, 3)), ranks=ranks), lambda: cls.random((5, 4, 3), ranks)):
        with pytest.raises(ValueError, match=r"ranks.* must lie between 1 and"):
            make()


def test_ring_ranks_above_the_modes_are_refused():
    with pytest.raises(ValueError, match="ranks"):
        TensorRing.from_weights(weights((5, 4, 3)), ranks=(2, 3, 2))  # 2 * 3 > 5
    with pytest.raises(ValueError, match="must lie between 1 and"):
        TensorRing.random((5, 4, 3), (16, 1, 1))
    made = TensorRing.from_weights(weights((6, 4, 3)), ranks=(3, 2, 3))
    assert made.ranks == (3, 2, 3)


def test_a_rank_that_other_modes_forbid_is_refused():
    with pytest.raises(ValueError, match=r"ranks\[0\] must lie between 1 and 3"):
        Tucker.random((8, 1, 3), (8, 1, 3))  # eight rows of an unfolding with three columns


def test_ranks_of_weights_that_have_ranks():
    """A planted tensor with noise far below the tolerance gives its ranks back."""
    core, U = weights((2, 3, 2), 1), [weights((n, k), k) for n, k in ((7, 2), (6, 3), (5, 2))]
    W = tucker_to_tensor(core, U)
    W = W + 1e-6 * W.norm() / W.numel() ** 0.5 * weights(W.shape, 9)
    for rule in ("frobenius", "pivoted-qr"):
        assert Tucker.from_weights(W, eps=1e-3, rule=rule).ranks == (2, 3, 2)
        assert LAF.from_weights(W, eps=1e-3, rule=rule).ranks == (2,)
    cores = [weights((1, 7, 3), 1), weights((3, 6, 2), 2), weights((2, 5, 1), 3)]
    assert TensorTrain.from_weights(tt_to_tensor(cores), eps=1e-3).ranks == (3, 2)


@pytest.mark.parametrize("eps", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("shape", [(7, 5, 3), (3, 2, 4, 6, 5)], ids=str)
@pytest.mark.parametrize("cls", FORMATS)
def test_the_frobenius_rule_means_the_error(cls, shape, eps):
    W = weights(shape) * torch.linspace(1, 0.01, shape[-1], dtype=torch.float64)  # tasks of unequal size
    made = cls.from_weights(W, eps=eps)
    assert (made.compose() - W).norm() <= eps * W.norm()


def test_laf_takes_the_smallest_rank_that_the_tolerance_allows():
    W = weights((7, 5, 4))
    s = torch.linalg.svdvals(W.reshape(35, 4))
    tails = torch.tensor([s[r:].norm() / s.norm() for r in range(1, 5)])
    for eps in (0.2, 0.4, 0.6, 0.8, 1.0):
        assert LAF.from_weights(W, eps=eps).ranks[0] == 1 + int((tails > eps).sum())


def test_the_pivoted_rule_counts_pivots():
    """The authors' rule, recomputed with SciPy for every unfolding it is applied to."""

    def count(A, eps):
        diagonal = abs(scipy.linalg.qr(A.numpy(), mode="r", pivoting=True)[0].diagonal())
        return int((diagonal > eps * diagonal[0]).sum())

    W = weights((7, 5, 4))
    other = 0
    for scale in ([1.0, 1.0, 1.0, 1.0], [1.0, 0.5, 0.1, 0.01]):
        A = W * torch.tensor(scale, dtype=torch.float64)
        for eps in (0.05, 0.2, 0.6):
            laf = LAF.from_weights(A, eps=eps, rule="pivoted-qr").ranks
            tucker = Tucker.from_weights(A, eps=eps, rule="pivoted-qr").ranks
            train = TensorTrain.from_weights(A, eps=eps, rule="pivoted-qr").ranks
            assert laf == (count(A.reshape(35, 4), eps),)
            assert tucker == tuple(count(unfold(A, n), eps) for n in range(3))
            assert train[0] == tucker[0]  # both cut the first unfolding
            other += sum(
                cls.from_weights(A, eps=eps).ranks != ranks
                for cls, ranks in ((LAF, laf), (Tucker, tucker), (TensorTrain, train))
            )
    assert other >= 3  # the two rules are not the same


@pytest.mark.parametrize("cls", FORMATS)
def test_the_rule_is_handed_on(cls):
    W = weights((7, 5, 4))
    assert cls.from_weights(W, eps=0.6).ranks != cls.from_weights(W, eps=0.6, rule="pivoted-qr").ranks


@pytest.mark.parametrize("eps", [0.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("cls", FORMATS)
def test_bad_tolerance(cls, eps):
    with pytest.raises(ValueError, match=r"eps must be in \(0, 1\]"):
        cls.from_weights(weights((5, 4, 3)), eps=eps)


@pytest.mark.parametrize("cls", [*FORMATS, Independent, Tied])
def test_bad_weights(cls):
    with pytest.raises(ValueError, match=r"W must have shape \(D_1, ..., T\).*got \(3,\)"):
        cls.from_weights(torch.ones(3))
    with pytest.raises(ValueError, match=r"at least one mode beside the tasks; got \(0, 3\)"):
        cls.from_weights(torch.ones(0, 3))
    with pytest.raises(ValueError, match="W must be finite"):
        cls.from_weights(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(TypeError, match=r"floating-point numbers; got torch.int64"):
        cls.from_weights(torch.ones(3, 2, dtype=torch.int64))


def test_bad_codes_and_scales():
    made = LAF.random((5, 4, 3), 2, generator=rng())
    with pytest.raises(ValueError, match=r"code must have shape \(2,\), one number per latent task; got \(3,\)"):
        made.add_task(torch.ones(3))
    with pytest.raises(ValueError, match="the code of a new one is 1; got"):
        Tied.random((5, 4, 3)).add_task(torch.tensor([2.0]))
    with pytest.raises(ValueError, match="fan_in must be at least 1; got 0"):
        LAF.random((5, 4, 3), 2, fan_in=0)
    with pytest.raises(ValueError, match="rule must be"):
        Tucker.from_weights(weights((5, 4, 3)), rule="qr")
