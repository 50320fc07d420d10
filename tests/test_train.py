"""`cubediff train`: the output of a run, its reproducibility, and its errors."""

import csv
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from support.losses import PAPER
from support.runs import FEW_SAMPLING_STEPS, QUICK, composed, train
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.data import PanoramaDataModule, build_shards, create_example_dataset
from cubediff.diffusion.objective import CONDITIONS
from cubediff.pipelines.loading import tiny_random
from cubediff.planning.cost import cost
from cubediff.runs.sweeps.results import RESULT
from cubediff.train import main
from cubediff.training.module import CubeDiffModule

AVERAGED = ("callbacks.ema.decay=0.6", "model.optimizer.lr=1e-2")


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps with EMA, a validation after every second one, and all callbacks."""
    folder = tmp_path_factory.mktemp("train") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        train(tiny_shards, folder, *AVERAGED, "trainer.max_steps=4", "trainer.val_check_interval=2")
        assert list(Path().iterdir()) == []
    return folder


def metrics(run: Path) -> dict[str, dict[int, float]]:
    """Each metric of logs/metrics.csv by step."""
    with (run / "logs/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: {int(row["step"]): float(row[name]) for row in rows if row[name]} for name in rows[0]}


def exported(run: Path) -> dict[str, Tensor]:
    unet: torch.nn.Module = CubeDiffPipeline.from_pretrained(run / "export").unet
    return unet.state_dict()


def checkpoint(run: Path) -> dict[str, dict[str, Tensor]]:
    content: dict[str, dict[str, Tensor]] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return content


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


# ---- output of a run -----------------------------------------------------------------------------------------


def test_metrics_are_logged_by_step(run: Path) -> None:
    logged = metrics(run)
    assert set(logged["train/loss"]) == set(logged["optim/grad_norm"]) == set(logged["optim/lr"]) == {0, 1, 2, 3}
    assert set(logged["val/loss"]) == {1, 3}
    assert set(logged["optim/lr"].values()) == {0.01}
    assert all(0 < rate < 1000 for rate in logged["perf/panoramas_per_s"].values())
    assert set(logged["data/skipped"].values()) == {0.0}
    assert all(0.3 < loss < 3 for loss in (*logged["train/loss"].values(), *logged["val/loss"].values()))


def test_samples_of_text_and_of_text_and_photo_are_written_after_each_validation(run: Path) -> None:
    names = {f"step000000{step}_{kind}_{i}" for step in (2, 4) for kind in ("text", "text_photo") for i in (0, 1)}
    files = {f"{name}{end}" for name in names for end in (".jpg", "_faces.jpg", ".html")}
    assert {file.name for file in (run / "samples").iterdir()} == files
    for name in names:
        with Image.open(run / "samples" / f"{name}.jpg") as image:
            assert image.size == (256, 128)


def test_the_last_checkpoint_is_of_the_last_step_and_holds_trained_weights_only(run: Path) -> None:
    content = checkpoint(run)
    assert content["global_step"] == 4
    trained = [n for n in exported(run) if ".attn" in n or n.startswith("conv_in.")]
    assert set(content["state_dict"]) == {f"unet.{name}" for name in trained}


def test_the_export_is_a_pipeline_with_the_ema_weights_and_its_record_says_so(run: Path) -> None:
    pipeline = CubeDiffPipeline.from_pretrained(run / "export")
    content = checkpoint(run)
    trained = [n for n in exported(run) if ".attn" in n or n.startswith("conv_in.")]
    average = {name: value for name, value in pipeline.unet.named_parameters() if name in trained}
    shadow = content["callbacks"]["UNetEMA"]["shadow_params"]
    assert all(torch.equal(a, b) for a, b in zip(average.values(), shadow, strict=True))
    assert not any(torch.equal(value, content["state_dict"][f"unet.{name}"]) for name, value in average.items())
    record = json.loads((run / "export/training.json").read_text())
    assert record == {"weights": "ema", "steps": 4, "seed": 0}
    panorama = pipeline("a room", num_inference_steps=2, output_type="pt").panoramas
    assert panorama.shape == (1, 3, 128, 256)
    assert panorama.isfinite().all()


def test_frozen_weights_are_exported_unchanged(run: Path) -> None:
    start, end = tiny_random(), CubeDiffPipeline.from_pretrained(run / "export")
    assert same(start.vae.state_dict(), end.vae.state_dict())
    assert same(start.text_encoder.state_dict(), end.text_encoder.state_dict())
    before, after = start.unet.state_dict(), end.unet.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".attn" in name or name.startswith("conv_in.")}


def test_without_callbacks_the_export_holds_the_trained_weights_and_nothing_else_is_written(
    tiny_shards: Path, tmp_path: Path
) -> None:
    run = train(tiny_shards, tmp_path / "run", "callbacks=none")
    assert {file.name for file in run.iterdir()} == {"export", "logs", "run.json"}
    assert json.loads((run / "export/training.json").read_text())["weights"] == "raw"
    assert not same(exported(run), tiny_random().unet.state_dict())


# ---- reproducibility, validation, precision ------------------------------------------------------------------


def test_the_seed_determines_every_bit(run: Path, tiny_shards: Path, tmp_path: Path) -> None:
    options = (*AVERAGED, "trainer.max_steps=4", "trainer.limit_val_batches=0")
    again = train(tiny_shards, tmp_path / "again", *options)
    other = train(tiny_shards, tmp_path / "other", *options, "seed=1")
    assert same(checkpoint(run)["state_dict"], checkpoint(again)["state_dict"])
    assert same(exported(run), exported(again))
    assert not same(exported(run), exported(other))
    assert "val/loss" not in metrics(again)
    assert not (again / "samples").exists()


def test_shards_without_validation_panoramas_train(tmp_path: Path) -> None:
    source = create_example_dataset(3, tmp_path / "panoramas", size=(32, 64))
    build_shards(source, tmp_path / "shards", source / "captions.jsonl", val_fraction=0.0)
    run = train(tmp_path / "shards", tmp_path / "run", "trainer.val_check_interval=1")
    assert (run / "export/model_index.json").is_file()
    assert "val/loss" not in metrics(run)


def test_validation_interval_counts_batches_across_epochs_and_accumulation(tiny_shards: Path, tmp_path: Path) -> None:
    """Five panoramas give epochs of two batches of two, which are one step; validation is due after 3 and 6 batches."""
    run = train(
        tiny_shards,
        tmp_path / "run",
        "trainer.accumulate_grad_batches=2",
        "trainer.max_steps=4",
        "trainer.val_check_interval=3",
        "~callbacks.samples",
    )
    assert len(metrics(run)["val/loss"]) == 2
    assert len(metrics(run)["optim/grad_norm"]) == 4


def test_bf16_mixed_trains_float32_weights_and_the_ema_moves(tiny_shards: Path, tmp_path: Path) -> None:
    run = train(tiny_shards, tmp_path / "run", *AVERAGED, "trainer.precision=bf16-mixed", "~callbacks.samples")
    start, weights, trained = tiny_random().unet.state_dict(), exported(run), checkpoint(run)["state_dict"]
    assert {w.dtype for w in weights.values()} == {torch.float32}
    changed = [name for name in start if not torch.equal(start[name], weights[name])]
    assert "conv_in.weight" in changed
    assert not torch.equal(weights["conv_in.weight"], trained["unet.conv_in.weight"])


# ---- loggers -------------------------------------------------------------------------------------------------


def test_tensorboard_receives_metrics_and_samples(tiny_shards: Path, tmp_path: Path) -> None:
    run = train(tiny_shards, tmp_path / "run", "logger=tensorboard", "trainer.val_check_interval=2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"train/loss", "val/loss", "optim/grad_norm", "optim/lr"} <= set(events.Tags()["scalars"])
    kinds = ("text", "text_photo", "text_faces", "text_photo_faces")
    assert set(events.Tags()["images"]) == {f"samples/{kind}_{i}" for kind in kinds for i in (0, 1)}
    (image,) = events.Images("samples/text_photo_0")
    assert (image.step, image.width, image.height) == (2, 256, 128)


@pytest.fixture(scope="module")
def sweep(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """The command with two runs that differ in their seed, logged to W&B without an account; its output."""
    folder = tmp_path_factory.mktemp("sweep")
    options = (
        *QUICK,
        FEW_SAMPLING_STEPS,
        f"data.path={tiny_shards}",
        "seed=0,1",
        "logger=wandb",
        "trainer.val_check_interval=2",
    )
    result = subprocess.run(
        [sys.executable, "-m", "cubediff.train", "-m", *options],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"} | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder, result.stdout, result.stderr


def test_a_sweep_creates_one_folder_with_a_subfolder_per_run(sweep: tuple[Path, str, str]) -> None:
    folder, out, _ = sweep
    (stamped,) = (folder / "experiments/runs/train").iterdir()
    runs = [stamped / "0", stamped / "1"]
    assert [folder.name for folder in sorted(stamped.iterdir()) if folder.is_dir()] == ["0", "1"]
    assert [json.loads((run / "export/training.json").read_text())["seed"] for run in runs] == [0, 1]
    assert not same(exported(runs[0]), exported(runs[1]))
    for seed, run in enumerate(runs):
        result = json.loads((run / RESULT).read_text())
        assert (result["status"], result["job"]) == ("done", seed)
        assert f"seed={seed}" in result["overrides"]
    assert {path.name for path in folder.iterdir()} == {"experiments"}
    assert [line for line in out.splitlines() if line.startswith("trained: ")] == [
        f"trained: {run / 'export'}" for run in runs
    ]


def test_every_run_of_a_sweep_is_a_separate_wandb_run_with_samples(sweep: tuple[Path, str, str]) -> None:
    (stamped,) = (sweep[0] / "experiments/runs/train").iterdir()
    for run in (stamped / "0", stamped / "1"):
        (offline,) = (run / "wandb").glob("offline-run-*")
        (log,) = offline.glob("run-*.wandb")
        assert b"train/loss" in log.read_bytes()
        assert {path.name.rsplit("_", 2)[0] for path in offline.glob("files/media/images/samples/*.png")} == {
            "text",
            "text_photo",
            "text_faces",
            "text_photo_faces",
        }


def test_the_command_shows_its_progress_and_no_advertisements(sweep: tuple[Path, str, str]) -> None:
    _, out, err = sweep
    assert "5 training and 3 validation panoramas, 2 per step" in out
    assert "training: 100%" in err
    assert "2/2" in err
    assert not any(noise in out + err for noise in ("Tip:", "Writing model shards", "Loading weights", "Warning:"))


# ---- two devices ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_validate_to_the_mean_over_all_panoramas(tiny_shards: Path, tmp_path: Path) -> None:
    """Of three validation panoramas the first rank has one and the second two; the expected losses are those of the
    exported weights with the same noise."""
    devices = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
    options = (*QUICK, *devices, *AVERAGED, f"data.path={tiny_shards}", "trainer.val_check_interval=2")
    command = [sys.executable, "-m", "cubediff.train", *options, FEW_SAMPLING_STEPS]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained: ") == 1
    assert "4 per step" in result.stdout
    (run,) = (tmp_path / "experiments/runs/train").iterdir()
    data = PanoramaDataModule(tiny_shards, batch_size=3, face_size=64)
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    pipeline = CubeDiffPipeline.from_pretrained(run / "export")
    module = CubeDiffModule(pipeline, PAPER, optimizer=torch.optim.AdamW).eval()
    module.encode_null_text()
    with torch.no_grad():
        output = module.compute_losses(batch, [(0, 1, index) for index in range(3)])
    losses, timesteps, conditions = output["losses"], output["timesteps"], output["conditions"]
    logged = metrics(run)
    assert logged["val/loss"][1] == pytest.approx(losses.mean().item(), rel=1e-5)
    for number in range(4):
        for group, mine in ((f"q{number + 1}", timesteps // 250 == number), (CONDITIONS[number], conditions == number)):
            logged_loss = logged.get(f"val/loss_{group}", {})
            assert logged_loss == ({1: pytest.approx(losses[mine].mean().item(), rel=1e-5)} if mine.any() else {})
    each, both = logged["perf/panoramas_per_s_per_device"][1], logged["perf/panoramas_per_s"][1]
    assert both == pytest.approx(2 * each)
    assert both == pytest.approx(4 / logged["perf/step_s"][1])
    pages = {page.name for page in (run / "samples").glob("*.html")}  # each process made one of either kind
    assert pages == {f"step0000002_{kind}_{number}.html" for kind in ("text", "text_photo") for number in (0, 1)}


# ---- errors --------------------------------------------------------------------------------------------------


def ended(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> str:
    """The message of a command that exits with an error and no traceback."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments), "run_dir=run"])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, str), "Hydra printed a traceback"
    assert not (folder / "run/export").exists()
    return end.value.code


