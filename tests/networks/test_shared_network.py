"""Inputs in every form, heads of different sizes, exported networks, files, new tasks, what is shared."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from companion.factorized import LAF, Independent, TensorTrain, Tied, Tucker
from companion.networks import share
from companion.networks.shared_network import SharedNetwork
from companion.sharing import sharing_strength, task_similarity
from tests.oracles.networks import TEMPLATES, Written, conv1d, convnet, mixed, mlp

T, B = 3, 5
CASES = [pytest.param(make, shape, id=make.__name__) for make, shape in TEMPLATES.items()]


@pytest.fixture(autouse=True)
def seeded():
    """The templates draw their weights from torch's own generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def inputs(make, *lead):
    return torch.randn(*lead, *TEMPLATES[make], dtype=torch.float64)


def network(make, by=Tucker, ranks=0.5, **more):
    return share(make().double(), T, by=by, ranks=ranks, generator=torch.Generator().manual_seed(1), **more)


# --- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_shared_stacked_and_listed_inputs_agree(make, shape):
    made, x = network(make).eval(), inputs(make, B)
    shared = made(x)
    torch.testing.assert_close(made(torch.stack([x] * T)), shared, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.stack(made([x] * T)), shared, rtol=0, atol=1e-12)
    assert isinstance(shared, torch.Tensor) and isinstance(made([x] * T), list)


@pytest.mark.parametrize(
    ("make", "ndim"),
    [(mlp, 1), (convnet, 3), (conv1d, 2), (Written, 3), (mixed, 3)],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_the_layers_tell_how_many_axes_a_sample_has(make, ndim):
    assert network(make).sample_ndim == ndim


def test_other_beginnings():
    linear = nn.Linear(12, 2)
    for first, ndim in (
        (nn.ReLU(), 1),
        (nn.Dropout(), 1),
        (nn.AvgPool2d(2), 3),
        (nn.MaxPool1d(2), 2),
        (nn.BatchNorm2d(3), 3),
        (nn.Flatten(), None),
        (nn.LayerNorm(3), None),
        (nn.BatchNorm1d(3), None),
    ):
        assert share(nn.Sequential(first, linear), T, by=Independent).sample_ndim == ndim, first


def test_a_network_that_begins_with_flatten_is_told():
    template = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    made = share(template, T, by=Independent)
    x = torch.randn(T, B, 1, 3, 4)
    with pytest.raises(ValueError, match=r"does not tell how many axes a sample has.*sample_ndim=3"):
        made(x)
    assert made(list(x))[0].shape == (B, 2)  # a list says it by itself
    told = share(template, T, by=Independent, sample_ndim=3)
    assert told(x).shape == told(x[0]).shape == (T, B, 2)
    torch.testing.assert_close(told(x)[1], told.export(1)(x[1]))


def test_inputs_of_wrong_form_are_refused():
    made = network(convnet)
    message = r"x must be \(B, ·, ·, ·\) shared by all tasks, \(T, B, ·, ·, ·\) stacked with T=3, or a list"
    for shape in ((B, 2, 8), (T + 1, B, 2, 8, 8), (1, T, B, 2, 8, 8)):
        with pytest.raises(ValueError, match=message):
            made(torch.zeros(shape, dtype=torch.float64))
    x = inputs(convnet, B)
    with pytest.raises(ValueError, match="one tensor for each of 3 tasks; got 2"):
        made([x, x])
    with pytest.raises(ValueError, match=r"must have one shape; got \[\(2, 8, 7\), \(2, 8, 8\)\]"):
        made([x, x, x[..., :7]])


def test_padding_is_for_little_raggedness(monkeypatch):
    """Padded where rows do not see each other and few are added, one by one elsewhere."""
    ways = []
    for name in ("_run_padded", "_run_one"):
        original = getattr(SharedNetwork, name)
        monkeypatch.setattr(SharedNetwork, name, lambda *a, o=original, n=name: ways.append(n) or o(*a))

    def way(make, counts, training):
        ways.clear()
        network(make).train(training)([inputs(make, n) for n in counts])
        return set(ways)

    assert way(mlp, (4, 5, 3), True) == {"_run_padded"}
    assert way(mlp, (2, 11, 3), True) == {"_run_one"}  # more than half would be padding
    assert way(mlp, (4, 4, 4), True) == set()
    assert way(convnet, (4, 5, 3), True) == {"_run_one"}  # batch statistics
    assert way(convnet, (4, 5, 3), False) == {"_run_padded"}
    assert way(Written, (4, 5, 3), False) == {"_run_one"}  # whatever its code does


# --- heads ------------------------------------------------------------------------------------------------------------

SIZES = (2, 4, 3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("make", "shape"), CASES)
def test_heads_of_different_sizes(make, shape, training):
    made = network(make, heads=SIZES).train(training)
    last = [name for name, module in make().named_modules() if isinstance(module, nn.Linear)][-1]
    assert last not in made.layers and made.heads.sizes == SIZES
    for module in (*made.modules(), *made._template[0].modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plain = [made.export(t) for t in range(T)]
    x = inputs(make, T, B).requires_grad_()
    expected, found = [one(x_t) for one, x_t in zip(plain, x, strict=True)], made(x)
    for one, other, size in zip(found, expected, SIZES, strict=True):
        assert one.shape == (B, size)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    gradients = [torch.autograd.grad(sum(y.square().sum() for y in ys), x)[0] for ys in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)
    ragged = made.eval()([x[0], x[1, :2], x[2, :4]])
    assert [tuple(y.shape) for y in ragged] == [(B, 2), (2, 4), (4, 3)]
    torch.testing.assert_close(ragged[1], made.export(1)(x[1, :2]), rtol=0, atol=1e-11)


def test_heads_of_models_are_kept():
    trained = [nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, size)).double() for size in SIZES]
    made = share(trained[0], T, by=LAF, ranks=1.0, from_models=trained, heads=SIZES)
    x = torch.randn(T, B, 6, dtype=torch.float64)
    for found, model, x_t in zip(made(x), trained, x, strict=True):
        torch.testing.assert_close(found, model(x_t), rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match=r"must have weight \(2, 8\), .*got \(4, 8\).*take heads="):
        share(trained[0], T, by=LAF, from_models=trained)
    with pytest.raises(ValueError, match=r"from_models\[1\]: layer '2' must have weight \(5, 8\).*got \(4, 8\)"):
        share(trained[0], T, by=LAF, from_models=trained, heads=(2, 5, 3))


