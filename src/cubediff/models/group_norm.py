"""GroupNorm over the six faces of a panorama without copies, in any memory format.

`torch.nn.functional.group_norm` needs a panorama's faces next to each other, as (B, C, 6·H, W); on CUDA it needs them
stored contiguously, and autocast gives it a float32 copy. Here, sums over the pixels of each face and channel give the
statistics in float32, and one kernel applies them while it reads and writes the activations in their own dtype and
memory format. When compiled, the norm is plain arithmetic, which the compiler fuses with its neighbours. Contiguous
float32 on a CPU is left to torch.

Legend: B panoramas, N = B·6 faces, C channels, G groups of K = C / G channels, P pixels of a face.
"""

from collections.abc import Callable
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cubediff.geometry.conventions import FACES
from cubediff.models.backbone import no_autocast


def cube_group_norm(
    faces: Float[Tensor, "n c *space"], groups: int, weight: Float[Tensor, " c"], bias: Float[Tensor, " c"], eps: float
) -> Float[Tensor, "n c *space"]:
    """Normalizes each group of channels by its mean and variance over the six faces of a panorama.

    Args:
        faces: (B·6, C, …) in any memory format.
        groups: Number of groups of channels.
        weight, bias: Applied to each channel after it is normalized.
        eps: Added to the variance.

    Returns:
        In the dtype and memory format of `faces`, contiguous if that is neither contiguous nor channels_last;
        statistics and arithmetic are in float32 at least.
    """
    is_channels_last = faces.ndim == 4 and faces.is_contiguous(memory_format=torch.channels_last)
    if faces.ndim > 3 and not is_channels_last:
        faces = faces.contiguous()  # a view of its pixels in one dimension
    with no_autocast(faces.device):
        if torch.compiler.is_compiling():
            return _compiled(faces, groups, weight, bias, eps)
        if faces.device.type == "cpu" and faces.dtype is arithmetic_dtype(faces) and faces.is_contiguous():
            return _by_torch(faces, groups, weight, bias, eps)
        return _eager(faces, groups, weight, bias, eps)


def _by_torch(
    faces: Float[Tensor, "n c *space"], groups: int, weight: Tensor, bias: Tensor, eps: float
) -> Float[Tensor, "n c *space"]:
    """torch's norm of contiguous faces: on a CPU it is about twice as fast as `_Eager`, although it copies them.

    Values are shifted near zero first, because it loses precision where the mean is larger than the deviation.
    """
    x = _flat(faces)
    panoramas = (x - _near_mean(x, groups)).unflatten(0, (-1, len(FACES))).transpose(1, 2)  # (B, C, 6, P)
    normed = F.group_norm(panoramas, groups, weight, bias, eps)
    return normed.transpose(1, 2).reshape(x.shape).view(faces.shape)


