"""GELU in its tanh form against the definition in float64."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_as_exact_as

from hyenadna.kernels.gelu import gelu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (0, 4), (1024, 33)])
def test_it_is_the_definition(shape, dtype):
    x = (4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    before = x.clone()
    exact = F.gelu(x.double(), approximate="tanh")
    assert gelu(x).dtype == dtype and gelu(x).shape == shape
    if x.numel():
        assert_as_exact_as(gelu(x), F.gelu(x, approximate="tanh"), exact)
    assert torch.equal(x, before)


def test_far_out_it_is_zero_or_its_input():
    x = torch.tensor([-1e30, -1e4, -20.0, -0.0, 0.0, 20.0, 1e4, 1e30])
    assert torch.equal(gelu(x), F.gelu(x, approximate="tanh"))


def test_a_strided_input_is_the_contiguous_one():
    x = torch.randn(6, 8).T
    torch.testing.assert_close(gelu(x), gelu(x.contiguous()), rtol=0, atol=0)
