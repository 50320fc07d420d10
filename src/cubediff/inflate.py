"""Moved to cubediff.models.inflation."""

from cubediff.models.inflation import (CubeAttnProcessor, CubeGroupNorm, inflate_,  # noqa: F401
                                              sync_group_norm_, widen_conv_in_)  # fmt: skip
