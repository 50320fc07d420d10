"""Draws the figures of tiny_sd: reconstructions by its autoencoder, and views that it generates from captions.

python experiments/tiny_sd/figures.py MODEL PANORAMAS OUTPUT
"""

import argparse
from pathlib import Path

import PIL.Image
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from views import Views

from cubediff.images.writing import to_pil


def grid(images: list[PIL.Image.Image], columns: int, path: Path) -> None:
    """Writes square images as a grid."""
    size = images[0].width + 4
    canvas = PIL.Image.new("RGB", (columns * size, -(-len(images) // columns) * size), "white")
    for i, image in enumerate(images):
        canvas.paste(image, (i % columns * size, i // columns * size))
    canvas.save(path, quality=92)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("panoramas", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    pipeline = StableDiffusionPipeline.from_pretrained(args.model, torch_dtype=torch.float32, use_safetensors=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)

    views = Views(args.panoramas, pipeline.unet.config.sample_size * 8, held_out=False, seed=3)
    images, captions = views.sample(16)
    decoded = pipeline.vae.decode(pipeline.vae.encode(images[:8]).latent_dist.mean).sample
    grid(to_pil(torch.cat([images[:8], decoded])), 8, args.output / "autoencoder.jpg")
    generated = pipeline(
        captions, num_inference_steps=30, guidance_scale=3.0, generator=torch.Generator().manual_seed(0)
    ).images
    rows = [to_pil(images[:8]), generated[:8], to_pil(images[8:]), generated[8:]]
    grid([image for row in rows for image in row], 8, args.output / "views.jpg")
    (args.output / "views.txt").write_text("\n".join(captions) + "\n")


if __name__ == "__main__":
    main()
