"""What users of diffusers do with a pipeline: load it by DiffusionPipeline, build one from another, offload models."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from support.awake import awaken_
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.diffusion.schedulers import SCHEDULERS
from cubediff.pipelines.loading import tiny_random
from cubediff.utils.lazy import extend_module

DOCS = Path(__file__).parents[2] / "docs" / "diffusers.md"
OTHERS = {
    "fov": 90.0,
    "position_encoding": "uv_pi",
    "position_samples": "corners",
    "sync_group_norm": False,
    "sync_vae_group_norm": False,
    "cross_attention": "joint",
    "inflate": "below_top",
    "image_drop": "attention",
    "drops": [0.2, 0.1, 0.1],
    "photo_encoding": "face",
    "average_overlap": True,
}


def awake_pipeline(**settings: object) -> CubeDiffPipeline:
    pipeline = tiny_random(**settings)
    for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        awaken_(model.eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def panorama(pipeline: CubeDiffPipeline, **options: object) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    result: Tensor = pipeline("a", num_inference_steps=2, generator=generator, output_type="pt", **options).panoramas
    return result


def settings_of(pipeline: CubeDiffPipeline) -> dict[str, object]:
    return {name: pipeline.config[name] for name in OTHERS}


@pytest.mark.parametrize(
    "first",
    [
        pytest.param("import cubediff", marks=pytest.mark.slow),
        pytest.param("import diffusers, cubediff", marks=pytest.mark.slow),
        pytest.param("import cubediff, diffusers", marks=pytest.mark.slow),
    ],
)
def test_diffusers_loads_an_export_by_its_class_name_once_cubediff_is_imported(tmp_path: Path, first: str) -> None:
    tiny_random(**OTHERS).save_pretrained(tmp_path / "export")
    script = f"""{first}
import sys
assert ("torch" in sys.modules) == ("import diffusers" in {first!r} or ", diffusers" in {first!r})
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained({str(tmp_path / "export")!r})
assert type(pipeline) is cubediff.CubeDiffPipeline, type(pipeline)
assert (pipeline.config.position_encoding, pipeline.config.fov) == ("uv_pi", 90.0)
import diffusers
assert not hasattr(diffusers, "NoSuchPipeline") and not hasattr(diffusers, "no_such_name")
assert diffusers.DDIMScheduler.__name__ == "DDIMScheduler"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_module_that_does_not_exist_stays_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    extend_module("no_such_module_anywhere", lambda name: name)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        __import__("no_such_module_anywhere")


def test_a_pipeline_of_the_components_of_another_keeps_its_settings() -> None:
    pipeline = tiny_random(**OTHERS)
    assert settings_of(pipeline) == OTHERS
    assert settings_of(CubeDiffPipeline(**pipeline.components)) == OTHERS
    assert settings_of(CubeDiffPipeline.from_pipe(pipeline)) == OTHERS
    again = CubeDiffPipeline(**pipeline.components, image_drop="noise")
    assert settings_of(again) == OTHERS | {"image_drop": "noise"}
    assert settings_of(CubeDiffPipeline.from_pipe(again, fov=80.0)) == OTHERS | {"image_drop": "noise", "fov": 80.0}


def test_a_saved_pipeline_of_components_of_another_loads_with_its_settings(tmp_path: Path) -> None:
    CubeDiffPipeline(**tiny_random(**OTHERS).components).save_pretrained(tmp_path)
    for loaded in (CubeDiffPipeline.from_pretrained(tmp_path), DiffusionPipeline.from_pretrained(tmp_path)):
        assert type(loaded) is CubeDiffPipeline
        assert settings_of(loaded) == OTHERS
    assert "_cubediff_settings" not in (tmp_path / "unet" / "config.json").read_text()


@pytest.mark.parametrize("photo_encoding", ["cube", "face"])
def test_models_that_are_offloaded_between_calls_give_the_same_panorama(photo_encoding: str) -> None:
    """As `enable_sequential_cpu_offload` does it, with the CPU as the device that computes."""
    photo = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = panorama(awake_pipeline(photo_encoding=photo_encoding), image=photo)
    pipeline = awake_pipeline(photo_encoding=photo_encoding)
    for model in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        cpu_offload(model, torch.device("cpu"), offload_buffers=bool(model._parameters))
    assert next(pipeline.unet.parameters()).device.type == "meta"
    torch.testing.assert_close(panorama(pipeline, image=photo), expected, rtol=0, atol=1e-5)
    text = pipeline.backbone.encoders.encode_captions(["a"])
    torch.testing.assert_close(panorama(pipeline, image=photo), expected, rtol=0, atol=1e-5)
    assert text.device.type == "cpu"


@pytest.mark.parametrize("photo_encoding", ["cube", "face"])
def test_vae_tiling_gives_the_same_panorama(photo_encoding: str) -> None:
    pipeline = awake_pipeline(photo_encoding=photo_encoding)
    photo = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = panorama(pipeline, image=photo, face_size=96)
    pipeline.enable_vae_tiling()
    tiled = panorama(pipeline, image=photo, face_size=96)
    assert 0 < (tiled - expected).abs().max() < 1e-3 < 1e-1 < expected.std()
    pipeline.disable_vae_tiling()
    assert torch.equal(panorama(pipeline, image=photo, face_size=96), expected)


def test_autocast_around_a_call_gives_nearly_the_same_panorama() -> None:
    expected = panorama(awake_pipeline())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = panorama(awake_pipeline())
    assert got.isfinite().all()
    assert 0 < (got - expected).abs().mean() < 0.1


def table(heading: str) -> dict[str, bool]:
    """The names in a table of docs/diffusers.md, and whether this package takes them."""
    section = DOCS.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    taken: dict[str, bool] = {}
    for names, answer in re.findall(r"^\| (`.*?`) \| (.*) \|$", section, re.MULTILINE):
        assert re.match(r"(taken|no: \w)", answer), (names, answer)
        for name in re.findall("`(.*?)`", names):
            assert name not in taken, f"{name} is listed twice"
            taken[name] = answer.startswith("taken")
    return taken


def test_the_table_of_arguments_holds_every_argument_of_the_stock_call() -> None:
    ours, theirs = (
        set(inspect.signature(kind.__call__).parameters) - {"self"}
        for kind in (CubeDiffPipeline, StableDiffusionPipeline)
    )
    assert table("Arguments of the call") == {name: name in ours for name in theirs}


def test_the_table_of_methods_holds_every_public_name_of_the_stock_pipeline() -> None:
    ours, theirs = (
        {name for name in dir(kind) if not name.startswith("_")} for kind in (CubeDiffPipeline, StableDiffusionPipeline)
    )
    assert table("Methods and properties") == {name: name in ours for name in theirs}


def test_the_table_of_schedulers_lists_those_that_are_tested_by_name() -> None:
    section = DOCS.read_text().partition("## Schedulers\n")[2]
    assert set(re.findall("`(\\w+Scheduler)`", section)) == set(SCHEDULERS)


def test_vae_slicing_gives_the_same_panorama() -> None:
    pipeline = awake_pipeline()
    expected = panorama(pipeline)
    pipeline.enable_vae_slicing()
    assert 0 < (panorama(pipeline) - expected).abs().max() < 1e-3 < 1e-1 < expected.std()
    pipeline.disable_vae_slicing()
    assert torch.equal(panorama(pipeline), expected)