class _Compiled(torch.autograd.Function):
    """The norm as arithmetic that a compiler fuses with its neighbours: each pass reads activations once.

    No size is B, which compiled code would be specialized to if it is 1. Statistics are (N, G), equal for the faces of
    a panorama.
    """

    @staticmethod
    def forward(
        ctx: Any, faces: Float[Tensor, "n c *space"], groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Float[Tensor, "n c *space"]:
        values = _in_groups(faces, groups)
        variances, means = torch.var_mean(values, (2, 3), correction=0)
        mean = _panorama_means(means)
        rstd = (_panorama_means(variances + (means - mean).square()) + eps).rsqrt()
        ctx.save_for_backward(faces, mean, rstd, weight)
        scale, offset = (parameter.to(values.dtype).view(groups, -1, 1) for parameter in (weight, bias))
        normed = (values - mean[:, :, None, None]) * rstd[:, :, None, None] * scale + offset
        return normed.to(faces.dtype).view(faces.shape)

    @staticmethod
    def backward(ctx: Any, by_result: Float[Tensor, "n c *space"]) -> tuple[Tensor | None, ...]:
        faces, mean, rstd, weight = ctx.saved_tensors
        values, gradient = (_in_groups(each, mean.shape[1]) for each in (faces, by_result))
        normed = (values - mean[:, :, None, None]) * rstd[:, :, None, None]
        totals, moments = gradient.sum(3), (gradient * normed).sum(3)
        scale = weight.to(rstd.dtype).view(mean.shape[1], -1)
        by_mean, by_deviation = (
            _panorama_means((sums * scale).mean(2))[:, :, None, None] / values.shape[3] for sums in (totals, moments)
        )
        by_values = rstd[:, :, None, None] * (gradient * scale[..., None] - by_mean - normed * by_deviation)
        by_weight, by_bias = (sums.sum(0).flatten().to(weight.dtype) for sums in (moments, totals))
        return by_values.to(faces.dtype).view(faces.shape), None, by_weight, by_bias, None


def _in_groups(faces: Float[Tensor, "n c *space"], groups: int) -> Float[Tensor, "n g k p"]:
    x = _flat(faces)
    grouped: Tensor = x.to(arithmetic_dtype(x)).unflatten(1, (groups, -1))
    return grouped


def _panorama_means(values: Float[Tensor, "n g"]) -> Float[Tensor, "n g"]:
    """Means over the faces of each panorama, for each of them."""
    panorama = torch.arange(len(values), device=values.device) // len(FACES)
    same = (panorama[:, None] == panorama)[:, :, None].to(values.dtype)
    return (same * values).sum(1) / len(FACES)


class _Eager(torch.autograd.Function):
    """The norm in few kernels, none of which copies or casts activations of 16 bits."""

    @staticmethod
    def forward(
        ctx: Any, faces: Float[Tensor, "n c *space"], groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Float[Tensor, "n c *space"]:
        x = _flat(faces)
        # The rounding of 16 bits loses more than a mean that is larger than the deviation.
        near_mean = _near_mean(x, groups) if x.dtype is arithmetic_dtype(x) else None
        values = x if near_mean is None else x - near_mean
        result = torch.empty_like(faces)
        sums = channel_sums(values, work=_flat(result))
        mean, squares = _group_means(_by_group(sums, groups), x.shape[2])
        rstd = (torch.addcmul(squares, mean, mean, value=-1).clamp_min_(0) + eps).rsqrt_()
        scale = rstd * weight.to(rstd.dtype).view(groups, -1)
        offset = torch.addcmul(bias.to(rstd.dtype).view(groups, -1), mean, scale, value=-1)
        ctx.save_for_backward(faces, near_mean, mean, rstd, weight)
        torch.addcmul(_per_face(offset, x), values, _per_face(scale, x), out=_flat(result))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_result: Float[Tensor, "n c *space"]) -> tuple[Tensor | None, ...]:
        faces, near_mean, mean, rstd, weight = ctx.saved_tensors
        x, gradient = _flat(faces), _flat(by_result)
        groups, pixels = rstd.shape[2], x.shape[2]
        with no_autocast(x.device):
            values = x if near_mean is None else x - near_mean
            work = torch.empty_like(x, dtype=rstd.dtype)
            zero = rstd.new_zeros(1, 1, 1)
            torch.addcmul(zero, gradient, values, out=work)
            total, product = _by_group(torch.stack([gradient.sum(2, dtype=rstd.dtype), work.sum(2)]), groups)
            moment = torch.addcmul(product, mean, total, value=-1) * rstd  # of the normalized values
            scale = rstd * weight.to(rstd.dtype).view(groups, -1)
            by_total, by_moment = _group_means(torch.stack([total, moment]) * scale, pixels)
            slope = -by_moment * rstd
            offset = torch.addcmul(-by_total, slope, mean, value=-1)
            torch.addcmul(_per_face(offset, x), values, _per_face(slope, x), out=work)
            by_faces = torch.empty_like(faces)
            torch.addcmul(work, gradient, _per_face(scale, x), out=_flat(by_faces))
        by_weight, by_bias = (sums.sum((0, 1)).flatten().to(weight.dtype) for sums in (moment, total))
        return by_faces, None, by_weight, by_bias, None


_eager: Callable[..., Tensor] = _Eager.apply
_compiled: Callable[..., Tensor] = _Compiled.apply


def _flat(faces: Float[Tensor, "n c *space"]) -> Float[Tensor, "n c p"]:
    return faces.flatten(2) if faces.ndim > 2 else faces[:, :, None]


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a norm's statistics and arithmetic."""
    return torch.promote_types(x.dtype, torch.float32)


def _near_mean(x: Float[Tensor, "n c p"], groups: int) -> Float[Tensor, "n c 1"]:
    """The mean of a few values of each group, subtracted before sums are taken, which lose precision where the mean is
    larger than the deviation."""
    return _per_face(_group_means(_by_group(x[:, :, 0].detach(), groups), 1), x)


def channel_sums(values: Float[Tensor, "n c p"], work: Float[Tensor, "n c p"] | None = None) -> Float[Tensor, "2 n c"]:
    """Sums of values and of their squares over the pixels, in float32 at least.

    Args:
        values: In float32 near zero compared with their deviation, as the sums are less precise otherwise.
        work: Memory for the squares, which those in 16 bits do not need.
    """
    sums = values.sum(2, dtype=arithmetic_dtype(values))
    if values.dtype is arithmetic_dtype(values):
        return torch.stack([sums, torch.mul(values, values, out=work).sum(2)])
    rows = values.unflatten(2, (-1, gcd(values.shape[2], 64)))  # a sum of few squares at a time, for precision
    norms = torch.linalg.vector_norm(rows, dim=3, dtype=arithmetic_dtype(values))  # it casts inside its kernel
    return torch.stack([sums, norms.square_().sum(2)])


def _by_group(values: Float[Tensor, "*s n c"], groups: int) -> Float[Tensor, "*s b 6 g k"]:
    faces, channels = values.shape[-2:]
    return values.view(*values.shape[:-2], faces // len(FACES), len(FACES), groups, channels // groups)


def _group_means(sums: Float[Tensor, "*s b 6 g k"], pixels: int) -> Float[Tensor, "*s b 1 g 1"]:
    return sums.mean((-3, -1), keepdim=True) / pixels


def _per_face(values: Float[Tensor, "b 1 g _"], x: Float[Tensor, "n c p"]) -> Float[Tensor, "n c 1"]:
    return values.expand(-1, len(FACES), -1, x.shape[1] // values.shape[2]).reshape(*x.shape[:2], 1)
