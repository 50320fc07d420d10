"""Runs generation jobs: in batches that share a guidance, split among processes, each panorama in a separate folder."""

import math
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import diffusers
import PIL.Image
import torch
import transformers

import cubediff
from cubediff.cubemaps.files import CubemapFormat
from cubediff.diffusion.schedulers import use_sampler_
from cubediff.generation.devices import DTYPES, FaceSizes, memory_errors, resolve_dtype, usable_device
from cubediff.generation.editing import edited_images
from cubediff.generation.jobs import Job, raise_errors
from cubediff.generation.options import PRESETS, Execution, Options
from cubediff.generation.outputs import EditedPanorama, write_generation
from cubediff.generation.panoramas import open_panorama, read_canvas
from cubediff.generation.photos import open_photo, photo_may_be_unseen
from cubediff.geometry.panoramas import Panorama
from cubediff.geometry.photos import Photo, project_photos
from cubediff.models.inputs import latent_mask
from cubediff.pipelines.base import CubePipeline
from cubediff.pipelines.face_prompts import six_prompts
from cubediff.pipelines.loading import load_for_generation

Images = tuple[PIL.Image.Image | EditedPanorama, list[PIL.Image.Image]]  # a panorama and its six faces


def generate(
    model: str, output: Path, batches: Sequence[Sequence[Job]], names: Collection[str], execution: Execution
) -> Iterator[Path]:
    """Generates the panoramas of batches of jobs.

    Args:
        model: CubeDiff folder or Hub id.
        output: Folder to write to; a job's files are in its subfolder `job.name`.
        batches: Jobs that are sampled together.
        names: The jobs whose panoramas are written; a batch without any is not sampled.
        execution: Device and dtype.

    Yields:
        The paths of written files and folders.

    Raises:
        ValueError: If the model, the device or a setting is invalid, or the memory is too small.
        OSError: If `output` cannot be written.
    """
    device = usable_device(execution.device)
    dtype = resolve_dtype(execution.dtype, device)
    with memory_errors(execution, device, dtype):
        pipeline = load_for_generation(model)
        pipeline.cast_weights(DTYPES[dtype])
        if execution.offload:
            if device == "cpu":
                print("--offload saves no memory on a CPU", file=sys.stderr)
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
        if execution.vae_tiling:
            pipeline.enable_vae_tiling()
    output.mkdir(parents=True, exist_ok=True)  # fails before the sampling
    stored_scheduler = pipeline.scheduler
    _check_with_model(pipeline, [job for jobs in batches for job in jobs if job.name in names])
    for jobs in batches:
        if not any(job.name in names for job in jobs):
            continue
        pipeline.scheduler = stored_scheduler
        if (sampler := jobs[0].options.sampler) is not None:
            use_sampler_(pipeline, sampler)
        with memory_errors(execution, device, dtype, _face_sizes(pipeline, jobs[0])), _naming(jobs):
            images = _sample(pipeline, jobs, execution.sequential_guidance)
        # Without the number of the GPU that this process has been given: all of them write the same files.
        environment = {"dtype": dtype, **_environment(pipeline, execution.device or device.partition(":")[0])}
        for job, (panorama, faces) in zip(jobs, images, strict=True):
            if job.name in names:
                folder = output / job.name
                print(f"{folder}: seed {job.seed}", file=sys.stderr)
                yield from write_generation(
                    folder,
                    panorama,
                    faces,
                    {"model": model, **job.request(), "exif_fov": job.exif_fovs(), **environment},
                    fov=pipeline.config.fov,
                    prompt=job.text,
                    save_faces=_cubemap_format(job.options),
                    format=job.format,
                )


def _cubemap_format(options: Options) -> CubemapFormat | None:
    """How faces are written; None: not at all."""
    return CubemapFormat(options.layout, options.convention, options.face_fov) if options.save_faces else None


