"""Runs generation jobs: in batches that share a guidance, resumable, each panorama in a separate folder."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import cast

import diffusers
import PIL.Image
import torch
import transformers

import cubediff
from cubediff.cubemaps.files import CubemapFormat
from cubediff.diffusion.schedulers import use_sampler_
from cubediff.generation.jobs import Job, open_photo
from cubediff.generation.outputs import write_generation
from cubediff.geometry.photos import Photo
from cubediff.pipelines.base import CubePipeline
from cubediff.pipelines.call import CubeDiffOutput
from cubediff.pipelines.loading import load_for_generation
from cubediff.pipelines.prompts import six_prompts
from cubediff.utils.json_text import parse_json


@dataclass(frozen=True)
class Sampling:
    """How all panoramas of a call are sampled: the pipeline's arguments of the same names, and the sampler.

    `sampler` is one of `cubediff.diffusion.schedulers.SAMPLERS`, or None for the model's own. `generation.json` holds
    the fields under their names.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 3.5
    image_guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    negative_prompt: str | None = None
    paste_image: bool = False
    panorama_height: int | None = None
    sampler: str | None = None
    average_overlap: bool | None = None


def generate(
    model: str,
    output: Path,
    jobs: Sequence[Job],
    sampling: Sampling,
    *,
    batch: int = 1,
    device: str | None = None,
    save_faces: bool = False,
    resume: bool = False,
) -> Iterator[Path]:
    """Generates a panorama for each job.

    Args:
        model: CubeDiff folder or Hub id.
        output: Folder to write to; a job's files are in its subfolder `job.name`.
        jobs: The panoramas to generate.
        sampling: The sampling settings.
        batch: Panoramas that are sampled at once.
        device: torch device; None: the first available of CUDA, MPS and CPU.
        save_faces: Also write the six faces, 90° wide, as PNG files.
        resume: Skip jobs whose folder holds their panorama already.

    Yields:
        The paths of written files and folders.

    Raises:
        ValueError: If a photo, the model, the device or a setting is invalid, or `resume` finds a panorama that was
            generated with other settings.
        OSError: If `output` cannot be written.
    """
    opened = {job.name: _open_photos(job) for job in jobs[:1]}  # an unreadable photo fails before the model loads
    request = {"model": model, **asdict(sampling)}
    if resume:
        pending = [job for job in jobs if not _exists(output / job.name, {**request, **job.record()})]
        print(f"{len(jobs) - len(pending)} of {len(jobs)} panoramas exist already", file=sys.stderr)
    else:
        pending = list(jobs)
    if (existing := next(path for path in (output, *output.parents) if path.exists())).is_file():
        raise ValueError(f"--output {output}: {existing} is a file: choose a folder")
    device = _usable_device(device)
    pipeline = load_for_generation(model).to(device)
    if sampling.sampler is not None:
        use_sampler_(pipeline, sampling.sampler)
    output.mkdir(parents=True, exist_ok=True)  # fails before the sampling
    environment = _environment(pipeline, device)
    for part in _batches(pending, batch):
        photos = [opened.get(job.name) or _open_photos(job) for job in part]
        for job, (panorama, faces) in zip(part, _sample(pipeline, part, photos, sampling), strict=True):
            yield from write_generation(
                output / job.name,
                panorama,
                faces,
                {**request, **job.record(), **environment},
                fov=pipeline.config.fov,
                prompt=" · ".join(dict.fromkeys(six_prompts(job.prompt) if job.prompt is not None else [])),
                save_faces=CubemapFormat() if save_faces else None,
            )


def _open_photos(job: Job) -> list[Photo]:
    return [open_photo(photo) for photo in job.photos]


def _exists(folder: Path, request: dict[str, object]) -> bool:
    """Whether a folder holds the panorama of a request; ValueError if it holds that of another one."""
    path = folder / "generation.json"
    if not path.is_file():
        return False
    try:
        record = parse_json(path.read_bytes())
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged: remove {folder} to generate its panorama again")
    expected = json.loads(json.dumps(request))  # tuples become lists
    if differing := [key for key, value in expected.items() if record.get(key) != value]:
        raise ValueError(
            f"{folder} holds a panorama with another {', '.join(differing)}: choose another --output, or remove it"
        )
    try:
        with PIL.Image.open(folder / "panorama.jpg") as panorama:
            panorama.load()
    except (OSError, SyntaxError):  # missing, or incomplete after a power loss
        return False
    return True


def _usable_device(device: str | None) -> str:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {device}: not available on this machine: omit the option to use the best device"
        ) from error
    return device


def _environment(pipeline: CubePipeline, device: str) -> dict[str, object]:
    """The scheduler, device and library versions, for `generation.json`."""
    return {
        "scheduler": {"class": type(pipeline.scheduler).__name__, **pipeline.scheduler.config},
        "device": device,
        "versions": {
            "cubediff": cubediff.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }


def _batches(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """Consecutive jobs that the pipeline guides in the same way, at most `size` at once."""
    for _, group in groupby(jobs, key=lambda job: (job.prompt is None, not job.photos)):
        alike = list(group)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _sample(
    pipeline: CubePipeline, jobs: list[Job], photos: list[list[Photo]], sampling: Sampling
) -> list[tuple[PIL.Image.Image, list[PIL.Image.Image]]]:
    """Panorama and faces of each job."""
    settings = asdict(sampling)
    del settings["sampler"]
    output = pipeline(
        [six_prompts(job.prompt) for job in jobs if job.prompt is not None] or None,  # all of them have one, or none
        image=photos if jobs[0].photos else None,
        # Noise is drawn on the CPU: a seed gives the same panorama on every device.
        generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
        **settings,
    )
    images = cast(CubeDiffOutput, output)  # return_dict is true, and output_type "pil"
    panoramas = cast(list[PIL.Image.Image], images.panoramas)
    return list(zip(panoramas, cast(list[list[PIL.Image.Image]], images.faces), strict=True))
