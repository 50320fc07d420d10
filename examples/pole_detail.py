"""A metric of `cubediff evaluate`: the detail of the upper and lower face, relative to that of the four sides.

`examples/pyproject.toml` registers it by its name in the entry-point group `cubediff.metrics`. From the
repository's folder:

    pip install -e examples
    cubediff evaluate samples=data/samples metrics=[pole_detail] height=256 output=experiments/runs/pole_detail

Reports and `cubediff evaluate compare` have it too. `pip uninstall cubediff-examples` removes it.
"""

import torch
from torch import Tensor

from cubediff.evaluation.consistency import Metric
from cubediff.evaluation.measures import Description, OwnMetric
from cubediff.geometry import FACES


def terms(faces: Tensor, fov: float) -> Tensor:
    """Mean gradients of the upper and lower face, and of the sides (B, 2), of faces (B, 6, 3, S, S) in [0, 1]."""
    gradients = (faces.diff(dim=-1).abs().mean((2, 3, 4)) + faces.diff(dim=-2).abs().mean((2, 3, 4))) / 2
    poles = torch.tensor([name in ("up", "down") for name in FACES], device=faces.device)
    return torch.stack([gradients[:, poles].mean(1), gradients[:, ~poles].mean(1)], 1)


POLE_DETAIL = OwnMetric(
    Metric(terms, lambda means: means[0] / means[1]),
    Description("consistency", "neither", "mean gradient of the upper and lower face, relative to the sides"),
)