def _face_sizes(pipeline: CubePipeline, job: Job) -> FaceSizes:
    own = pipeline.backbone.sample_size * pipeline.backbone.latent_scale
    scales = (job.options.guidance_scale, job.options.image_guidance_scale or 1)
    return FaceSizes(job.options.face_size or own, own, guided=any(scale > 1 for scale in scales))


def _check_with_model(pipeline: CubePipeline, jobs: Sequence[Job]) -> None:
    """Raises ValueError with all jobs whose faces have an impossible size, whose photos cover no latent pixel, or whose
    preset has more steps than the model."""
    scale, errors = pipeline.backbone.latent_scale, list[str]()
    for job in jobs:
        errors += _preset_errors(pipeline, job)
        size = _face_sizes(pipeline, job).used
        if size % scale:
            errors.append(f"{job.label('face_size')} must be a multiple of {scale}, got {size}")
            continue
        if any(photo_may_be_unseen(photo) for photo in job.photos):
            photos = [[open_photo(photo) for photo in job.photos]]
            covered = project_photos(photos, size, pipeline.config.fov)[1]
            if not latent_mask(covered, scale).any():
                errors.append(
                    f"{job.label('image')} covers no {scale} × {scale} pixels of a face: use a photo with a larger fov"
                )
    raise_errors(errors)


def _preset_errors(pipeline: CubePipeline, job: Job) -> list[str]:
    """The message of a preset whose steps the model does not have."""
    most, steps = int(pipeline.scheduler.config.num_train_timesteps), job.options.num_inference_steps
    if job.options.preset is None or steps <= most:
        return []
    fitting = [name for name, values in PRESETS.items() if cast(int, values["steps"]) <= most]
    choices = f"use {' or '.join(fitting)}, or set the steps" if fitting else "omit it, and set the steps"
    return [
        f"{job.label('preset')} {job.options.preset} takes {steps} steps and the model has {most} timesteps: {choices}"
    ]


@contextmanager
def _naming(jobs: Sequence[Job]) -> Iterator[None]:
    """Begins the message of an error with the lines of the jobs."""
    try:
        yield
    except (ValueError, FloatingPointError) as error:
        lines = ", ".join(job.where for job in jobs if job.where)
        if not lines:
            raise
        raise type(error)(f"{lines}: {error}") from error


def _environment(pipeline: CubePipeline, device: str) -> dict[str, object]:
    """The scheduler, device and library versions, for `generation.json`."""
    # JSON has no infinity, which DPM-Solver++ has as the lower limit of its log-SNR.
    settings = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in pipeline.scheduler.config.items()
    }
    return {
        "scheduler": {"class": type(pipeline.scheduler).__name__, **settings},
        "device": device,
        "versions": {
            "cubediff": cubediff.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }


def _sample(pipeline: CubePipeline, jobs: Sequence[Job], sequential_guidance: bool) -> list[Images]:
    """Panorama and faces of each job of a batch."""
    images = [_images(job) for job in jobs]
    edited = jobs[0].panorama  # alone in its batch
    negative = [six_prompts(job.options.negative_prompt or "", allow_empty=True) for job in jobs]
    result = pipeline(
        [six_prompts(job.prompt) for job in jobs if job.prompt is not None] or None,  # all of them have one, or none
        image=images if images[0] else None,
        negative_prompt=negative if any(job.options.negative_prompt for job in jobs) else None,
        # Noise is drawn on the CPU: a seed gives the same panorama on every device.
        generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
        output_type="pil" if edited is None else "pt",
        sequential_guidance=sequential_guidance,
        **jobs[0].options.arguments,
    )
    if edited is not None:
        return [edited_images(result.panoramas[0], read_canvas(edited), pipeline.config.fov)]
    return list(zip(result.panoramas, result.faces, strict=True))


def _images(job: Job) -> list[Photo | Panorama]:
    panoramas = [] if job.panorama is None else [open_panorama(job.panorama)]
    return [*panoramas, *(open_photo(photo) for photo in job.photos)]
