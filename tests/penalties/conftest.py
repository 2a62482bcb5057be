"""Where and in which type the tests of the penalties run: everywhere they can, unless the environment says."""

import os

import pytest
import torch

DEVICE = os.environ.get("COMPANION_TEST_DEVICE", "cpu")
DTYPES = os.environ.get("COMPANION_TEST_DTYPE", "float64 float32").split()


@pytest.fixture(params=DTYPES)
def dtype(request):
    return getattr(torch, request.param)


@pytest.fixture
def tol(dtype):
    """What rounding may cost, relative to the size of the numbers."""
    return 1e-8 if dtype == torch.float64 else 1e-4


@pytest.fixture
def draw(dtype):
    """Return normal random tensors of any shape, the same for the same seed on every device."""

    def normal(*shape, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(device=DEVICE, dtype=dtype)

    return normal
