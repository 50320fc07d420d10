"""Device and dtype of a generation, and the message when the device's memory is too small."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cubediff.generation.options import Execution

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_GIB = 2**30
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # of MPS and the CPU


def usable_device(device: str | None) -> str:
    """The device to use; under torchrun each process of a machine uses its own GPU.

    Raises:
        ValueError: If the machine does not have it.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and local_rank:
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} of this machine has no GPU, {torch.cuda.device_count()} are visible: start "
                f"torchrun with --nproc-per-node {torch.cuda.device_count()}"
            )
        device = f"cuda:{local_rank}"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {device}: not available on this machine: omit the option to use the best device"
        ) from error
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """The dtype's name for a device: "auto" is bf16 on GPUs that have it, else fp32."""
    if dtype != "auto":
        return dtype
    is_fast = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if is_fast else "fp32"


@contextmanager
def memory_errors(execution: Execution, device: str, face_size: int | None = None) -> Iterator[None]:
    """Turns a lack of memory inside the block into a ValueError with the remedies that are left."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not is_memory and not any(part in str(error) for part in _OUT_OF_MEMORY):
            raise
        raise ValueError(_out_of_memory(execution, device, face_size)) from error


def _out_of_memory(execution: Execution, device: str, face_size: int | None) -> str:
    is_gpu = device.startswith("cuda")
    memory = f" of {torch.cuda.mem_get_info(device)[1] / _GIB:.1f} GiB" if is_gpu else ""
    faces = f" with faces of {face_size} pixels" if face_size else ""
    remedies = []
    if execution.batch > 1:
        remedies.append("--batch 1")
    if is_gpu and execution.dtype == "fp32":
        remedies.append("--dtype auto")
    remedies += ["a GPU with more memory"] if is_gpu else ["a machine with more memory"]
    return f"the memory{memory} on {device} is too small for batches of {execution.batch}{faces}: use " + " or ".join(
        remedies
    )
