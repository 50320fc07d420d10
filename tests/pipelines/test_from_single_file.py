"""A single-file checkpoint as a 2D start of the pipeline: configs from a folder or the Hub, and what is refused."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from support.ldm import UNET, single_file_weights, write_single_file
from support.processes import python
from support.runs import composed
from support.stock import stock_2d

from cubediff import CubeDiffPipeline
from cubediff.configs import build
from cubediff.models.presets import SD15
from cubediff.pipelines import single_file
from cubediff.pipelines.loading import load_for_generation, load_pipeline, meta_pipeline, tiny_random

LOAD_PIPELINE = "cubediff.pipelines.loading.load_pipeline"


@pytest.fixture(scope="module")
def stock() -> StableDiffusionPipeline:
    return stock_2d()


@pytest.fixture(scope="module")
def folder(stock: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stock")
    stock.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def file(stock: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_single_file(stock, tmp_path_factory.mktemp("file") / "sd.safetensors")


def configs_alone(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def test_the_pipeline_is_that_of_the_folder(folder: Path, file: Path, tmp_path: Path) -> None:
    from_folder = CubeDiffPipeline.from_2d(folder, position_encoding="xyz", scheduler={"prediction_type": "sample"})
    configs = configs_alone(folder, tmp_path / "configs")
    from_file = CubeDiffPipeline.from_2d(
        file, config=configs, position_encoding="xyz", scheduler={"prediction_type": "sample"}
    )
    assert from_file.backbone.fingerprint() == from_folder.backbone.fingerprint()
    assert dict(from_file.scheduler.config) == dict(from_folder.scheduler.config)
    for name, value in from_folder.unet.state_dict().items():
        assert torch.equal(from_file.unet.state_dict()[name], value)
    for part in ("unet", "vae"):
        ours, theirs = (dict(getattr(each, part).config) for each in (from_file, from_folder))
        assert {key: ours[key] for key in theirs.keys() - {"_name_or_path"}} == {
            key: theirs[key] for key in theirs.keys() - {"_name_or_path"}
        }


def test_a_stated_prediction_type_is_that_of_the_configs_or_is_set(
    stock: StableDiffusionPipeline, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "v.safetensors"
    save_file(single_file_weights(stock), file, {"modelspec.prediction_type": "v"})
    with pytest.raises(ValueError, match=r"v\.safetensors states .* set scheduler={'prediction_type': 'v_prediction'}"):
        CubeDiffPipeline.from_2d(file, config=folder)
    given = composed("model=tiny", "+model.pipeline.scheduler.prediction_type=v_prediction", "data.path=x")
    given.model.pipeline.update({"path": str(file), "config": str(folder)})
    assert build(given.model.pipeline).scheduler.config.prediction_type == "v_prediction"
    for prediction_type in ("epsilon", "sample"):
        pipeline = CubeDiffPipeline.from_2d(file, config=folder, scheduler={"prediction_type": prediction_type})
        assert pipeline.scheduler.config.prediction_type == prediction_type


def test_the_dtype_is_that_of_the_argument(stock: StableDiffusionPipeline, folder: Path, tmp_path: Path) -> None:
    half = write_single_file(stock, tmp_path / "half.safetensors", dtype=torch.float16)
    for dtype in (torch.float32, torch.float16):
        pipeline = CubeDiffPipeline.from_2d(half, dtype, config=folder)
        assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {dtype}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "fp16"}, "is a single file, without variants and revisions: remove variant=fp16"),
        ({"revision": "main"}, "remove revision=main"),
        ({"variant": "fp16", "revision": "main"}, "remove variant=fp16 and revision=main"),
        ({"config": "v1-inference.yaml"}, "expected a folder in the diffusers layout or a Hub id, got a file"),
        ({"config": "nowhere/at/all"}, "config=nowhere/at/all: .*no such model folder"),
        ({"config": "empty"}, "config=empty: .*no model_index.json in it"),
    ],
)
def test_options_that_do_not_go_with_a_file_are_refused(
    file: Path, options: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v1-inference.yaml").touch()
    (tmp_path / "empty").mkdir()
    for load in (CubeDiffPipeline.from_2d, load_pipeline):
        with pytest.raises(ValueError, match=message):
            load(file, **options)


def test_configs_beside_a_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    tiny_random().save_pretrained(tmp_path)
    for path in (folder, tmp_path, "someone/model"):
        if path == "someone/model":
            with pytest.raises(ValueError, match="config=x is for a single file, but someone/model has its own"):
                CubeDiffPipeline.from_2d(path, config="x")
            continue
        with pytest.raises(ValueError, match=f"config={folder} is for a single file, but {path} has its own configs"):
            load_pipeline(path, config=folder)
    with pytest.raises(ValueError, match="is for a single file"):
        meta_pipeline(LOAD_PIPELINE, {"path": str(folder), "config": str(folder)})


@pytest.mark.parametrize(
    "missing",
    ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
     "tokenizer/tokenizer.json"],
)  # fmt: skip
def test_a_folder_without_a_config_is_refused_by_the_missing_file(
    folder: Path, file: Path, tmp_path: Path, missing: str
) -> None:
    configs = configs_alone(folder, tmp_path / "configs")
    (configs / missing).unlink()
    with pytest.raises(ValueError, match=rf"configs has no {missing}, which .*sd\.safetensors needs.* set config="):
        CubeDiffPipeline.from_2d(file, config=configs)


def test_the_tokenizer_may_be_that_of_the_first_repositories(folder: Path, file: Path, tmp_path: Path) -> None:
    """Those of Stable Diffusion 1.5 hold vocab.json and merges.txt."""
    configs = configs_alone(folder, tmp_path / "configs")
    tokenizer = configs / "tokenizer" / "tokenizer.json"
    model = json.loads(tokenizer.read_text())["model"]
    tokenizer.unlink()
    tokenizer.with_name("vocab.json").write_text(json.dumps(model["vocab"]))
    with pytest.raises(ValueError, match=r"configs has no tokenizer/tokenizer\.json"):
        CubeDiffPipeline.from_2d(file, config=configs)
    merges = [" ".join(pair) for pair in model["merges"]]
    tokenizer.with_name("merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    encoded = [
        CubeDiffPipeline.from_2d(file, config=each).tokenizer("a hall")["input_ids"] for each in (folder, configs)
    ]
    assert encoded[0] == encoded[1]
    assert len(encoded[0]) > 4


def test_a_folder_of_configs_brings_no_code(folder: Path, file: Path, tmp_path: Path) -> None:
    configs = configs_alone(folder, tmp_path / "configs")
    (configs / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not read")
    CubeDiffPipeline.from_2d(file, config=configs)
    (configs / "unet" / "diffusers.py").touch()
    with pytest.raises(ValueError, match="a model folder brings no code"):
        CubeDiffPipeline.from_2d(file, config=configs)


def test_weights_that_are_not_finite_are_refused_by_the_file(
    stock: StableDiffusionPipeline, folder: Path, tmp_path: Path
) -> None:
    weights = single_file_weights(stock)
    weights[f"{UNET}time_embed.0.bias"][3] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match=r"nan\.safetensors: unet: 1 of 64 values of time_embedding\.linear_1\.bias"):
        CubeDiffPipeline.from_2d(tmp_path / "nan.safetensors", config=folder)


def test_a_file_is_refused_for_generation_with_what_to_do(file: Path, tmp_path: Path) -> None:
    message = rf"{file} is a file, .* generates no panoramas: .* model\.pipeline\.path={file}, .*from_2d"
    for load in (CubeDiffPipeline.from_pretrained, load_for_generation):
        with pytest.raises(ValueError, match=message):
            load(file)
        with pytest.raises(FileNotFoundError, match=r"other\.safetensors: no such file"):
            load(tmp_path / "other.safetensors")


def test_an_id_that_the_hub_does_not_give_says_so_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = r"someone/model is not a local folder, and was not loaded from the Hub \(.*offline.*\): pass the folder"
    with pytest.raises(OSError, match=message):
        load_for_generation("someone/model")


def test_the_plan_counts_the_model_of_the_configs(
    stock: StableDiffusionPipeline, folder: Path, file: Path, tmp_path: Path
) -> None:
    planned = meta_pipeline(LOAD_PIPELINE, {"path": str(file), "config": str(folder), "position_encoding": "xyz"})
    assert tuple(planned.unet.config.block_out_channels) == stock.unet.config.block_out_channels
    assert planned.unet.config.in_channels == 8
    assert (
        meta_pipeline(LOAD_PIPELINE, {"path": str(file)}).unet.config.block_out_channels
        == (SD15["unet"]["block_out_channels"])
    )
    with pytest.raises(ValueError, match=r"model\.pipeline\.config=someone/else is neither a local model folder"):
        meta_pipeline(LOAD_PIPELINE, {"path": str(file), "config": "someone/else"})
    with pytest.raises(ValueError, match="remove variant=fp16"):
        meta_pipeline(LOAD_PIPELINE, {"path": str(file), "variant": "fp16"})
    two = write_single_file(stock, tmp_path / "two.safetensors", open_clip=True)
    with pytest.raises(ValueError, match=r"two\.safetensors holds Stable Diffusion 2\.x"):
        meta_pipeline(LOAD_PIPELINE, {"path": str(two)})
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors: no such file"):
        meta_pipeline(LOAD_PIPELINE, {"path": "models/absent.safetensors"})


def test_only_configs_and_tokenizer_are_downloaded(
    folder: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = configs_alone(folder, tmp_path / "hub")
    calls = []

    def download(repo: str, allow_patterns: list[str]) -> str:
        calls.append((repo, [pattern for pattern in allow_patterns if "safetensors" in pattern or pattern == "*"]))
        return str(hub)

    monkeypatch.setattr(single_file, "snapshot_download", download)
    CubeDiffPipeline.from_2d(file)
    CubeDiffPipeline.from_2d(file, config="someone/else")
    assert calls == [("stable-diffusion-v1-5/stable-diffusion-v1-5", []), ("someone/else", [])]


@pytest.mark.slow
def test_without_configs_they_come_from_the_cache_of_the_hub_or_the_error_says_what_to_set(
    folder: Path, file: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    configs_alone(folder, repository / "snapshots" / ("0" * 40))
    script = f"""
from cubediff import CubeDiffPipeline
print(CubeDiffPipeline.from_2d({str(file)!r}).unet.config.in_channels)
try:
    CubeDiffPipeline.from_2d({str(file)!r}, config="someone/absent")
except ValueError as error:
    print(error)
"""
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    channels, error = python("-c", script, cwd=tmp_path, **environment).stdout.splitlines()
    assert channels == "7"
    assert error.startswith(
        f"{file} holds weights alone, and the configs and the tokenizer of someone/absent can neith"
    )
    assert "set config=FOLDER (model.pipeline.config in training)" in error
