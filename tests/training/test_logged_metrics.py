"""The metrics of a run under every logger, read back from the logger's files; callbacks and loggers do not change the
training."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import composed, train
from support.wandb_file import OfflineRun
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.data import build_shards, create_example_dataset
from cubediff.pages.viewer import viewer_html
from cubediff.runs.dashboard import X_AXIS
from cubediff.training.logged_metrics import sections

Runs = Callable[[str], Path]
WATCHED = ("trainer.max_steps=8", "trainer.val_check_interval=8", "trainer.log_every_n_steps=4", "seed=3",
           "model.optimizer.lr=1e-2", "model.objective.drop_text=0.3", "model.objective.drop_image=0.3",
           "data.batch_size=4")  # fmt: skip
OF_A_GPU = {"perf/utilisation"}
SECTIONS = sections()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough validation panoramas for every loss group."""
    folder = tmp_path_factory.mktemp("watched")
    source = create_example_dataset(24, folder / "panoramas", size=(64, 128))
    build_shards(source, folder / "shards", source / "captions.jsonl", val_fraction=0.6)
    return folder / "shards"


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The same training with "csv", "tensorboard", "wandb" without an account, and "unwatched" without loggers."""
    folder = tmp_path_factory.mktemp("watching")
    finished: dict[str, Path] = {}

    def run(logger: str) -> Path:
        if logger in finished:
            return finished[logger]
        words = ["logger=csv", "callbacks=none"] if logger == "unwatched" else [f"logger={logger}"]
        if logger == "wandb":
            words.append("logger.wandb.log_export=true")
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            patch.setenv("HOME", str(folder))
            for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
                patch.delenv(name, raising=False)
            if logger == "wandb":
                warnings.filterwarnings("ignore", "no W&B credentials")
            finished[logger] = train(shards, folder / logger, *WATCHED, *words)
        return finished[logger]

    return run


def csv_rows(run: Path) -> dict[str, dict[int, float]]:
    with (run / "logs/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: {int(row["step"]): float(row[name]) for row in rows if row[name]} for name in rows[0]}


def wandb_rows(run: Path) -> dict[str, dict[int, float]]:
    rows: dict[str, dict[int, float]] = {}
    for row in OfflineRun(run).history:
        for name, value in row.items():
            rows.setdefault(name, {})[row["trainer/global_step"]] = value
    return rows


def tensorboard(run: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events


def tensorboard_rows(run: Path) -> dict[str, dict[int, float]]:
    events = tensorboard(run)
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def weights(run: Path) -> dict[str, Tensor]:
    content: dict[str, Any] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return {name: value for name, value in content["state_dict"].items() if name.startswith("unet.")}


def grouped(rows: dict[str, Any]) -> set[str]:
    return {name for name in rows if name.split("/")[0] in SECTIONS and "." not in name}


@pytest.mark.slow
def test_every_logger_receives_the_same_metrics(runs: Runs) -> None:
    logged = {
        "csv": csv_rows(runs("csv")),
        "tensorboard": tensorboard_rows(runs("tensorboard")),
        "wandb": wandb_rows(runs("wandb")),
    }
    names = {logger: {n for n in grouped(rows) if not n.startswith("samples/")} for logger, rows in logged.items()}
    assert names["csv"] == names["tensorboard"] == names["wandb"]
    for name in names["csv"] - {n for n in names["csv"] if n.startswith("perf/")}:
        assert logged["csv"][name] == pytest.approx(logged["tensorboard"][name], rel=1e-6)
        assert logged["csv"][name] == pytest.approx(logged["wandb"][name], rel=1e-6)
    assert logged["csv"]["train/loss"].keys() == logged["csv"]["perf/step_s"].keys() == {3, 7}


def test_the_workspace_shows_exactly_the_logged_metrics(runs: Runs) -> None:
    run = OfflineRun(runs("wandb"))
    logged = {name.removesuffix("._type") for row in run.history for name in row if name.split("/")[0] in SECTIONS}
    logged = {name for name in logged if "." not in name}
    shown = {key for panels in SECTIONS.values() for keys in panels.values() for key in keys}
    second = {name for name in logged if name.endswith("_viewer_1")}  # the workspace shows the first of each
    assert shown - OF_A_GPU == logged - second
    assert len(second) == 2
    assert all(X_AXIS in row for row in run.history)


def test_the_workspace_is_built_without_a_network() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from cubediff.runs.dashboard import workspace

        model = workspace("somebody")._to_model().model_dump_json(by_alias=True)
    for name, panels in SECTIONS.items():
        assert f'"name":"{name}"' in model
        assert all(f'"{key}"' in model for keys in panels.values() for key in keys)


def test_media_are_panoramas_face_strips_and_viewer_pages(runs: Runs) -> None:
    run = OfflineRun(runs("wandb"))
    sizes: dict[str, list[tuple[int, int]]] = {}
    pages: dict[str, list[str]] = {}
    for row in run.history:
        for name, kind in row.items():
            key, _, part = name.rpartition(".")
            if part == "_type" and kind == "images/separated":
                sizes.setdefault(key, []).append((row[f"{key}.width"], row[f"{key}.height"]))
                assert row[f"{key}.count"] == len(row[f"{key}.captions"]) == 2
            elif part == "_type" and kind == "html-file":
                pages.setdefault(key, []).append((run.files / row[f"{key}.path"]).read_text(encoding="utf-8"))
    kinds = ("text", "text_photo")
    assert sizes == {f"samples/{kind}": [(256, 128)] for kind in kinds} | {
        f"samples/{kind}_faces": [(384, 64)] for kind in kinds
    }
    assert pages.keys() == {f"samples/{kind}_viewer_{i}" for kind in kinds for i in (0, 1)}
    kept = (runs("wandb") / "samples/step0000008_text_0.html").read_text(encoding="utf-8")
    assert pages["samples/text_viewer_0"][-1] == kept
    script = viewer_html([torch.zeros(6, 3, 8, 8)][0]).split("<script>")[1].split("</script>")[0]
    assert script in kept  # nothing was put into the page, whose own rule would stop it


def test_the_record_of_a_run_is_in_its_folder_and_in_every_logger(runs: Runs, shards: Path) -> None:
    records = {logger: json.loads((runs(logger) / "run.json").read_text()) for logger in ("csv", "wandb")}
    record = records["csv"]
    assert record == records["wandb"]
    assert record["versions"]["torch"] == torch.__version__
    manifest = hashlib.sha256((shards / "manifest.json").read_bytes()).hexdigest()
    assert record["data"] == [{"path": str(shards), "manifest_sha256": manifest}]
    assert record["plan"] == {
        "parameters": 203_636, "trained_parameters": 17_056, "panoramas_per_step": 4, "steps": 8
    }  # fmt: skip
    config = OfflineRun(runs("wandb")).config
    assert config["run"] == record
    assert config["trainer"]["max_steps"] == 8
    assert config["data"]["path"] == str(shards)
    assert manifest in (runs("csv") / "logs/hparams.yaml").read_text()
    (text,) = tensorboard(runs("tensorboard")).Tensors("config/text_summary")
    (written,) = text.tensor_proto.string_val
    assert json.loads(written)["run"] == record


def test_the_commit_is_that_of_the_checkout(runs: Runs) -> None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("no checkout")
    output = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout
    assert json.loads((runs("csv") / "run.json").read_text())["git"]["commit"] == output.strip()


def test_tars_have_no_manifest_and_an_installed_package_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cubediff.runs import record

    assert record._manifest_sha256("pipe:cat x.tar") is None
    assert record._manifest_sha256("https://host/{0..3}.tar?key=1") is None
    monkeypatch.setattr(record, "__file__", str(tmp_path / "lib/cubediff/runs/record.py"))
    assert record._git() is None


def test_the_export_is_an_artifact_on_request(runs: Runs) -> None:
    run = OfflineRun(runs("wandb"))
    ((kind, name),) = run.artifacts
    assert (kind, name) == ("model", f"cubediff-{run.path.stem.removeprefix('run-')}")
    export = runs("wandb") / "export"
    assert run.artifacts[kind, name] == {str(f.relative_to(export)) for f in export.rglob("*") if f.is_file()}
    assert composed("logger=wandb", "data.path=x").logger.wandb.log_export is False


def test_callbacks_and_loggers_do_not_change_training(runs: Runs) -> None:
    """Losses and weights equal those of a run without samples, metrics, EMA and validation with it."""
    unwatched = CubeDiffPipeline.from_pretrained(runs("unwatched") / "export").unet.state_dict()
    for logger in ("csv", "tensorboard", "wandb"):
        watched = weights(runs(logger))
        assert {
            "unet.conv_in.weight",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        } <= watched.keys()
        assert all(torch.equal(value, unwatched[name.removeprefix("unet.")]) for name, value in watched.items())
    assert csv_rows(runs("csv"))["train/loss"] == csv_rows(runs("unwatched"))["train/loss"]


ASKED = """
from cubediff.training.loggers import WandbRun
run = WandbRun(project="p", save_dir=".")
run.log_metrics({"train/loss": 1.0}, step=0)
run.experiment.finish()
"""


@pytest.mark.slow
def test_without_credentials_wandb_does_not_prompt(tmp_path: Path) -> None:
    """A terminal without input: a prompt would wait forever."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    environment = kept | {"HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", ASKED], cwd=tmp_path, env=environment, stdin=theirs,
                               stdout=theirs, stderr=theirs, start_new_session=True)  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    output, until = b"", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
        with suppress(OSError):  # nothing said, or nobody there any more
            output += os.read(ours, 65536)
    process.kill()
    assert process.wait() == 0, output.decode()
    assert b"no W&B credentials: this run stays offline" in output
    assert wandb_rows(tmp_path)["train/loss"] == {0: 1.0}
