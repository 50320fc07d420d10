"""The time of a step on a GPU by the roofline model (Williams et al., 2009).

A kernel takes as long as its operations at the GPU's rate, or as its bytes at the memory's bandwidth.

The shares of the peaks that kernels reach are assumptions, chosen so that training of plain Stable Diffusion 2 on A100
comes out near published throughputs, see docs/performance.md.
"""

from collections.abc import Iterable

from cubediff.planning.gpus import Gpu
from cubediff.planning.operations import Operation

REACHED = {"matrix product": 0.5, "convolution": 0.4, "attention": 0.4}  # of the rate
REACHED_BANDWIDTH = 0.75
REACHED_LINK = 0.7
KERNEL = 5e-6  # seconds to launch a kernel, which a shorter one takes
# Head sizes that flash attention has kernels for; others are computed as the next larger one.
_HEAD_SIZES = (32, 64, 96, 128, 192, 256)


def executed_flops(operation: Operation, gpu: Gpu) -> float:
    """Floating-point operations that run, those on the padding of attention heads included."""
    if operation.kind != "attention" or not gpu.flash:
        return operation.flops
    size = operation.shapes[0][-1]
    padded = next((each for each in _HEAD_SIZES if each >= size), size)
    return operation.flops * padded / size


def kernel_seconds(operation: Operation, gpu: Gpu, precision: str) -> float:
    """Seconds of a kernel.

    Args:
        operation: The kernel.
        gpu: The GPU.
        precision: The Trainer's precision; a kernel on float32 tensors runs outside the tensor cores under any.
    """
    computing = 0.0
    if operation.flops:
        rate = gpu.fp32 if operation.is_float32 else gpu.rate(precision)
        computing = executed_flops(operation, gpu) / (rate * REACHED[operation.kind])
    return max(computing, operation.bytes / (gpu.bandwidth * REACHED_BANDWIDTH), KERNEL)


def seconds_by_kind(operations: Iterable[Operation], gpu: Gpu, precision: str) -> dict[str, float]:
    """Seconds of the kernels of each kind, of the largest first."""
    found: dict[str, float] = {}
    for operation in operations:
        found[operation.kind] = found.get(operation.kind, 0.0) + kernel_seconds(operation, gpu, precision)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def update_seconds(trained: int, has_ema: bool, gpu: Gpu) -> float:
    """Seconds of clipping, the optimizer's step and the EMA.

    Args:
        trained: Bytes of trained parameters, float32.
        has_ema: Whether the run keeps an EMA of them.
        gpu: The GPU.
    """
    touched = 2 + 7 + 3 * has_ema  # norm and scaling of gradients; AdamW reads 4 tensors and writes 3; the EMA 2 and 1
    return touched * trained / (gpu.bandwidth * REACHED_BANDWIDTH)


def all_reduce_seconds(size: float, devices: int, gpu: Gpu) -> float:
    """Seconds of summing `size` bytes over the devices of a machine in a ring."""
    return 2 * (devices - 1) / devices * size / (gpu.link * REACHED_LINK) if devices > 1 else 0.0


def copy_seconds(size: float, gpu: Gpu) -> float:
    """Seconds of copying `size` bytes within the GPU's memory, which reads and writes them."""
    return 2 * size / (gpu.bandwidth * REACHED_BANDWIDTH)


def gather_seconds(size: float, devices: int, gpu: Gpu) -> float:
    """Seconds of gathering `size` bytes from, or scattering their sums to, the devices of a machine in a ring."""
    return all_reduce_seconds(size, devices, gpu) / 2
