"""Every choice of every config group composes and matches its targets' signatures; the recipe is the paper's; invalid
configs are refused before anything is loaded."""

import inspect
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from hydra.utils import get_method
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf, open_dict
from support.runs import QUICK, composed

from cubediff.configs import CONFIG_DIR, build, check, check_devices
from cubediff.planning.report import plan

CHOICES = sorted(
    (file.parent.name, file.stem)
    for file in Path(CONFIG_DIR).glob("*/*.yaml")
    if (file.parent.name, file.stem) != ("model", "base")  # the base of the other models
    and file.parent.name != "evaluation"  # of cubediff evaluate
)
EXPERIMENTS = [choice for group, choice in CHOICES if group == "experiment"]
DATA = "data.path=SHARDS"


def of_group(group: str) -> list[str]:
    return [choice for g, choice in CHOICES if g == group]


def targets(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a config with a `_target_`: its key and its arguments."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, value in node.items():
            yield from targets(value, f"{key}.{name}".lstrip("."))


# ---- composing -----------------------------------------------------------------------------------------------


def test_required_groups_and_choices_exist() -> None:
    assert {group for group, _ in CHOICES} >= {"experiment", "model", "data", "trainer", "callbacks", "logger"}
    assert set(of_group("logger")) >= {"csv", "tensorboard", "wandb"}
    assert {"sd15_l4x4", "tiny_cpu"} <= set(EXPERIMENTS)


@pytest.mark.parametrize(
    ("group", "choice", "experiment"),
    [
        (group, choice, experiment)
        for group, choice in CHOICES
        if group != "experiment"
        for experiment in ([None] if group in ("variant", "sweep") else [None, *EXPERIMENTS])  # many small configs
    ],
)
def test_every_choice_composes_alone_and_with_every_experiment(group: str, choice: str, experiment: str | None) -> None:
    first = [f"experiment={experiment}"] if experiment else []
    config = composed(*first, f"{group}={choice}", DATA)
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    for key, arguments_of_target in targets(resolved):
        if arguments_of_target["_target_"].startswith("bitsandbytes.") and not find_spec("bitsandbytes"):
            continue  # an extra that is for GPUs
        signature = inspect.signature(get_method(arguments_of_target["_target_"]))
        arguments = {
            name: value for name, value in arguments_of_target.items() if name not in ("_target_", "_partial_")
        }
        try:
            signature.bind_partial(**arguments)
        except TypeError as error:
            pytest.fail(f"{key}: {arguments_of_target['_target_']}: {error}")
    assert HydraConfig.get().runtime.choices[group] == choice


def test_a_group_given_on_the_command_line_wins_over_the_experiment() -> None:
    config = composed("experiment=sd15_l4x4", "model=tiny_random", "logger=csv", "trainer=cpu", DATA)
    assert config.model.pipeline["_target_"] == "cubediff.pipelines.loading.tiny_random"
    assert config.face_size == config.data.face_size == 64
    assert set(config.logger) == {"csv"}
    assert config.trainer.accelerator == "cpu"


def test_error_of_an_unknown_choice_lists_the_available_ones() -> None:
    with pytest.raises(MissingConfigException, match=r"(?s)model/sd16.*Available options.*sd15.*tiny_random"):
        composed("model=sd16", DATA)


def test_common_overrides_reach_their_configs() -> None:
    config = composed(DATA, "trainer.max_steps=7", "run_dir=elsewhere", "model=tiny", "logger=tensorboard", "seed=3")
    assert (config.data.path, config.trainer.max_steps, config.model.seed, config.data.seed) == ("SHARDS", 7, 3, 3)
    assert HydraConfig.get().run.dir == HydraConfig.get().sweep.dir == "elsewhere"
    assert config.callbacks.checkpoint.folder == "elsewhere/checkpoints"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_run_dir_is_named_by_experiment_and_time(experiment: str) -> None:
    config = composed(f"experiment={experiment}", DATA)
    assert re.fullmatch(rf"experiments/runs/{experiment}/\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d", config.run_dir)
    assert HydraConfig.get().run.dir == HydraConfig.get().sweep.dir == config.run_dir


# ---- the paper's recipe --------------------------------------------------------------------------------------


def test_sd15_l4x4_is_the_recipe_of_the_paper() -> None:
    config = composed("experiment=sd15_l4x4", DATA)
    trainer, model = config.trainer, config.model
    assert model.pipeline.path == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (model.pipeline.fov, config.data.fov, config.data.face_size) == (95.0, 95.0, 512)
    assert (trainer.accelerator, trainer.devices, trainer.precision) == ("gpu", 4, "bf16-mixed")
    assert trainer.strategy["_target_"].endswith("DDPStrategy")
    assert trainer.devices * trainer.accumulate_grad_batches * config.data.batch_size == 64
    assert trainer.max_steps == 30_000
    assert (model.optimizer.lr, model.warmup_steps, model.lr_schedule) == (8e-5, 10_000, "constant_with_warmup")
    assert (model.trainable, model.gradient_checkpointing) == ("attention", False)
    assert [model.objective[name] for name in ("drop_text", "drop_image", "drop_both")] == [0.1, 0.1, 0.1]
    assert list(config.logger) == ["wandb"]


def test_sd15_l4x4_instantiates_trainer_optimizer_and_objective(tmp_path: Path) -> None:
    """Without the weights and the GPUs: four CPU processes, which are not launched, replace the GPUs."""
    config = composed("experiment=sd15_l4x4", DATA, "trainer.accelerator=cpu", run_dir=tmp_path)
    trainer = build(config.trainer, logger=False)
    assert isinstance(trainer.strategy, DDPStrategy)
    assert (trainer.world_size, trainer.max_steps, trainer.precision) == (4, 30_000, "bf16-mixed")
    assert (trainer.accumulate_grad_batches, trainer.val_check_interval) == (16, 16000)
    optimizer = build(config.model.optimizer)([torch.nn.Parameter(torch.zeros(2))])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["lr"] == 8e-5
    assert build(config.model.objective).drop_image == 0.1


@pytest.mark.parametrize(("group", "choice"), [c for c in CHOICES if c[0] in ("callbacks", "logger", "data")])
def test_targets_of_a_group_instantiate(
    group: str, choice: str, tmp_path: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = composed(*QUICK[:2], f"{group}={choice}", f"data.path={tiny_shards}", run_dir=tmp_path)
    kind = {"callbacks": Callback, "logger": Logger}
    if group == "data":
        assert isinstance(build(config.data), L.LightningDataModule)
    else:
        assert all(isinstance(build(node), kind[group]) for node in config[group].values())


@pytest.mark.parametrize("choice", ["auto", "cpu"])
def test_single_device_trainers_instantiate(choice: str) -> None:
    trainer = build(composed(f"trainer={choice}", DATA).trainer, logger=False)
    assert (trainer.world_size, trainer.max_steps, trainer.check_val_every_n_epoch) == (1, 30_000, None)


@pytest.mark.parametrize(
    ("objective", "settings", "options"),
    [
        ("paper", {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}, {}),
        ("v_prediction", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": False}, {}),
        ("zero_snr", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                      "timestep_spacing": "trailing"}, {}),
        ("min_snr", {"prediction_type": "epsilon"}, {"min_snr_gamma": 5.0}),
    ],
)  # fmt: skip
def test_an_objective_is_one_choice_and_reaches_the_noise_schedule(
    objective: str, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    module = build(composed("model=tiny_random", f"objective={objective}", DATA).model)
    assert {name: module.process.scheduler.config[name] for name in settings} == settings
    assert module.pipeline.scheduler.config.prediction_type == settings["prediction_type"]
    assert {name: getattr(module.objective, name) for name in options} == options
    assert (module.process.scheduler.alphas_cumprod[-1] < 1e-7) == settings.get("rescale_betas_zero_snr", False)


def test_a_models_objective_overrides_the_objective_group() -> None:
    for objective in ("paper", "min_snr"):
        assert composed("model=tiny", f"objective={objective}", DATA).model.objective.drop_image == 0.3


def test_an_optimizer_is_one_choice_at_the_models_learning_rate() -> None:
    config = composed("model=tiny", "optimizer=adamw", DATA).model.optimizer
    optimizer = build(config)([torch.nn.Parameter(torch.zeros(2))])
    assert (optimizer.defaults["lr"], optimizer.defaults["fused"]) == (1e-3, True)
    assert composed("model=tiny", "optimizer=adamw_8bit", DATA).model.optimizer.lr == 1e-3


@pytest.mark.skipif(bool(find_spec("bitsandbytes")), reason="bitsandbytes is installed")
def test_error_of_a_missing_extra_names_the_pip_command() -> None:
    with pytest.raises(ValueError, match=r"(?s)bitsandbytes.*pip install 'cubediff\[bnb\]'"):
        build(composed("model=tiny_random", "optimizer=adamw_8bit", DATA).model)


# ---- invalid configs -----------------------------------------------------------------------------------------


RAMP = "my_weighting.Ramp"


def test_error_of_a_module_that_is_not_on_the_path_is_one_message_with_a_remedy() -> None:
    config = composed("data.path=SHARDS", f"+model.objective.weighting._target_={RAMP}")
    message = (
        f"model.objective.weighting._target_={RAMP}: there is no module my_weighting on the Python path: "
        "start the command with PYTHONPATH=FOLDER, the folder that holds it"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build(config.model.objective)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build(config.model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "'Ramp' is importable from module 'my_weighting'"),
        ("import no_such_package", "No module named 'no_such_package'"),
    ],
)
def test_a_module_that_lacks_the_class_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, content: str, message: str
) -> None:
    (tmp_path / "my_weighting.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_weighting", raising=False)
    config = composed("data.path=SHARDS", f"+model.objective.weighting._target_={RAMP}")
    with pytest.raises(ValueError, match=f"^model\\.objective\\.weighting: (?s:.*){message}"):
        build(config.model.objective)
    assert caplog.messages == []


def test_error_of_a_missing_data_path_names_the_override() -> None:
    with pytest.raises(ValueError, match=r"data\.path=SHARDS.*cubediff prepare"):
        check(composed("model=tiny_random", "trainer=cpu"))


def test_error_of_a_missing_value_names_its_key() -> None:
    config = composed("model=tiny_random", "trainer=cpu", DATA)
    with open_dict(config):
        config.data.height = "???"
    with pytest.raises(ValueError, match=r"data\.height=VALUE"):
        check(config)


def test_the_base_of_the_models_is_refused_as_a_model() -> None:
    config = composed("model=base", "trainer=cpu", DATA)
    for use in (check, plan):
        with pytest.raises(ValueError, match=r"model\.pipeline has no _target_, .* choose another with model=NAME"):
            use(config)


@pytest.mark.parametrize(
    ("present", "remedy"),
    [
        (0, r"this machine has none: set trainer=cpu$"),
        (2, r"has 2: set trainer\.devices=2, trainer=gpu \(one GPU\) or trainer=cpu$"),
        (4, None),
    ],
)
def test_error_of_missing_gpus_names_the_override(
    present: int, remedy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    for devices in ("4", "[0,1,2,3]"):
        config = composed("experiment=sd15_l4x4", DATA, f"trainer.devices={devices}")
        if remedy is None:
            check_devices(config)
        else:
            with pytest.raises(ValueError, match=remedy):
                check_devices(config)


def test_a_sweep_over_several_devices_is_refused() -> None:
    """Lightning starts each process with the command line of the sweep, so that each would run the whole sweep."""
    several = ("trainer=ddp", "trainer.accelerator=cpu", DATA)
    check_devices(composed(*several))
    check_devices(composed("trainer=cpu", DATA, "hydra.mode=MULTIRUN"))
    with pytest.raises(ValueError, match=r"trainer\.devices=1"):
        check_devices(composed(*several, "hydra.mode=MULTIRUN"))


def test_a_slurm_sweep_may_use_several_devices_with_one_task_each() -> None:
    """SLURM starts the processes of one job, not the command line of the sweep."""
    several = ("trainer=ddp", "trainer.accelerator=cpu", DATA, "hydra.mode=MULTIRUN", "hydra/launcher=submitit_slurm")
    with pytest.raises(ValueError, match=r"hydra\.launcher\.tasks_per_node=4 hydra\.launcher\.gpus_per_node=4"):
        check_devices(composed(*several))
    check_devices(composed(*several, "hydra.launcher.tasks_per_node=4"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.trainable=heads", r"^model\.trainable=heads: expected attention or value_output or lora or full$"),
        ("model.objective.drop_text=1.5", r"^model\.objective: drop_text.* at most 1$"),
        ("model.pipeline.position_encoding=polar", r"^model\.pipeline: position_encoding='polar'"),
        ("+model.objective.drop_all=0.1", r"^model\.objective: .*'drop_all'"),
        (
            "model.lr_schedule=cosin",
            r"^model\.lr_schedule=cosin: expected constant or constant_with_warmup or cosine or ",
        ),
        ("model.warmup_steps=-5", r"^model: warmup_steps=-5: expected 0 or more$"),
    ],
)
def test_error_of_an_invalid_value_names_its_key(override: str, message: str) -> None:
    config = composed("model=tiny_random", DATA, override)
    with pytest.raises(ValueError, match=message):
        build(config.model)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("ema.decay=1.5", "ema: decay=1.5: expected a number from 0 to 1"),
        ("finite.limit=-1", "finite: limit and every_n_steps must be at least 1, got -1 and 10"),
        ("finite.every_n_steps=0", "finite: limit and every_n_steps must be at least 1, got 20 and 0"),
        (
            "watchdog.seconds=-1",
            "watchdog: seconds=-1: expected a positive number; set callbacks.watchdog=null for none",
        ),
    ],
)
def test_error_of_an_invalid_value_names_its_callback(key: str, message: str) -> None:
    config = composed("model=tiny_random", DATA, f"callbacks.{key}")
    with pytest.raises(ValueError, match=f"^callbacks.{message}$"):
        build(config.callbacks[key.partition(".")[0]])


