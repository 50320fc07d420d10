"""Moved to cubediff.models.tiny and cubediff.pipelines.loading."""

from cubediff.models.tiny import byte_tokenizer, sd_scheduler, small_text_encoder  # noqa: F401
from cubediff.pipelines.loading import tiny_random  # noqa: F401
