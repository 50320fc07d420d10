"""The command `cubediff convert IN OUT`: panoramas, six faces of any engine, and pinhole views into each other."""

from pathlib import Path
from typing import Annotated

import typer

from cubediff.cubemaps.conventions import CONVENTIONS
from cubediff.utils.text import error_line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image, or a folder of six faces.")],
    output: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The image (.png .jpg .webp .tif .exr .hdr), or the folder of six faces."),
    ],
    layout: Annotated[
        str | None,
        typer.Option(
            help="What OUT is: panorama, faces, cross (or dice), cross-vertical, strip, or view (a pinhole view).",
            show_default="a panorama if IN is none; six faces if OUT has no suffix; a view with --fov",
        ),
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            help=f"Names, order and rotation of the faces of OUT: {', '.join(CONVENTIONS)}.", show_default="cubediff"
        ),
    ] = None,
    face_fov: Annotated[
        float | None, typer.Option(help="Field of view of the faces of OUT, in degrees.", show_default="90")
    ] = None,
    face_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the faces of OUT, in pixels.", show_default="as fine as IN")
    ] = None,
    height: Annotated[
        int | None,
        typer.Option(min=1, help="Height of the panorama or view, in pixels.", show_default="as fine as IN"),
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="Width of the view, in pixels.", show_default="as fine as IN")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="Format of six faces: png, jpg, webp, tif, exr, hdr.", show_default="png; exr for radiance"),
    ] = None,
    tone_map: Annotated[
        bool,
        typer.Option("--tone-map", help="Write radiance as 8-bit sRGB, exposed as cubediff prepare exposes panoramas."),
    ] = False,
    fov: Annotated[
        float | None,
        typer.Option(help="Horizontal field of view of the view, read or written, in degrees.", show_default="90"),
    ] = None,
    yaw: Annotated[float, typer.Option(help="Direction of the view, to the right, in degrees.")] = 0.0,
    pitch: Annotated[float, typer.Option(help="Elevation of the view, upwards, in degrees.")] = 0.0,
    roll: Annotated[float, typer.Option(help="Roll of its camera, clockwise, in degrees.")] = 0.0,
    from_layout: Annotated[
        str | None,
        typer.Option(help="What IN is, as --layout.", show_default="by its record (faces.json) or its shape"),
    ] = None,
    from_convention: Annotated[
        str | None,
        typer.Option(
            help="Convention of the faces of IN, or a naming scheme of cubediff prepare.",
            show_default="by its record or the names of its files",
        ),
    ] = None,
    from_fov: Annotated[
        float | None,
        typer.Option(help="Field of view of the faces of IN, in degrees.", show_default="by its record, else 90"),
    ] = None,
) -> None:
    """Convert between panoramas, six faces and pinhole views, in the bit depth of IN."""
    # Imported here so that --help does not wait for torch.
    from cubediff.cubemaps.conversion import Camera
    from cubediff.data.converting.converting import Target, convert_sphere
    from cubediff.data.converting.spheres import Described

    try:
        camera = None if fov is None and not (yaw or pitch or roll) else Camera(fov or 90.0, yaw, pitch, roll)
        target = Target(layout, convention, face_fov, face_size, height, width, format, tone_map)
        typer.echo(convert_sphere(source, output, Described(from_layout, from_convention, from_fov), camera, target))
    except (ValueError, OSError) as error:
        typer.echo(error_line(error, keep=""), err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app(prog_name="cubediff convert")
