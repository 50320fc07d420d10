"""examples/lora.py: the adapter in the model that the run started from gives the exported model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.examples import run_documented

from cubediff import CubeDiffPipeline
from cubediff.pipelines.cubediff import is_opencubediff


@pytest.mark.slow
def test_adapter_of_the_public_layout_is_trained_loaded_and_generates(checkout: Path) -> None:
    printed = run_documented("lora.py", checkout)
    assert "random weights" in printed.splitlines()[0]
    output = checkout / "experiments/runs/lora"
    assert is_opencubediff(output / "random_weights")
    weights = load_file(output / "run/export/unet_lora/pytorch_lora_weights.safetensors")
    changed = [
        name for name, value in weights.items() if ".attn1." in name and ".lora_B.weight" in name and value.any()
    ]
    assert len(changed) > 8
    assert "with the adapters ['samples']" in printed

    def generate(folder: str) -> np.ndarray:
        pipeline = CubeDiffPipeline.from_pretrained(output / folder)
        generator = torch.Generator().manual_seed(1)
        return np.asarray(
            pipeline("an empty dance hall", num_inference_steps=10, generator=generator).panoramas[0], int
        )

    with Image.open(output / "panorama.png") as image:
        panorama = np.asarray(image, int)
    assert np.abs(panorama - generate("run/export")).max() <= 2  # levels
    assert np.abs(panorama - generate("random_weights")).mean() > 1
