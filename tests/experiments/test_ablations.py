"""The variants of the ablations are valid configs, and the baseline is the paper's method."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from cubediff.configs import CONFIG_DIR

SCREEN: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "experiments/ablations/screen.py"))


def composed(variant: str) -> Any:
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return compose("train", ["experiment=cubediff_tiny", "data.path=SHARDS", *SCREEN["overrides"](variant)])


def test_baseline_is_the_papers_method() -> None:
    config = composed("epsilon, the paper's objective")
    assert config.fov == 95
    assert (config.model.pipeline.inflate, config.model.pipeline.conv_padding) == ("all", "zeros")
    assert config.model.pipeline.get("scheduler") is None


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(SCREEN["VARIANTS"])[1:])
def test_variants_differ_from_the_baseline(variant: str) -> None:
    assert composed(variant) != composed("epsilon, the paper's objective")
