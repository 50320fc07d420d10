"""Another package adds a data source, a callback, a loss weighting and a backbone, the files of examples/, and all
commands work with them."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from diffusers import DDIMScheduler
from PIL import Image
from support.examples import entry_points_of
from support.processes import python

from cubediff.configs import CONFIG_DIR
from cubediff.data import create_example_dataset

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = ("model=toy", "trainer=cpu", "data.batch_size=1", "data.num_workers=0")
STEPS = ("trainer.max_steps=3", "trainer.limit_val_batches=0", "trainer.log_every_n_steps=1")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed package: modules, configs, and the entry points of its distribution."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("csv_source", "panorama_losses", "p2_weighting", "pole_detail", "toy_backbone"):
        shutil.copy(EXAMPLES / f"{name}.py", folder)
    shutil.copytree(EXAMPLES / "conf", folder / "conf")
    info = folder / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points_of(EXAMPLES))
    return folder


def cubediff(package: Path, *words: object, cwd: Path) -> str:
    """Runs a command in a fresh process that has the package installed; returns its output."""
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    return python("-m", "cubediff.cli", *words, cwd=cwd, PYTHONPATH=path).stdout


@pytest.fixture(scope="module")
def shards(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    images = create_example_dataset(6, folder / "images", size=(64, 128))
    rows = [json.loads(line) for line in (images / "captions.jsonl").read_text().splitlines()]
    with (images / "panoramas.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["file", "caption"], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    cubediff(package, "prepare", images, folder / "shards", "--source", "table", cwd=folder)
    assert json.loads((folder / "shards/manifest.json").read_text())["samples"] == 6
    return folder / "shards"


class Loss(NamedTuple):
    """The loss of a panorama in a step; batches are of one panorama."""

    timestep: int
    value: float


def train(package: Path, folder: Path, *words: object) -> tuple[Path, dict[int, list[Loss]]]:
    """A run with the package's model, callback and loss weighting: its folder, and the losses of each rank."""
    run, losses = folder / "run", folder / "losses"
    callback = f"+callbacks.losses={{_target_:panorama_losses.PanoramaLosses,folder:{losses}}}"
    config = ("--config-dir", package / "conf", "objective=p2")
    cubediff(package, "train", *config, *MODEL, *STEPS, f"run_dir={run}", callback, *words, cwd=folder)
    each: dict[int, list[Loss]] = {}
    for file in losses.iterdir():
        with file.open(newline="") as lines:
            rows = csv.DictReader(lines)
            rank = int(file.stem.removeprefix("losses_rank"))
            each[rank] = [Loss(int(row["timestep"]), float(row["loss"])) for row in rows]
    return run, each


def weighting(gamma: float) -> str:
    return f"model.objective.weighting.gamma={gamma}"


@pytest.fixture(scope="module")
def trained(package: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Loss]]:
    """A run of one process, and its losses, which are not weighted."""
    run, losses = train(package, tmp_path_factory.mktemp("trained"), f"data.path={shards}", weighting(0.0))
    return run, losses[0]


@pytest.mark.slow
def test_an_extension_trains_exports_and_generates_in_a_fresh_process(
    package: Path, trained: tuple[Path, list[Loss]], tmp_path: Path
) -> None:
    run, losses = trained
    assert len(losses) == 3
    assert json.loads((run / "export/model_index.json").read_text())["transformer"] == [
        "toy_backbone",
        "ToyTransformer",
    ]
    printed = cubediff(
        package, "generate", "--model", run / "export", "--prompt", "a hall", "--output", tmp_path / "out",
        "--steps", 2, "--seed", 1, cwd=tmp_path,
    )  # fmt: skip
    assert "panorama.jpg" in printed
    with Image.open(tmp_path / "out/panorama.jpg") as panorama:
        assert panorama.size == (256, 128)


@pytest.mark.slow
@pytest.mark.ddp
def test_an_extension_trains_on_two_ranks_of_the_launcher(
    package: Path, shards: Path, trained: tuple[Path, list[Loss]], tmp_path: Path
) -> None:
    """The first panorama of rank 0 is that of one process, so its loss shows that the weighting acts."""
    devices = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2")
    _, losses = train(package, tmp_path, f"data.path={shards}", weighting(2.0), *devices)
    assert {rank: len(each) for rank, each in losses.items()} == {0: 3, 1: 3}
    assert losses[0] != losses[1]
    first, unweighted = losses[0][0], trained[1][0]
    alpha_bar = float(DDIMScheduler().alphas_cumprod[first.timestep])
    assert first.timestep == unweighted.timestep
    assert first.value == pytest.approx(unweighted.value * (1 - alpha_bar) ** 2, rel=1e-4)  # 1 / (1 + SNR) = 1 - ᾱ


@pytest.mark.slow
def test_an_extension_is_planned_cached_and_trained_on_latents(package: Path, shards: Path, tmp_path: Path) -> None:
    config = ("--config-dir", package / "conf", *MODEL)
    plan = cubediff(package, "plan", *config, "name=toy", cwd=tmp_path)
    assert "0.0 M parameters" in plan
    latents = tmp_path / "latents"
    cubediff(package, "cache", *config, f"data.path={shards}", f"cache.output={latents}", "cache.turns=2", cwd=tmp_path)
    _, losses = train(package, tmp_path, "data=latents", f"data.path={latents}")
    assert len(losses[0]) == 3


@pytest.mark.slow
def test_error_of_an_invalid_backbone_entry_point_names_it(package: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(package, site)
    info = site / "toy-1.0.dist-info/entry_points.txt"
    info.write_text("[cubediff.backbones]\ntoy = toy_backbone:ToyBackbone\n")
    run = [sys.executable, "-m", "cubediff.cli", "generate", "--model", CONFIG_DIR, "--prompt", "x", "--output", "o"]
    model = tmp_path / "model"
    model.mkdir()
    (model / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline"}))
    run[run.index(CONFIG_DIR)] = str(model)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the backbone toy = toy_backbone:ToyBackbone: expected a subclass of" in done.stderr
