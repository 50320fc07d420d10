"""The GPUs that `cubediff plan` supports."""

import re

# Dense bf16 FLOP/s, from NVIDIA's data sheets (L4 and A100 SXM 2023, H100 SXM 2023).
GPUS = {"L4": 121e12, "A100": 312e12, "H100": 989e12}


def gpu_rate(name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its CUDA device name; None for one that is not in `GPUS`.

    Example:
        >>> gpu_rate("NVIDIA L4") / 1e12
        121.0
    """
    words = re.split(r"[ -]", name)  # "NVIDIA L40S" is no L4
    return next((rate for gpu, rate in GPUS.items() if gpu in words), None)
