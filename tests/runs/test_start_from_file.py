"""Training from a single-file checkpoint: the same bits as from the folder, in every command that takes the model."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from support.ldm import write_single_file
from support.processes import difference, python, saved
from support.promises import promised
from support.runs import QUICK, composed, train
from support.stock import stock_2d

from cubediff import CubeDiffPipeline
from cubediff.runs.fit import fit

PAGE = "docs/training.md"
SETTINGS = ("model=tiny", "face_size=64", "callbacks.samples=null", "trainer.limit_val_batches=0")


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
    return write_single_file(stock, tmp_path_factory.mktemp("models") / "v1-5-pruned.safetensors")


@pytest.fixture(scope="module")
def configs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder without its weights."""
    path = tmp_path_factory.mktemp("configs") / "sd"
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("*.safetensors"))
    return path


def model(file: Path, configs: Path) -> tuple[str, ...]:
    return f"model.pipeline.path={file}", f"model.pipeline.config={configs}"


def losses(run_dir: Path) -> list[str]:
    with (run_dir / "logs/metrics.csv").open(newline="") as rows:
        return [row["train/loss"] for row in csv.DictReader(rows) if row.get("train/loss")]


@pytest.fixture(scope="module")
def from_folder(tiny_shards: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from the folder."""
    run_dir = tmp_path_factory.mktemp("from_folder") / "run"
    return train(tiny_shards, run_dir, *SETTINGS, f"model.pipeline.path={folder}")


def assert_equal_runs(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    assert len(losses(one)) == 2
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        ours, theirs = (load_file(run / "export" / f"{part}.safetensors") for run in (one, other))
        assert difference(ours, theirs) == []
    for name in ("tokenizer/tokenizer.json", "scheduler/scheduler_config.json"):
        assert (one / "export" / name).read_bytes() == (other / "export" / name).read_bytes()


def test_training_from_a_file_equals_training_from_its_folder(
    tiny_shards: Path, file: Path, configs: Path, from_folder: Path, tmp_path: Path
) -> None:
    before = file.read_bytes()
    from_file = train(tiny_shards, tmp_path / "run", *SETTINGS, *model(file, configs))
    assert file.read_bytes() == before  # training changes the weights in memory
    assert_equal_runs(from_file, from_folder)


@pytest.mark.slow
def test_the_command_trains_from_a_file_and_either_run_resumes_the_other(
    tiny_shards: Path, file: Path, folder: Path, configs: Path, from_folder: Path, tmp_path: Path
) -> None:
    promised(PAGE, "a run from it ends in the same bits as one from the folder")
    words = (*QUICK, *SETTINGS, *model(file, configs), f"data.path={tiny_shards}", "run_dir=run")
    command = ("-m", "cubediff", "train", *words[1:])  # the first of QUICK is another model
    printed = python(*command, cwd=tmp_path, HF_HUB_OFFLINE="1").stdout
    assert f"settings that the config leaves to {file}: position_encoding=uv" in printed
    from_file = tmp_path / "run"
    assert_equal_runs(from_file, from_folder)
    card = (from_file / "export" / "README.md").read_text()
    assert "Base model: `v1-5-pruned.safetensors`. The licence of the base model is not known here" in card
    assert str(file.parent) not in card
    assert CubeDiffPipeline.from_pretrained(from_file / "export").tokenizer("a").input_ids
    # Each of the two resumes from the other's checkpoint, because the weights are equal.
    for name, begun, start in (
        ("from_file", from_file, (f"model.pipeline.path={folder}",)),
        ("from_folder", from_folder, model(file, configs)),
    ):
        checkpoint = begun / "checkpoints" / "last.ckpt"
        resumed = tmp_path / "resumed" / name
        train(tiny_shards, resumed, *SETTINGS, *start, "trainer.max_steps=3", f"resume={checkpoint}")
        assert saved(resumed)["global_step"] == 3


@pytest.mark.slow
def test_the_same_command_resumes_a_run_from_a_file(
    tiny_shards: Path, stock: StableDiffusionPipeline, configs: Path, tmp_path: Path
) -> None:
    """In float32 also with a file in float16, whose frozen weights must be the same; another file is refused."""
    file = write_single_file(stock, tmp_path / "half.safetensors", dtype=torch.float16)
    run_dir = train(tiny_shards, tmp_path / "run", *SETTINGS, *model(file, configs))
    assert {value.dtype for value in saved(run_dir)["state_dict"].values()} == {torch.float32}
    whole = write_single_file(stock, tmp_path / "whole.safetensors")

    def resume(path: Path) -> None:
        words = (*QUICK, *SETTINGS, f"data.path={tiny_shards}", *model(path, configs), "trainer.max_steps=4")
        fit(composed(*words, run_dir=run_dir), run_dir)

    with pytest.raises(
        ValueError, match=r"has other encoders than model\.pipeline\.path: a run resumes only with the same settings"
    ):
        resume(whole)
    resume(file)
    assert saved(run_dir)["global_step"] == 4


@pytest.mark.slow
def test_latents_of_a_file_are_those_of_its_folder(
    tiny_shards: Path, file: Path, folder: Path, configs: Path, tmp_path: Path
) -> None:
    """Cached by the command with the file, trained with the folder, and with the file."""
    words = ("trainer=cpu", "data.batch_size=2", "cache.turns=1", "cache.output=latents", "model=tiny", "face_size=64")
    command = ("-m", "cubediff", "cache", *words, *model(file, configs), f"data.path={tiny_shards}")
    python(*command, cwd=tmp_path, HF_HUB_OFFLINE="1")
    latents = ("data=latents", *SETTINGS)
    for name, start in {"folder": (f"model.pipeline.path={folder}",), "file": model(file, configs)}.items():
        train(tmp_path / "latents", tmp_path / name, *latents, *start)
    weights = [load_file(tmp_path / n / "export/unet/diffusion_pytorch_model.safetensors") for n in ("folder", "file")]
    assert difference(*weights) == []
    assert CubeDiffPipeline.from_pretrained(tmp_path / "file" / "export").vae.config.latent_channels == 4


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "train"])
def test_the_plan_of_a_file_is_that_of_its_folder(
    tiny_shards: Path, file: Path, folder: Path, configs: Path, tmp_path: Path, command: str
) -> None:
    more = () if command == "plan" else (f"data.path={tiny_shards}", "run_dir=run", "dry_run=true")
    words = ("-m", "cubediff", command, "model=tiny", "face_size=64", "trainer=cpu", "data.batch_size=2", *more)
    printed = [
        python(*words, *start, cwd=tmp_path, HF_HUB_OFFLINE="1").stdout
        for start in (model(file, configs), (f"model.pipeline.path={folder}",))
    ]
    reports = [text[text.index("panoramas of 6 ×") :] for text in printed]
    assert reports[0] == reports[1]


def refused(*words: object, cwd: Path, code: int = 1) -> str:
    """The message of a command that fails without a network and without a cache of the Hub."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd), "HF_HUB_CACHE": str(cwd)}
    done = python("-m", "cubediff", *words, cwd=cwd, code=code, **offline)
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


@pytest.mark.slow
def test_without_configs_and_network_a_run_says_what_to_set(file: Path, tiny_shards: Path, tmp_path: Path) -> None:
    promised(PAGE, "name a folder or another id that has them, for example offline")
    words = ("train", *QUICK[1:], *SETTINGS, f"data.path={tiny_shards}", "run_dir=run", f"model.pipeline.path={file}")
    message = refused(*words, cwd=tmp_path)
    assert f"model.pipeline: {file} holds weights alone, and the configs and the tokenizer of stable-diff" in message
    assert "set config=FOLDER (model.pipeline.config in training), a local Stable Diffusion folder" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_a_pickled_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    promised(PAGE, "Pickled files (`.ckpt`, `.pt`, `.bin`) are refused with a command that converts them")
    (tmp_path / "old.ckpt").write_bytes(b"pickle")
    message = refused("plan", "model=tiny", "model.pipeline.path=old.ckpt", cwd=tmp_path)
    assert "old.ckpt: expected a .safetensors file; others may be pickled" in message


def test_a_file_generates_no_panoramas(file: Path, tmp_path: Path) -> None:
    promised(PAGE, "It generates no panoramas before it is trained")
    words = ("generate", "--prompt", "a hall", "--output", "out", "--model")
    message = refused(*words, file, cwd=tmp_path)
    assert f"{file} is a file, and a single file is at most a 2D model, which generates no panoramas" in message
    assert f"trained with model.pipeline.path={file}" in message
    assert "models/absent.safetensors: no such file" in refused(*words, "models/absent.safetensors", cwd=tmp_path)
