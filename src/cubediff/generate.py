"""Generates panoramas: python -m cubediff.generate --model FOLDER --prompt TEXT --image PHOTO --output DIR."""

import json
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from cubediff.generation.jobs import Job, PhotoFile, open_photo, read_jobs

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="CubeDiff folder (a run's export/) or Hub id.")],
    output: Annotated[Path, typer.Option(help="Folder to write to.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What the panorama shows. Given six times: front, right, back, left, up, down."),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="Photo that the panorama contains; may be given again.")
    ] = None,
    fov: Annotated[
        list[float] | None,
        typer.Option(
            help="Each photo's horizontal field of view in degrees; by default what its EXIF data say, else "
            "its central square fills the front face."
        ),
    ] = None,
    yaw: Annotated[list[float] | None, typer.Option(help="Where each photo looks, to the right; degrees.")] = None,
    pitch: Annotated[list[float] | None, typer.Option(help="Where each photo looks, upwards; degrees.")] = None,
    roll: Annotated[list[float] | None, typer.Option(help="Each camera's roll, clockwise; degrees.")] = None,
    jobs: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines with prompt, image, name, seed: a panorama each, in folders of their own; those "
            "that are there already are left."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Panoramas at once, of --jobs.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 50,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, dpm (DPM-Solver++) or euler; the model's own by default.")
    ] = None,
    guidance_scale: Annotated[float, typer.Option(help="1 turns guidance off.")] = 3.5,
    image_guidance_scale: Annotated[
        float | None, typer.Option(help="A scale for the photo alone; --guidance-scale is then the text's.")
    ] = None,
    guidance_rescale: Annotated[
        float, typer.Option(min=0, max=1, help="Against burnt colours at high guidance.")
    ] = 0.0,
    paste_image: Annotated[
        bool, typer.Option("--paste-image", help="Keep the photos' own pixels instead of the autoencoder's.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same panorama.")] = 0,
    height: Annotated[
        int | None, typer.Option(min=2, help="Of the panorama, in pixels; twice a face's by default.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best there is by default.")] = None,
    save_faces: Annotated[bool, typer.Option("--save-faces", help="Also write the six faces as PNG.")] = False,
) -> None:
    """Generates panoramas from text, from photos, or from both, with a page to look around in."""
    if jobs is not None and (prompt is not None or image is not None):
        raise typer.BadParameter("give --jobs, or --prompt and --image, not both")
    if jobs is None and prompt is None and image is None:
        raise typer.BadParameter("give --prompt TEXT, --image PHOTO, or both; or --jobs FILE")
    if prompt is not None and len(prompt) not in (1, 6):
        raise typer.BadParameter(f"{len(prompt)} prompts: give one, or six (front, right, back, left, up, down)")
    turns = {"fov": fov, "yaw": yaw, "pitch": pitch, "roll": roll}
    for name, values in turns.items():
        if values is not None and len(values) != len(image or []):
            raise typer.BadParameter(f"--{name} is given {len(values)} times and --image {len(image or [])} times")
    try:
        if jobs is not None:
            wanted = read_jobs(jobs, seed)
        else:
            photos = tuple(
                PhotoFile(str(file), **{name: values[i] for name, values in turns.items() if values})
                for i, file in enumerate(image or [])
            )
            wanted = [Job("", prompt[0] if prompt and len(prompt) == 1 else prompt, photos, seed)]
        settings = {
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "image_guidance_scale": image_guidance_scale,
            "guidance_rescale": guidance_rescale,
            "paste_image": paste_image,
            "panorama_height": height,
        }
        _generate(model, output, wanted, settings, sampler, batch, device, save_faces, resume=jobs is not None)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _generate(
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
    from cubediff.conditions import six_prompts
    from cubediff.generation.outputs import write_generation
    from cubediff.pipeline import CubeDiffPipeline
    from cubediff.samplers import use_sampler_

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


if __name__ == "__main__":
    app()
