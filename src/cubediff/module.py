"""Moved to cubediff.training.module."""

from cubediff.models.trainable import select_trainable_  # noqa: F401
from cubediff.training.module import CubeDiffModule  # noqa: F401
