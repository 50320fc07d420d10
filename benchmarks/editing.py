"""Compares two ways to condition the network on the kept pixels of a panorama to edit.

    python benchmarks/editing.py [--model FOLDER] [--panoramas FOLDER] [--every N] [--steps N]

- sample: as the pipeline does it: in the sample alone, where kept latents follow the trajectory of their noise.
- mask: also with their clean latents and the mask channel, as photos are, and guided towards as photos are.

Every Nth panorama of a folder with `captions.jsonl` is repainted from its caption below −55°, in a strip 50° wide, in a
region of 60° × 40°, and beyond ±40° of elevation. The generated pixels are compared with the real ones: PSNR by solid
angle; and the step across the mask's border before `composite` hides it, in levels of [0, 1].
"""

import argparse
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch

from cubediff import CubeDiffPipeline, Panorama
from cubediff.diffusion.guidance import Guidance, make_guidance
from cubediff.pipelines import base, editing

ROOT = Path(__file__).parents[1]
HEIGHT = 256
PITCH = 90 - (np.arange(HEIGHT) + 0.5)[:, None] / HEIGHT * 180
YAW = ((np.arange(2 * HEIGHT) + 0.5) / (2 * HEIGHT) - 0.5) * 360
MASKS = {
    "nadir": np.broadcast_to(PITCH < -55, (HEIGHT, 2 * HEIGHT)),
    "strip": np.broadcast_to(np.abs(YAW - 60) < 25, (HEIGHT, 2 * HEIGHT)),
    "region": (np.abs(PITCH + 5) < 20) & (np.abs(YAW + 100) < 30),
    "crop": np.broadcast_to(np.abs(PITCH) > 40, (HEIGHT, 2 * HEIGHT)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "experiments/cubediff_tiny/model")
    parser.add_argument("--panoramas", type=Path, default=ROOT / "data/samples")
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    pipeline = CubeDiffPipeline.from_pretrained(args.model)
    pipeline.set_progress_bar_config(disable=True)
    records = [json.loads(line) for line in (args.panoramas / "captions.jsonl").read_text("utf-8").splitlines()]
    print("conditioning  guidance  PSNR (dB)  step")
    for name, conditioning in {"sample": nullcontext, "mask": conditioned_by_mask}.items():
        for guidance_scale in (1.0, 3.5):
            results = []
            for record in records[:: args.every]:
                real = cv2.imread(str(args.panoramas / record["file"]))[..., ::-1]
                real = cv2.resize(real, (2 * HEIGHT, HEIGHT), interpolation=cv2.INTER_AREA)
                for mask in MASKS.values():
                    with conditioning():
                        generated = repaint(pipeline, real, mask, record["caption"], guidance_scale, args.steps)
                    results.append(compare(generated, real / 255, mask))
            psnr, step = np.mean(results, 0)
            print(f"{name:12}  {guidance_scale:8}  {psnr:9.2f}  {step:.3f}", flush=True)


def conditioned_by_mask() -> AbstractContextManager[None]:
    """Lets the pipeline treat kept pixels as those of photos."""

    def with_image(text: bool, image: bool, *scales: float) -> Guidance:
        return make_guidance(text, True, *scales)

    return patch.multiple(base, photo_coverage=lambda images, covered, fov: covered, make_guidance=with_image)


def repaint(
    pipeline: CubeDiffPipeline, real: np.ndarray, mask: np.ndarray, caption: str, scale: float, steps: int
) -> np.ndarray:
    """The generated panorama (h, 2h, 3) in [0, 1], without the kept pixels."""
    composited: list[np.ndarray] = []

    def keep(generated: torch.Tensor, *rest: object) -> torch.Tensor:
        composited.append((generated / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy())
        return generated

    with patch.object(editing, "composite", keep):
        pipeline(
            caption,
            image=Panorama(np.ascontiguousarray(real), mask),
            num_inference_steps=steps,
            guidance_scale=scale,
            generator=torch.Generator().manual_seed(1),
            output_type="pt",
        )
    return composited[0]


def compare(generated: np.ndarray, real: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """PSNR of the repainted pixels, and the mean step across the border of the mask to real pixels."""
    weight = np.cos(np.radians(PITCH)) * mask
    error = (((generated - real) ** 2).mean(-1) * weight).sum() / weight.sum()
    joined = np.where(mask[..., None], generated, real)
    across = np.abs(np.roll(joined, 1, 1) - joined).mean(-1)[np.roll(mask, 1, 1) != mask]
    down = np.abs(joined[1:] - joined[:-1]).mean(-1)[mask[1:] != mask[:-1]]
    return float(-10 * np.log10(error)), float(np.concatenate([across, down]).mean())


if __name__ == "__main__":
    main()
