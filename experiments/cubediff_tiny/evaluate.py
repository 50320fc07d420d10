"""Measures whether cubediff_tiny's panoramas follow their condition: is each training panorama recognised from them?

    python experiments/cubediff_tiny/evaluate.py MODEL PANORAMAS OUTPUT [--skip ASSET …] [--no-average-overlap]

- From a photo: the faces generated from the front face of panorama i are compared (PSNR) with those of every panorama.
- From six captions, one for each face: likewise.
- From a text: the panorama generated from caption i is compared with every panorama at 24 yaws.
- From a view in any direction: PSNR in the area that the view covers in full latent pixels, and two latent pixels
  further inside, next to the PSNR of the autoencoder on the true faces.

The first three count how often panorama i itself is nearest. Writes metrics.json and a contact sheet.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cubediff import CubeDiffPipeline
from cubediff.data import RandomPhotos
from cubediff.geometry import FACES, cube_to_equirect, equirect_to_cube, equirect_to_perspective
from cubediff.geometry.photos import Photo, feather, project_photos
from cubediff.images.writing import to_pil
from cubediff.models.inputs import latent_mask

YAWS = 24
HEIGHT = 96  # of the panoramas that are compared; a yaw step is 2·96/24 = 8 columns


def load(path: Path, height: int) -> Tensor:
    """Reads a panorama (3, H, 2H) in [−1, 1]."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: expected an image that OpenCV reads")
    image = cv2.resize(image, (2 * height, height), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1).float() / 127.5 - 1


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None) -> Tensor:
    """PSNR in dB of images (…, 3, H, W) in [−1, 1], over all pixels or over those where the mask `where` is 1."""
    where = torch.ones_like(a[..., :1, :, :]) if where is None else where
    error = ((a - b).square() * where).mean(-3).sum((-2, -1)) / where.sum((-3, -2, -1))
    return 10 * torch.log10(4 / error)


def view_of(panorama: Tensor, size: int, rng: random.Random) -> Photo:
    """Takes a photo of `panorama` (3, H, 2H) in a random direction, as training with data=photos does."""
    camera = RandomPhotos(share=1).draw(rng)
    assert camera is not None
    rows, columns = (round(size * camera.aspect**power) for power in (-0.5, 0.5))
    turn = (camera.yaw, camera.pitch, camera.roll)
    picture = equirect_to_perspective(panorama[None], (rows, columns), camera.fov, *turn, mode="bicubic")[0]
    return Photo(picture.clamp(-1, 1), camera.fov, *turn)


