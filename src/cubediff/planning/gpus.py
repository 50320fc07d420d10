"""GPUs that the plan knows."""

import re

# Dense bf16 FLOP/s, from NVIDIA's data sheets (L4 and A100 SXM 2023, H100 SXM 2023).
GPUS = {"L4": 121e12, "A100": 312e12, "H100": 989e12}


def gpu_rate(name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by the name that CUDA gives it; None for one that `GPUS` lacks."""
    words = re.split(r"[ -]", name)  # "NVIDIA L40S" is no L4
    return next((rate for gpu, rate in GPUS.items() if gpu in words), None)
