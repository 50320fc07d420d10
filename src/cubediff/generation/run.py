"""Runs generation jobs."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import typer

from cubediff.generation.jobs import Job, open_photo


def generate(
    model: str,
    output: Path,
    jobs: list[Job],
    settings: dict[str, Any],
    sampler: str | None,
    batch: int,
    device: str | None,
    save_faces: bool,
    resume: bool,
) -> None:
    import diffusers
    import torch
    import transformers

    import cubediff
    from cubediff.diffusion.schedulers import use_sampler_
    from cubediff.generation.outputs import write_generation
    from cubediff.pipelines.cubediff import CubeDiffPipeline
    from cubediff.pipelines.prompts import six_prompts

    opened = {job.name: [open_photo(photo) for photo in job.photos] for job in jobs[:1]}  # fails early, where it must
    request = {"model": model, **settings, "sampler": sampler}
    left = [job for job in jobs if not (resume and _is_made(output / job.name, {**request, **job.record()}))]
    if resume:
        typer.echo(f"{len(jobs) - len(left)} of {len(jobs)} panoramas are there already", err=True)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: not on this machine; leave it out for the best there is") from error
    pipeline = CubeDiffPipeline.from_pretrained(model).to(device)
    if sampler is not None:
        use_sampler_(pipeline, sampler)
    output.mkdir(parents=True, exist_ok=True)  # fails before the sampling, where it must fail
    facts = {
        "scheduler": {"class": type(pipeline.scheduler).__name__, **pipeline.scheduler.config},
        "device": device,
        "versions": {
            "cubediff": cubediff.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }
    for _, alike in groupby(left, key=lambda job: (job.prompt is None, not job.photos)):  # guided in the same way
        queue = list(alike)
        for part in (queue[i : i + batch] for i in range(0, len(queue), batch)):
            photos = [opened.get(job.name) or [open_photo(photo) for photo in job.photos] for job in part]
            made = pipeline(
                None if part[0].prompt is None else [six_prompts(job.prompt) for job in part],
                image=photos if part[0].photos else None,
                # Noise is drawn on the CPU, so that a seed means the same panorama on every device.
                generator=[torch.Generator("cpu").manual_seed(job.seed) for job in part],
                **settings,
            )
            for job, panorama, faces in zip(part, made.panoramas, made.faces, strict=True):
                texts = list(dict.fromkeys(six_prompts(job.prompt))) if job.prompt is not None else []
                written = write_generation(
                    output / job.name,
                    panorama,
                    faces,
                    {**request, **job.record(), **facts},
                    fov=pipeline.config.fov,
                    prompt=" · ".join(texts),
                    save_faces=save_faces,
                )
                for path in written:
                    typer.echo(path)


def _is_made(folder: Path, request: dict[str, Any]) -> bool:
    """Whether a panorama is there and was asked for with the same words; ValueError where it was with others."""
    record = folder / "generation.json"
    if not record.is_file():
        return False
    made = json.loads(record.read_text(encoding="utf-8"))
    differing = [name for name, value in json.loads(json.dumps(request)).items() if made.get(name) != value]
    if differing:
        raise ValueError(f"{folder} holds a panorama with another {', '.join(differing)}: give another --output, or "
                         "remove it")  # fmt: skip
    return True
