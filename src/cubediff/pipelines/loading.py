"""Loads pipelines: by the class of a model folder, as the start of a training run, or without weights."""

import inspect
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from diffusers.schedulers import SchedulerMixin
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from typing_extensions import Unpack

from cubediff.diffusion.schedulers import convert_scheduler, noise_settings
from cubediff.models.single_file import SingleFile
from cubediff.models.stable_diffusion import StableDiffusion
from cubediff.models.tiny import sd_scheduler, tiny_components
from cubediff.pipelines.base import CubePipeline
from cubediff.pipelines.cubediff import CubeDiffPipeline, Settings, is_opencubediff, is_own, stored_settings
from cubediff.pipelines.folders import find_model, is_file_path, read_index
from cubediff.pipelines.single_file import check_options
from cubediff.utils.plugins import plugins

_SAMPLING_SETTINGS = ("photo_encoding", "average_overlap")  # training does not depend on them
BACKBONES = "cubediff.backbones"  # the entry-point group; each entry is a subclass of CubePipeline


def pipeline_classes() -> dict[str, type[CubePipeline]]:
    """Pipeline classes by their class name: this package's and those of the entry-point group `cubediff.backbones`.

    Raises:
        ValueError: If an entry point cannot be imported or is not a subclass of CubePipeline.
    """
    classes: dict[str, type[CubePipeline]] = {CubeDiffPipeline.__name__: CubeDiffPipeline}
    for _, where, kind in plugins(BACKBONES, "backbone"):
        if not (isinstance(kind, type) and issubclass(kind, CubePipeline)):
            raise ValueError(f"{where}: expected a subclass of "
                             f"cubediff.pipelines.base.CubePipeline, got {kind!r}")  # fmt: skip
        if inspect.isabstract(kind):
            raise ValueError(f"{where}: {kind.__name__} has no property `backbone`")
        classes[kind.__name__] = kind
    return classes


def pipeline_class(path: str | Path) -> type[CubePipeline] | None:
    """The class that a local CubeDiff folder was saved with, or can be loaded with; None for others and Hub ids.

    The folder names a class, which is looked up among the installed ones: a folder brings no code.

    Raises:
        ValueError: If the folder's model_index.json is damaged, or was written by a newer version of this package, or
            its class is not installed.
    """
    folder = Path(find_model(path))
    if not (folder / "model_index.json").is_file():
        return None
    if is_opencubediff(folder):
        return CubeDiffPipeline
    name, classes = read_index(folder).get("_class_name"), pipeline_classes()
    if isinstance(name, str) and name not in classes and is_own(folder):
        raise ValueError(
            f"{folder} was saved by {ascii(name)[:80]}, and only {', '.join(classes)} is installed: install the "
            f"package that has it, and registers it as {BACKBONES}"
        )
    return classes.get(name) if isinstance(name, str) else None


def _class_of_any(path: str | Path, revision: str | None = None) -> type[CubePipeline] | None:
    """As `pipeline_class`, also for a Hub id, of which the two files that tell its kind are downloaded."""
    path = find_model(path)
    if is_file_path(path) or Path(path).exists() or Path(path).is_absolute() or len(Path(path).parts) != 2:
        return pipeline_class(path)
    try:
        files = ["model_index.json", "unet/config.json"]
        return pipeline_class(snapshot_download(Path(path).as_posix(), revision=revision, allow_patterns=files))
    except (OSError, HFValidationError):  # not on the Hub, or no connection: loading the weights says which
        return None


def load_for_generation(path: str | Path, **options: object) -> CubePipeline:
    """Loads a trained CubeDiff of any installed backbone, from a folder or the Hub; see `from_pretrained`.

    Raises:
        OSError: If there is no such folder, and the Hub does not have the model or cannot be reached.
    """
    try:
        return (_class_of_any(path) or CubeDiffPipeline).from_pretrained(path, **options)
    except OSError as error:
        raise _of_the_hub(path, error) from error


def _of_the_hub(path: str | Path, error: OSError) -> OSError:
    """The error of a Hub id that was not loaded, whose own message may blame a missing file; others as they are."""
    if isinstance(error, FileNotFoundError) or is_file_path(path) or Path(path).exists():
        return error
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return OSError(
        f"{path} is not a local folder, and was not loaded from the Hub ({cause}): pass the folder of a model, such as "
        "the `export` of a run, or check the id and the connection"
    )


