"""The prepare command: builds WebDataset shards from panoramas and captions, and verifies finished shards.

cubediff prepare SOURCE OUTPUT
cubediff prepare check SHARDS
"""

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from cubediff.images.limits import MAX_WIDTH, QUALITY
from cubediff.utils.text import error_line, printable

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
check_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Workers = Annotated[int, typer.Option(help="Number of worker processes; 0: one per core.", min=0)]


@app.command(epilog="cubediff prepare check SHARDS: verify finished shards.")
def build(
    source: Annotated[Path, typer.Argument(help="Folder of panoramas or cubemaps, or shards (see data/README.md).")],
    output: Annotated[Path, typer.Argument(help="Folder for the shards; train on it with data.path=OUTPUT.")],
    captions: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines with file, caption, optional faces {front … down} and asset (the scene, kept on "
            "one side of the split); or a .txt with one line per panorama in sorted order; or none: build without "
            "captions, for training that is conditioned on images alone.",
            show_default="captions.jsonl or prompts.txt in SOURCE, or a .json or .txt next to each panorama",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="Type of SOURCE: equirect, cubemaps, webdataset, imagefolder, parquet; or a data set's tree: "
            "structured3d, matterport3d; or the naming scheme of cubemap faces: axes, matterport, words, unity, quake, "
            "short, opengl, py360convert, three, unreal, blender; or your own class, module:Class, or its name in the "
            "entry-point group cubediff.sources.",
            show_default="detected",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Use only panoramas whose name in SOURCE matches; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out panoramas whose name in SOURCE matches; may be repeated."),
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Caption panoramas and faces with a vision-language model (folder or Hub id, transformers' "
            "image-text-to-text) and write OUTPUT/captions.jsonl; conf/caption.yaml holds the instructions.",
        ),
    ] = None,
    caption_batch: Annotated[int, typer.Option(help="Batch size of the captioning model.", min=1)] = 8,
    val_fraction: Annotated[float, typer.Option(help="Fraction of scenes for the validation split.")] = 0.1,
    shard_size: Annotated[int, typer.Option(help="Maximum number of panoramas in a shard.")] = 256,
    max_width: Annotated[int, typer.Option(help="Reject panoramas wider than this, in pixels.")] = MAX_WIDTH,
    quality: Annotated[int, typer.Option(help="JPEG quality of re-encoded panoramas.", min=1, max=100)] = QUALITY,
    limit: Annotated[int | None, typer.Option(help="Use only the first panoramas.", show_default="all")] = None,
    workers: Workers = 0,
    engine: Annotated[
        str,
        typer.Option(
            help="local: processes on this machine. ray: tasks on the cluster at RAY_ADDRESS, where every machine sees "
            "SOURCE and OUTPUT under the same absolute paths; without RAY_ADDRESS, a local Ray."
        ),
    ] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report what would be built; write nothing.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the shards or the unfinished build in OUTPUT.")
    ] = False,
) -> None:
    """Build WebDataset shards from panoramas with captions. The same command resumes an interrupted build."""
    # Imported here so that --help starts fast.
    from cubediff.data.building.captioning import caption_source
    from cubediff.data.building.console import build_summary, preview_lines, progress_bar
    from cubediff.data.building.engines import Engine, usable_cores
    from cubediff.data.building.output_folder import check_output, check_separate
    from cubediff.data.building.preview import preview_build
    from cubediff.data.building.write import build_shards
    from cubediff.data.format.folders import folder_lock
    from cubediff.data.sources import open_source
    from cubediff.utils.errors import DataError

    try:
        if caption is not None and captions is not None:
            raise DataError("pass --captions FILE or --caption MODEL, not both")
        check_separate(source, output)
        opened = open_source(source, captions, kind, caption is None, output, include or (), exclude or ())
        if dry_run:
            for line in preview_lines(preview_build(opened, limit, max_width, quality)):
                typer.echo(line)
            return
        check_output(output, overwrite)  # before captioning, which takes long
        if caption is not None:
            file, batch = output / "captions.jsonl", caption_batch
            with folder_lock(output):
                opened = caption_source(
                    opened, file, caption, batch=batch, limit=limit, max_width=max_width, progress=progress_bar
                )
        manifest = build_shards(
            opened,
            output,
            val_fraction=val_fraction,
            shard_size=shard_size,
            max_width=max_width,
            quality=quality,
            limit=limit,
            workers=workers or usable_cores(),
            engine=cast(Engine, engine),  # open_engine refuses unknown engines
            overwrite=overwrite,
            progress=progress_bar,
        )
    except (DataError, OSError) as error:
        typer.echo(error_line(error), err=True)
        raise typer.Exit(1) from None
    typer.echo(build_summary(output, manifest))


@check_app.command("check")
def check(
    shards: Annotated[Path, typer.Argument(help="Folder written by cubediff prepare or cubediff cache.")],
    workers: Workers = 0,
) -> None:
    """Verify manifest, index, checksums and samples of finished shards or latents, and summarise the dataset."""
    from cubediff.data.building.check import check_shards
    from cubediff.data.building.console import progress_bar
    from cubediff.data.building.engines import usable_cores
    from cubediff.utils.errors import DataError, message_of

    try:
        lines, faults = check_shards(shards, workers or usable_cores(), progress_bar)
    except (DataError, OSError) as error:
        lines, faults = [], [message_of(error)]
    for line in lines:
        typer.echo(line)
    for fault in faults:
        typer.echo(f"fault: {printable(fault)}", err=True)
    typer.echo(f"{shards}: {len(faults)} faults" if faults else f"{shards}: no faults", err=bool(faults))
    if faults:
        raise typer.Exit(1)


def main() -> None:
    """Runs `check` if it is the first argument, else `build`; write ./check for a source folder named check."""
    if sys.argv[1:2] == ["check"]:
        check_app(sys.argv[2:], prog_name="cubediff prepare check")
    else:
        app(prog_name="cubediff prepare")


if __name__ == "__main__":
    main()