def test_missing_gpus_are_an_error_with_a_remedy(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    output = ended(monkeypatch, tmp_path, "experiment=sd15_l4x4", f"data.path={tiny_shards}")
    assert output == "error: trainer.devices=4 GPUs, but this machine has none: set trainer=cpu"


def test_missing_weights_are_an_error_with_a_remedy(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # what the variable sets, read at import
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    output = ended(monkeypatch, tmp_path, "experiment=sd15_l4x4", f"data.path={tiny_shards}", "trainer=cpu")
    assert output.startswith("error: model.pipeline.path=stable-diffusion-v1-5/stable-diffusion-v1-5 cannot be loaded")
    assert "set model.pipeline.path=FOLDER with a local Stable Diffusion" in output


def test_missing_or_invalid_data_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "data.path=SHARDS" in ended(monkeypatch, tmp_path, "model=tiny_random", "trainer=cpu")
    (tmp_path / "photos").mkdir()
    for path, message in (
        ("photos", "photos holds no manifest.json: build shards with cubediff prepare"),
        ("nowhere", "data.path=nowhere does not exist: set data.path to a folder of shards that cubediff prepare"),
    ):
        output = ended(monkeypatch, tmp_path, "model=tiny_random", "trainer=cpu", f"data.path={path}")
        assert output.startswith(f"error: {message}")
        assert len(output.splitlines()) == 1


@pytest.mark.slow
def test_a_dry_run_prints_config_plan_and_data_and_trains_nothing(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For four GPUs, which this machine does not have."""
    run_dir = tmp_path / "run"
    words = ("model=tiny_random", "trainer=ddp", "dry_run=true", f"data.path={tiny_shards}", "plan.memory_gb=0.5")
    output = subprocess.run(
        [sys.executable, "-m", "cubediff.train", *words, f"run_dir={run_dir}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"path: {tiny_shards}" in output.stdout  # the config
    assert "4 × 4 panoramas" in output.stdout  # the plan
    assert f"{tiny_shards}: 5 training panoramas in 1 shards, 3 validation panoramas in 1 shards" in output.stdout
    assert output.stdout.rstrip().endswith(f"output folder: {run_dir}")
    assert [path.name for path in run_dir.iterdir()] == [".hydra"]
    error = ended(monkeypatch, tmp_path, *words, f"resume={tmp_path / 'nothing.ckpt'}")
    assert "nothing.ckpt is not a file" in error


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_diverging_run_stops_with_a_remedy(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finite = ("callbacks.finite.every_n_steps=1", "callbacks.finite.limit=3")
    options = (*QUICK, *finite, "model.optimizer.lr=1e30", "trainer.limit_val_batches=0")
    output = ended(monkeypatch, tmp_path, *options, f"data.path={tiny_shards}", "trainer.max_steps=9")
    assert output.startswith("error: 3 steps were skipped because losses or gradients are not finite (the last up to")
    assert "example_00000" in output
    assert output.endswith("lower model.optimizer.lr, or inspect these samples")
    assert (tmp_path / "run/logs/metrics.csv").is_file()


OUT_OF_MEMORY = "error: training ran out of memory: data.batch_size="


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError


@pytest.mark.slow
def test_error_of_an_out_of_memory_batch_names_the_largest_that_fits(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And proposes nothing that is set already."""
    monkeypatch.setattr(CubeDiffModule, "training_step", out_of_memory)
    planned = cost(composed(*QUICK, f"data.path={tiny_shards}"), 1)
    enough, little = (int((planned.peak + share * planned.step_peak) / 0.9) for share in (0.2, -0.5))
    options = (*QUICK, f"data.path={tiny_shards}")
    cases = {
        ("batch 2", 2, enough, False): "data.batch_size=1, which the plan predicts to fit (`cubediff plan`",
        ("nothing fits", 2, little, False): "model.gradient_checkpointing=true, or data.batch_size=1, or data=latents",
        ("the plan is wrong", 1, enough, True): "data=latents (cached before), or a smaller face_size (`cubediff plan`",
        ("all is set", 1, little, True): "data=latents (cached before), or a smaller face_size (`cubediff plan`",
    }
    for (folder, batch, memory, checkpointing), remedy in cases.items():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda memory=memory: (0, memory))
        (tmp_path / folder).mkdir()
        more = (f"data.batch_size={batch}", f"model.gradient_checkpointing={checkpointing}".lower())
        output = ended(monkeypatch, tmp_path / folder, *options, *more)
        assert output.startswith(f"{OUT_OF_MEMORY}{batch} does not fit into the GPU's ")
        assert f": set {remedy}" in output


def test_an_out_of_memory_batch_is_named_though_the_plan_fails(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CubeDiffModule, "training_step", out_of_memory)
    monkeypatch.setattr("cubediff.runs.fit.cost", Mock(side_effect=RuntimeError("the plan is broken")))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 2**30))
    with pytest.warns(UserWarning, match="the plan failed, so the batch that fits is not known: the plan is broken"):
        output = ended(monkeypatch, tmp_path, *QUICK, f"data.path={tiny_shards}")
    assert output.startswith(f"{OUT_OF_MEMORY}2 does not fit into the GPU's 1.0 GiB: set model.gradient_checkpointing")


def test_error_of_samples_that_run_out_of_memory_says_that_training_did_not(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CubeDiffPipeline, "__call__", out_of_memory)
    options = ("trainer.max_steps=1", "trainer.val_check_interval=1", f"data.path={tiny_shards}")
    output = ended(monkeypatch, tmp_path, *QUICK, *options)
    assert output.startswith(
        "error: generating samples ran out of memory, 2 at a time; training itself did not: set "
        "callbacks.samples.count=1, or callbacks.samples.count=0, which generates none"
    )


def test_error_of_wandb_names_the_remedy(tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**_: object) -> None:
        raise wandb.errors.UsageError("API key is 12 characters long.")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setenv("WANDB_MODE", "offline")
    output = ended(monkeypatch, tmp_path, *QUICK, f"data.path={tiny_shards}", "logger=wandb")
    assert output.splitlines() == [
        "error: API key is 12 characters long.",
        "set logger=csv, or set WANDB_MODE=offline, which needs no account",
    ]
