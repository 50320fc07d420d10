"""Measures whether cubediff_tiny's panoramas keep a view of any direction that they are generated from.

    python experiments/cubediff_tiny/views.py MODEL PANORAMAS OUTPUT.json [--no-average-overlap]

For each panorama, PSNR in the area that a random view covers in full latent pixels, and two latent pixels further
inside, next to the PSNR of the autoencoder on the true faces, and of the panorama with the view's own pixels pasted in.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cubediff import CubeDiffPipeline
from cubediff.data import RandomPhotos
from cubediff.evaluation.fidelity import psnr
from cubediff.evaluation.opened_sets import open_set
from cubediff.evaluation.sets import Sized
from cubediff.geometry import cube_to_equirect, equirect_to_cube, equirect_to_perspective
from cubediff.geometry.photos import Photo, paste_photos, project_photos
from cubediff.models.inputs import latent_mask
from cubediff.utils.files import write_json

RIMS = {"where_known": 0, "two_latents_inside": 2}  # latent pixels


def view_of(panorama: Tensor, size: int, rng: random.Random) -> Photo:
    """Takes a photo of `panorama` (3, H, 2H) in a random direction, as training with data=photos does."""
    camera = RandomPhotos(share=1).draw(rng)
    assert camera is not None
    rows, columns = (round(size * camera.aspect**power) for power in (-0.5, 0.5))
    turn = (camera.yaw, camera.pitch, camera.roll)
    picture = equirect_to_perspective(panorama[None], (rows, columns), camera.fov, *turn, mode="bicubic")[0]
    return Photo(picture.clamp(-1, 1), camera.fov, *turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("panoramas", type=Path, help="folder of panoramas")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=3.5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--average-overlap", action=argparse.BooleanOptionalAction, help="by default as the model folder says"
    )
    args = parser.parse_args()

    pipeline = CubeDiffPipeline.from_pretrained(args.model).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    size, fov = pipeline.unet.config.sample_size * 8, pipeline.config.fov
    originals = Sized(open_set(args.panoramas), 2 * size, "resize")
    panoramas = torch.stack([originals.panorama(index) for index in range(len(originals.names))]) * 2 - 1
    views = [[view_of(panorama, size, random.Random(i))] for i, panorama in enumerate(panoramas)]
    generated = torch.cat(
        [
            pipeline(
                image=views[start : start + args.batch],
                num_inference_steps=args.steps,
                guidance_scale=args.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(start),
                output_type="pt",
                average_overlap=args.average_overlap,
            ).faces.cpu()
            for start in tqdm(range(0, len(views), args.batch))
        ]
    )
    faces = equirect_to_cube(panoramas, size, fov, mode="bicubic").clamp(-1, 1)
    pictures, covered = project_photos(views, size, fov)
    compared = {
        "psnr": generated,
        "psnr_of_the_autoencoder": pipeline.backbone.decode(pipeline.backbone.encode(faces.to(args.device))).cpu(),
        "psnr_pasted": paste_photos(generated, pictures, covered, 8),
    }
    blended = {name: cube_to_equirect(each, 2 * size, fov, mode="bicubic") for name, each in compared.items()}
    report: dict[str, object] = {}
    for place, rim in RIMS.items():
        outside = F.max_pool2d((1 - latent_mask(covered, 8)).flatten(0, 1), 2 * rim + 1, 1, rim)
        pixels = (1 - outside).unflatten(0, (-1, 6)).repeat_interleave(8, -1).repeat_interleave(8, -2)
        known = (cube_to_equirect(pixels, 2 * size, fov, overlap="crop") > 0.999).float()
        some = known.sum((1, 2, 3)) > 0
        values = {
            name: psnr(each[some] / 2, panoramas[some] / 2, known[some])  # differences as in [0, 1]
            for name, each in blended.items()
        }
        limit = values["psnr_of_the_autoencoder"] - 1
        report[place] = {
            "views": int(some.sum()),
            **{name: each.mean().item() for name, each in values.items()},
            "lowest_pasted": values["psnr_pasted"].min().item(),
            "at_least_25_or_within_1_dB_of_it": ((values["psnr"] >= 25) | (values["psnr"] >= limit))
            .float()
            .mean()
            .item(),
        }
    write_json(
        args.output,
        {
            "panoramas": len(originals.names),
            **report,
            "steps": args.steps,
            "guidance_scale": args.guidance_scale,
            "average_overlap": pipeline.config.average_overlap
            if args.average_overlap is None
            else args.average_overlap,
        },
    )


if __name__ == "__main__":
    main()
