"""Moved to cubediff.models.tiny, cubediff.models.tokenizer and cubediff.pipelines.loading."""

from cubediff.models.tiny import sd_scheduler, small_text_encoder  # noqa: F401
from cubediff.models.tokenizer import byte_tokenizer  # noqa: F401
from cubediff.pipelines.loading import tiny_random  # noqa: F401
