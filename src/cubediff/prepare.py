"""python -m cubediff.prepare SOURCE OUTPUT: WebDataset shards from a folder of panoramas and their
captions (the paper's training data), with a manifest, a train/val split by scene and a list of what was
refused."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
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
    val_fraction: Annotated[float, typer.Option(help="Part of the scenes to hold out for validation.")] = 0.1,
    shard_size: Annotated[int, typer.Option(help="Panoramas in a shard at most.")] = 256,
    max_width: Annotated[int, typer.Option(help="Wider panoramas are refused.")] = 16384,
    quality: Annotated[int, typer.Option(help="JPEG quality where a panorama is re-encoded.", min=1, max=100)] = 95,
    workers: Annotated[int, typer.Option(help="Threads that read panoramas; 0: one per core.", min=0)] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the shards that OUTPUT holds.")] = False,
) -> None:
    """Build WebDataset shards from a folder of panoramas with captions."""
    import os
    from collections.abc import Iterable
    from typing import Any

    from tqdm import tqdm

    from cubediff.data.sources import DataError
    from cubediff.data.write import REJECTED, build_shards

    def bar(results: Iterable[Any], total: int) -> Iterable[Any]:
        return tqdm(results, total=total, desc="reading", unit=" panoramas")

    try:
        manifest = build_shards(
            source,
            output,
            captions,
            kind,
            val_fraction=val_fraction,
            shard_size=shard_size,
            max_width=max_width,
            quality=quality,
            workers=workers or os.cpu_count() or 1,
            overwrite=overwrite,
            progress=bar,
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
    )


if __name__ == "__main__":
    app()
