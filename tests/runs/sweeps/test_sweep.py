"""Sweeps: every job records its result, a failed job does not stop the others, and variants change only their keys."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from support.runs import QUICK, composed
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from cubediff import CubeDiffPipeline
from cubediff.configs import CONFIG_DIR, build
from cubediff.runs.sweeps import gpus
from cubediff.runs.sweeps.gpus import assign_gpu
from cubediff.runs.sweeps.isolation import run_recorded
from cubediff.runs.sweeps.results import RESULT, Result, read_results
from cubediff.train import main

JOBS = (
    *QUICK,
    "trainer.max_steps=3",
    "callbacks.finite.limit=1",
    "callbacks.finite.every_n_steps=1",
    "trainer.val_check_interval=1",
    "callbacks.finite.every_n_steps=1",
    "~callbacks.samples",
    "~callbacks.checkpoint",
)
DIVERGES, LEARNS = "1e+30", "0.001"


def run_in(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command's exit code, run in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments), "run_dir=sweep"])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def rates(folder: Path) -> dict[str, Result]:
    """The results by their learning rate."""
    return {r.overrides[0].partition("=")[2]: r for r in read_results(folder).values()}


def last_logged(run: Path) -> float:
    with (run / "logs/metrics.csv").open() as file:
        return [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]][-1]


# ---- three sweeps, a job of each fails ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A grid of three in one process, the first of which diverges; its folder and output."""
    folder = tmp_path_factory.mktemp("grid")
    words = ("sweep=lr_warmup", f"model.optimizer.lr={DIVERGES},{LEARNS},0.01", "model.warmup_steps=0")
    result = subprocess.run(
        [sys.executable, "-m", "cubediff.train", *words, *JOBS, f"data.path={tiny_shards}", "run_dir=sweep"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1, result.stderr
    return folder / "sweep", result.stdout, result.stderr


@pytest.mark.slow
def test_a_job_that_fails_is_recorded_and_the_others_run(grid: tuple[Path, str, str]) -> None:
    folder, out, err = grid
    found = read_results(folder)
    assert [(path.name, result.job, result.status) for path, result in found.items()] == [
        ("0", 0, "failed"),
        ("1", 1, "done"),
        ("2", 2, "done"),
    ]
    failed = rates(folder)[DIVERGES]
    assert failed.error is not None
    assert failed.error.startswith("1 steps were skipped because losses or gradients are not finite")
    assert failed.loss is None
    assert failed.curves["train/loss"]
    assert not (folder / "0" / "export").exists()
    assert (folder / "2" / "export" / "model_index.json").is_file()
    assert f"job 0 failed: {failed.error}" in err
    assert out.splitlines()[-1] == "sweep: 2 of 3 jobs done; `cubediff sweep-report sweep` compares them"
    assert err.splitlines()[-1] == f"not done: 0 (failed); the error of each is in its {RESULT}"


@pytest.mark.slow
def test_a_result_holds_the_last_validation_loss_and_the_overrides(grid: tuple[Path, str, str]) -> None:
    for path, result in read_results(grid[0]).items():
        if result.status == "done":
            assert result.loss == pytest.approx(last_logged(path), rel=1e-6)
            assert [step for step, _ in result.curves["val/loss"]] == [0, 1, 2]
            assert "model.warmup_steps=0" in result.overrides
            assert result.seconds > 0
        json.loads((path / RESULT).read_text(), parse_constant=pytest.fail)  # NaN is no JSON


@pytest.mark.slow
def test_parallel_jobs_equal_sequential_ones(grid: tuple[Path, str, str], tiny_shards: Path, tmp_path: Path) -> None:
    """Without run_dir, so that all processes must use the same time stamp."""
    words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"model.optimizer.lr={DIVERGES},{LEARNS}")
    command = [sys.executable, "-m", "cubediff.train", "-m", *words, *JOBS, f"data.path={tiny_shards}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    (folder,) = (tmp_path / "experiments/runs/train").iterdir()
    found = rates(folder)
    assert {rate: r.status for rate, r in found.items()} == {DIVERGES: "failed", LEARNS: "done"}
    assert found[LEARNS].loss == rates(grid[0])[LEARNS].loss
    assert "sweep: 1 of 2 jobs done" in result.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``declarative_base")
@pytest.mark.filterwarnings("ignore:Encountered `nan` values")  # torchmetrics, of a job that diverges
def test_a_search_continues_after_failures_and_finds_the_lowest_loss(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("sweep=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.n_startup_trials=2")
    space = ("model.optimizer.lr=tag(log,interval(1e-4,1e31))", "model.trainable=attention,full,heads")
    code = run_in(
        tmp_path, monkeypatch, *words, *space, "model.warmup_steps=0", *JOBS, f"data.path={tiny_shards}", "seed=4"
    )
    found = list(read_results(tmp_path / "sweep").values())
    assert [r.job for r in found] == [0, 1, 2, 3]
    losses = [r.loss for r in found if r.loss is not None]
    assert code == 1
    assert 0 < len(losses) < 4, "the seed is to draw both kinds"
    assert OmegaConf.load(tmp_path / "sweep/optimization_results.yaml").best_value == min(losses)


@pytest.mark.filterwarnings("ignore:The ``declarative_base")  # optuna 2.10 on SQLAlchemy 2, at its import
def test_a_search_without_a_validation_loss_fails_with_a_remedy(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("sweep=optuna", "hydra.sweeper.n_trials=1", "trainer.limit_val_batches=0", f"data.path={tiny_shards}")
    assert run_in(tmp_path, monkeypatch, *words, "model.warmup_steps=0", *JOBS) == 1
    (result,) = read_results(tmp_path / "sweep").values()
    assert result.error is not None
    assert result.error.startswith("a search needs val/loss, but none was logged: use shards with validation panoramas")


# ---- status of a job ---------------------------------------------------------------------------------------------


def job(folder: Path, *words: str) -> DictConfig:
    config = composed("model=tiny_random", "data.path=x", "hydra.mode=MULTIRUN", "hydra.job.num=3", *words,
                      run_dir=folder)  # fmt: skip
    return config


@pytest.mark.parametrize(
    "raised",
    [
        ValueError("no such thing"),
        SystemExit("error: no such thing"),
        FloatingPointError("the loss is nan"),
        RuntimeError("a bug"),
    ],
)
def test_a_failure_is_printed_recorded_and_counts_as_infinite_loss(
    raised: BaseException, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(run_dir: Path, curves: dict[str, Any]) -> None:
        raise raised

    assert run_recorded(job(tmp_path), task) == float("inf")
    content = json.loads((tmp_path / RESULT).read_text())
    assert (content["status"], content["job"], content["loss"]) == ("failed", 3, None)
    assert str(raised).removeprefix("error: ") in content["error"]
    assert content["error"] in capsys.readouterr().err
    assert ("Traceback" in content["error"]) == isinstance(raised, RuntimeError)


@pytest.mark.parametrize("signal", [SystemExit(143), SystemExit(), KeyboardInterrupt()])
def test_a_signal_stops_the_sweep_and_the_job_is_recorded_as_cut(signal: BaseException, tmp_path: Path) -> None:
    def task(run_dir: Path, curves: dict[str, Any]) -> None:
        curves["val/loss"] = [(1, 0.5), (2, float("nan"))]
        raise signal

    with pytest.raises(type(signal)):
        run_recorded(job(tmp_path), task)
    content = json.loads((tmp_path / RESULT).read_text(), parse_constant=pytest.fail)
    assert (content["status"], content["curves"]) == ("cut", {"val/loss": [[1, 0.5], [2, None]]})


def test_a_killed_job_stays_recorded_as_running(tmp_path: Path) -> None:
    def task(run_dir: Path, curves: dict[str, Any]) -> None:
        assert json.loads((run_dir / RESULT).read_text())["status"] == "running"

    run_recorded(job(tmp_path), task)
    assert json.loads((tmp_path / RESULT).read_text())["status"] == "done"


def test_a_finished_job_runs_again_only_with_another_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = []

    def task(run_dir: Path, curves: dict[str, Any]) -> None:
        ran.append(run_dir)
        curves["val/loss"] = [(1, 0.5)] if len(ran) == 1 else [(1, 0.25)]

    assert [run_recorded(job(tmp_path), task) for _ in range(2)] == [0.5, 0.5]
    assert "job 3 is already done" in capsys.readouterr().out
    assert run_recorded(job(tmp_path, "seed=1"), task) == 0.25


@pytest.mark.parametrize("status", ["failed", "cut", "running"])
def test_an_unfinished_job_runs_again(status: str, tmp_path: Path) -> None:
    run_recorded(job(tmp_path), lambda run_dir, curves: None)
    content = json.loads((tmp_path / RESULT).read_text())
    (tmp_path / RESULT).write_text(json.dumps({**content, "status": status}))
    ran = []
    run_recorded(job(tmp_path), lambda run_dir, curves: ran.append(run_dir))
    assert ran == [tmp_path]


def test_an_unresolvable_reference_fails_only_its_job(tmp_path: Path) -> None:
    config = job(tmp_path)
    OmegaConf.update(config, "data.extra", "${nowhere}", force_add=True)
    assert run_recorded(config, lambda run_dir, curves: config.data.extra) == float("inf")
    assert "nowhere" in json.loads((tmp_path / RESULT).read_text())["error"]


def test_a_single_runs_failure_is_recorded_and_raised(tmp_path: Path) -> None:
    def task(run_dir: Path, curves: dict[str, Any]) -> None:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        run_recorded(composed("model=tiny_random", "data.path=x", run_dir=tmp_path), task)
    assert json.loads((tmp_path / RESULT).read_text())["status"] == "failed"


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_only_the_first_rank_writes_the_result(rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rank, "1")
    run_recorded(job(tmp_path), lambda run_dir, curves: None)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / RESULT).write_text('{"status"')
    with pytest.raises(ValueError, match=r"0/result\.json is damaged"):
        read_results(tmp_path)


# ---- GPUs of parallel jobs -------------------------------------------------------------------------------------


def test_parallel_jobs_get_one_gpu_each_and_too_many_jobs_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each list of locks stands for a process."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    processes: list[list[Any]] = [[], [], []]

    def devices(process: int) -> Any:
        monkeypatch.setattr(gpus, "_held", processes[process])
        config = job(tmp_path, "trainer=gpu")
        assign_gpu(config, tmp_path)
        return config.trainer.devices

    assert (devices(0), devices(1), devices(0), devices(1)) == ([0], [1], [0], [1])
    with pytest.raises(ValueError, match=r"more jobs run in parallel than the 2 GPUs .* set hydra\.launcher\.n_jobs=2"):
        devices(2)
    processes[0].pop().release()
    assert devices(2) == [0]
    for locks in processes:
        for lock in locks:
            lock.release()


def test_jobs_on_the_cpu_or_with_explicit_devices_are_unchanged(tmp_path: Path) -> None:
    for words, devices in ((("trainer=cpu",), 1), (("trainer=gpu", "trainer.devices=[1]"), [1])):
        config = job(tmp_path, *words)
        assign_gpu(config, tmp_path)
        assert config.trainer.devices == devices
    assert list(tmp_path.iterdir()) == []


# ---- variants ----------------------------------------------------------------------------------------------------

V = {"model.pipeline.scheduler.prediction_type": "v_prediction"}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "joint_cross_attention": {"model.pipeline.cross_attention": "joint"},
    "plain_unet_norm": {"model.pipeline.sync_group_norm": False},
    "uv_pi": {"model.pipeline.position_encoding": "uv_pi"},
    "xyz": {"model.pipeline.position_encoding": "xyz"},
    "corner_positions": {"model.pipeline.position_samples": "corners"},
    "attention_drop": {"model.pipeline.image_drop": "attention"},
    "v_prediction": V,
    "zero_snr": V
    | {
        "model.pipeline.scheduler.rescale_betas_zero_snr": True,
        "model.pipeline.scheduler.timestep_spacing": "trailing",
    },
    "less_noise": {"model.pipeline.scheduler.snr_factor": 4.0},
    "more_noise": {"model.pipeline.scheduler.snr_factor": 0.25},
    "plain_vae_norm": {"model.pipeline.sync_vae_group_norm": False},
    "face_padding": {"model.pipeline.conv_padding": "faces"},
    "min_snr": {"model.objective.min_snr_gamma": 5.0},
    "value_output": {"model.trainable": "value_output"},
    "lora": {"model.trainable": "lora"},
    "full": {"model.trainable": "full"},
    "no_overlap": {"fov": 90.0, "data.fov": 90.0, "model.pipeline.fov": 90.0},
    "no_drops": {f"model.objective.drop_{what}": 0.0 for what in ("text", "image", "both")},
}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix: config}
    return {k: v for name, value in config.items() for k, v in flat(value, f"{prefix}.{name}".lstrip(".")).items()}


def test_a_variant_changes_only_its_own_keys() -> None:
    assert {file.stem for file in Path(CONFIG_DIR, "variant").glob("*.yaml")} == set(VARIANTS)

    def settings(*words: str) -> dict[str, Any]:
        found: Any = OmegaConf.to_container(composed("experiment=sd15_l4x4", "data.path=x", "run_dir=y", *words),
                                            resolve=True)  # fmt: skip
        return flat(found)

    plain = settings()
    for name, changes in VARIANTS.items():
        varied = settings(f"variant={name}")
        assert {k: v for k, v in varied.items() if k not in plain or plain[k] != v} == changes, name
        assert plain.keys() <= varied.keys()


@pytest.mark.parametrize("variant", [name for name, keys in VARIANTS.items() if any(".pipeline." in k for k in keys)])
def test_the_export_of_a_variant_has_its_settings(variant: str, tmp_path: Path) -> None:
    config = composed("model=tiny_random", "data.path=x", f"variant={variant}")
    module = build(config.model)
    module.pipeline.save_pretrained(tmp_path)
    loaded = CubeDiffPipeline.from_pretrained(tmp_path)
    for key, value in VARIANTS[variant].items():
        _, _, name = key.partition("model.pipeline.")
        if name == "scheduler.snr_factor":
            assert len(loaded.scheduler.config.trained_betas) == 1000
            assert torch.equal(loaded.scheduler.alphas_cumprod, module.pipeline.scheduler.alphas_cumprod)
        elif name.startswith("scheduler."):
            assert loaded.scheduler.config[name.removeprefix("scheduler.")] == value
        elif name:
            assert loaded.config[name] == value
    kinds = {name: type(p) for name, p in loaded.unet.attn_processors.items()}
    assert kinds == {name: type(p) for name, p in module.unet.attn_processors.items()}
    assert [type(m) for m in loaded.unet.modules()] == [type(m) for m in module.unet.modules()]


@pytest.mark.parametrize("name", ["ablations", "ambiguities"])
def test_sweeps_name_existing_variants_and_start_with_the_paper(name: str) -> None:
    chosen = yaml.safe_load(Path(CONFIG_DIR, f"sweep/{name}.yaml").read_text(encoding="utf-8"))["hydra"]["sweeper"][
        "params"
    ]["variant"]
    variants = chosen.split(",")
    assert variants[0] == "paper"
    assert set(variants) <= set(VARIANTS)
    assert len(set(variants)) == len(variants)


# ---- Weights & Biases --------------------------------------------------------------------------------------------


def test_the_wandb_sweep_calls_train_with_keys_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is built as W&B's agent builds it."""
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    described = yaml.safe_load(Path(CONFIG_DIR, "wandb_sweep.yaml").read_text(encoding="utf-8"))
    drawn = {key: {"value": space["values"][-1] if "values" in space else space["min"]}
             for key, space in described["parameters"].items()}  # fmt: skip
    macros = {**create_sweep_command_args({"args": drawn}), "env": [], "interpreter": ["python"],
              "program": [described["program"]]}  # fmt: skip
    command = [word for part in create_sweep_command(described["command"])
               for word in (macros[part[2:-1]] if part.startswith("${") else [part])]  # fmt: skip
    assert command[:3] == ["python", "-m", "cubediff.train"]
    config = composed(*command[3:])
    assert {key: OmegaConf.select(config, key) for key in drawn} == {key: d["value"] for key, d in drawn.items()}
    assert config.run_dir == "experiments/runs/wandb_sweep/abc123"
    assert list(config.logger) == ["wandb"]
    assert described["metric"] == {"name": "val/loss", "goal": "minimize"}
    assert os.environ["WANDB_RUN_ID"] == "abc123"