def test_a_head_inside_a_chain_is_run_for_every_task():
    """LogSoftmax after the head: one by one, equal to the exported networks."""
    template = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2), nn.LogSoftmax(dim=1)).double()
    made = share(template, T, by=LAF, ranks=2, heads=SIZES)
    x = torch.randn(T, B, 6, dtype=torch.float64)
    for t, found in enumerate(made(x)):
        torch.testing.assert_close(found.exp().sum(1), torch.ones(B, dtype=torch.float64))
        torch.testing.assert_close(found, made.export(t)(x[t]), rtol=0, atol=1e-12)


def test_heads_need_a_linear_layer():
    with pytest.raises(ValueError, match="heads take the place of the last Linear layer; the template has none"):
        share(nn.Sequential(nn.Conv1d(2, 3, 2)), T, by=LAF, ranks=2, heads=SIZES)
    with pytest.raises(ValueError, match="a template of one layer has nothing to share"):
        share(nn.Linear(3, 2), T, by=LAF, ranks=2, heads=SIZES)


# --- exported networks and files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_exported_networks_are_plain_and_traceable(make, shape):
    made = network(make).eval()
    for t in (0, 2):
        one, x = made.export(t), inputs(make, B)
        assert type(one) is make or type(one) is type(make())
        assert not any(type(module).__module__.startswith("companion") for module in one.modules())
        assert [tuple(p.shape) for p in one.parameters()] == [tuple(p.shape) for p in make().parameters()]
        torch.testing.assert_close(one(x), made(x)[t], rtol=0, atol=1e-12)
        traced = torch.export.export(one, (x,)).module()
        torch.testing.assert_close(traced(x), made(x)[t], rtol=0, atol=1e-12)
    with torch.no_grad():
        next(one.parameters()).add_(1)
    torch.testing.assert_close(made.export(2)(x), made(x)[2], rtol=0, atol=1e-12)  # a copy
    for t in (3, -1):
        with pytest.raises(ValueError, match=f"task must be from 0 to 2; got {t}"):
            made.export(t)


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_state_dicts_and_files_bring_everything_back(make, shape, tmp_path):
    for heads in (None, SIZES):
        made, x = network(make, heads=heads), inputs(make, T, B)
        made(x)  # running statistics
        made.eval()
        wanted = made(x)
        by_state, by_file = (network(make, heads=heads) for _ in range(2))
        with torch.no_grad():
            for other in (by_state, by_file):
                for p in other.parameters():
                    p.add_(1)
        by_state.load_state_dict(made.state_dict())
        made.save(tmp_path / "deep" / "weights.safetensors")
        by_file.load(tmp_path / "deep" / "weights.safetensors")
        for other in (by_state.eval(), by_file.eval(), copy.deepcopy(made)):
            for one, two in zip(other(x), wanted, strict=True):
                assert torch.equal(one, two)
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["weights.safetensors"]


