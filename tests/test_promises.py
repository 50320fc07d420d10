"""Sentences of the documentation that promise behaviour; each test runs the whole commands, as a user types them.

A promise is quoted word for word, so that it cannot change without its test.
"""

import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.builds import contents
from support.generating import save_model
from support.memory import measured, peak_bytes
from support.processes import python
from support.promises import promised

from cubediff.cubemaps.conventions import engine_images
from cubediff.cubemaps.layouts import from_engine
from cubediff.data.sources.schemes import seam
from cubediff.geometry import FACES

ROOT = Path(__file__).parents[1]
TEXT_ONLY = ("callbacks.samples=null", "trainer.limit_val_batches=0")
TRAIN = ("train", "experiment=tiny_cpu", "model=tiny_random", "data.path=shards", "data.batch_size=2", *TEXT_ONLY)
EVERY_STEP = "callbacks.checkpoint.every_n_steps=1"

TestT = TypeVar("TestT", bound=Callable[..., None])
promises: list[tuple[str, str]] = []


def promise(page: str, *sentences: str) -> Callable[[TestT], TestT]:
    """Marks a test as the proof of sentences in a page; such a test starts many processes and is slow."""

    def record(test: TestT) -> TestT:
        promises.extend((page, sentence) for sentence in sentences)
        return pytest.mark.slow(test)

    return record


def run(*words: object, cwd: Path, code: int = 0, **environment: str) -> str:
    """Runs a command; returns what it printed on both streams, without a traceback."""
    done = python("-m", "cubediff", *words, cwd=cwd, code=code, **environment)
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    return output


