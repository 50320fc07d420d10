"""A run takes the settings that its config leaves open from the model folder, and weights of one variant."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.runs import composed, train
from support.stock import stock_2d

from cubediff import CubeDiffPipeline
from cubediff.configs import build
from cubediff.configs.targets import UNSET
from cubediff.pipelines.loading import load_pipeline, meta_pipeline, tiny_random
from cubediff.runs.identity import run_identity, with_model_settings

OTHERS = {
    "position_encoding": "uv_pi",
    "position_samples": "corners",
    "sync_group_norm": False,
    "cross_attention": "joint",
    "image_drop": "attention",
}
FIRST = {key.rpartition(".")[2]: value for key, value in UNSET.items() if key.startswith("model.pipeline.")}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CubeDiff folder with other settings than a new model has."""
    folder = tmp_path_factory.mktemp("others")
    tiny_random(**OTHERS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2D model in float16 whose files are those of the variant fp16 alone."""
    folder = tmp_path_factory.mktemp("half")
    stock_2d().to(torch.float16).save_pretrained(folder, variant="fp16")
    return folder


def settings(pipeline: CubeDiffPipeline) -> dict[str, object]:
    return {name: pipeline.config[name] for name in OTHERS}


def model_of(folder: Path | str, *overrides: str) -> list[str]:
    return ["model=tiny", f"model.pipeline.path={folder}", "face_size=64", "data.path=SHARDS", *overrides]


def test_settings_that_the_config_leaves_open_are_those_of_the_folder(others: Path, half: Path) -> None:
    assert settings(build(composed(*model_of(others)).model).pipeline) == OTHERS
    assert settings(build(composed(*model_of(half)).model).pipeline) == FIRST
    assert settings(build(composed("model=tiny_random", "data.path=SHARDS").model).pipeline) == FIRST
    same = model_of(others, "model.pipeline.position_encoding=uv_pi", "model.pipeline.sync_group_norm=false")
    assert settings(build(composed(*same).model).pipeline) == OTHERS


@pytest.mark.parametrize(("name", "value"), FIRST.items())
def test_a_given_setting_that_differs_from_the_folder_is_refused(others: Path, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"was trained with {name}={OTHERS[name]!r}, not {value!r}"):
        build(composed(*model_of(others, f"model.pipeline.{name}={value}")).model)


def test_settings_of_sampling_replace_those_of_the_folder(others: Path) -> None:
    pipeline = load_pipeline(others, average_overlap=True, photo_encoding="face")
    assert (pipeline.config.average_overlap, pipeline.config.photo_encoding) == (True, "face")
    assert settings(pipeline) == OTHERS


def test_the_plan_counts_the_model_with_the_settings_of_its_folder(tmp_path: Path) -> None:
    tiny_random(position_encoding="xyz").save_pretrained(tmp_path)
    planned = meta_pipeline(
        "cubediff.pipelines.loading.load_pipeline", {"path": str(tmp_path), "position_encoding": None}
    )
    assert planned.unet.config.in_channels == 8
    assert planned.config.position_encoding == "xyz"


def test_a_run_prints_and_records_the_settings_of_its_folder(
    tiny_shards: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("model=tiny", f"model.pipeline.path={others}", "face_size=64", "callbacks.samples=null",
                 "trainer.limit_val_batches=0")  # fmt: skip
    train(tiny_shards, tmp_path / "run", *overrides)
    expected = ", ".join(f"{name}={value}" for name, value in OTHERS.items())
    assert f"settings that the config leaves to {others}: {expected}" in capsys.readouterr().out
    assert settings(CubeDiffPipeline.from_pretrained(tmp_path / "run" / "export")) == OTHERS
    # Resumes with the settings given, which are the same.
    given = [f"model.pipeline.{name}={value}" for name, value in OTHERS.items()]
    (tmp_path / "again").mkdir()
    train(tiny_shards, tmp_path / "again" / "run", *overrides, *given, "trainer.max_steps=3",
          f"resume={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}")  # fmt: skip
    assert "resuming from" in capsys.readouterr().out


def test_runs_that_leave_settings_open_have_the_identity_of_runs_that_give_them() -> None:
    module = build(composed("model=tiny_random", "data.path=SHARDS").model)
    given = [f"model.pipeline.{name}={str(value).lower()}" for name, value in FIRST.items()]
    configs = [composed("model=tiny_random", "data.path=SHARDS", *more) for more in ((), given)]
    open_, explicit = (run_identity(with_model_settings(each, module.pipeline)[0], module) for each in configs)
    assert open_ == explicit
    assert open_["model.pipeline.position_encoding"] == "uv"


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_folder_of_one_variant_is_trained_in_float32(half: Path, variant: str | None) -> None:
    pipeline = build(composed(*model_of(half, f"model.pipeline.variant={variant or 'null'}")).model).pipeline
    assert {model.dtype for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    expected = stock_2d().to(torch.float16).unet.state_dict()["mid_block.resnets.0.conv1.weight"].float()
    assert torch.equal(pipeline.unet.state_dict()["mid_block.resnets.0.conv1.weight"], expected)


def test_a_cubediff_folder_of_one_variant_is_loaded_and_trained(tmp_path: Path) -> None:
    tiny_random(**OTHERS).to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert CubeDiffPipeline.from_pretrained(tmp_path).unet.dtype == torch.float32
    assert CubeDiffPipeline.from_pretrained(tmp_path, dtype=torch.float16).vae.dtype == torch.float16
    assert settings(load_pipeline(tmp_path)) == OTHERS


def test_a_folder_of_several_variants_without_plain_weights_needs_a_choice(tmp_path: Path) -> None:
    pipeline = tiny_random()
    for variant in ("fp16", "ema"):
        pipeline.save_pretrained(tmp_path, variant=variant)
    with pytest.raises(ValueError, match=r"holds the variants ema, fp16: choose one, for example variant='ema'"):
        CubeDiffPipeline.from_pretrained(tmp_path)
    assert load_pipeline(tmp_path, variant="ema").unet.dtype == torch.float32
    with pytest.raises(ValueError, match="variant=bf16"):
        CubeDiffPipeline.from_pretrained(tmp_path, variant="bf16")


@pytest.mark.slow
def test_models_of_the_hub_are_recognised_by_their_layout(others: Path, half: Path, tmp_path: Path) -> None:
    """From the Hub's cache, without a network: another CubeDiff, and a 2D model of one variant."""
    for name, folder in {"cube": others, "flat": half}.items():
        repository = tmp_path / "hub" / f"models--someone--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    script = """
from cubediff.pipelines.loading import load_for_generation, load_pipeline
print(load_for_generation("someone/cube").config.position_encoding)
print(load_pipeline("someone/cube").config.image_drop)
print(load_pipeline("someone/flat", variant="fp16", revision="main").config.position_encoding)
try:
    load_pipeline("someone/absent")
except OSError as error:
    print("absent", "someone/absent" in str(error))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split("\n")[:4] == ["uv_pi", "attention", "uv", "absent True"], done.stderr
