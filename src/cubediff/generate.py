"""Generates panoramas: python -m cubediff.generate --model FOLDER --prompt TEXT --image PHOTO --output DIR."""

from pathlib import Path
from typing import Annotated

import typer

from cubediff.generation.jobs import Job, PhotoFile, read_jobs

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
        from cubediff.generation.run import generate as run

        run(model, output, wanted, settings, sampler, batch, device, save_faces, resume=jobs is not None)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app(prog_name="cubediff generate")
