"""Measures what `average_overlap` does to panoramas of cubediff_tiny, with every scheduler.

    python experiments/cubediff_tiny/overlap.py MODEL PANORAMAS OUTPUT [--evaluations N] [--schedulers CLASS …]

One panorama of each caption is generated with and without it, from the same noise. The table has means over the
captions of (see `cubediff.evaluation.consistency`):
- overlap RMS: difference of the pixels of neighbouring faces that see the same direction;
- colour step: difference of the colours on both sides of the cube's edges;
- sharpness: magnitude of the gradient.

The real panoramas have the same metrics in the first row. Writes overlap.json and, of the first scheduler, overlap.jpg
with some panoramas without (above) and with (below).
"""

import argparse
import inspect
import json
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import torch
from diffusers.schedulers import SchedulerMixin
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.data.batches.decoding import resize_panorama
from cubediff.diffusion.schedulers import convert_scheduler
from cubediff.evaluation.consistency import METRICS, values_of
from cubediff.geometry import equirect_to_cube
from cubediff.images.jpeg import decode_jpeg
from cubediff.images.writing import to_pil

MEASURED = {"overlap_rms": "overlap_rms", "colour_step": "edge_step", "sharpness": "sharpness"}
# Classes with settings that are not their defaults. The parallel variants of DDIM and DDPM compute the same.
SCHEDULERS: dict[str, dict[str, object]] = {
    "DDIMScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "dpmsolver++"},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "KDPM2DiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "PNDMScheduler": {"skip_prk_steps": True},
    "UniPCMultistepScheduler": {},
    "DEISMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "SASolverScheduler": {},
    "DDPMScheduler": {},
    "LCMScheduler": {},
    "TCDScheduler": {},
}


def load(path: Path, height: int) -> Tensor:
    """Reads a panorama (3, H, 2H) in [−1, 1]."""
    levels = resize_panorama(decode_jpeg(path.read_bytes()), height)
    return torch.from_numpy(np.ascontiguousarray(levels)).permute(2, 0, 1).float() / 127.5 - 1


def sheet(rows: list[list[PIL.Image.Image]], path: Path) -> None:
    """Writes images of equal size in rows."""
    width, height = rows[0][0].size
    canvas = PIL.Image.new("RGB", (len(rows[0]) * (width + 4), len(rows) * (height + 4)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            canvas.paste(image, (x * (width + 4), y * (height + 4)))
    canvas.save(path, quality=90)


def steps_of(kind: type[SchedulerMixin], evaluations: int) -> int:
    """Steps with about that many evaluations of the network: some schedulers need two in each."""
    return evaluations // 2 + 1 if hasattr(kind, "state_in_first_order") else evaluations


def measure(faces: Tensor, fov: float) -> dict[str, float]:
    """The means of all metrics over faces (N, 6, 3, S, S) in [0, 1]."""
    measured = {name: METRICS[metric] for name, metric in MEASURED.items()}
    return {name: values_of(metric, metric.terms(faces, fov)).mean().item() for name, metric in measured.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("panoramas", type=Path, help="folder with captions.jsonl")
    parser.add_argument("output", type=Path)
    parser.add_argument("--evaluations", type=int, default=25, help="of the network, for each panorama")
    parser.add_argument("--schedulers", nargs="*", choices=SCHEDULERS, default=list(SCHEDULERS))
    parser.add_argument("--guidance-scale", type=float, default=3.5)
    parser.add_argument("--batch", type=int, default=5)
    args = parser.parse_args()

    lines = (args.panoramas / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    pipeline = CubeDiffPipeline.from_pretrained(args.model)
    pipeline.set_progress_bar_config(disable=True)
    fov, size = pipeline.config.fov, pipeline.unet.config.sample_size * 8
    panoramas = torch.stack([load(args.panoramas / record["file"], 2 * size) for record in records])
    args.output.mkdir(parents=True, exist_ok=True)

    def generate(average: bool, steps: int) -> tuple[Tensor, Tensor]:
        """Panoramas and faces of all captions, in [0, 1]."""
        parts = []
        for start in range(0, len(records), args.batch):
            part = range(start, min(start + args.batch, len(records)))
            output = pipeline(
                [[records[i]["caption"]] * 6 for i in part],
                num_inference_steps=steps,
                guidance_scale=args.guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(i) for i in part],
                output_type="pt",
                average_overlap=average,
            )
            parts.append((output.panoramas, output.faces))
        made, faces = (torch.cat(each).clamp(-1, 1) / 2 + 0.5 for each in zip(*parts, strict=True))
        return made, faces

    def row(name: str, values: dict[str, float]) -> None:
        print(f"{name:44}" + "".join(f"{value:14.4f}" for value in values.values()), flush=True)

    print(f"{len(records)} captions, {args.evaluations} network evaluations, guidance scale {args.guidance_scale}")
    print(f"{'':44}{'overlap RMS':>14}{'colour step':>14}{'sharpness':>14}")
    real = equirect_to_cube(panoramas, size, fov, mode="bicubic").clamp(-1, 1) / 2 + 0.5
    results: dict[str, object] = {"evaluations": args.evaluations, "real panoramas": measure(real, fov)}
    row("real panoramas", measure(real, fov))
    own_scheduler = pipeline.scheduler
    for name in args.schedulers:
        kind = getattr(diffusers, name)
        unclipped = {"clip_sample": False} if "clip_sample" in inspect.signature(kind).parameters else {}
        pipeline.scheduler = convert_scheduler(own_scheduler, {**unclipped, **SCHEDULERS[name]}, kind)
        made = {average: generate(average, steps_of(kind, args.evaluations)) for average in (False, True)}
        without, averaged = (measure(made[average][1], fov) for average in (False, True))
        row(name, without)
        row("  with average_overlap", averaged)
        results[name] = {"without": without, "with": averaged}
        (args.output / "overlap.json").write_text(json.dumps(results, indent=2) + "\n")
        if name == args.schedulers[0]:
            shown = [0, len(records) // 2]
            columns = [to_pil(made[average][0][shown] * 2 - 1) for average in (False, True)]
            rows: list[list[PIL.Image.Image]] = [list(column) for column in columns]
            sheet(rows, args.output / "overlap.jpg")


if __name__ == "__main__":
    main()
