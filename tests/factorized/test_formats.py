"""Every format against its formula, exactness at full rank, and what changing or adding a task does."""

import copy
from math import prod

import numpy as np
import pytest
import tensorly
import torch

from companion.factorized import LAF, ChainSizes, Independent, TensorRing, TensorTrain, Tied, Tucker
from companion.factorized.core_chains import fold_cores, fold_shapes
from companion.tensors import hosvd, ring_to_tensor, tucker_to_tensor

FORMATS = [LAF, Tucker, TensorTrain, TensorRing, Independent]
SHAPES = [(5, 4, 3), (3, 2, 4, 6, 5), (7, 3), (6, 1, 2)]  # fully connected, convolution, a matrix, one output


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=rng(seed))


def entries(format_):
    """Composed entry by entry, from the formula of each format."""
    if isinstance(format_, LAF):
        return torch.einsum("k...,kt->...t", format_.L, format_.S)
    if isinstance(format_, Tucker):
        factors = [
            torch.eye(n) if U is None else U for n, U in zip(format_.core.shape[1:], format_.factors, strict=True)
        ]
        factors = [U.to(format_.core) for U in factors]
        return tucker_to_tensor(format_.core.movedim(0, -1), [*factors, format_.S.T])
    cores = [core.reshape(core.shape[0], -1, core.shape[-1]) for core in format_.cores]
    return ring_to_tensor([*cores, format_.S.transpose(1, 2)]).reshape(format_.shape)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cls", FORMATS)
