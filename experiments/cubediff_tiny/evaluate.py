"""Does what cubediff_tiny generates follow its condition? Identifies each training panorama from what is generated.

    python experiments/cubediff_tiny/evaluate.py MODEL PANORAMAS OUTPUT [--skip ASSET …]

From photo: the six faces generated from panorama i's front face are compared (PSNR) with the six faces of every
panorama. From text: the panorama generated from caption i is compared with every panorama at 24 yaws. Counted is how
often panorama i itself is the nearest. Writes metrics.json and two contact sheets.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cubediff import CubeDiffPipeline
from cubediff.geometry import equirect_to_cube
from cubediff.pipeline import to_pil

YAWS = 24
HEIGHT = 96  # of the panoramas that are compared; a yaw step is 2·96/24 = 8 columns


def load(path: Path, height: int) -> Tensor:
    """(3, H, 2H) in [−1, 1]."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: not a readable image")
    image = cv2.resize(image, (2 * height, height), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1).float() / 127.5 - 1


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Decibels between images in [−1, 1], over the last three dimensions."""
    return 10 * torch.log10(4 / (a - b).square().mean((-3, -2, -1)))


def nearest_yaw(panorama: Tensor, others: Tensor) -> Tensor:
    """The highest PSNR (N,) of `panorama` (3, H, 2H) turned to any of the yaws, with each of `others` (N, 3, H, 2H)."""
    turned = torch.stack([panorama.roll(i * panorama.shape[-1] // YAWS, -1) for i in range(YAWS)])
    return psnr(turned[:, None], others[None]).amax(0)


def sheet(rows: list[list[PIL.Image.Image]], path: Path) -> None:
    """A contact sheet of equally large pictures."""
    width, height = rows[0][0].size
    canvas = PIL.Image.new("RGB", (len(rows[0]) * (width + 4), len(rows) * (height + 4)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            canvas.paste(image, (x * (width + 4), y * (height + 4)))
    canvas.save(path, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("panoramas", type=Path, help="folder with captions.jsonl")
    parser.add_argument("output", type=Path)
    parser.add_argument("--skip", nargs="*", default=[], help="assets the model was not trained on")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=3.5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    lines = (args.panoramas / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [r for r in map(json.loads, lines) if r["asset"] not in args.skip]
    pipeline = CubeDiffPipeline.from_pretrained(args.model).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    size = pipeline.unet.config.sample_size * 8
    panoramas = torch.stack([load(args.panoramas / r["file"], 2 * size) for r in records])
    small = F.interpolate(panoramas, (HEIGHT, 2 * HEIGHT), mode="area")
    faces = equirect_to_cube(panoramas, size, pipeline.config.fov, mode="bicubic").clamp(-1, 1)

    def generate(kind: str) -> tuple[Tensor, Tensor]:
        made_panoramas, made_faces = [], []
        for start in tqdm(range(0, len(records), args.batch), desc=f"from {kind}"):
            part = records[start : start + args.batch]
            output = pipeline(
                [[r["caption"]] * 6 for r in part] if kind == "text" else None,
                image=faces[start : start + args.batch, 0] if kind == "photo" else None,
                num_inference_steps=args.steps,
                guidance_scale=args.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(start),
                output_type="pt",
            )
            made_panoramas.append(output.panoramas.cpu())
            made_faces.append(output.faces.cpu())
        return torch.cat(made_panoramas), torch.cat(made_faces)

    from_photo, photo_faces = generate("photo")
    from_text, _ = generate("text")
    from_text_small = F.interpolate(from_text, (HEIGHT, 2 * HEIGHT), mode="area")

    own = torch.arange(len(records))
    all_six = torch.stack([psnr(six, faces).mean(1) for six in photo_faces])  # (made, real)
    unseen_five = torch.stack([psnr(six[1:], faces[:, 1:]).mean(1) for six in photo_faces])
    by_text = torch.stack([nearest_yaw(panorama, small) for panorama in from_text_small])
    report = {
        "panoramas": len(records),
        "chance": 1 / len(records),
        "photo_identified_six_faces": (all_six.argmax(1) == own).float().mean().item(),
        "photo_identified_five_other_faces": (unseen_five.argmax(1) == own).float().mean().item(),
        "photo_psnr_five_other_faces": unseen_five[own, own].mean().item(),
        "text_identified": (by_text.argmax(1) == own).float().mean().item(),
        "text_psnr": by_text[own, own].mean().item(),
        "steps": args.steps,
        "guidance_scale": args.guidance_scale,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    shown = list(range(0, len(records), max(1, len(records) // 12)))[:12]
    columns = [to_pil(images[shown]) for images in (panoramas, from_photo, from_text)]
    sheet([list(row) for row in zip(*columns, strict=True)], args.output / "panoramas.jpg")


if __name__ == "__main__":
    main()
