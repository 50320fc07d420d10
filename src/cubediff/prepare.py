"""python -m cubediff.prepare SOURCE OUTPUT: WebDataset shards from a folder of panoramas and their
captions (the paper's training data), with a manifest, a train/val split by scene and a list of what was
refused. python -m cubediff.prepare check SHARDS: whether they are whole, and what training will see."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cubediff.data.sources import Source

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
check_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Workers = Annotated[int, typer.Option(help="Processes that read panoramas; 0: one per core.", min=0)]


@app.command(epilog="python -m cubediff.prepare check SHARDS: verify finished shards.")
def build(
    source: Annotated[Path, typer.Argument(help="Folder of panoramas or cubemaps, or shards (data/README.md).")],
    output: Annotated[Path, typer.Argument(help="Folder for the shards; train with data.path=OUTPUT.")],
    captions: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines with file, caption, optional faces {front … down} and asset (the scene, kept on "
            "one side of the split); or a .txt with one line per panorama in sorted order. "
            "[default: captions.jsonl or prompts.txt of SOURCE, or a .json or .txt beside each panorama]",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="equirect, cubemaps, webdataset, imagefolder, or how a cubemap's faces are read: "
            "axes, matterport, words, unity, quake, short, opengl, py360convert. [default: by what SOURCE "
            "holds]",
            show_default=False,
        ),
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Caption the panoramas and their faces with a vision-language model (folder or Hub id of one of "
            "transformers' image-text-to-text) into OUTPUT/captions.jsonl; conf/caption.yaml says what it is asked.",
        ),
    ] = None,
    caption_batch: Annotated[int, typer.Option(help="Pictures that the model sees at once.", min=1)] = 8,
    val_fraction: Annotated[float, typer.Option(help="Part of the scenes to hold out for validation.")] = 0.1,
    shard_size: Annotated[int, typer.Option(help="Panoramas in a shard at most.")] = 256,
    max_width: Annotated[int, typer.Option(help="Wider panoramas are refused.")] = 16384,
    quality: Annotated[int, typer.Option(help="JPEG quality where a panorama is re-encoded.", min=1, max=100)] = 95,
    limit: Annotated[int | None, typer.Option(help="Take the first panoramas alone.", show_default="all")] = None,
    workers: Workers = 0,
    engine: Annotated[
        str,
        typer.Option(
            help="local: processes of this machine. ray: tasks of the cluster at RAY_ADDRESS, where SOURCE and OUTPUT "
            "are on every machine under the same absolute path; without RAY_ADDRESS, of a Ray started here."
        ),
    ] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be built, and write nothing.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what OUTPUT holds: shards, or an unfinished build.")
    ] = False,
) -> None:
    """Build WebDataset shards from a folder of panoramas with captions. Cut short, the same command goes on."""
    from cubediff.data.sources import Source, open_source
    from cubediff.utils.errors import DataError

    try:
        if caption is not None and captions is not None:
            raise DataError("give --captions FILE or --caption MODEL, not both")
        opened: Source = open_source(source, captions, kind, captioned=caption is None)
        if dry_run:
            _preview(opened, limit, max_width, quality)
            return
        from cubediff.data.building.write import REJECTED, REPORT, build_shards, check_output

        check_output(output, overwrite)  # before any time is spent
        if caption is not None:
            from cubediff.data.building.captioning import Captioned, write_captions

            file = output / "captions.jsonl"
            write_captions(
                opened,
                file,
                caption,
                batch=caption_batch,
                limit=limit,
                max_width=max_width,
                progress=_captioning,
            )
            opened = Captioned(opened, file)
        manifest = build_shards(
            opened,
            output,
            val_fraction=val_fraction,
            shard_size=shard_size,
            max_width=max_width,
            quality=quality,
            limit=limit,
            workers=workers or _cores(),
            engine=engine,  # type: ignore[arg-type] # open_engine refuses what it does not know
            overwrite=overwrite,
            progress=_bar,
        )
    except (DataError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    train, val = manifest["splits"]["train"], manifest["splits"]["val"]
    shards = train["shards"] + val["shards"]
    rejected = manifest["rejected"]
    typer.echo(
        f"{output}: {train['samples']} training and {val['samples']} validation panoramas "
        f"({manifest['with_face_captions']} with face captions) in {len(shards)} shards, "
        f"{sum(s['bytes'] for s in shards) / 1e6:.1f} MB; "
        + (f"{rejected} rejected, reasons in {output / REJECTED}" if rejected else "none rejected")
        + f"; look at {output / REPORT}"
    )


@check_app.command("check")
def check(
    shards: Annotated[Path, typer.Argument(help="Folder that python -m cubediff.prepare SOURCE OUTPUT wrote.")],
    workers: Workers = 0,
) -> None:
    """Verify manifest, index, checksums and every panorama of finished shards, and say what training will see."""
    from cubediff.data.building.check import check_shards
    from cubediff.utils.errors import DataError

    try:
        lines, faults = check_shards(shards, workers or _cores(), _bar)
    except (DataError, OSError) as error:
        lines, faults = [], [str(error)]
    for line in lines:
        typer.echo(line)
    for fault in faults:
        typer.echo(f"fault: {fault}", err=True)
    typer.echo(f"{shards}: {len(faults)} faults" if faults else f"{shards}: whole", err=bool(faults))
    if faults:
        raise typer.Exit(1)


def _preview(source: "Source", limit: int | None, max_width: int, quality: int) -> None:
    from cubediff.data.building.write import preview

    seen = preview(source, limit, max_width, quality)
    for refusal in seen.rejected[:20]:
        typer.echo(f"left out: {refusal.file}: {refusal.reason}")
    if len(seen.rejected) > 20:
        typer.echo(f"left out: {len(seen.rejected) - 20} more")
    typer.echo(
        f"{seen.panoramas} panoramas of {seen.scenes} scenes ({seen.with_face_captions} with face captions), "
        f"{len(seen.rejected)} left out for their captions or names; of {seen.read} that were read "
        f"{len(seen.refused)} would be rejected; about {seen.bytes / 1e6:.1f} MB of shards. Nothing was written."
    )


def _bar(results: "Iterable[Any]", total: int, what: str) -> "Iterable[Any]":
    from tqdm import tqdm

    return tqdm(results, total=total, desc=what, unit=" panoramas" if what == "reading" else " shards")


def _captioning(entries: "Iterable[Any]", total: int) -> "Iterable[Any]":
    from tqdm import tqdm

    return tqdm(entries, total=total, desc="captioning", unit=" panoramas")


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def main() -> None:
    """The first argument decides; a folder of panoramas that is named check is ./check."""
    if sys.argv[1:2] == ["check"]:
        check_app(sys.argv[2:], prog_name="python -m cubediff.prepare check")
    else:
        app(prog_name="python -m cubediff.prepare")


if __name__ == "__main__":
    main()