def load_pipeline(
    path: str | Path,
    scheduler: Mapping[str, object] | None = None,
    variant: str | None = None,
    revision: str | None = None,
    config: str | Path | None = None,
    **options: Unpack[Settings],
) -> CubePipeline:
    """Loads the initial model of a training run: a CubeDiff folder, or a 2D Stable Diffusion folder, Hub id or file.

    Args:
        path: The folder, Hub id or single-file checkpoint.
        scheduler: Settings of the noise schedule to replace.
        variant: Of the weights, such as "fp16"; they are trained in float32 all the same.
        revision: Branch, tag or commit of a Hub id.
        config: The folder or Hub id with the configs and the tokenizer of a single file, see `from_2d`.
        **options: Settings of the pipeline (fov, position_encoding, position_samples, sync_group_norm,
            cross_attention, inflate, conv_padding, image_drop). A CubeDiff folder says those that are None or left out.
            photo_encoding and average_overlap, on which training does not depend, replace the folder's.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        OSError: If the Hub does not have the model or cannot be reached, or a file is damaged.
        ValueError: If a 2D model cannot be loaded, see `from_2d`, or a CubeDiff folder was trained with other settings.
    """
    path = find_model(path)
    kind = _class_of_any(path, revision)
    if kind is None:
        try:
            return CubeDiffPipeline.from_2d(
                path, scheduler=scheduler, variant=variant, revision=revision, config=config, **options
            )
        except OSError as error:
            raise _of_the_hub(path, error) from error
    check_options(path, config)
    given = {name: value for name, value in options.items() if value is not None}
    files = {name: value for name, value in {"variant": variant, "revision": revision}.items() if value is not None}
    replaced = {name: given.pop(name) for name in _SAMPLING_SETTINGS if name in given}
    pipeline = kind.from_pretrained(path, **files, **replaced)
    differing = {k: (pipeline.config[k], v) for k, v in given.items() if pipeline.config[k] != v}
    noise_schedule, wanted = pipeline.scheduler.config, noise_settings(pipeline.scheduler, scheduler or {})
    differing |= {k: (noise_schedule[k], v) for k, v in wanted.items() if noise_schedule[k] != v}
    if differing:
        settings = ", ".join(
            f"{k}={reprlib.repr(theirs)}, not {reprlib.repr(ours)}" for k, (theirs, ours) in differing.items()
        )
        raise ValueError(f"{path} was trained with {settings}: use the same options, or start from a 2D model")
    return pipeline


def tiny_random(
    seed: int = 0, scheduler: Mapping[str, object] | None = None, **options: Unpack[Settings]
) -> CubeDiffPipeline:
    """An untrained CubeDiff for 64-pixel faces with about 0.3 M parameters, equal for equal seeds.

    Args:
        seed: Of the random weights.
        scheduler: As for `CubeDiffPipeline.from_2d`.
        **options: As for `CubeDiffPipeline.from_2d`.

    Example:
        >>> tiny_random().unet.config.in_channels
        7
    """
    components = tiny_components(seed, options.get("position_encoding") or "uv")
    noise_schedule = convert_scheduler(sd_scheduler(), scheduler or {})
    return CubeDiffPipeline(**components, scheduler=noise_schedule, **options)


def meta_pipeline(target: str, settings: Mapping[str, object]) -> CubePipeline:
    """A pipeline on the meta device, whose models hold no weights.

    Args:
        target: The dotted name of the callable that creates the pipeline, as in `model.pipeline._target_`.
        settings: Its arguments.

    Raises:
        ValueError: If `settings["path"]`, or for a single file `settings["config"]`, is neither a local folder nor a
            known Hub id, or the file is not that of a 2D model.
        OSError: If the file is missing or damaged.
    """
    from hydra.utils import get_method  # takes time to import, and only planning needs it

    make = get_method(target)
    if make is not load_pipeline:
        with torch.device("meta"):
            pipeline: CubePipeline = make(**settings)
        return pipeline
    path = find_model(cast(str, settings["path"]))
    kind = pipeline_class(path) or CubeDiffPipeline
    if kind is not CubeDiffPipeline:
        pretrained: CubePipeline = kind.from_pretrained(path).to("meta")
        return pretrained
    scheduler = cast(Mapping[str, object], settings.get("scheduler") or {})
    noise_schedule: SchedulerMixin = convert_scheduler(sd_scheduler(), scheduler)
    files = ("path", "scheduler", "variant", "revision", "config")
    given = {key: value for key, value in settings.items() if key not in files and value is not None}
    options = cast(Settings, {**stored_settings(Path(path)), **given})
    config = cast(str | None, settings.get("config"))
    check_options(path, config, **{name: settings.get(name) for name in ("variant", "revision")})
    configs, key = path, "path"
    if is_file_path(path):
        file = SingleFile(path)
        configs, key = find_model(config or file.default_configs), "config"
    components = StableDiffusion.on_meta(configs, options.get("position_encoding") or "uv", key)
    return CubeDiffPipeline(**components, scheduler=noise_schedule, **options)
