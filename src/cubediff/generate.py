"""The command `cubediff generate --model FOLDER --prompt TEXT --image PHOTO --panorama FILE --output DIR`."""

from pathlib import Path
from typing import Annotated

import typer

from cubediff.generation.command import Call, run
from cubediff.generation.jobs import MAX_COUNT, Job, check_edit, check_prompt, photo_file, read_jobs, repeat_job
from cubediff.generation.options import (
    MAX_FACE_SIZE,
    MAX_SEED,
    MAX_STEPS,
    Execution,
    Options,
    option_name,
    parse_options,
)
from cubediff.generation.panoramas import PanoramaFile
from cubediff.generation.recorded_jobs import recorded_job
from cubediff.generation.records import RECORD
from cubediff.utils.errors import storage_message
from cubediff.utils.text import error_line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


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
            "square gets the field of view of a face.",
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
    panorama: Annotated[
        Path | None,
        typer.Option(
            help="Panorama to edit: white pixels of the mask, transparent pixels and the missing part of a cropped "
            "panorama with GPano tags are repainted. Written as PNG in its size and bit depth."
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Mask of --panorama, of its size: white where to repaint, black where to keep.")
    ] = None,
    jobs: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines with prompt, image, panorama, mask, name, seed and any of these options: one panorama a "
            "line, each in its own folder. Panoramas that exist already are skipped. Or a generation.json: that "
            "panorama again."
        ),
    ] = None,
    count: Annotated[
        int,
        typer.Option(
            min=1,
            max=MAX_COUNT,
            help="Panoramas of each prompt, with the seeds --seed, --seed + 1, …, each in its own folder.",
        ),
    ] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Panoramas that are sampled at once.")] = 1,
    preset: Annotated[
        str | None,
        typer.Option(help="fast, balanced or best: sampler, steps and guidance together; options replace its values."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=MAX_STEPS, help="Sampling steps.", show_default="50")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, dpm (DPM-Solver++), unipc or euler.", show_default="the model's own")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance scale; 0 to 1 turn guidance off.", show_default="3.5")
    ] = None,
    image_guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance scale of the photo; --guidance-scale is then that of the text.")
    ] = None,
    guidance_rescale: Annotated[
        float,
        typer.Option(min=0, max=1, help="Guidance rescale (arXiv 2305.08891), against burnt colours at high scales."),
    ] = 0.0,
    guidance_start: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Fraction of the steps at which guidance starts; others take less time.",
            show_default="0",
        ),
    ] = None,
    guidance_stop: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Fraction of the steps at which guidance stops.", show_default="1"),
    ] = None,
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
    gain_correction: Annotated[
        bool, typer.Option("--gain-correction", help="Scale colours so that faces agree where they overlap.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the initial noise.")] = 0,
    height: Annotated[
        int | None,
        typer.Option(min=2, help="Height of the panorama, in pixels.", show_default="twice a face's"),
    ] = None,
    face_size: Annotated[
        int | None,
        typer.Option(min=8, max=MAX_FACE_SIZE, help="Size of the faces, in pixels.", show_default="the model's"),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="Format of the panorama's file: jpg, png or webp.", show_default="jpg, png for an edited panorama"
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu.", show_default="the best available")] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (bf16 on GPUs that have it, else fp32), bf16, fp16 or fp32.")
    ] = "auto",
    offload: Annotated[
        bool,
        typer.Option("--offload", help="Keep only the model that is computing in the GPU's memory; slower."),
    ] = False,
    vae_tiling: Annotated[
        bool,
        typer.Option(
            "--vae-tiling",
            help="Encode and decode faces larger than the autoencoder's strip by strip: slower, for small memory.",
        ),
    ] = False,
    sequential_guidance: Annotated[
        bool,
        typer.Option(
            "--sequential-guidance", help="Predict the branches of guidance one after the other, for small memory."
        ),
    ] = False,
    save_faces: Annotated[
        bool, typer.Option("--save-faces", help="Also write the six faces as PNG, for engines and viewers.")
    ] = False,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Of the faces: faces (six files), cross or dice, cross-vertical, strip.", show_default="faces"
        ),
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            help="Names, order and rotation of the faces: cubediff, three, opengl, unity, unreal, pannellum, blender.",
            show_default="cubediff",
        ),
    ] = None,
    face_fov: Annotated[
        float | None,
        typer.Option(
            help="Field of view of the written faces, in degrees; the model's own: as generated.", show_default="90"
        ),
    ] = None,
) -> None:
    """Generate panoramas from text, from photos, or from both, or edit panoramas, with a viewer page."""
    inputs = (prompt, image, panorama)
    if jobs is not None and any(each is not None for each in (*inputs, mask)):
        raise typer.BadParameter("pass --jobs, or --prompt, --image and --panorama, not both")
    if jobs is None and all(each is None for each in inputs):
        raise typer.BadParameter("pass --prompt TEXT, --image PHOTO, or both; or --panorama FILE; or --jobs FILE")
    if mask is not None and panorama is None:
        raise typer.BadParameter("--mask needs --panorama FILE, the panorama that it belongs to")
    if prompt is not None and len(prompt) not in (1, 6):
        raise typer.BadParameter(f"{len(prompt)} prompts: pass one, or six (front, right, back, left, up, down)")
    camera = {"fov": fov, "yaw": yaw, "pitch": pitch, "roll": roll}
    for name, values in camera.items():
        if values is not None and len(values) != len(image or []):
            raise typer.BadParameter(
                f"--{name} is given {len(values)} times and --image {len(image or [])} times: pass one of each"
            )
    without_default = {
        "preset": preset, "steps": steps, "sampler": sampler, "guidance_scale": guidance_scale,
        "guidance_start": guidance_start, "guidance_stop": guidance_stop,
        "layout": layout, "convention": convention, "face_fov": face_fov,
    }  # fmt: skip
    try:
        options = parse_options(
            {
                "image_guidance_scale": image_guidance_scale,
                "guidance_rescale": guidance_rescale,
                "negative_prompt": negative_prompt,
                "paste_image": paste_image,
                "height": height,
                "face_size": face_size,
                "format": format,
                "average_overlap": average_overlap,
                "gain_correction": gain_correction,
                "save_faces": save_faces,
                **{key: value for key, value in without_default.items() if value is not None},
            },
            option_name,
            Options(),
        )
        if jobs is not None:
            requested = _read_jobs(jobs, seed, options, count)
        else:
            photos = tuple(
                photo_file(str(file), {name: values[i] for name, values in camera.items() if values}, option_name)
                for i, file in enumerate(image or [])
            )
            text = prompt[0] if prompt and len(prompt) == 1 else prompt
            edited = None if panorama is None else PanoramaFile(str(panorama), None if mask is None else str(mask))
            job = Job("", check_prompt(text), photos, seed, options, panorama=edited)
            check_edit(job)
            requested = repeat_job(job, count)
        execution = Execution(batch, device, dtype, offload, vae_tiling, sequential_guidance)
        for path in run(Call(model, output, requested, execution)):
            typer.echo(path)
    except (ValueError, OSError, FloatingPointError) as error:
        typer.echo(error_line(error), err=True)
        raise typer.Exit(1) from error


def _read_jobs(file: Path, seed: int, options: Options, count: int) -> list[Job]:
    try:
        return [recorded_job(file)] if file.name == RECORD else read_jobs(file, seed, options, count)
    except OSError as error:
        if error.filename != str(file):  # a photo of the record
            raise
        raise ValueError(f"--jobs {storage_message(error)}") from error


if __name__ == "__main__":
    app(prog_name="cubediff generate")
