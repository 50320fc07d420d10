"""Generates the panoramas of an evaluation: one for each original, from its captions or its front face.

Legend: H height of a panorama.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cubediff.evaluation.sets import PanoramaSet, Prompts, to_levels
from cubediff.generation.command import Call, run
from cubediff.generation.jobs import Job
from cubediff.generation.options import PRESET_KEYS, Execution, Options, parse_options
from cubediff.generation.photos import PhotoFile
from cubediff.generation.records import RECORD
from cubediff.geometry.conventions import FACE_FOV
from cubediff.geometry.projections import equirect_to_cube
from cubediff.images.writing import encode_png
from cubediff.pipelines.folders import find_model, read_index
from cubediff.utils.errors import DataError
from cubediff.utils.files import sha256_file, write_atomic
from cubediff.utils.ranks import is_first_rank
from cubediff.utils.text import redact

CONDITIONS = ("text", "six_texts", "photo", "text_and_photo")
_EXECUTION = ("batch", "dtype", "offload", "vae_tiling", "sequential_guidance")
_POLL = 0.5  # seconds


def generate_samples(config: DictConfig, originals: PanoramaSet, folder: Path) -> Path:
    """Generates the panoramas that a folder lacks, under torchrun in all processes.

    A panorama is generated for each original, of the same name, with its own seed; its faces are saved as they were
    generated, before blending.

    Args:
        config: The config `evaluate`.
        originals: The originals.
        folder: The output of the evaluation.

    Returns:
        The folder of the panoramas.

    Raises:
        ValueError: If originals lack what the condition needs, as `cubediff.generation.command.run`, or if torchrun is
            gone before its processes have ended.
    """
    options, execution = read_options(config)
    jobs = list(_jobs(config, originals, folder, options))
    samples = folder / "samples"
    for _ in run(Call(config.pipeline, samples, jobs, execution)):
        pass
    if is_first_rank():
        _wait_for_others([samples / job.name / RECORD for job in jobs])
    return samples


def read_options(config: DictConfig) -> tuple[Options, Execution]:
    """How panoramas are generated.

    Raises:
        ValueError: If an option is invalid; names its key.
    """
    values = OmegaConf.to_container(config.generate, resolve=True)
    assert isinstance(values, dict)
    execution = {key: values.pop(key) for key in _EXECUTION}
    given = {str(key): value for key, value in values.items() if value is not None or key not in PRESET_KEYS}
    given.update(format="png", save_faces=True, face_fov=_fov(config.pipeline))
    options = parse_options(given, lambda key: f"generate.{key}", Options())
    if not isinstance(execution["batch"], int) or execution["batch"] < 1:
        raise ValueError(f"generate.batch={execution['batch']}: expected a positive integer")
    return options, Execution(device=config.device, **execution)


def settings_used(config: DictConfig) -> dict[str, object]:
    """The values of the keys `generate`; those without a value have that of the preset, the model, or the default.

    `average_overlap` stays None if the model is a Hub id, whose index is not read here.
    """
    options, _ = read_options(config)
    used = {str(each.metadata["key"]): getattr(options, each.name) for each in fields(Options)}
    settings = {str(key): used[key] if key in PRESET_KEYS else value for key, value in config.generate.items()}
    if settings["average_overlap"] is None and (index := _index(config.pipeline)) is not None:
        settings["average_overlap"] = bool(index.get("average_overlap"))
    return settings


def _index(model: str) -> dict[str, object] | None:
    """The content of the model_index.json of a model folder; None for a Hub id."""
    folder = Path(find_model(model))
    return read_index(folder) if (folder / "model_index.json").is_file() else None


def _fov(model: str) -> float:
    """The field of view of a model's faces."""
    fov = (_index(model) or {}).get("fov")
    return float(fov) if isinstance(fov, int | float) else FACE_FOV


def _jobs(config: DictConfig, originals: PanoramaSet, folder: Path, options: Options) -> Iterator[Job]:
    condition = config.condition
    if condition not in CONDITIONS:
        raise ValueError(f"condition={condition}: use one of {', '.join(CONDITIONS)}")
    _check_prompts(condition, originals)
    photos = folder / "photos"
    if "photo" in condition:
        photos.mkdir(parents=True, exist_ok=True)
    for index, (name, prompts) in enumerate(zip(originals.names, originals.prompts, strict=True)):
        prompt = _prompt(condition, prompts)
        given: tuple[PhotoFile, ...] = ()
        if "photo" in condition:
            file = photos / f"{name}.png"
            write_atomic(file, _front_face(originals, index, options.face_fov))
            given = (PhotoFile(str(file), options.face_fov),)
        yield Job(name, prompt, given, config.seed + index, options, where=name)


def _check_prompts(condition: str, originals: PanoramaSet) -> None:
    if condition == "photo":
        return
    needed = "six captions, one for each face" if condition == "six_texts" else "a caption"
    without = [
        name
        for name, prompts in zip(originals.names, originals.prompts, strict=True)
        if not _prompt(condition, prompts)
    ]
    if without:
        raise DataError(
            f"{originals.path}: {len(without)} of {len(originals.names)} panoramas have no captions, first "
            f"{without[0]}: condition={condition} needs {needed}"
        )


def _prompt(condition: str, prompts: Prompts) -> str | list[str] | None:
    if condition == "photo":
        return None
    if condition == "six_texts":
        return None if prompts.faces is None else list(prompts.faces)
    return prompts.caption or None


def _front_face(originals: PanoramaSet, index: int, fov: float) -> bytes:
    panorama = originals.panorama(index)
    face = equirect_to_cube(panorama[None], panorama.shape[1] // 2, fov, mode="bicubic")[0, 0].clamp(0, 1)
    return encode_png(to_levels(face))


def _wait_for_others(records: Sequence[Path]) -> None:
    """In the first process of torchrun, waits until the others have generated their share: all records exist.

    torchrun ends this process if another one fails, so only its own end leaves panoramas missing forever.
    """
    launcher = os.getppid()
    while missing := [record for record in records if not record.is_file()]:
        if os.getppid() != launcher:
            raise ValueError(f"torchrun is gone, and {len(missing)} panoramas are missing: the same command resumes")
        time.sleep(_POLL)


def model_record(model: str) -> dict[str, object]:
    """What identifies a model: its path and, for a folder, the checksum of its files."""
    folder = Path(find_model(model))
    if not folder.is_dir():
        return {"path": redact(model)}
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in (".json", ".safetensors", ".txt"):
            digest.update(f"{file.relative_to(folder).as_posix()} {sha256_file(file)}\n".encode())
    return {"path": redact(model), "sha256": digest.hexdigest()}
