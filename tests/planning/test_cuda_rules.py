"""The rules of CUDA that counted steps follow, against torch's own header and against convolutions and norms."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cubediff.planning.cuda_rules import FLOAT32, FLOAT32_RESULT, CudaFormats, cuda_autocast, is_channels_last
from cubediff.planning.operations import OperationCounter

HEADER = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
CHANNELS_LAST = torch.channels_last


def listed(macro: str) -> set[str]:
    """The operators of a macro AT_FORALL_… of the header, with their overloads."""
    (body,) = re.findall(rf"#define {macro}\(_\)((?:.*\\\n)*.*)\n", HEADER.read_text(encoding="utf-8"))
    return {".".join(words.split(", ")) for words in re.findall(r"_\((.*?)\)", body)}


def test_the_lists_are_those_of_torch() -> None:
    assert set(FLOAT32) == listed("AT_FORALL_FP32")
    assert set(FLOAT32_RESULT) == listed("AT_FORALL_FP32_SET_OPT_DTYPE")


def in_float32(x: Tensor) -> list[torch.dtype]:
    results = (
        *(F.group_norm(x, 2), F.layer_norm(x, x.shape[1:]), F.interpolate(x, scale_factor=2), x.exp(), x.softmax(1)),
        *(x.sum(), x.sum(1), F.mse_loss(x, x), x.pow(2), x.rsqrt()),
    )
    return [result.dtype for result in results]


def test_norms_exponentials_sums_and_resizing_are_in_float32_and_products_are_not() -> None:
    x, low = torch.ones(2, 4, 8, 8, dtype=torch.bfloat16), torch.bfloat16
    with cuda_autocast("bf16-mixed"):
        assert set(in_float32(x)) == {torch.float32}
        y = torch.ones(2, 4, 8, 8)
        products = (F.conv2d(y, torch.ones(4, 4, 1, 1)), F.linear(y, torch.ones(8, 8)), y @ y, torch.bmm(y[0], y[1]))
        assert {each.dtype for each in products} == {low}
        assert F.scaled_dot_product_attention(y, y, y).dtype == low
        assert x.sum(dtype=torch.float64).dtype == torch.float64
        assert torch.ones(2, dtype=torch.long).sum().dtype == torch.long
        with torch.autocast("cpu", enabled=False):
            assert set(in_float32(x)) == {low}
            assert (y @ y).dtype == torch.float32
    assert x.exp().dtype == low
    with torch.autocast("cpu", low):  # the rules are gone
        assert F.group_norm(x, 2).dtype == low
    with cuda_autocast("32-true"):
        assert F.conv2d(y, torch.ones(4, 4, 1, 1)).dtype == torch.float32


def test_gradients_pass_the_rules() -> None:
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with cuda_autocast("bf16-mixed"):
        F.group_norm(F.conv2d(x, torch.ones(4, 4, 1, 1)), 2).exp().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_a_group_norm_reads_and_returns_a_contiguous_tensor() -> None:
    x = torch.randn(2, 4, 8, 8).to(memory_format=CHANNELS_LAST).requires_grad_()
    counter = OperationCounter()
    with counter, CudaFormats():
        normed = F.group_norm(x, 2)
        counter.in_backward = True
        normed.backward(torch.ones_like(normed))
    assert normed.is_contiguous()
    assert torch.allclose(normed, F.group_norm(x, 2), atol=1e-6)
    assert [(one.phase, one.name) for one in counter.operations][:2] == [
        ("forward", "clone"), ("forward", "native_group_norm"),
    ]  # fmt: skip


@pytest.mark.parametrize("input_last", [False, True])
@pytest.mark.parametrize("weight_last", [False, True])
def test_a_convolution_is_in_channels_last_if_its_input_or_weight_is(input_last: bool, weight_last: bool) -> None:
    x, weight = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3)
    stored = x.to(memory_format=CHANNELS_LAST) if input_last else x
    kernel = weight.to(memory_format=CHANNELS_LAST) if weight_last else weight
    stored.requires_grad_()
    counter = OperationCounter()
    with counter, CudaFormats():
        y = F.conv2d(stored, kernel, padding=1)
        y.sum().backward()
    assert is_channels_last(y) == (input_last or weight_last)
    assert torch.allclose(y, F.conv2d(x, weight, padding=1), atol=1e-5)
    forward = [one.kind for one in counter.operations[: 2 + (input_last != weight_last)]]
    assert forward == [*["copy"] * (input_last != weight_last), "convolution", "elementwise"]  # then the sum
    assert stored.grad is not None
