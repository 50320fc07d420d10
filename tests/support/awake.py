"""Random weights with which every input affects the output, so that no test passes because an input has no effect."""

from typing import TypeVar

import torch
from torch import nn

from cubediff import CubeDiffPipeline
from cubediff.pipelines.loading import tiny_random

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@torch.no_grad()
def awaken_(module: ModuleT, seed: int = 0) -> ModuleT:
    """Redraws all weights in place, at a scale that preserves the size of activations.

    This includes the weights of new input channels, which are zero before. Norms and biases are perturbed, so that an
    implementation that skips them gives another result.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        draw = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if parameter.ndim > 1:
            parameter.copy_(draw / parameter[0].numel() ** 0.5)
        else:
            parameter.add_(0.2 * draw)
    return module


def awake_pipeline(**options: object) -> CubeDiffPipeline:
    """A small pipeline, all of whose models are awake, without a progress bar; the options of `tiny_random`."""
    pipeline = tiny_random(**options)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        awaken_(part)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
