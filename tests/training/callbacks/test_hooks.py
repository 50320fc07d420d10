"""What callbacks accept from Lightning's hooks."""

import lightning as L
import pytest

from cubediff.training.callbacks.hooks import cube_module


def test_a_module_of_another_class_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match=r"expected a CubeDiffModule, got lightning\.\S+\.LightningModule: train a"):
        cube_module(L.LightningModule())