@pytest.mark.parametrize("key", ["model.optimizer.lr", "callbacks.samples.guidance_scale", "seed", "data.weights.0"])
def test_a_config_value_that_is_nan_is_refused_by_its_key(key: str) -> None:
    override = "data.weights=[nan]" if key.endswith(".0") else f"++{key}=nan"
    name = "data.weights[0]" if key.endswith(".0") else key
    with pytest.raises(ValueError, match=f"^{re.escape(name)}=nan: expected a number$"):
        check(composed("model=tiny_random", DATA, override))


def test_error_of_a_missing_model_folder_names_the_override(tmp_path: Path) -> None:
    config: DictConfig = composed("model=sd15", DATA, f"model.pipeline.path={tmp_path / 'sd15'}")
    with pytest.raises(ValueError, match=r"model\.pipeline\.path=.*sd15 cannot be loaded(?s:.*)path=FOLDER"):
        build(config.model)


# ---- the command line ----------------------------------------------------------------------------------------


def test_cfg_job_takes_under_two_seconds_of_cpu_and_imports_no_torch(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-X", "importtime", "-m", "cubediff.train", "--cfg", "job", "experiment=sd15_l4x4"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert not imported & {"torch", "lightning", "diffusers", "transformers"}
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
    assert "path: stable-diffusion-v1-5/stable-diffusion-v1-5" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "abc"])
def test_error_of_a_seed_that_numpy_refuses_names_the_key(seed: object) -> None:
    with pytest.raises(ValueError, match=f"seed={seed}: expected an integer from 0 to 4294967295"):
        check(composed("model=tiny_random", DATA, f"seed={seed}"))
