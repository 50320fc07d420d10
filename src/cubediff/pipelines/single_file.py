"""Loads single-file checkpoints, which hold weights alone, with the configs and the tokenizer of a folder or Hub id."""

from collections.abc import Collection
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from cubediff.models.single_file import SET_CONFIG, SingleFile
from cubediff.models.stable_diffusion import Components
from cubediff.pipelines.folders import check_folder, is_file_path
from cubediff.pipelines.trust import check_components

PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
_CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
_TOKENIZERS = (("tokenizer/tokenizer.json",), ("tokenizer/vocab.json", "tokenizer/merges.txt"))


def load_single_file(
    path: str | Path, config: str | Path | None, dtype: torch.dtype, replaced: Collection[str]
) -> tuple[Components, DDIMScheduler]:
    """The models of a single-file 2D model, and its noise schedule.

    Args:
        path: The checkpoint.
        config: See `find_configs`.
        dtype: The dtype of all models.
        replaced: Settings of the noise schedule that the caller replaces. If the prediction type is among them, that of
            the configs need not be the one that the file states.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it is damaged.
        ValueError: As `SingleFile` and `find_configs`, or if file and configs do not fit each other.
    """
    file = SingleFile(path)
    configs = find_configs(file, config)
    noise_schedule = DDIMScheduler.from_pretrained(configs, subfolder="scheduler")
    if "prediction_type" not in replaced:
        file.check_prediction_type(noise_schedule.config.prediction_type)
    return file.load(configs, dtype), noise_schedule


def find_configs(file: SingleFile, config: str | Path | None) -> Path:
    """The local folder with the configs and the tokenizer of a single-file checkpoint.

    Args:
        file: The checkpoint.
        config: A Stable Diffusion folder in the diffusers layout, or a Hub id, of which configs and tokenizer are
            downloaded; None for the Hub id that diffusers takes for such a file.

    Raises:
        ValueError: If there is no such folder, it cannot be downloaded, or it is incomplete; the message says what to
            do.
    """
    source = config if config is not None else file.default_configs
    if Path(source).is_file():
        raise ValueError(f"config={config}: expected a folder in the diffusers layout or a Hub id, got a file")
    try:
        folder = Path(check_folder(source))
    except FileNotFoundError as error:
        raise ValueError(f"config={config}: {error}") from error
    if not folder.is_dir():
        folder = _download(file, folder.as_posix())
    check_components(folder, PARTS, weights=False)
    missing = [name for name in _CONFIGS if not (folder / name).is_file()]
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        missing.append(_TOKENIZERS[0][0])
    if missing:
        raise ValueError(
            f"{folder} has no {', '.join(missing)}, which {file.path} needs beside its weights: {SET_CONFIG}, a "
            "Stable Diffusion folder in the diffusers layout"
        )
    return folder


def _download(file: SingleFile, hub_id: str) -> Path:
    patterns = ["model_index.json", *_CONFIGS, "tokenizer/*"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (OSError, HFValidationError) as error:
        raise ValueError(
            f"{file.path} holds weights alone, and the configs and the tokenizer of {hub_id} can neither be downloaded "
            f"nor are in the Hub's cache ({type(error).__name__}): {SET_CONFIG}, a local Stable Diffusion folder that "
            "has them"
        ) from error


def check_options(path: str | Path, config: object = None, **of_folders: object) -> None:
    """Checks that the options of loading a 2D model go with its path; those that are None are not given.

    Raises:
        ValueError: If a single file comes with options of folders, or a folder or Hub id with `config`.
    """
    if not is_file_path(path):
        if config is not None:
            raise ValueError(f"config={config} is for a single file, but {path} has its own configs: remove it")
    elif given := [f"{name}={value}" for name, value in of_folders.items() if value is not None]:
        raise ValueError(f"{path} is a single file, without variants and revisions: remove {' and '.join(given)}")
