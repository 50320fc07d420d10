"""Generates a panorama: python -m cubediff.generate --model FOLDER --prompt TEXT --image PHOTO --output DIR."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="CubeDiff folder (a run's export/) or Hub id.")],
    output: Annotated[Path, typer.Option(help="Folder to write to.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What the panorama shows. Given six times: front, right, back, left, up, down."),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Photo that the front face shows.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="1 turns guidance off.")] = 3.5,
    guidance_rescale: Annotated[
        float, typer.Option(min=0, max=1, help="Against burnt colours at high guidance.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same panorama.")] = 0,
    height: Annotated[
        int | None, typer.Option(min=2, help="Of the panorama, in pixels; twice a face's by default.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best there is by default.")] = None,
    save_faces: Annotated[bool, typer.Option("--save-faces", help="Also write the six faces as PNG.")] = False,
) -> None:
    """Generates one panorama from text, from a photo, or from both, with a page to look around in it."""
    if prompt is None and image is None:
        raise typer.BadParameter("give --prompt TEXT, --image PHOTO, or both")
    if prompt is not None and len(prompt) not in (1, 6):
        raise typer.BadParameter(f"{len(prompt)} prompts: give one, or six (front, right, back, left, up, down)")
    try:
        written = _generate(
            model,
            output,
            prompt,
            image,
            steps,
            guidance_scale,
            guidance_rescale,
            seed,
            height,
            device,
            save_faces,
        )
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for path in written:
        typer.echo(path)


def _generate(
    model: str,
    output: Path,
    prompt: list[str] | None,
    image: Path | None,
    steps: int,
    guidance_scale: float,
    guidance_rescale: float,
    seed: int,
    height: int | None,
    device: str | None,
    save_faces: bool,
) -> list[Path]:
    import diffusers
    import PIL.Image
    import torch
    import transformers

    import cubediff
    from cubediff.outputs import write_generation
    from cubediff.pipeline import CubeDiffPipeline

    photo, photo_record = None, None
    if image is not None:
        try:
            photo = PIL.Image.open(image)
            photo.load()
        except OSError as error:
            raise ValueError(f"--image {image}: not a readable picture ({error})") from error
        photo_record = {"file": str(image), "sha256": hashlib.sha256(image.read_bytes()).hexdigest()}
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    pipeline = CubeDiffPipeline.from_pretrained(model).to(device)
    texts: Any = prompt[0] if prompt and len(prompt) == 1 else prompt
    settings = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_rescale": guidance_rescale,
        "panorama_height": height,
    }
    # Noise is drawn on the CPU, so that a seed means the same panorama on every device.
    made = pipeline(texts, image=photo, generator=torch.Generator("cpu").manual_seed(seed), **settings)
    record = {
        "model": model,
        "prompt": texts,
        "image": photo_record,
        "seed": seed,
        **settings,
        "scheduler": {"class": type(pipeline.scheduler).__name__, **pipeline.scheduler.config},
        "device": device,
        "versions": {
            "cubediff": cubediff.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }
    caption = " · ".join(prompt) if prompt else ""
    return write_generation(
        output,
        made.panoramas[0],
        made.faces[0],
        record,
        fov=pipeline.config.fov,
        prompt=caption,
        save_faces=save_faces,
    )


if __name__ == "__main__":
    app()
