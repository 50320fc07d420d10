"""What CUDA does differently from the CPU, for steps that are counted on the CPU: autocast's dtypes, memory formats.

Fake tensors of the device "cuda" need a CUDA build of torch, so the counted step runs on CPU fakes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# torch's operators.
Operator = Callable[..., object]

# Operators that autocast runs in float32 on CUDA, from torch 2.13's ATen/autocast_mode.h: their floating-point
# arguments are cast (AT_FORALL_FP32), or they return float32 (AT_FORALL_FP32_SET_OPT_DTYPE).
FLOAT32 = (
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh"),
    *("tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm", "native_layer_norm"),
    *("rms_norm", "group_norm", "frobenius_norm.dim", "nuclear_norm", "nuclear_norm.dim", "cosine_similarity"),
    *("poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "nll_loss2d", "hinge_embedding_loss", "kl_div"),
    *("l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "margin_ranking_loss", "multilabel_margin_loss"),
    *("soft_margin_loss", "triplet_margin_loss", "multi_margin_loss", "binary_cross_entropy_with_logits", "dist"),
    *("pdist", "cdist", "renorm", "logsumexp", "upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_nearest2d"),
    *("_upsample_nearest_exact2d", "upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_linear1d"),
    *("upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_trilinear3d", "upsample_bicubic2d"),
    *("_upsample_bicubic2d_aa",),
)
FLOAT32_RESULT = (
    *("prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm"),
    *("linalg_matrix_norm", "linalg_matrix_norm.str_ord", "sum", "sum.dim_IntList"),
)
_AUTOCAST = torch._C.DispatchKey.AutocastCPU
_FORMATS = (torch.contiguous_format, torch.channels_last)


@contextmanager
def cuda_autocast(precision: str) -> Iterator[None]:
    """Autocast with CUDA's rules on CPU tensors; within it, `torch.autocast("cpu", enabled=False)` turns it off.

    torch's CPU autocast has the same rules for matrix products, convolutions and attention; it leaves norms,
    exponentials, sums and resizing in bfloat16. "16-mixed" is counted in bfloat16, whose tensors have the same sizes
    and whose rules on CUDA are the same.

    Args:
        precision: The Trainer's precision.

    Raises:
        ValueError: If `precision` is not "32-true", "bf16-mixed" or "16-mixed".
    """
    if precision == "32-true":
        yield
        return
    if precision not in ("bf16-mixed", "16-mixed"):
        raise ValueError(f"trainer.precision={precision}: the plan supports 32-true, bf16-mixed and 16-mixed")
    library = torch.library.Library("aten", "IMPL")
    try:
        for names, rule in ((FLOAT32, _cast_arguments), (FLOAT32_RESULT, _set_dtype)):
            for name in names:
                if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCPU"):
                    library.impl(name, rule(_operator(name)), "AutocastCPU")
        with torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        library._destroy()


class CudaFormats(TorchDispatchMode):
    """Runs group norms and convolutions in the memory formats that CUDA chooses, and makes the copies that this takes.

    - A group norm reads and returns a contiguous tensor (native_group_norm has no channels_last kernel on CUDA).
    - A convolution and its backward run in channels_last if the input or the weight is stored so, else contiguous
      (`cudnn_conv_suggest_memory_format` of ATen/native/ConvUtils.h).
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)  # super().__init__ has no annotations

    def __torch_dispatch__(
        self, func: Operator, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        aten = torch.ops.aten
        kwargs = kwargs or {}
        if func is aten.native_group_norm.default:
            return func(_stored(args[0], False), *args[1:], **kwargs)
        if func is aten.native_group_norm_backward.default:
            return func(_stored(args[0], False), _stored(args[1], False), *args[2:], **kwargs)
        if func is aten.convolution.default:
            formatted = _in_one_format(args[:2], args[:2])
            return _stored(func(*formatted, *args[2:], **kwargs), is_channels_last(formatted[0]))
        if func is aten.convolution_backward.default:
            formatted = _in_one_format(args[:3], args[1:3])
            gradients = cast(tuple[Tensor | None, ...], func(*formatted, *args[3:], **kwargs))
            return tuple(g if g is None else _stored(g, is_channels_last(formatted[1])) for g in gradients)
        return func(*args, **kwargs)


def is_channels_last(tensor: object) -> bool:
    """Whether a tensor is stored in channels_last and not contiguous as well, as one with a single channel is."""
    return (
        isinstance(tensor, Tensor)
        and tensor.ndim == 4
        and tensor.is_contiguous(memory_format=torch.channels_last)
        and not tensor.is_contiguous()
    )


def _in_one_format(tensors: Sequence[object], deciding: Sequence[object]) -> list[object]:
    """The tensors in channels_last if one of the deciding ones is stored so, else contiguous."""
    channels_last = any(map(is_channels_last, deciding))
    return [_stored(tensor, channels_last) for tensor in tensors]


def _stored(tensor: object, channels_last: bool) -> Tensor:
    """The tensor in a memory format; a copy only if it is stored in another."""
    tensor = cast(Tensor, tensor)
    memory_format = _FORMATS[channels_last and tensor.ndim == 4]
    # `contiguous` would not be decomposed into its copy here.
    return tensor if tensor.is_contiguous(memory_format=memory_format) else tensor.clone(memory_format=memory_format)


def _operator(name: str) -> Operator:
    packet, _, overload = name.partition(".")
    return cast(Operator, getattr(getattr(torch.ops.aten, packet), overload or "default"))


def _cast_arguments(operator: Operator) -> Operator:
    def call(*args: object, **kwargs: object) -> object:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_AUTOCAST)):
            return operator(*map(_to_float32, args), **{key: _to_float32(value) for key, value in kwargs.items()})

    return call


def _set_dtype(operator: Operator) -> Operator:
    def call(*args: object, **kwargs: object) -> object:
        first = args[0]
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_AUTOCAST)):
            if kwargs.get("dtype") is None and isinstance(first, Tensor) and _is_cast(first):
                kwargs["dtype"] = torch.float32
            return operator(*args, **kwargs)

    return call


def _to_float32(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and _is_cast(value) else value


def _is_cast(tensor: Tensor) -> bool:
    """Autocast leaves integers and float64 as they are."""
    return tensor.is_floating_point() and tensor.dtype is not torch.float64
