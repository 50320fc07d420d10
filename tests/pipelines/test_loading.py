"""Backbones of other packages are found by their entry points, and refused by name, as are absent models."""

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from cubediff.models.stable_diffusion import StableDiffusion
from cubediff.pipelines import loading
from cubediff.pipelines.base import CubePipeline
from cubediff.pipelines.cubediff import CubeDiffPipeline
from cubediff.pipelines.folders import FORMAT
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


@pytest.mark.parametrize("load", [loading.load_for_generation, loading.load_pipeline])
def test_a_folder_of_a_backbone_that_is_not_installed_names_it(
    load: Callable[[Path], CubePipeline], tmp_path: Path
) -> None:
    index = {"_class_name": "ToyPipeline", FORMAT: 1, "unet": ["toy_backbone", "Toy"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"saved by 'ToyPipeline', and only CubeDiffPipeline is installed: install"):
        load(tmp_path)


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")  # diffusers passes it
@pytest.mark.parametrize("load", [loading.load_for_generation, loading.load_pipeline])
def test_an_id_that_the_hub_did_not_give_is_not_called_incomplete(
    load: Callable[[str], CubePipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = r"owner/name is not a local folder, and was not loaded from the Hub .*: pass the folder of a model"
    with pytest.raises(OSError, match=message):
        load("owner/name")