def test_full_rank_is_exact(cls, shape, fold):
    W = weights(shape)
    made = cls.from_weights(W, ranks=1.0, fold=fold)
    torch.testing.assert_close(made.compose(), W, rtol=0, atol=1e-10)
    assert made.shape == shape and made.n_tasks == shape[-1]
    balanced = cls.from_weights(W, ranks=1.0, fold=fold, balance=True)
    torch.testing.assert_close(balanced.compose(), W, rtol=0, atol=1e-10)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("ranks", [1.0, 0.5, 2])
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
@pytest.mark.parametrize("cls", [LAF, Tucker, TensorTrain, TensorRing])
def test_compose_is_the_formula_and_its_gradient(cls, shape, ranks, fold):
    made = cls.random(shape, ranks, generator=rng(1), fold=fold).double()
    expected = entries(made)
    torch.testing.assert_close(made.compose(), expected, rtol=0, atol=1e-12)
    basis_and_codes = torch.einsum("k...,kt->...t", made.basis(), made.task_factor())
    torch.testing.assert_close(basis_and_codes, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(made.squared_norm(), expected.square().sum(), rtol=1e-12, atol=0)
    direction = weights(shape, 2)
    found = torch.autograd.grad((made.compose() * direction).sum(), list(made.parameters()))
    wanted = torch.autograd.grad((expected * direction).sum(), list(made.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cls", [LAF, Tucker, TensorTrain, TensorRing, Independent])
def test_gradcheck(cls):
    made = cls.random((4, 3, 2), 0.5, generator=rng(1)).double()
    names, values = zip(*made.named_parameters(), strict=True)

    def compose(*parameters):
        return torch.func.functional_call(
            _Composed(made), {f"inner.{n}": p for n, p in zip(names, parameters, strict=True)}, ()
        )

    assert torch.autograd.gradcheck(compose, tuple(v.detach().requires_grad_() for v in values))


class _Composed(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self):
        return self.inner.compose()


def test_tied_is_the_mean_for_all():
    W = weights((5, 4, 3))
    made = Tied.from_weights(W)
    torch.testing.assert_close(made.compose(), W.mean(-1, keepdim=True).expand(5, 4, 3))
    assert made.n_parameters == 20 and made.ranks == (1,)
    torch.testing.assert_close(made.task_factor(), torch.ones(1, 3, dtype=torch.float64))
    assert made.compose().untyped_storage().nbytes() == 20 * 8  # a view


def test_independent_holds_what_it_is_given():
    W = weights((5, 4, 3))
    made = Independent.from_weights(W)
    assert torch.equal(made.compose(), W) and torch.equal(made.task_factor(), torch.eye(3, dtype=torch.float64))
    with torch.no_grad():
        made.weight.mul_(2)
    assert torch.equal(made.compose(), 2 * W) and torch.equal(W, weights((5, 4, 3)))  # it holds a copy


@pytest.mark.parametrize("cls", [LAF, TensorTrain])
def test_singular_values_are_on_the_side_of_the_tasks(cls):
    W = weights((5, 4, 3))
    made = cls.from_weights(W, ranks=1.0, fold=False)
    s = torch.linalg.svdvals(W.reshape(20, 3))
    torch.testing.assert_close(made.task_factor().norm(dim=1), s, rtol=0, atol=1e-10)
    basis = made.basis().flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-10)


def test_singular_values_are_in_the_core_of_tucker():
    W = weights((5, 4, 3))
    made = Tucker.from_weights(W, ranks=1.0, fold=False)
    S = made.task_factor()
    torch.testing.assert_close(S @ S.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-10)
    s = torch.linalg.svdvals(W.reshape(20, 3))
    torch.testing.assert_close(made.core.flatten(1).norm(dim=1), s, rtol=0, atol=1e-10)
    # Up to signs it is LAF's right singular vectors.
    V = LAF.from_weights(W, ranks=1.0).task_factor() / s[:, None]
    torch.testing.assert_close(S.abs(), V.abs(), rtol=0, atol=1e-10)


def test_full_other_ranks_leave_laf():
    """Tucker and the train with only the task rank cut are the truncated SVD of LAF."""
    W = weights((5, 4, 3))
    laf = LAF.from_weights(W, ranks=2).compose()
    torch.testing.assert_close(Tucker.from_weights(W, ranks=(5, 4, 2)).compose(), laf, rtol=0, atol=1e-10)
    torch.testing.assert_close(TensorTrain.from_weights(W, ranks=(5, 2)).compose(), laf, rtol=0, atol=1e-10)


def test_tucker_of_low_rank_is_the_hosvd():
    W = weights((5, 4, 3))
    core, factors = hosvd(W, ranks=(3, 4, 2))
    for fold in (True, False):
        made = Tucker.from_weights(W, ranks=(3, 4, 2), fold=fold)
        torch.testing.assert_close(made.compose(), tucker_to_tensor(core, factors), rtol=0, atol=1e-10)
        assert made.folded == ((1,) if fold else ())


def test_train_of_low_rank_is_that_of_tensorly():
    W = weights((3, 2, 4, 6, 5))
    ranks = (3, 4, 7, 3)
    expected = tensorly.decomposition.tensor_train(W.numpy(), [1, *ranks, 1]).to_tensor()
    for fold in (True, False):
        made = TensorTrain.from_weights(W, ranks=ranks, fold=fold)
        np.testing.assert_allclose(made.compose().detach().numpy(), expected, atol=1e-10)
        assert made.ranks == ranks and made.folded == ((0,) if fold else ())


@pytest.mark.parametrize("cls", [TensorTrain, TensorRing])
def test_folding_cores_keeps_the_tensor_and_saves_parameters(cls):
    made = cls.from_weights(weights((3, 2, 4, 6, 5)), ranks=0.5, fold=False)
    folded = cls([core.detach() for core in fold_cores(made.cores)], made.S.detach().transpose(1, 2))
    torch.testing.assert_close(folded.compose(), made.compose(), rtol=0, atol=1e-10)
    assert folded.ranks == made.ranks or folded.n_parameters < made.n_parameters
    assert [tuple(core.shape) for core in folded.cores] == fold_shapes([tuple(core.shape) for core in made.cores])
    for core, following in zip(folded.cores, folded.cores[1:], strict=False):  # no full bond is left
        r = core.shape[-1]
        assert r < core.numel() // r and r < following.numel() // r


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
@pytest.mark.parametrize("cls", [LAF, Tucker, TensorTrain, TensorRing])
def test_balancing_keeps_the_weights_and_makes_factors_of_one_size(cls, shape):
    made = cls.from_weights(weights(shape), ranks=0.5, fold=False)
    before, scales = made.compose().detach(), [p.detach().square().mean().sqrt() for p in made.parameters()]
    assert max(scales) / min(scales) > 1.5
    made.balance_()
    scales = [float(p.detach().square().mean().sqrt()) for p in made.parameters()]
    assert max(scales) / min(scales) == pytest.approx(1, abs=1e-10)
    torch.testing.assert_close(made.compose(), before, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cls", [LAF, Tucker, TensorTrain, TensorRing])
def test_balancing_on_request(cls):
    def spread(made):
        scales = [float(p.detach().square().mean().sqrt()) for p in made.parameters()]
        return max(scales) / min(scales)

    W = weights((5, 4, 3))
    for make in (
        lambda balance: cls.from_weights(W, ranks=0.5, balance=balance),
        lambda balance: cls.random((50, 40, 30), 0.5, generator=rng(2), balance=balance),
    ):
        assert spread(make(True)) < 1 + 1e-5 and spread(make(False)) > 1.2


def test_balancing_leaves_zero_weights_alone():
    made = LAF.from_weights(torch.zeros(4, 3, 2, dtype=torch.float64), ranks=1, balance=True)
    assert torch.equal(made.compose(), torch.zeros(4, 3, 2, dtype=torch.float64))


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("ranks", [1.0, 0.4, 2])
@pytest.mark.parametrize("shape", [(40, 30, 6), (3, 2, 11, 13, 6)], ids=str)
@pytest.mark.parametrize("cls", [LAF, Tucker, TensorTrain, TensorRing])
def test_random_weights_have_the_scale_of_a_plain_layer(cls, shape, ranks, balance):
    made = cls.random(shape, ranks, generator=rng(3), balance=balance)
    fan_in = prod(shape[:-2])
    assert made.compose().square().mean().item() == pytest.approx(1 / (3 * fan_in), rel=1e-4)
    torch.testing.assert_close(made.compose(), cls.random(shape, ranks, generator=rng(3), balance=balance).compose())
    assert not torch.equal(made.compose(), cls.random(shape, ranks, generator=rng(4), balance=balance).compose())
    wider = cls.random(shape, ranks, fan_in=5, generator=rng(3), balance=balance)
    assert wider.compose().square().mean().item() == pytest.approx(1 / 15, rel=1e-4)
    lengths = made.task_factor().norm(dim=0)  # every task begins alike
    torch.testing.assert_close(lengths, lengths.mean().expand(6), rtol=1e-4, atol=0)


@pytest.mark.parametrize("cls", [Independent, Tied])
def test_the_ends_begin_as_plain_layers(cls):
    W = cls.random((40, 30, 6), generator=rng(5)).compose().detach()
    assert W.square().mean().item() == pytest.approx(1 / 120, rel=0.1) and W.abs().max() <= 40**-0.5
    assert cls.random((40, 30, 6), fan_in=4, generator=rng(5)).compose().abs().max() > 40**-0.5


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("cls", [LAF, Tucker, TensorTrain, TensorRing, Independent, Tied])
def test_a_new_task_leaves_the_others_alone(cls, fold):
    made = cls.random((5, 4, 3), 0.5, generator=rng(6), fold=fold).double()
    before, sizes = made.compose().detach(), {name: p.numel() for name, p in made.named_parameters()}
    assert made.add_task() == 3 and made.shape == (5, 4, 4)
    after = made.compose().detach()
    torch.testing.assert_close(after[..., :3], before, rtol=0, atol=1e-14)
    torch.testing.assert_close(after[..., 3], before.mean(-1), rtol=0, atol=1e-12)
    grown = {name for name, p in made.named_parameters() if p.numel() > sizes[name]}
    assert grown == ({"weight"} if cls is Independent else set() if cls is Tied else {"S"})
    if cls is not Tied:
        basis = made.basis().detach()
        code = torch.arange(1.0, len(basis) + 1, dtype=torch.float64)
        assert made.add_task(code) == 4
        torch.testing.assert_close(made.compose()[..., 4], torch.tensordot(code, basis, 1), rtol=0, atol=1e-12)
        assert all(isinstance(p, torch.nn.Parameter) for p in made.parameters())


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("shape", [(5, 4, 3), (3, 4, 6, 5), (3, 2, 4, 6, 5)], ids=str)
@pytest.mark.parametrize("cls", [*FORMATS, Tied])
def test_the_maps_of_every_chain_make_the_weights(cls, shape, fold):
    """Products of left, middle and right, contracted as their shapes say, of the sizes that were told beforehand."""
    seen = set()
    for ranks in (1.0, 0.5, 0.25):
        made = cls.random(shape, ranks, generator=rng(1), fold=fold).double()
        for sizes in made.chains():
            left, middle, right = made.chain(sizes)
            W = left.expand(made.n_tasks, *left.shape) if middle is None else middle
            if middle is not None:
                assert middle.shape[-2:] == (sizes.inner, sizes.outer)
                if sizes.left == "channels":
                    W = torch.einsum("ck,t...ko->t...co", left, middle)
                elif sizes.left == "kernel and channels":
                    W = torch.einsum("...k,tko->t...o", left, middle)
                elif sizes.left == "first kernel axis":
                    by_channel = middle.squeeze(1).unflatten(-2, (-1, shape[-3]))  # (T, ..., K, C, M)
                    W = torch.einsum("hk,t...kco->th...co", left, by_channel)
            assert (right is not None) == sizes.right and (middle is not None) == sizes.middle
            taken = {"kernel and channels": shape[:-3], "first kernel axis": shape[:1]}.get(sizes.left, ())
            assert sizes.taps == prod(taken)
            W = W if right is None else W @ right
            torch.testing.assert_close(W.movedim(0, -1), made.compose(), rtol=0, atol=1e-12)
            seen.add(sizes.left)
    if cls in (LAF, Independent):
        assert not seen
        with pytest.raises(ValueError, match=f"{cls.__name__} has no factors that activations could go through"):
            made.chain(ChainSizes(None, 1, 1))


def test_a_code_of_a_ring_has_two_ranks():
    made = TensorRing.random((6, 4, 3), (2, 3, 4), generator=rng(6)).double()
    basis = made.basis().detach()
    assert len(basis) == 8
    made.add_task(torch.arange(8.0, dtype=torch.float64))
    expected = torch.tensordot(torch.arange(8.0, dtype=torch.float64), basis, 1)
    torch.testing.assert_close(made.compose()[..., 3], expected, rtol=0, atol=1e-12)


def test_a_ring_never_begins_at_the_tasks():
    """The two ranks of the mode where it begins multiply to its size: of inputs, though there are more tasks."""
    made = TensorRing.from_weights(weights((4, 3, 9)), ranks=1.0)
    assert made.ranks[0] * made.ranks[1] == 4
    torch.testing.assert_close(made.compose(), weights((4, 3, 9)), rtol=0, atol=1e-10)


def test_state_dict_and_copies():
    for cls in (LAF, Tucker, TensorTrain, TensorRing, Independent, Tied):
        made = cls.random((5, 4, 3), 0.5, generator=rng(7))
        other = cls.random((5, 4, 3), 0.5, generator=rng(8))
        other.load_state_dict(made.state_dict())
        assert torch.equal(other.compose(), made.compose())
        assert torch.equal(copy.deepcopy(made).compose(), made.compose())


@pytest.mark.parametrize("cls", FORMATS)
def test_one_task_works(cls):
    W = weights((5, 4, 1))
    torch.testing.assert_close(cls.from_weights(W, ranks=1.0).compose(), W, rtol=0, atol=1e-10)
    torch.testing.assert_close(cls.from_weights(W, eps=1e-9).compose(), W, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_weights(dtype):
    for cls in FORMATS:
        made = cls.from_weights(weights((5, 4, 3)).to(dtype), eps=0.1)
        assert {p.dtype for p in made.parameters()} == {dtype} and made.compose().dtype == dtype
    assert LAF.from_weights(weights((5, 4, 3)).numpy(), eps=0.1).L.dtype == torch.float64


def test_the_memory_of_composed_weights_has_the_tasks_in_front():
    for cls in (LAF, Tucker, TensorTrain, Independent):
        assert cls.random((5, 4, 3), 1.0, generator=rng()).compose().movedim(-1, 0).is_contiguous()


def test_cores_that_do_not_fit_are_refused():
    a, b, S = torch.ones(1, 5, 2), torch.ones(3, 4, 2), torch.ones(2, 3, 1)
    with pytest.raises(ValueError, match="must agree in the rank between them"):
        TensorTrain([a, b], S)
    with pytest.raises(ValueError, match="must close the ring with rank 1"):
        TensorTrain([a, torch.ones(2, 4, 2)], torch.ones(2, 3, 2))
