"""Moved to cubediff.models.stable_diffusion."""

from cubediff.models.stable_diffusion import (CubeAttnProcessor, CubeGroupNorm, inflate_,  # noqa: F401
                                              sync_group_norm_, widen_conv_in_)  # fmt: skip
