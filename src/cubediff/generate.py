"""The command `cubediff generate --model FOLDER --prompt TEXT --image PHOTO --output DIR`."""

from pathlib import Path
from typing import Annotated

import typer

from cubediff.generation.jobs import MAX_SEED, Job, PhotoFile, read_jobs
from cubediff.utils.text import error_line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="CubeDiff folder (`export` of a training run) or Hub id.")],
    output: Annotated[Path, typer.Option(help="Folder to write to.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Description of the panorama; or six, one per face: front, right, back, left, up, down."),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Photo that the panorama contains; can be repeated.")] = None,
    fov: Annotated[
        list[float] | None,
        typer.Option(
            help="Horizontal field of view of each photo, in degrees. Without it and EXIF data, the photo's central "
            "square fills the front face.",
            show_default="from EXIF data",
        ),
    ] = None,
    yaw: Annotated[
        list[float] | None,
        typer.Option(help="Direction of each photo, to the right, in degrees.", show_default="0"),
    ] = None,
    pitch: Annotated[
        list[float] | None, typer.Option(help="Elevation of each photo, upwards, in degrees.", show_default="0")
    ] = None,
    roll: Annotated[
        list[float] | None, typer.Option(help="Roll of each camera, clockwise, in degrees.", show_default="0")
    ] = None,
    jobs: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines with prompt, image, name and seed: one panorama a line, each in its own folder. "
            "Panoramas that exist already are skipped."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Panoramas of --jobs that are sampled at once.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 50,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, dpm (DPM-Solver++) or euler.", show_default="the model's own")
    ] = None,
    guidance_scale: Annotated[float, typer.Option(help="Guidance scale; 1 turns guidance off.")] = 3.5,
    image_guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance scale of the photo; --guidance-scale is then that of the text.")
    ] = None,
    guidance_rescale: Annotated[
        float,
        typer.Option(min=0, max=1, help="Guidance rescale (arXiv 2305.08891), against burnt colours at high scales."),
    ] = 0.0,
    negative_prompt: Annotated[
        str | None, typer.Option(help="Text that guidance leads away from, in place of no text.")
    ] = None,
    paste_image: Annotated[
        bool, typer.Option("--paste-image", help="Keep the photos' own pixels, in place of the decoded ones.")
    ] = False,
    average_overlap: Annotated[
        bool | None,
        typer.Option(
            help="Average faces where they overlap at every step, against edges between them.",
            show_default="as the model folder says",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the initial noise.")] = 0,
    height: Annotated[
        int | None,
        typer.Option(min=2, help="Height of the panorama, in pixels.", show_default="twice a face's"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu.", show_default="the best available")] = None,
    save_faces: Annotated[bool, typer.Option("--save-faces", help="Also write the six faces as PNG files.")] = False,
) -> None:
    """Generate panoramas from text, from photos, or from both, with a viewer page."""
    if jobs is not None and (prompt is not None or image is not None):
        raise typer.BadParameter("pass --jobs, or --prompt and --image, not both")
    if jobs is None and prompt is None and image is None:
        raise typer.BadParameter("pass --prompt TEXT, --image PHOTO, or both; or --jobs FILE")
    if prompt is not None and len(prompt) not in (1, 6):
        raise typer.BadParameter(f"{len(prompt)} prompts: pass one, or six (front, right, back, left, up, down)")
    camera = {"fov": fov, "yaw": yaw, "pitch": pitch, "roll": roll}
    for name, values in camera.items():
        if values is not None and len(values) != len(image or []):
            raise typer.BadParameter(
                f"--{name} is given {len(values)} times and --image {len(image or [])} times: pass one of each"
            )
    try:
        if jobs is not None:
            requested = read_jobs(jobs, seed)
        else:
            photos = tuple(
                PhotoFile(str(file), **{name: values[i] for name, values in camera.items() if values})
                for i, file in enumerate(image or [])
            )
            requested = [Job("", prompt[0] if prompt and len(prompt) == 1 else prompt, photos, seed)]
        # Imported here so that --help does not wait for torch.
        from cubediff.generation.run import Sampling
        from cubediff.generation.run import generate as run

        sampling = Sampling(
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale,
            guidance_rescale=guidance_rescale,
            negative_prompt=negative_prompt,
            paste_image=paste_image,
            panorama_height=height,
            sampler=sampler,
            average_overlap=average_overlap,
        )
        for path in run(
            model,
            output,
            requested,
            sampling,
            batch=batch,
            device=device,
            save_faces=save_faces,
            resume=jobs is not None,
        ):
            typer.echo(path)
    except (ValueError, OSError, FloatingPointError) as error:
        typer.echo(error_line(error), err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app(prog_name="cubediff generate")
