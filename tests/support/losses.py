"""The paper's objective, and a module's losses on a batch outside a run."""

from typing import Any

from torch import Tensor

from cubediff.diffusion.objective import Objective
from cubediff.training.module import CubeDiffModule

SHARES = {"drop_text": 0.1, "drop_image": 0.1, "drop_both": 0.1}  # as conf/objective/paper.yaml has them
PAPER = Objective(**SHARES)


def losses_of(module: CubeDiffModule, batch: Any, seed: tuple[int, ...] = (0,)) -> Tensor:
    """The loss (B,) of each panorama, whose random draws depend on `seed` and its index in the batch."""
    count = len(batch["latents" if "latents" in batch else "faces"])
    return module.compute_losses(batch, [(*seed, i) for i in range(count)])["losses"]
