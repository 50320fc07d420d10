"""The command `cubediff view FILE`: the viewer page of a panorama or cubemap."""

from pathlib import Path
from typing import Annotated

import typer

from cubediff.utils.text import error_line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def view(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A panorama, an image of six faces, or their folder.")],
    output: Annotated[
        Path | None, typer.Option(help="The page to write.", show_default="FILE.html, or viewer.html in a folder")
    ] = None,
    from_layout: Annotated[
        str | None,
        typer.Option(
            help="What FILE is: panorama, faces, cross, dice, cross-vertical or strip.", show_default="by its shape"
        ),
    ] = None,
    from_convention: Annotated[
        str | None,
        typer.Option(
            help="Convention of the faces, or a naming scheme of cubediff prepare.", show_default="by record or names"
        ),
    ] = None,
    from_fov: Annotated[
        float | None, typer.Option(help="Field of view of the faces, in degrees.", show_default="by record, else 90")
    ] = None,
) -> None:
    """Write an offline page to look around in any panorama or cubemap, and print its path."""
    # Imported here so that --help does not wait for torch.
    from cubediff.data.converting.converting import write_viewer_of
    from cubediff.data.converting.spheres import Described

    try:
        typer.echo(write_viewer_of(source, output, Described(from_layout, from_convention, from_fov)))
    except (ValueError, OSError) as error:
        typer.echo(error_line(error, keep=""), err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app(prog_name="cubediff view")
