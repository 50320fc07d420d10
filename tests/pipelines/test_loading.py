"""Backbones of other packages are found by their entry points, and refused by name."""

from importlib.metadata import EntryPoint

import pytest

from cubediff.models.stable_diffusion import StableDiffusion
from cubediff.pipelines import loading
from cubediff.pipelines.base import CubePipeline
from cubediff.pipelines.cubediff import CubeDiffPipeline
from cubediff.utils import plugins


class Inheriting(CubeDiffPipeline):
    """Has the backbone of its base class."""


class Unfinished(CubePipeline):
    """Has no backbone."""


def register(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    entry = EntryPoint("toy", f"{__name__}:{name}", loading.BACKBONES)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])


def test_a_subclass_may_inherit_its_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "Inheriting")
    assert loading.pipeline_classes() == {"CubeDiffPipeline": CubeDiffPipeline, "Inheriting": Inheriting}


def test_a_pipeline_without_a_backbone_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "Unfinished")
    with pytest.raises(ValueError, match=r"the backbone toy = .*: Unfinished has no property `backbone`"):
        loading.pipeline_classes()


def test_a_class_that_is_no_pipeline_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, StableDiffusion.__name__)
    with pytest.raises(ValueError, match=r"the backbone toy = .*:StableDiffusion: expected a subclass of"):
        loading.pipeline_classes()
