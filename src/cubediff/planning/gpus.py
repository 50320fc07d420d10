"""GPUs: memory, rates and bandwidths from NVIDIA's data sheets, for plans and for the model FLOPs utilisation (MFU)."""

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU's peaks, without sparsity.

    Attributes:
        name: Name, as `plan.gpu` takes it.
        memory: Memory that torch can allocate, in bytes: the size on the data sheet less what driver and ECC take.
        bf16: FLOP/s of matrix products of bfloat16 with float32 accumulation; 0.0 if the GPU has none.
        fp16: The same of float16.
        fp32: FLOP/s of float32 outside the tensor cores.
        bandwidth: Of the memory, in bytes/s.
        link: Between two GPUs of a machine, in bytes/s and one direction: NVLink where the GPU has it, else PCIe.
        flash: Whether flash attention runs on it (compute capability 8.0 and above).
        source: Where the rates are from.
    """

    name: str
    memory: float
    bf16: float
    fp16: float
    fp32: float
    bandwidth: float
    link: float
    flash: bool
    source: str

    def rate(self, precision: str) -> float:
        """FLOP/s of matrix products under a precision of the Trainer.

        Raises:
            ValueError: If the GPU has no tensor cores for it.
        """
        rate = self.rate_or_zero(precision)
        if not rate:
            raise ValueError(f"trainer.precision={precision}: a {self.name} has no bfloat16, use 16-mixed")
        return rate

    def rate_or_zero(self, precision: str) -> float:
        """As `rate`; 0.0 if the GPU has no tensor cores for the precision."""
        return {"32-true": self.fp32, "16-mixed": self.fp16}.get(precision, self.bf16)


def _gpu(
    name: str, memory: float, bf16: float, fp16: float, fp32: float, bandwidth: float, link: float, source: str
) -> Gpu:
    """Of GiB, TFLOP/s and GB/s."""
    tera, giga = 1e12, 1e9
    rates = (bf16 * tera, fp16 * tera, fp32 * tera, bandwidth * giga, link * giga)
    return Gpu(name, memory * GIB, *rates, flash=bf16 > 0, source=source)


_PCIE3, _PCIE4, _PCIE5 = 16.0, 32.0, 64.0  # GB/s of 16 lanes
# Where a data sheet states rates with sparsity, half of them. GeForce and RTX A6000: with float32 accumulation.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("L4", 22.0, 121, 121, 30.3, 300, _PCIE4, "NVIDIA L4 data sheet, 2023"),
        _gpu("T4", 14.6, 0, 65, 8.1, 320, _PCIE3, "NVIDIA T4 data sheet, 2019"),
        _gpu("V100-16", 15.8, 0, 125, 15.7, 900, 150, "NVIDIA V100 data sheet, 2020: SXM2"),
        _gpu("V100-32", 31.7, 0, 125, 15.7, 900, 150, "NVIDIA V100 data sheet, 2020: SXM2"),
        _gpu("A10", 22.0, 125, 125, 31.2, 600, _PCIE4, "NVIDIA A10 data sheet, 2021"),
        _gpu("A100-40", 39.4, 312, 312, 19.5, 1555, 300, "NVIDIA A100 data sheet, 2021: SXM, 40 GB"),
        _gpu("A100-80", 79.2, 312, 312, 19.5, 2039, 300, "NVIDIA A100 data sheet, 2021: SXM, 80 GB"),
        _gpu("H100-PCIe", 79.2, 756, 756, 51.0, 2000, _PCIE5, "NVIDIA H100 data sheet, 2023: PCIe"),
        _gpu("H100-SXM", 79.2, 989, 989, 67.0, 3350, 450, "NVIDIA H100 data sheet, 2024: SXM"),
        _gpu("H100-NVL", 93.1, 835, 835, 60.0, 3900, 300, "NVIDIA H100 data sheet, 2024: NVL"),
        _gpu("H200", 139.8, 989, 989, 67.0, 4800, 450, "NVIDIA H200 data sheet, 2024: SXM"),
        _gpu("B200", 178.0, 2250, 2250, 75.0, 8000, 900, "NVIDIA HGX B200 data sheet, 2025: an eighth"),
        _gpu("RTX-3090", 23.6, 71, 71, 35.6, 936, _PCIE4, "NVIDIA Ampere GA102 white paper, 2021"),
        _gpu("RTX-4090", 23.6, 165.2, 165.2, 82.6, 1008, _PCIE4, "NVIDIA Ada architecture white paper, 2023"),
        _gpu("RTX-5090", 31.4, 209.5, 209.5, 104.8, 1792, _PCIE5, "NVIDIA RTX Blackwell white paper, 2025"),
        _gpu("L40S", 44.4, 362, 362, 91.6, 864, _PCIE4, "NVIDIA L40S data sheet, 2023"),
        _gpu("A6000", 47.4, 154.8, 154.8, 38.7, 768, _PCIE4, "NVIDIA RTX A6000 data sheet, 2022"),
    )
}
# Words of CUDA device names that tell the GPUs apart; the first whose words are all in the name.
_DEVICE_NAMES = {
    "L40S": ("L40S",),
    "L4": ("L4",),
    "T4": ("T4",),
    "V100-32": ("V100", "32GB"),
    "V100-16": ("V100",),
    "A100-80": ("A100", "80GB"),
    "A100-40": ("A100",),
    "A10": ("A10",),
    "H100-PCIe": ("H100", "PCIE"),
    "H100-NVL": ("H100", "NVL"),
    "H100-SXM": ("H100",),
    "H200": ("H200",),
    "B200": ("B200",),
    "RTX-3090": ("RTX", "3090"),
    "RTX-4090": ("RTX", "4090"),
    "RTX-5090": ("RTX", "5090"),
    "A6000": ("A6000",),
}


def find_gpu(device_name: str) -> Gpu | None:
    """The GPU of a CUDA device name; None for one that is not in `GPUS`.

    Example:
        >>> find_gpu("NVIDIA A100-SXM4-80GB").name
        'A100-80'
    """
    words = re.split(r"[ -]", device_name.upper())  # "NVIDIA A10G" is no A10
    return next((GPUS[name] for name, needed in _DEVICE_NAMES.items() if set(needed) <= set(words)), None)