def start(*words: object, cwd: Path) -> subprocess.Popen[str]:
    """Starts a command in the background."""
    command = [sys.executable, "-m", "cubediff", *map(str, words)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def checkpoint(run_dir: Path, step: int) -> Path:
    return run_dir / f"checkpoints/step{step:08d}.ckpt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with six panoramas, and shards of them."""
    path = tmp_path_factory.mktemp("work")
    run("example", 6, "panoramas", cwd=path)
    run("prepare", "panoramas", "shards", "--workers", 1, cwd=path)
    return path


# ---- README ----------------------------------------------------------------------------------------------------


@promise(
    "README.md",
    "Each folder receives `panorama.jpg`, `generation.json` (the settings that reproduce it) and `viewer.html`, an "
    "offline page to look around in.",
)
def test_the_settings_of_generation_json_reproduce_the_panorama(tmp_path: Path) -> None:
    words = ("generate", "--model", ROOT / "experiments/cubediff_tiny/model", "--prompt", "a hall", "--steps", 2)
    run(*words, "--output", "first", cwd=tmp_path)
    made = contents(tmp_path / "first")
    assert made.keys() >= {"panorama.jpg", "generation.json", "viewer.html"}
    assert b"http://" not in made["viewer.html"].replace(b"http://www.w3.org", b"")
    record = json.loads(made["generation.json"])
    options = {
        "--model": "model", "--prompt": "prompt", "--steps": "num_inference_steps", "--seed": "seed",
        "--guidance-scale": "guidance_scale",
    }  # fmt: skip
    again = [word for option, key in options.items() for word in (option, record[key])]
    run("generate", *again, "--output", "second", cwd=tmp_path)
    assert contents(tmp_path / "second")["panorama.jpg"] == made["panorama.jpg"]


@promise(
    "docs/generation.md",
    "A model folder stores whether it is on (`average_overlap` in `model_index.json`); a call may say otherwise.",
)
def test_average_overlap_is_as_the_folder_or_the_command_says(tmp_path: Path) -> None:
    panoramas = {}
    for stored in (True, False):
        shutil.copytree(ROOT / "experiments/cubediff_tiny/model", tmp_path / str(stored))
        path = tmp_path / str(stored) / "model_index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "average_overlap": stored}))
        for option in ([], ["--no-average-overlap" if stored else "--average-overlap"]):
            words = ("generate", "--model", str(stored), "--prompt", "a hall", "--steps", 4, *option)
            run(*words, "--output", "made", cwd=tmp_path)
            with Image.open(tmp_path / "made" / "panorama.jpg") as panorama:
                panoramas[stored, *option] = np.asarray(panorama, np.float32)
    on, off = panoramas[True,], panoramas[False,]
    assert np.abs(on - off).max() > 32
    assert np.array_equal(panoramas[False, "--average-overlap"], on)
    assert np.array_equal(panoramas[True, "--no-average-overlap"], off)


@promise(
    "docs/generation.md",
    "Besides a model's weights and activations, an 8192×4096 panorama takes less than 4 GiB of main memory.",
)
def test_a_large_panorama_takes_less_than_4_gib(tmp_path: Path) -> None:
    """With the activations of a small model, whose faces have 1024 pixels."""
    save_model(tmp_path / "model")
    words = ("--prompt", "a hall", "--steps", "1", "--guidance-scale", "1", "--face-size", "1024", "--height", "4096")
    command = [sys.executable, "-m", "cubediff.generate", "--model", "model", "--output", "out", *words, "--vae-tiling"]
    subprocess.run(measured(command, tmp_path / "peak"), cwd=tmp_path, check=True)
    with Image.open(tmp_path / "out/panorama.jpg") as panorama:
        assert panorama.size == (8192, 4096)
    peak = peak_bytes(tmp_path / "peak")
    assert peak < 4 * 2**30
    print(f"peak memory: {peak / 2**30:.2f} GiB")


@promise("README.md", "The same `cubediff train` command again resumes from the last checkpoint in `run_dir`.")
@promise("docs/resume.md", "So a resumed run ends in the same bits as an uninterrupted one")
@promise("docs/resume.md", "| `never` | refuses a `run_dir` that holds checkpoints |")
@promise(
    "docs/training.md", "At the end of the run `RUN/export/` holds a diffusers pipeline folder with the EMA weights"
)
def test_a_run_resumes_to_the_same_bits_and_exports_its_ema(folder: Path) -> None:
    run(*TRAIN, "run_dir=whole", "trainer.max_steps=4", EVERY_STEP, cwd=folder)
    output = run(*TRAIN, "run_dir=twice", "trainer.max_steps=2", EVERY_STEP, cwd=folder)
    assert "to train further: trainer.max_steps above 2, run_dir=" in output
    output = run(*TRAIN, "run_dir=twice", "trainer.max_steps=4", EVERY_STEP, cwd=folder)
    assert "resuming from" in output
    assert "step00000002.ckpt" in output
    weights = "export/unet/diffusion_pytorch_model.safetensors"
    assert (folder / "twice" / weights).read_bytes() == (folder / "whole" / weights).read_bytes()
    saved = torch.load(checkpoint(folder / "whole", 4), weights_only=True)
    exported, trained = load_file(folder / "whole" / weights), saved["state_dict"]
    names = [name.removeprefix("unet.") for name in trained]
    for name, average in zip(names, saved["callbacks"]["UNetEMA"]["shadow_params"], strict=True):
        assert torch.equal(exported[name], average)
    assert not all(torch.equal(exported[name], trained[f"unet.{name}"]) for name in names)
    refusal = run(*TRAIN, "run_dir=whole", "resume=never", cwd=folder, code=1)
    assert refusal.splitlines()[-1].startswith("error: resume=never, but ")


@promise("README.md", "`report.html` in the shards' folder shows what was built and what was rejected.")
@promise(
    "data/README.md",
    "SOURCE is either built or listed with a reason in `SHARDS/rejected.jsonl`; nothing is repaired by guessing.",
)
@promise("data/README.md", "**The same input gives the same bytes**, for any number of workers and either engine.")
@promise("data/README.md", "other files in it are refused before anything is written, also with `--overwrite`.")
@promise(
    "data/README.md",
    "with `--overwrite`, a build that fails leaves the earlier dataset as it was, and its reasons in "
    "`SHARDS/.building/rejected.jsonl`.",
)
def test_shards_report_rejections_repeat_their_bytes_and_keep_other_files(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "panoramas"
    shutil.copytree(folder / "panoramas", source)
    Image.fromarray(np.zeros((64, 100, 3), np.uint8)).save(source / "narrow.png")
    run("prepare", "panoramas", "one", "--workers", 1, cwd=tmp_path)
    run("prepare", "panoramas", "two", "--workers", 2, cwd=tmp_path)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    rejected = [json.loads(line) for line in (tmp_path / "one/rejected.jsonl").read_text().splitlines()]
    assert [line["file"] for line in rejected] == ["narrow.png"]
    assert rejected[0]["reason"]
    assert "narrow.png" in (tmp_path / "one/report.html").read_text()
    (tmp_path / "one/notes.txt").write_text("mine")
    before = contents(tmp_path / "one")
    refusal = run("prepare", "panoramas", "one", "--overwrite", cwd=tmp_path, code=1)
    assert "notes.txt" in refusal.splitlines()[-1]
    assert contents(tmp_path / "one") == before
    del before["notes.txt"]
    (tmp_path / "one/notes.txt").unlink()
    (source / "captions.jsonl").write_text("none of this is JSON\n")
    failure = run("prepare", "panoramas", "one", "--overwrite", cwd=tmp_path, code=1)
    reasons = Path("one/.building/rejected.jsonl")
    assert f"all are listed in {reasons}" in failure
    assert "not a JSON object" in (tmp_path / reasons).read_text()
    after = contents(tmp_path / "one")
    assert {name: after[name] for name in before} == before
    run("prepare", "check", "one", cwd=tmp_path)


@promise(
    "data/README.md",
    "SHARDS must not be SOURCE or contain it, by any name or link. It may lie inside SOURCE, and is then not read.",
)
def test_shards_lie_in_another_folder_or_inside_the_source(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "work" / "panoramas"
    shutil.copytree(folder / "panoramas", source)
    (tmp_path / "link").symlink_to(source.parent)
    before = contents(tmp_path)
    for output in ("work/panoramas", "link/panoramas", "link", "work/other/.."):
        refusal = run("prepare", "work/panoramas", output, "--overwrite", cwd=tmp_path, code=1)
        assert f"OUTPUT {output} " in refusal.splitlines()[-1]
    assert contents(tmp_path) == before
    for words in ((), ("--overwrite",)):
        run("prepare", "work/panoramas", "work/panoramas/shards", "--workers", 1, *words, cwd=tmp_path)
        assert json.loads((source / "shards/manifest.json").read_text())["samples"] == 6
        assert (source / "shards/rejected.jsonl").read_bytes() == b""


@promise(
    "data/README.md",
    "`test` becomes `val` if there is no `validation`; else its panoramas are left out, and a line says how many and "
    "which `--include` builds them into another folder.",
)
def test_the_test_split_of_a_dataset_is_left_out_and_built_into_another_folder(folder: Path, tmp_path: Path) -> None:
    captions = [json.loads(line) for line in (folder / "panoramas/captions.jsonl").read_text().splitlines()]
    rows = []
    for record, split in zip(captions, ("train", "train", "train", "validation", "test", "test"), strict=True):
        (tmp_path / "set" / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "panoramas" / record["file"], tmp_path / "set" / split)
        rows.append({"file_name": f"{split}/{record['file']}", "text": record["caption"]})
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = "2 panoramas of the test split were left out: build it into another folder with --include test"
    assert line in run("prepare", "set", "out", "--workers", 1, cwd=tmp_path)
    assert "left out" not in run("prepare", "set", "test", "--include", "test", "--workers", 1, cwd=tmp_path)
    counts = {
        name: {split: part["samples"] for split, part in json.loads(text)["splits"].items()}
        for name in ("out", "test")
        for text in [(tmp_path / name / "manifest.json").read_text()]
    }
    assert counts == {"out": {"train": 3, "val": 1}, "test": {"train": 0, "val": 2}}


# ---- resuming and failures -------------------------------------------------------------------------------------


@promise(
    "docs/resume.md",
    "`auto` renames damaged checkpoints that are newer than the last intact one to `….ckpt.damaged`, with a warning.",
)
def test_a_damaged_checkpoint_is_renamed_and_the_run_ends(folder: Path) -> None:
    run(*TRAIN, "run_dir=damaged", "trainer.max_steps=3", EVERY_STEP, cwd=folder)
    newest = checkpoint(folder / "damaged", 3)
    newest.write_bytes(newest.read_bytes()[:1000])
    output = run(*TRAIN, "run_dir=damaged", "trainer.max_steps=4", EVERY_STEP, cwd=folder)
    assert "WARNING: step00000003.ckpt is damaged" in output
    assert "resuming from step00000002.ckpt" in output
    assert newest.with_name("step00000003.ckpt.damaged").stat().st_size == 1000
    assert checkpoint(folder / "damaged", 4).is_file()


@promise(
    "docs/resume.md",
    "A second `cubediff train` with the same `run_dir` ends with an error that names them",
    "The lock of a killed run is taken over at once on the same machine.",
    "| SIGTERM or SIGHUP at any rank | every rank stops, a checkpoint of the last finished step is written, exit code "
    "143 |",
    "| Ctrl-C | the same, exit code 130 |",
)
def test_a_run_is_locked_until_it_is_killed_and_signals_leave_a_checkpoint(folder: Path) -> None:
    words = (*TRAIN, "run_dir=locked", "trainer.max_steps=100000", EVERY_STEP)
    process = start(*words, cwd=folder)
    wait_for(checkpoint(folder / "locked", 1), process)
    refusal = run(*words, cwd=folder, code=1).splitlines()[-1]
    assert refusal.startswith("error: ")
    assert str(process.pid) in refusal
    process.kill()
    process.communicate()
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(*words, cwd=folder)
        step = max(int(file.stem.removeprefix("step")) for file in (folder / "locked/checkpoints").glob("step*.ckpt"))
        wait_for(checkpoint(folder / "locked", step + 1), process)
        process.send_signal(number)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == code, output
        assert "Traceback" not in output


# ---- configuration, sweeps, monitoring -------------------------------------------------------------------------


@promise(
    "docs/training.md",
    "The error for a misspelt key names the nearest key that exists, and the error for a value of the wrong type names "
    "the expected type.",
)
@promise("docs/training.md", "| `dry_run=true` | prints config, plan and data, then stops |")
def test_errors_of_overrides_and_the_dry_run(folder: Path) -> None:
    assert "data.batch_size" in run(*TRAIN, "data.batchsize=3", cwd=folder, code=1)
    assert "expected an integer" in run(*TRAIN, "data.shuffle_buffer=many", "run_dir=wrong", cwd=folder, code=1)
    output = run(*TRAIN, "dry_run=true", "run_dir=dry", cwd=folder)
    assert output.index("max_steps:") < output.index("memory of a device, GiB") < output.index("training panoramas in")
    assert not checkpoint(folder / "dry", 1).parent.exists()


@promise(
    "docs/sweeps.md",
    "A failed job is recorded there and does not stop the others; the command then lists the failed jobs and exits "
    "with 1.",
    "The same command with the same `run_dir` runs the jobs that have not finished.",
)
def test_a_sweep_goes_past_a_failed_job_and_runs_it_again(folder: Path) -> None:
    words = ("train", "-m", *TRAIN[1:], "run_dir=sweep", "trainer.max_steps=1", "model.trainable=attention,nothing")
    output = run(*words, cwd=folder, code=1)
    results = [json.loads((folder / f"sweep/{job}/result.json").read_text()) for job in (0, 1)]
    assert [result["status"] for result in results] == ["done", "failed"]
    assert "nothing" in output
    before = (folder / "sweep/0/result.json").stat().st_mtime_ns
    run(*words, cwd=folder, code=1)
    assert (folder / "sweep/0/result.json").stat().st_mtime_ns == before


@promise("docs/monitoring.md", "Without credentials W&B runs offline with a warning and never asks for them;")
def test_wandb_without_credentials_runs_offline(folder: Path) -> None:
    home = folder / "home"
    home.mkdir()
    words = (*TRAIN, "logger=wandb", "run_dir=offline", "trainer.max_steps=1")
    output = run(*words, cwd=folder, HOME=str(home), WANDB_API_KEY="", NETRC=str(home / "none"))
    assert "offline" in output
    assert list((folder / "offline/wandb").glob("offline-run-*"))


# ---- generation and data ---------------------------------------------------------------------------------------


@promise(
    "docs/generation.md",
    "The same command resumes after an interruption: panoramas that exist already are skipped",
)
def test_interrupted_jobs_resume(tmp_path: Path) -> None:
    lines = [{"prompt": "a hall", "name": name, "seed": number} for number, name in enumerate("abcdef")]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("generate", "--model", ROOT / "experiments/cubediff_tiny/model", "--jobs", "jobs.jsonl", "--steps", 4)
    process = start(*words, "--output", "out", cwd=tmp_path)
    wait_for(tmp_path / "out/b/generation.json", process)
    process.kill()
    process.communicate()
    first = (tmp_path / "out/a/panorama.jpg").stat().st_mtime_ns
    run(*words, "--output", "out", cwd=tmp_path)
    assert sorted(path.parent.name for path in tmp_path.glob("out/*/panorama.jpg")) == list("abcdef")
    assert (tmp_path / "out/a/panorama.jpg").stat().st_mtime_ns == first


@promise(
    "data/README.md",
    "The next readable sample takes the position of a sample that cannot be read (truncated, wrong checksum, not an "
    "image), so the order does not shift.",
)
def test_a_damaged_sample_is_skipped_and_counted(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "shards", tmp_path / "shards")
    tar = tmp_path / "shards/train-000000.tar"
    content = bytearray(tar.read_bytes())
    position = content.index(b"\xff\xd8\xff") + 1000
    content[position : position + 200] = bytes(200)
    tar.write_bytes(content)
    words = (*TRAIN, "run_dir=run", "trainer.max_steps=4", "data.max_skipped_share=0.5")
    output = run(*words, "trainer.log_every_n_steps=1", cwd=tmp_path)
    header, *rows = (tmp_path / "run/logs/metrics.csv").read_text().splitlines()
    column = header.split(",").index("data/skipped")
    assert max(float(row.split(",")[column] or 0) for row in rows) >= 1
    assert "skipped" in output


# ---- training --------------------------------------------------------------------------------------------------


@promise(
    "docs/training.md",
    "Every argument of Lightning's `Trainer` is a key `trainer.NAME` and does what Lightning documents, or is refused "
    "in one sentence that names the key and the remedy.",
)
def test_arguments_of_the_trainer_are_refused_in_one_sentence(folder: Path) -> None:
    refused = {
        "trainer.reload_dataloaders_every_n_epochs=1": "is not supported: the data stream continues",
        "trainer.precision=16-mixed": "needs a GPU, but trainer.accelerator=cpu: set trainer.precision=bf16-mixed",
        "trainer.max_steps=few": "expected an integer",
    }
    for override, reason in refused.items():
        last = run(*TRAIN, "run_dir=refused", override, cwd=folder, code=1).splitlines()[-1]
        assert last.startswith(f"error: {override}")
        assert reason in last


@promise(
    "docs/training.md",
    "one batch of training and validation: no checkpoints, no logs, no export, and nothing is resumed",
)
@promise("docs/training.md", "| no progress bar, no checkpoints, no loggers |")
def test_a_trial_leaves_nothing_that_the_next_run_resumes_from(folder: Path) -> None:
    words = (*TRAIN, "run_dir=trial", "trainer.max_steps=2")
    run(*words, "trainer.fast_dev_run=true", cwd=folder)
    left = {path.split("/")[0] for path in contents(folder / "trial")}
    assert not left & {"checkpoints", "logs", "samples", "export", "run.json"}
    quiet = ("trainer.enable_progress_bar=false", "trainer.enable_checkpointing=false", "trainer.logger=false")
    output = run(*words, *quiet, cwd=folder)
    assert "resuming from" not in output
    assert "training:" not in output
    left = {path.split("/")[0] for path in contents(folder / "trial")}
    assert "export" in left
    assert not left & {"checkpoints", "logs"}


@promise("docs/training.md", "the largest gradient norm; `0` or `null` turns clipping off")
def test_a_clipping_value_of_zero_trains_as_null_does(folder: Path) -> None:
    weights = "export/unet/diffusion_pytorch_model.safetensors"
    words = (*TRAIN, "trainer.max_steps=2", "callbacks.ema=null", "model.optimizer.lr=0.01")
    for value in ("0", "null", "1e-9"):
        run(*words, f"run_dir=clip_{value}", f"trainer.gradient_clip_val={value}", cwd=folder)
    zero, null, small = ((folder / f"clip_{value}" / weights).read_bytes() for value in ("0", "null", "1e-9"))
    assert zero == null != small


@promise("docs/training.md", "size of the faces in pixels, which samples, export and generation keep")
def test_generate_makes_faces_of_the_trained_size(folder: Path) -> None:
    run(*TRAIN, "run_dir=large", "trainer.max_steps=1", "face_size=96", cwd=folder)
    words = ("--prompt", "a hall", "--steps", 1, "--save-faces", "--output", "large_faces")
    run("generate", "--model", "large/export", *words, cwd=folder)
    with Image.open(folder / "large_faces/faces/front.png") as face:
        assert face.size == (96, 96)


@promise(
    "docs/training.md",
    "Augmentations were drawn when the latents were cached: `data=latents` has no keys `data.yaw`, `data.flip`, "
    "`data.face_caption_probability` and `data.face_caption_jitter`, so the command line refuses them, and other "
    "values of an experiment are ignored with a warning.",
)
def test_an_experiment_trains_on_latents_that_were_cached_with_other_augmentations(folder: Path) -> None:
    tiny = ("experiment=tiny_cpu", "model=tiny_random", "data.path=shards", "cache.turns=2")
    run("cache", *tiny, "cache.output=latents", cwd=folder)
    words = ("experiment=cubediff_tiny", "model=tiny_random", "fov=95.0", "data=latents", "data.path=latents")
    output = run("train", *words, "data.batch_size=2", "run_dir=cached", "trainer.max_steps=1", cwd=folder)
    assert "data.face_caption_probability=0.3 has no effect: the latents of latents were cached with 0.5" in output
    latents = ("model=tiny_random", "data=latents", "data.path=latents", "run_dir=refused")
    for key in ("yaw=none", "flip=0.5", "face_caption_probability=0.3", "face_caption_jitter=3.0"):
        output = run("train", *latents, f"data.{key}", cwd=folder, code=1)
        assert f"Could not override 'data.{key.partition('=')[0]}'" in output


# ---- docs/security.md ------------------------------------------------------------------------------------------


@promise(
    "docs/security.md",
    "The class of every component must be one of diffusers, transformers or the package of a registered backbone, and "
    "this is checked before diffusers reads the folder.",
)
@promise("docs/security.md", "pickled weights are refused with a command that converts them.")
def test_a_hostile_model_folder_is_refused_by_every_command(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "experiments/cubediff_tiny/model", tmp_path / "model")
    index = tmp_path / "model/model_index.json"
    undamaged = index.read_text()
    index.write_text(json.dumps(json.loads(undamaged) | {"vae": ["canary_module", "X"]}))
    (tmp_path / "canary_module.py").write_text("open('canary', 'w').close()")
    generate = ("generate", "--model", "model", "--prompt", "a hall", "--steps", 1, "--output", "out")
    path = f"data.path={folder / 'shards'}"
    train = ("train", "experiment=tiny_cpu", "model.pipeline.path=model", path, "run_dir=run", "trainer.max_steps=1")
    for words in (generate, train):
        output = run(*words, cwd=tmp_path, code=1, PYTHONPATH=str(tmp_path))
        assert "vae is 'canary_module', 'X': expected a class of diffusers or transformers" in output
    index.write_text(undamaged)
    weights = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    assert "convert them with" in run(*generate, cwd=tmp_path, code=1)
    assert not (tmp_path / "canary").exists()


@promise(
    "docs/security.md",
    "A manifest with a value of the wrong type is refused by its key, and so is a shard whose name is absolute or "
    "contains `..`.",
)
@promise("docs/security.md", "`cubediff plan` and `dry_run=true` run no command and download no shard.")
def test_manifests_and_commands_of_others(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "shards", tmp_path / "shards")
    file = tmp_path / "shards/manifest.json"
    manifest = json.loads(file.read_text())
    for key, value in {"file": "../train-000000.tar", "samples": "3"}.items():
        changed = json.loads(json.dumps(manifest))
        changed["splits"]["train"]["shards"][0][key] = value
        file.write_text(json.dumps(changed))
        words = (*TRAIN, f"run_dir=run-{key}", "trainer.max_steps=1")
        assert f"splits.train.shards[0].{key} must be" in run(*words, cwd=tmp_path, code=1)
        assert f"splits.train.shards[0].{key} must be" in run("prepare", "check", "shards", cwd=tmp_path, code=1)
    command = "data.path='pipe:touch canary # x.tar'"
    run("plan", "experiment=tiny_cpu", "model=tiny_random", command, cwd=tmp_path)
    run("train", "experiment=tiny_cpu", "model=tiny_random", command, "dry_run=true", "run_dir=dry", cwd=tmp_path)
    assert not (tmp_path / "canary").exists()


# ---- docs/faces.md ---------------------------------------------------------------------------------------------


def images(folder: Path, names: str) -> list[np.ndarray]:
    found = []
    for name in names.split():
        with Image.open(folder / f"{name}.png") as image:
            found.append(np.asarray(image))
    return found


@promise(
    "docs/faces.md",
    "all six are sampled from the sphere in which the overlaps are blended, so neighbouring faces agree along their "
    "edges.",
    "Faces of an earlier run in the same folder are removed.",
)
@promise("docs/faces.md", "| `--face-fov 95` | the faces as a model of this field of view generates them;")
@promise("docs/faces.md", "`cubediff prepare` reads faces by their record: their field of view, order and rotation.")
def test_generated_faces_meet_at_their_edges_and_are_read_back(tmp_path: Path) -> None:
    model = ("--model", ROOT / "experiments/cubediff_tiny/model", "--no-average-overlap", "--steps", 5)
    generate = ("generate", *model, "--prompt", "an empty hall", "--output", "out", "--save-faces")
    run(*generate, "--face-fov", 107, cwd=tmp_path)  # the model's own
    wide = seam(dict(zip(FACES, images(tmp_path / "out/faces", " ".join(FACES)), strict=True)))
    run(*generate, "--convention", "unreal", cwd=tmp_path)
    folder = tmp_path / "out/faces"
    assert {path.stem for path in folder.iterdir()} == {"faces", "px", "nx", "py", "ny", "pz", "nz"}
    named = dict(zip(("px", "nx", "py", "ny", "pz", "nz"), images(folder, "px nx py ny pz nz"), strict=True))
    cube = from_engine(named, engine_images("unreal"))
    assert seam(cube) < 2.5 < 10 < wide
    run("prepare", "out/faces", "shards", "--captions", "none", "--workers", 1, "--val-fraction", 0, cwd=tmp_path)
    with tarfile.open(tmp_path / "shards/train-000000.tar") as tar:
        (name,) = (name for name in tar.getnames() if name.endswith(".jpg"))
        member = tar.extractfile(name)
        assert member is not None
        built = np.asarray(Image.open(member).resize((256, 128), Image.Resampling.BOX)).astype(float)
    with Image.open(tmp_path / "out/panorama.jpg") as image:
        shown = np.asarray(image.resize((256, 128), Image.Resampling.BOX)).astype(float)
    assert np.abs(built - shown).mean() < 3  # 40 with Unreal's forward to the right


@promise(
    "docs/faces.md",
    "IN is recognised by its record, by the names of its files, or by its shape: 2:1 is a panorama, 4:3 with empty "
    "corners and 3:4 are crosses, 6:1 is a strip.",
    "Faces that overlap and have no record are refused with the field of view at which they agree.",
    "Faces of the same size and field of view keep their pixels;",
    "`cubediff view FILE` writes a page to look around in any panorama or cubemap, and prints its path:",
)
def test_faces_are_converted_between_engines(tmp_path: Path) -> None:
    shutil.copy(ROOT / "data/samples/courtyard.jpg", tmp_path / "panorama.jpg")
    run("convert", "panorama.jpg", "faces", "--convention", "three", "--face-size", 128, cwd=tmp_path)
    run("convert", "faces", "strip.png", "--layout", "strip", "--convention", "unity", cwd=tmp_path)
    run("convert", "strip.png", "again", "--convention", "three", cwd=tmp_path)
    names = "px nx py ny pz nz"
    np.testing.assert_array_equal(images(tmp_path / "faces", names), images(tmp_path / "again", names))
    (tmp_path / "strip.faces.json").unlink()
    run("convert", "strip.png", "cross.png", "--layout", "cross", cwd=tmp_path)
    (tmp_path / "cross.faces.json").unlink()
    assert run("view", "cross.png", cwd=tmp_path) == "cross.html\n"
    assert (tmp_path / "cross.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    run("convert", "panorama.jpg", "wide", "--face-fov", 95, cwd=tmp_path)
    (tmp_path / "wide/faces.json").unlink()
    assert "neighbours agree as faces of 95°" in run("convert", "wide", "x.png", cwd=tmp_path, code=1)


@promise(
    "docs/faces.md",
    "The bit depth of the input is kept: 8 and 16 bits in PNG and TIFF, floating point in TIFF, OpenEXR and Radiance "
    "(`.hdr`); the last two hold levels as linear radiance.",
    "Transparent pixels stay transparent where the format has alpha, and are black elsewhere; so is what a photo does "
    "not show of the sphere.",
    "With `--fov`, an image of another shape is a photo of that field of view.",
)
def test_conversions_keep_depth_and_transparency(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (64, 128, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), levels)
    run("convert", "deep.png", "copy.png", "--layout", "panorama", cwd=tmp_path)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "copy.png"), cv2.IMREAD_UNCHANGED), levels)
    run("convert", "deep.png", "sky.hdr", "--layout", "cross", cwd=tmp_path)
    run("convert", "sky.hdr", "faces", cwd=tmp_path)
    assert sorted(path.suffix for path in (tmp_path / "faces").iterdir()) == [".exr"] * 6 + [".json"]
    shutil.copy(ROOT / "data/photo.jpg", tmp_path / "photo.jpg")
    with Image.open(tmp_path / "photo.jpg") as image:
        image.crop((0, 0, 100, 80)).save(tmp_path / "photo.png")
    run("convert", "photo.png", "placed.png", "--fov", 60, "--height", 64, cwd=tmp_path)
    run("convert", "photo.png", "placed.jpg", "--fov", 60, "--height", 64, cwd=tmp_path)
    with Image.open(tmp_path / "placed.png") as clear, Image.open(tmp_path / "placed.jpg") as black:
        assert clear.getpixel((0, 0))[3] == 0
        assert clear.getpixel((64, 32))[3] == 255
        assert max(black.getpixel((0, 0))) < 8


# ---- docs/evaluation.md ----------------------------------------------------------------------------------------


@promise(
    "docs/evaluation.md",
    "It prints the values with their intervals, the report's path on the last line, and",
    "prints for each metric the values of both, the difference B - A with its interval, and which one is better, if "
    "the interval excludes 0.",
    "Both need panoramas of the same names in the same order.",
    "Numbers of different views, heights, face sizes, extractors or references are not compared: these metrics are "
    "listed with the setting that differs.",
    "the reference's features are those in the cache folder (`--cache DIR`).",
)
def test_evaluations_of_the_same_panoramas_are_compared(folder: Path, tmp_path: Path) -> None:
    blurred = tmp_path / "blurred"
    blurred.mkdir()
    for file in sorted((folder / "panoramas").glob("*.jpg")):
        cv2.imwrite(str(blurred / file.name), cv2.GaussianBlur(cv2.imread(str(file)), (0, 0), 3))
    words = (f"reference={folder}/panoramas", "cache=cache", "device=cpu", "metrics=[overlap_rms,sharpness,fd_eff*]")
    shown = run("evaluate", f"samples={folder}/panoramas", "output=a", *words, cwd=tmp_path).splitlines()
    run("evaluate", f"samples={blurred}", "output=b", *words, cwd=tmp_path)
    run("evaluate", f"samples={blurred}", "output=small", "height=64", *words, cwd=tmp_path)
    values = [json.loads((tmp_path / name / "metrics.json").read_text())["metrics"] for name in ("a", "b")]
    rows = {line.split()[0]: float(line.split()[1]) for line in shown if line.startswith(tuple(values[0]))}
    assert rows == pytest.approx({name: value["value"] for name, value in values[0].items()}, rel=5e-3)
    assert "a/report.html" in shown
    printed = run("evaluate", "compare", "a", "b", "--cache", "cache", "--json", "c.json", cwd=tmp_path)
    compared = json.loads((tmp_path / "c.json").read_text())["differences"]
    assert compared.keys() == {"overlap_rms", "sharpness", "fd_efficientnet_lite0"}
    for name, each in compared.items():
        first, second = (value[name]["value"] for value in values)
        assert (each["first"], each["second"]) == pytest.approx((first, second), abs=1e-6)
        assert each["difference"] == pytest.approx(second - first, abs=1e-6)
        assert each["low"] <= each["difference"] <= each["high"]
        assert each["verdict"] in next(line for line in printed.splitlines() if line.startswith(name))
    assert compared["sharpness"]["verdict"] == "A larger"
    assert compared["fd_efficientnet_lite0"]["verdict"] == "A better"
    refused = run("evaluate", "compare", "a", "small", "--cache", "cache", code=1, cwd=tmp_path)
    assert "samples.height is" in refused
    (blurred / sorted(blurred.iterdir())[0].name).unlink()
    run("evaluate", f"samples={blurred}", "output=fewer", *words, cwd=tmp_path)
    assert "panorama 1 is" in run("evaluate", "compare", "a", "fewer", code=1, cwd=tmp_path)


@pytest.mark.parametrize(("page", "sentence"), promises)
def test_every_promise_is_in_its_page(page: str, sentence: str) -> None:
    promised(page, sentence)
