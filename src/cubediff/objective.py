"""Moved to cubediff.diffusion.objective and cubediff.models.inputs."""

from cubediff.diffusion.objective import CONDITIONS, Objective  # noqa: F401
from cubediff.models.inputs import input_channels, positions, unet_input  # noqa: F401
