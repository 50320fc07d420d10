"""Measures cubediff_tiny by all its conditions: training scenes and unseen ones, several seeds and guidance scales.

    OMP_NUM_THREADS=1 python experiments/cubediff_tiny/measure.py MODEL PANORAMAS OUTPUT
        [--unseen FOLDER] [--seeds N] [--guidance SCALE …]

PANORAMAS is data/samples. FOLDER holds the panoramas that tiny_sd and cubediff_tiny were trained on with those that
were held out, and captions.jsonl; each of the held-out ones is turned to eight directions. Every row of the table has
one panorama of each caption and seed, by 25 DDIM steps, measured before blending by `cubediff evaluate`; the 95 %
intervals are those of draws of generations. The rows "autoencoder" have the originals through the autoencoder. The same
command again resumes.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.evaluation import measures
from cubediff.evaluation.consistency import Metric
from cubediff.evaluation.intervals import bootstrap
from cubediff.evaluation.measuring import faces_of
from cubediff.evaluation.opened_sets import open_set
from cubediff.evaluation.sets import Sized
from cubediff.geometry import equirect_to_cube
from cubediff.runs.evaluation.run import evaluated
from cubediff.utils.files import write_json

HELD_OUT = run_path(str(Path(__file__).parents[1] / "tiny_sd/views.py"))["HELD_OUT"]
FACES = ("overlap_rms", "colour_step", "step_beyond_overlap", "sharpness", "contrast")
RETRIEVAL = "retrieval_psnr"
CONDITIONS = {"training": ("text", "photo", "six_texts"), "unseen": ("text", "photo")}
TURNS, SEEDS = 8, 1000  # directions of an unseen panorama; difference between the seeds of repetitions
CONTRAST = Metric(lambda faces, fov: faces.var((1, 3, 4)).mean(1)[:, None], lambda terms: terms[0].sqrt())
METRICS = {name: CONTRAST if name == "contrast" else measures.metric(name) for name in (*FACES, RETRIEVAL)}
Row = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("panoramas", type=Path, metavar="PANORAMAS")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--unseen", type=Path, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.5, 2.0], metavar="SCALE")
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    sets = {"training": args.panoramas}
    if args.unseen:
        sets["unseen"] = turned(args.unseen, args.output / "unseen")
    rows = []
    for row in measured(args, sets):
        rows.append(row)
        print(json.dumps(row), flush=True)
    write_json(args.output / "measured.json", {"seeds": args.seeds, "steps": args.steps, "rows": rows})
    print(table(rows))


def turned(folder: Path, output: Path) -> Path:
    """Writes the held-out panoramas, each turned to eight directions, with their captions."""
    records = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = []
    output.mkdir(parents=True, exist_ok=True)
    for record in (each for each in records if Path(each["file"]).stem in HELD_OUT):
        with PIL.Image.open(folder / record["file"]) as image:
            panorama = np.asarray(image.convert("RGB").resize((512, 256), PIL.Image.Resampling.BOX))
        for turn in range(TURNS):
            name = f"{Path(record['file']).stem}_{turn}.png"
            PIL.Image.fromarray(np.roll(panorama, -turn * panorama.shape[1] // TURNS, axis=1)).save(output / name)
            lines.append(json.dumps({"file": name, "caption": record["caption"]}) + "\n")
    (output / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    return output


def measured(args: argparse.Namespace, sets: dict[str, Path]) -> Iterator[Row]:
    """A row for each set, condition and guidance scale, after one for the set through the autoencoder."""
    for name, folder in sets.items():
        yield {
            "scenes": name,
            "condition": "autoencoder",
            "guidance": None,
            **estimates(autoencoded(args.model, folder)),
        }
        for condition in CONDITIONS[name]:
            for scale in args.guidance:
                terms = [repetition(args, name, folder, condition, scale, number) for number in range(args.seeds)]
                pooled = {metric: torch.cat([each[metric] for each in terms]) for metric in terms[0]}
                yield {"scenes": name, "condition": condition, "guidance": scale, **estimates(pooled)}


def repetition(
    args: argparse.Namespace, name: str, folder: Path, condition: str, scale: float, number: int
) -> dict[str, Tensor]:
    """The terms of one panorama of each caption."""
    output = args.output / f"{name}_{condition}_{scale:g}_{number}"
    values = {
        "pipeline": str(args.model),
        "reference": str(folder),
        "condition": condition,
        "seed": SEEDS * number,
        "cache": str(args.output / "cache"),
        "metrics": [*(metric for metric in FACES if metric != "contrast"), RETRIEVAL],
        "generate": {"steps": args.steps, "guidance_scale": scale, "batch": 5},
        "intervals": {"panoramas": 1},
    }
    terms = dict(evaluated(values, output).terms)
    samples = open_set(output / "samples")
    pixels = [faces_of(samples, index, None) for index in range(len(samples.names))]
    terms["contrast"] = torch.cat([CONTRAST.terms(each.pixels[None].double(), each.fov) for each in pixels])
    if name == "unseen":
        terms.pop(RETRIEVAL)  # a scene's other directions are in the set
    return terms


@torch.inference_mode()
def autoencoded(model: Path, folder: Path) -> dict[str, Tensor]:
    """The terms of the originals' faces through the autoencoder."""
    pipeline = CubeDiffPipeline.from_pretrained(model)
    size, fov = pipeline.unet.config.sample_size * 8, pipeline.config.fov
    originals = Sized(open_set(folder), 2 * size, "resize")
    terms: dict[str, list[Tensor]] = {name: [] for name in FACES}
    for index in range(len(originals.names)):
        faces = equirect_to_cube(originals.panorama(index)[None] * 2 - 1, size, fov)
        decoded = pipeline.backbone.decode(pipeline.backbone.encode(faces)) / 2 + 0.5
        for name, each in terms.items():
            each.append(METRICS[name].terms(decoded, fov))
    return {name: torch.cat(each).double() for name, each in terms.items()}


def estimates(terms: dict[str, Tensor]) -> Row:
    """Values with their intervals."""
    row: Row = {"generations": len(next(iter(terms.values())))}
    for name, each in terms.items():
        estimate = bootstrap(METRICS[name], each)
        row[name] = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return row


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [f"| scenes | condition | guidance | {' | '.join(f'`{name}`' for name in METRICS)} |"]
    lines.append("|---" * (3 + len(METRICS)) + "|")
    for row in rows:
        cells = []
        for name in METRICS:
            found = row.get(name)
            assert found is None or isinstance(found, dict)
            cells.append("" if found is None else f"{found['value']:.3g} ({found['low']:.3g} to {found['high']:.3g})")
        guidance = "" if row["guidance"] is None else f"{row['guidance']:g}"
        lines.append(f"| {row['scenes']} | {row['condition']} | {guidance} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