def refuses(made, path, message, error=ValueError):
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(error, match=message):
        made.load(path)
    for key, value in made.state_dict().items():
        assert torch.equal(value, before[key])


def test_files_of_other_networks_are_refused(tmp_path):
    path, made = tmp_path / "weights.safetensors", network(mlp)
    refuses(made, path, "does not exist; SharedNetwork.save writes it", FileNotFoundError)
    network(mlp, TensorTrain).save(path)
    refuses(made, path, r"holds another network: 0 should be Tucker\(.*, the file has TensorTrain\(")
    network(mlp, ranks=0.9).save(path)
    refuses(made, path, r"holds another network: 0 should be Tucker\(shape=\(6, 8, 3\), ranks=\(3, 4, 2\)")
    share(mlp().double(), 4, by=Tucker, ranks=0.5).save(path)
    refuses(made, path, "holds another network: tasks should be 3, the file has 4")
    network(mlp, heads=SIZES).save(path)
    refuses(made, path, "holds another network: heads should be None, the file has TaskHeads")
    network(mlp).float().save(path)
    refuses(made, path, r"holds other tensors: .* torch.float64, the file has .* torch.float32")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path, made = tmp_path / "weights.safetensors", network(mlp)
    made.save(path)
    whole = path.read_bytes()
    for cut in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refuses(made, path, "is not a complete safetensors file")
    save_file({"a": torch.ones(2)}, path)
    refuses(made, path, "was not written by SharedNetwork.save: its format is None")
    torch.save(made.state_dict(), path)
    refuses(made, path, "is not a complete safetensors file")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path, made = tmp_path / "weights.safetensors", network(mlp)
    made.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("companion.networks.weights_file.save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# --- new tasks and what is shared -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_a_new_task_leaves_the_others_alone(make, shape):
    made, x = network(make).eval(), inputs(make, B)
    before, sizes = made(x), {name: p.numel() for name, p in made.named_parameters()}
    assert made.add_task() == T and made.n_tasks == T + 1
    after = made(x)
    torch.testing.assert_close(after[:T], before, rtol=0, atol=1e-12)
    torch.testing.assert_close(made.export(T)(x), after[T], rtol=0, atol=1e-12)
    grown = {name.split(".")[-1] for name, p in made.named_parameters() if p.numel() > sizes[name]}
    assert grown <= {"S", "bias", "weight"}  # codes, biases, and what normalises
    made.train()(inputs(make, T + 1, B)).square().sum().backward()
    with pytest.raises(ValueError, match=r"add_task\(\) needs no n_outputs"):
        made.add_task(3)


def test_a_new_task_with_a_head():
    made = network(mlp, heads=SIZES)
    assert made.add_task(n_outputs=6) == T
    assert [y.shape[1] for y in made(inputs(mlp, B))] == [*SIZES, 6]
    with pytest.raises(ValueError, match=r"add_task\(\) needs n_outputs, the size of its head; got None"):
        made.add_task()


def test_sharing_of_every_layer():
    made = network(mlp, {"0": LAF, "2": Tied})
    for normalized in (True, False):
        found = made.sharing_strength(normalized)
        assert list(found) == ["0", "2", "4"]
        assert found["0"] == pytest.approx(sharing_strength(made.layers["0"].weight.S, normalized))
        assert found["2"] == pytest.approx(1)
    assert found["4"] == pytest.approx(0)
    similarity = made.task_similarity()
    W = made.layers["0"].task_weights().detach().flatten(1).T
    np.testing.assert_allclose(similarity["0"], task_similarity(W), atol=1e-12)
    np.testing.assert_allclose(similarity["2"], np.ones((T, T)), atol=1e-12)


def test_summary_counts_parameters():
    text = network(mlp, {"0": LAF, "2": Tied}, heads=SIZES).summary()
    lines = [line.split() for line in text.splitlines()]
    assert len(lines) == 4 and lines[0][:2] == ["layer", "format"]
    assert lines[1][:2] == ["0", "LAF"] and lines[1][-2:] == ["102", "144"]  # 2 * (48 + 3) and 3 * 48
    assert lines[2][:2] == ["2", "Tied"] and lines[2][-2:] == ["40", "120"]
    assert lines[3][:2] == ["4", "heads"] and lines[3][-2:] == ["45", "45"]
