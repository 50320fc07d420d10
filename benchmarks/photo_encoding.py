"""Compares the two settings of `photo_encoding`: six faces encoded together, or each face alone.

    python benchmarks/photo_encoding.py [--model FOLDER] [--panoramas FOLDER] [--scenes N] [--steps N]

A view of each panorama straight ahead is the photo, and its caption the prompt; both settings start from the same
noise. PSNR of the pixels of the front face that the photo covers, against the photo's; and the RMS difference
where neighbouring faces see the same direction, on [0, 1], once without and once with `average_overlap`. Photos are 95°
wide, which is the whole face, or 60°.
"""

import argparse
import json
from pathlib import Path

import cv2
import torch
from torch import Tensor

from cubediff import CubeDiffPipeline, Photo
from cubediff.evaluation.consistency import METRICS, value_of
from cubediff.geometry import equirect_to_perspective
from cubediff.geometry.photos import project_photos

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "experiments/cubediff_tiny/model")
    parser.add_argument("--panoramas", type=Path, default=ROOT / "data/samples", help="a folder with captions.jsonl")
    parser.add_argument("--scenes", type=int, default=10)
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    records = [json.loads(line) for line in (args.panoramas / "captions.jsonl").read_text("utf-8").splitlines()]
    records = records[:: max(1, len(records) // args.scenes)][: args.scenes]
    panoramas = [read(args.panoramas / record["file"]) for record in records]
    print("fov (°)  average_overlap  photo_encoding  PSNR (dB)  overlap RMS")
    for fov in (95.0, 60.0):
        for average in (False, True):
            results: dict[str, Tensor] = {}
            for encoding in ("cube", "face"):
                pipeline = CubeDiffPipeline.from_pretrained(args.model, photo_encoding=encoding)
                pipeline.set_progress_bar_config(disable=True)
                scenes = [
                    measure(pipeline, panorama, record["caption"], fov, args.steps, average)
                    for record, panorama in zip(records, panoramas, strict=True)
                ]
                results[encoding] = torch.tensor(scenes)
                psnr, rms = results[encoding].mean(0).tolist()
                print(f"{fov:7.0f}  {average!s:15}  {encoding:14}  {psnr:9.2f}  {rms:11.4f}", flush=True)
            psnr, rms = (results["cube"] > results["face"]).sum(0).tolist()
            print(f"         'cube' has the higher PSNR in {psnr} scenes, and the higher RMS in {rms}")


def read(path: Path) -> Tensor:
    """A panorama (1, 3, H, 2H) in [−1, 1]."""
    pixels = cv2.imread(str(path))[..., ::-1].copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1


def measure(
    pipeline: CubeDiffPipeline, panorama: Tensor, caption: str, fov: float, steps: int, average: bool
) -> tuple[float, float]:
    """PSNR of the conditioned pixels, and the RMS difference in the overlaps."""
    photo = Photo(equirect_to_perspective(panorama, 256, fov, yaw=0.0)[0].clamp(-1, 1), fov=fov)
    faces = pipeline(
        caption,
        image=photo,
        num_inference_steps=steps,
        average_overlap=average,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).faces
    pixels, covered = project_photos([[photo]], faces.shape[-1], pipeline.config.fov)
    front = covered[0, 0].expand(3, -1, -1)
    error = ((faces[0, 0] - pixels[0, 0]) / 2)[front].square().mean()
    overlap = METRICS["overlap_rms"]
    return float(-10 * error.log10()), value_of(overlap, overlap.terms(faces / 2 + 0.5, pipeline.config.fov))


if __name__ == "__main__":
    main()
