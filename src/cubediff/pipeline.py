"""Moved to cubediff.pipelines."""

from cubediff.pipelines.cubediff import CubeDiffOutput, CubeDiffPipeline  # noqa: F401
from cubediff.pipelines.loading import load_pipeline  # noqa: F401
