"""Device and dtype of a generation, and the message when the device's memory is too small."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch

from cubediff.generation.options import Execution

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_CPU_CAPABILITIES = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}  # of x86 and ARM, as `torch.cpu.get_capabilities` calls them
_GIB = 2**30
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # of MPS and the CPU


class FaceSizes(NamedTuple):
    """Sizes of faces in pixels: the size to sample, and the size that the model was trained with.

    `guided`: whether several branches of guidance are predicted.
    """

    used: int
    model: int
    guided: bool = True


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
    """The dtype's name for a device: "auto" is bf16 on GPUs that have it, else fp32.

    Raises:
        ValueError: If the device has the dtype only by emulation, or not at all.
    """
    fitting = _dtypes_of(device)
    if dtype == "auto":
        return "bf16" if device.startswith("cuda") and "bf16" in fitting else "fp32"
    if dtype not in fitting:
        raise ValueError(
            f"--dtype {dtype}: {device} does not compute in it without emulation: use one of auto, {', '.join(fitting)}"
        )
    return dtype


def _dtypes_of(device: str) -> list[str]:
    """The names of the dtypes that a device computes in without emulation."""
    kind = torch.device(device).type
    has = {"bf16": False, "fp16": True}
    if kind == "cuda":
        has["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        # Older versions of torch do not know them.
        capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        has = {dtype: any(capabilities.get(name) for name in names) for dtype, names in _CPU_CAPABILITIES.items()}
    return [name for name in DTYPES if has.get(name, True)]


@contextmanager
def memory_errors(execution: Execution, device: str, dtype: str, face_sizes: FaceSizes | None = None) -> Iterator[None]:
    """Turns a lack of memory inside the block into a ValueError that names what needs less.

    Args:
        execution: How the call runs.
        device: Its device.
        dtype: Its dtype, "auto" resolved.
        face_sizes: The sizes of the faces that are sampled; None while the model is loaded.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(s in text for s in _OUT_OF_MEMORY):
            raise
        raise ValueError(_out_of_memory(execution, device, dtype, face_sizes)) from error


def _out_of_memory(execution: Execution, device: str, dtype: str, face_sizes: FaceSizes | None) -> str:
    is_gpu = device.startswith("cuda")
    memory = f" ({torch.cuda.mem_get_info(device)[1] / _GIB:.1f} GiB)" if is_gpu else ""
    given = [f"--dtype {dtype}", *(["--offload"] if execution.offload else [])]
    given += ["--vae-tiling"] if execution.vae_tiling else []
    given += ["--sequential-guidance"] if execution.sequential_guidance else []
    remedies = []
    if face_sizes is not None:
        given += [f"--batch {execution.batch}", f"faces of {face_sizes.used} pixels"]
        remedies += ["--batch 1"] if execution.batch > 1 else []
        remedies += ["--sequential-guidance"] if face_sizes.guided and not execution.sequential_guidance else []
        is_larger = face_sizes.used > face_sizes.model
        remedies += ["--vae-tiling"] if is_larger and not execution.vae_tiling else []
        smaller = face_sizes.model if is_larger else face_sizes.model // 2
        remedies += [f"--face-size {smaller}"] if smaller < face_sizes.used else []
    if dtype == "fp32" and is_gpu:
        remedies.append("--dtype bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "--dtype fp16")
    if is_gpu and not execution.offload:
        remedies.append("--offload")
    remedies.append(f"a {'GPU' if is_gpu else 'machine'} with more memory")
    return f"out of memory on {device}{memory} with {', '.join(given)}: use {', or '.join(remedies)}"
