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
    import diffusers
    import PIL.Image
    import PIL.ImageOps
    import torch
    import transformers

    import cubediff
    from cubediff.outputs import write_generation
    from cubediff.pipeline import CubeDiffPipeline

    try:
        photo, photo_record = None, None
        if image is not None:
            try:
                with PIL.Image.open(image) as opened:
                    photo = PIL.ImageOps.exif_transpose(opened)
            except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
                raise ValueError(f"--image {image}: not a readable picture ({error})") from error
            photo_record = {"file": str(image), "sha256": hashlib.sha256(image.read_bytes()).hexdigest()}
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {device}: not on this machine; leave it out for the best there is") from error
        pipeline = CubeDiffPipeline.from_pretrained(model).to(device)
        output.mkdir(parents=True, exist_ok=True)  # fails before the sampling, where it must fail
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
        written = write_generation(
            output,
            made.panoramas[0],
            made.faces[0],
            record,
            fov=pipeline.config.fov,
            prompt=" · ".join(prompt or []),
            save_faces=save_faces,
        )
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for path in written:
        typer.echo(path)


if __name__ == "__main__":
    app()
