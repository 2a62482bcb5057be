"""Networks of many tasks on an accelerator: the same numbers as on the CPU, on the device of the inputs."""

import copy

import pytest
import torch

from companion.factorized import LAF, Independent, TensorRing, TensorTrain, Tucker
from companion.networks import share
from tests.oracles.networks import TEMPLATES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
T, B = 3, 5
CASES = [pytest.param(make, shape, id=make.__name__) for make, shape in TEMPLATES.items()]


@pytest.mark.parametrize("cls", [LAF, Tucker, TensorTrain, TensorRing, Independent])
@pytest.mark.parametrize(("make", "shape"), CASES)
def test_outputs_and_gradients_are_those_of_the_cpu(make, shape, cls):
    rng = torch.Generator().manual_seed(0)
    here = share(make().double(), T, by=cls, ranks=0.5, generator=rng).eval()
    there = copy.deepcopy(here).to("cuda")
    x = torch.randn(T, B, *shape, dtype=torch.float64, generator=rng)
    for network in (here, there):
        for inputs in (x, x[0], [x[0], x[1, :2], x[2, :4]]):
            on_device = [i.to(next(network.parameters())) for i in inputs] if isinstance(inputs, list) else None
            outputs = network(inputs.to(next(network.parameters())) if on_device is None else on_device)
            parts = outputs if isinstance(outputs, list) else [outputs]
            sum(part.square().sum() for part in parts).backward()
            assert all(part.device == next(network.parameters()).device for part in parts)
    for one, other in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(other.grad.cpu(), one.grad, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_exported_networks_and_files_do_not_care_about_the_device(make, shape, tmp_path):
    there = share(make().double(), T, by=Tucker, ranks=0.5).eval().to("cuda")
    x = torch.randn(B, *shape, dtype=torch.float64, device="cuda")
    torch.testing.assert_close(there.export(1)(x), there(x)[1], rtol=0, atol=1e-10)
    there.save(tmp_path / "weights.safetensors")
    here = share(make().double(), T, by=Tucker, ranks=0.5).eval()
    here.load(tmp_path / "weights.safetensors")
    torch.testing.assert_close(here(x.cpu()), there(x).cpu(), rtol=0, atol=1e-10)
