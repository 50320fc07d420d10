"""Of the messages of transformers, those about two processors that nobody uses are silenced, and no others."""

import logging
from pathlib import Path

import pytest
from support.generating import save_model
from support.processes import python

LOAD = """
import logging, sys
from cubediff import CubeDiffPipeline
import transformers.utils.import_utils as imports
from transformers.utils.logging import get_verbosity
CubeDiffPipeline.from_pretrained(sys.argv[1])
imports.logger.warning("`ViTImageProcessor` requires torchvision (not installed)")
print(get_verbosity() == logging.WARNING)
"""


@pytest.mark.slow
def test_loading_a_pipeline_names_no_unused_processor_and_leaves_the_verbosity(tmp_path: Path) -> None:
    done = python("-c", LOAD, save_model(tmp_path / "model"), cwd=tmp_path)
    assert "CLIPImageProcessor" not in done.stderr
    assert "SiglipImageProcessor" not in done.stderr
    assert "`ViTImageProcessor` requires torchvision" in done.stderr
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`CLIPImageProcessor` requires torchvision (not installed); falling back to `CLIPImageProcessorPil`", False),
        ("`SiglipImageProcessor` requires torchvision (not installed)", False),
        ("`CLIPImageProcessor` is deprecated", True),
        ("`ChineseCLIPImageProcessor` requires torchvision (not installed)", True),
    ],
)
def test_exactly_two_messages_are_silenced(message: str, shown: bool) -> None:
    logger = logging.getLogger("transformers.utils.import_utils")
    record = logger.makeRecord(logger.name, logging.WARNING, __file__, 1, message, (), None)
    assert bool(logger.filter(record)) is shown
