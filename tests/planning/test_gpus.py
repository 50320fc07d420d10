"""The table of GPUs."""

import re
from pathlib import Path

import pytest

from cubediff.planning.gpus import GIB, GPUS, find_gpu

PAGE = Path(__file__).parents[2] / "docs/performance.md"


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100-16"),
        ("Tesla V100-SXM2-32GB", "V100-32"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GeForce RTX 3090", "RTX-3090"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA GeForce RTX 5090", "RTX-5090"),
        ("NVIDIA RTX A6000", "A6000"),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_gpus_are_found_by_their_device_name(device: str, name: str | None) -> None:
    found = find_gpu(device)
    assert (found and found.name) == name


def test_every_gpu_has_a_source_and_plausible_figures() -> None:
    for name, gpu in GPUS.items():
        assert gpu.name == name
        assert gpu.source.startswith("NVIDIA ")
        assert 50e12 < gpu.fp16 < 3e15
        assert gpu.bf16 in (0.0, gpu.fp16)
        assert gpu.flash == (gpu.bf16 > 0)
        assert 2 < gpu.fp16 / gpu.fp32 < 40 or name in ("RTX-3090", "RTX-4090", "RTX-5090")


def test_a_gpu_without_bfloat16_names_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"trainer\.precision=bf16-mixed: a T4 has no bfloat16, use 16-mixed"):
        GPUS["T4"].rate("bf16-mixed")
    assert GPUS["T4"].rate("16-mixed") == 65e12
    assert GPUS["T4"].rate("32-true") == 8.1e12


def test_the_documentation_lists_them() -> None:
    rows = re.findall(r"^\| (\S+) \| ([0-9.]+) \| .*?([0-9.]+)\)? \| ([0-9.]+) \| ([0-9.]+) \| (NVIDIA .*) \|$",
                      PAGE.read_text(encoding="utf-8"), re.MULTILINE)  # fmt: skip
    assert [(name, float(memory), float(tflops), float(fp32), float(bandwidth), source)
            for name, memory, tflops, fp32, bandwidth, source in rows] == [
        (gpu.name, gpu.memory / GIB, gpu.fp16 / 1e12, gpu.fp32 / 1e12, gpu.bandwidth / 1e9, gpu.source)
        for gpu in GPUS.values()
    ]  # fmt: skip