def nearest_yaw(panorama: Tensor, others: Tensor) -> Tensor:
    """The highest PSNR (N,) over all yaws between `panorama` (3, H, 2H) and each of `others` (N, 3, H, 2H)."""
    rotated = torch.stack([panorama.roll(i * panorama.shape[-1] // YAWS, -1) for i in range(YAWS)])
    return psnr(rotated[:, None], others[None]).amax(0)


def sheet(rows: list[list[PIL.Image.Image]], path: Path) -> None:
    """Writes a contact sheet of images of equal size."""
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
    parser.add_argument(
        "--average-overlap", action=argparse.BooleanOptionalAction, help="by default as the model folder says"
    )
    args = parser.parse_args()

    lines = (args.panoramas / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [r for r in map(json.loads, lines) if r["asset"] not in args.skip]
    pipeline = CubeDiffPipeline.from_pretrained(args.model).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    size = pipeline.unet.config.sample_size * 8
    panoramas = torch.stack([load(args.panoramas / r["file"], 2 * size) for r in records])
    small = F.interpolate(panoramas, (HEIGHT, 2 * HEIGHT), mode="area")
    faces = equirect_to_cube(panoramas, size, pipeline.config.fov, mode="bicubic").clamp(-1, 1)

    views = [[view_of(panorama, size, random.Random(i))] for i, panorama in enumerate(panoramas)]

    def generate(kind: str) -> tuple[Tensor, Tensor]:
        """Panoramas (N, 3, H, 2H) and faces (N, 6, 3, S, S) generated from one kind of condition."""
        all_panoramas, all_faces = [], []
        for start in tqdm(range(0, len(records), args.batch), desc=f"from {kind}"):
            part = slice(start, start + args.batch)
            conditions: dict[str, dict[str, Any]] = {
                "text": {"prompt": [[r["caption"]] * 6 for r in records[part]]},
                "six texts": {"prompt": [[r["faces"][face] for face in FACES] for r in records[part]]},
                "photo": {"image": faces[part, 0]},
                "view": {"image": views[part]},
            }
            output = pipeline(
                **conditions[kind],
                num_inference_steps=args.steps,
                guidance_scale=args.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(start),
                output_type="pt",
                average_overlap=args.average_overlap,
            )
            all_panoramas.append(output.panoramas.cpu())
            all_faces.append(output.faces.cpu())
        return torch.cat(all_panoramas), torch.cat(all_faces)

    from_photo, photo_faces = generate("photo")
    from_text, _ = generate("text")
    _, six_faces = generate("six texts")
    from_view, view_faces = generate("view")
    from_text_small = F.interpolate(from_text, (HEIGHT, 2 * HEIGHT), mode="area")

    pictures, covered = project_photos(views, size, pipeline.config.fov)
    mask = latent_mask(covered, 8)
    pasted = torch.lerp(view_faces, pictures, feather(covered, 8))  # as paste_image=True does
    pasted = cube_to_equirect(pasted, 2 * size, pipeline.config.fov, mode="bicubic")
    encoded = pipeline.backbone.decode(pipeline.backbone.encode(faces.to(args.device))).cpu()
    encoded = cube_to_equirect(encoded, 2 * size, pipeline.config.fov, mode="bicubic")
    view_report = {}
    for place, rim in {"where_known": 0, "two_latents_inside": 2}.items():
        inside = 1 - F.max_pool2d((1 - mask).flatten(0, 1), 2 * rim + 1, 1, rim).unflatten(0, (-1, 6))
        pixels = inside.repeat_interleave(8, -1).repeat_interleave(8, -2)
        known = (cube_to_equirect(pixels, 2 * size, pipeline.config.fov, overlap="crop") > 0.999).float()
        some = known.sum((1, 2, 3)) > 0
        generated, limit, own_pixels = (
            psnr(x[some], panoramas[some], known[some]) for x in (from_view, encoded, pasted)
        )
        view_report[f"view_{place}"] = {
            "views": int(some.sum()),
            "psnr": generated.mean().item(),
            "psnr_of_the_autoencoder": limit.mean().item(),
            "psnr_pasted": own_pixels.mean().item(),
            "lowest_pasted": own_pixels.min().item(),
            "at_least_25_or_within_1_dB_of_it": ((generated >= 25) | (generated >= limit - 1)).float().mean().item(),
        }

    own = torch.arange(len(records))
    all_six = torch.stack([psnr(six, faces).mean(1) for six in photo_faces])  # (generated, real)
    unseen_five = torch.stack([psnr(six[1:], faces[:, 1:]).mean(1) for six in photo_faces])
    by_six = torch.stack([psnr(six, faces).mean(1) for six in six_faces])
    by_text = torch.stack([nearest_yaw(panorama, small) for panorama in from_text_small])
    report = {
        "panoramas": len(records),
        "chance": 1 / len(records),
        "photo_identified_six_faces": (all_six.argmax(1) == own).float().mean().item(),
        "photo_identified_five_other_faces": (unseen_five.argmax(1) == own).float().mean().item(),
        "photo_psnr_five_other_faces": unseen_five[own, own].mean().item(),
        "text_identified": (by_text.argmax(1) == own).float().mean().item(),
        "text_psnr": by_text[own, own].mean().item(),
        "six_texts_identified": (by_six.argmax(1) == own).float().mean().item(),
        **view_report,
        "steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "average_overlap": pipeline.config.average_overlap if args.average_overlap is None else args.average_overlap,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    shown = list(range(0, len(records), max(1, len(records) // 12)))[:12]
    columns = [to_pil(images[shown]) for images in (panoramas, from_photo, from_text)]
    sheet([list(row) for row in zip(*columns, strict=True)], args.output / "panoramas.jpg")


if __name__ == "__main__":
    main()
