"""The group norm over six faces against torch's own in float64, and the kernels that it runs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cubediff.models.group_norm import cube_group_norm
from cubediff.planning.cuda_rules import cuda_autocast
from cubediff.planning.operations import OperationCounter

GROUPS, CHANNELS, EPS = 8, 32, 1e-5
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
RESULTS = ("output", "faces", "weight", "bias")
Norm = Callable[[Tensor, int, Tensor, Tensor, float], Tensor]


def torch_norm(faces: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """torch's group norm of the six faces side by side, (B, C, 6·H, W)."""
    tall = faces.unflatten(0, (-1, 6)).transpose(1, 2).flatten(2, 3).contiguous()
    normed = F.group_norm(tall, groups, weight, bias, eps)
    return normed.unflatten(2, (6, -1)).transpose(1, 2).flatten(0, 1)


def drawn(mean: float, memory_format: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Faces of two panoramas with a mean of their own in each channel, weight, bias, and the output's gradient."""
    generator = torch.Generator().manual_seed(int(mean))
    shapes = ((12, CHANNELS, 24, 24), (CHANNELS,), (CHANNELS,), (12, CHANNELS, 24, 24))
    faces, weight, bias, gradient = (torch.randn(shape, generator=generator) for shape in shapes)
    faces = faces + mean + torch.randn(12, CHANNELS, 1, 1, generator=generator) / 2
    faces, gradient = (each.to(dtype, memory_format=FORMATS[memory_format]) for each in (faces, gradient))
    return [faces, weight, bias, gradient]


def results(norm: Norm, faces: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
    """The norm's output, and the gradients of faces, weight and bias."""
    inputs = [each.detach().clone().requires_grad_() for each in (faces, weight, bias)]
    output = norm(inputs[0], GROUPS, inputs[1], inputs[2], EPS)
    output.backward(gradient)
    return [output.detach(), *(each.grad for each in inputs if each.grad is not None)]


def relative_errors(norm: Norm, tensors: Sequence[Tensor]) -> dict[str, float]:
    """The largest error of the output and of each gradient, relative to its largest value."""
    expected = results(torch_norm, *(tensor.double() for tensor in tensors))
    pairs = zip(RESULTS, results(norm, *tensors), expected, strict=True)
    return {name: ((ours - right).abs().max() / right.abs().max()).item() for name, ours, right in pairs}


@pytest.mark.parametrize("mean", [0, 30])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_output_and_gradients_equal_those_in_float64(mean: float, memory_format: str) -> None:
    tensors = drawn(mean, memory_format)
    errors = relative_errors(cube_group_norm, tensors)
    assert max(errors["output"], errors["faces"]) <= 2e-7, errors
    of_parameters = 2e-7 if memory_format == "channels_last" else 4e-7  # contiguous ones are summed by torch's kernel
    assert max(errors["weight"], errors["bias"]) <= of_parameters, errors
    if mean:  # which torch's own kernel does not achieve
        assert relative_errors(torch_norm, tensors)["output"] > 2e-7


COMPILED = """
import json, sys
import torch
from test_group_norm import FORMATS, drawn, relative_errors
from cubediff.models.group_norm import cube_group_norm
compiled = torch.compile(cube_group_norm, fullgraph=True)
cases = [(mean, memory_format) for mean in (0, 30) for memory_format in FORMATS]
json.dump({str(case): relative_errors(compiled, drawn(*case)) for case in cases}, sys.stdout)
"""


@pytest.mark.slow
def test_the_compiled_norm_is_one_graph_of_the_same_values() -> None:
    """In a separate process, since jaxtyping cannot check shapes inside compiled code."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == 4
    for each in errors.values():  # the compiler's own sums on a CPU are one addition after the other
        assert max(each["output"], each["faces"]) <= 1e-6, errors
        assert max(each.values()) <= 5e-6, errors


@pytest.mark.parametrize("mean", [0, 30])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_lose_no_more_than_torchs_norm(mean: float, memory_format: str, dtype: torch.dtype) -> None:
    tensors = drawn(mean, memory_format, dtype)
    expected = results(torch_norm, *(tensor.double() for tensor in tensors))
    ours, theirs = results(cube_group_norm, *tensors), results(torch_norm, *tensors)
    for mine, other, right in zip(ours[:2], theirs[:2], expected[:2], strict=True):
        assert mine.dtype is dtype
        assert (mine - right).square().mean() <= 1.05**2 * (other - right).square().mean()
    for mine, right in zip(ours[2:], expected[2:], strict=True):  # gradients of float32 parameters
        assert (mine - right).norm() <= 1e-4 * right.norm()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_format_stays(memory_format: str, dtype: torch.dtype) -> None:
    faces, weight, bias, gradient = drawn(0, memory_format, dtype)
    output, by_faces, *_ = results(cube_group_norm, faces, weight, bias, gradient)
    assert output.stride() == by_faces.stride() == faces.stride()
    flat = faces.flatten(2)  # as attention layers have it
    assert torch.equal(cube_group_norm(flat, GROUPS, weight, bias, EPS), output.flatten(2))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_computes_contiguous_float32_on_a_cpu(memory_format: str, dtype: torch.dtype) -> None:
    tensors = drawn(0, memory_format, dtype)
    with OperationCounter() as counter:
        results(cube_group_norm, *tensors)
    is_by_torch = memory_format == "contiguous" and dtype is torch.float32
    assert ("native_group_norm" in {one.name for one in counter.operations}) == is_by_torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides_are_taken(dtype: torch.dtype) -> None:
    faces, weight, bias, gradient = drawn(0, "contiguous", dtype)
    expected = results(cube_group_norm, faces, weight, bias, gradient)
    wide = torch.cat([faces, faces], 1)
    for strided in (
        faces.mT.contiguous().mT,
        wide[:, :CHANNELS],
        wide.to(memory_format=FORMATS["channels_last"])[:, :CHANNELS],
    ):
        inputs = strided.detach().requires_grad_()
        output = cube_group_norm(inputs, GROUPS, weight, bias, EPS)
        (by_faces,) = torch.autograd.grad(output, inputs, gradient.mT.contiguous().mT)
        assert torch.equal(output, expected[0])
        assert torch.equal(by_faces, expected[1])


@pytest.mark.parametrize("memory_format", FORMATS)
def test_no_activation_is_copied_or_cast_under_autocast(memory_format: str) -> None:
    tensors = drawn(0, memory_format, torch.bfloat16)
    faces = tensors[0]
    with cuda_autocast("bf16-mixed"), OperationCounter() as counter:
        results(cube_group_norm, *tensors)
    large = [one for one in counter.operations if faces.numel() in map(prod, one.shapes)]
    assert (large[0].kind, large[0].name) == ("copy", "clone")  # this test's own
    # Bytes that each kernel reads and writes of a value.
    assert [(one.name, round(one.bytes / faces.numel())) for one in large[1:]] == [
        *(("sum", 2), ("linalg_vector_norm", 2), ("addcmul", 4)),
        *(("addcmul", 8), ("sum", 2), ("sum", 4), ("addcmul", 6), ("addcmul", 8)),
    ]
