"""Moved to cubediff.diffusion.schedulers."""

from cubediff.diffusion.schedulers import SAMPLERS, use_sampler_  # noqa: F401
