"""Trains tiny_sd's autoencoder (AutoencoderKL, latents with 4 channels at an eighth of the size) on views of panoramas.

    python experiments/tiny_sd/train_vae.py PANORAMAS OUTPUT --minutes 60

The learning rate follows a cosine over the given minutes, so that the run takes as long on any machine. Most of the
time is spent on crops of a quarter of a view, which give four times as many steps, the rest on full views.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from tqdm import tqdm
from views import Views

SIZE = 128


def build() -> AutoencoderKL:
    """An autoencoder of 2.7 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PSNR in dB (B,) of the images of two batches in [−1, 1]."""
    return 10 * torch.log10(4 / (a - b).square().flatten(1).mean(1))


@torch.no_grad()
def evaluate(vae: AutoencoderKL, views: Views, count: int = 96) -> dict[str, float]:
    """PSNR of reconstructed views in dB, and mean and standard deviation of the latents."""
    views.random.seed(1)
    images, _ = views.sample(count)
    latents = torch.cat([vae.encode(x).latent_dist.mean for x in images.split(16)])
    decoded = torch.cat([vae.decode(z).sample for z in latents.split(16)]).clamp(-1, 1)
    values = psnr(decoded, images)
    return {
        "psnr_mean": float(values.mean()),
        "psnr_worst": float(values.min()),
        "latent_mean": float(latents.mean()),
        "latent_std": float(latents.std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("panoramas", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--start", type=Path, help="autoencoder to start from")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--whole-share", type=float, default=0.3, help="share of the time on full views")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kl", type=float, default=1e-5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train, held_out = (Views(args.panoramas, SIZE, held_out=h, seed=args.seed) for h in (False, True))
    vae = AutoencoderKL.from_pretrained(args.start, use_safetensors=True).train() if args.start else build()
    vae = vae.to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    start, steps, seen = time.monotonic(), 0, 0
    bar = tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}")
    while (progress := (time.monotonic() - start) / (60 * args.minutes)) < 1:
        whole = progress > 1 - args.whole_share
        images, _ = train.sample(4)
        if not whole:  # two crops of each view
            corners = torch.randint(0, SIZE // 2, (8, 2)).tolist()
            images = torch.stack(
                [images[i // 2, :, y : y + SIZE // 2, x : x + SIZE // 2] for i, (y, x) in enumerate(corners)]
            )
        images = images.to(args.device, memory_format=torch.channels_last)
        if torch.rand(()) < 0.5:
            images = images.flip(-1)
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        loss = F.mse_loss(decoded, images) + args.kl * posterior.kl().mean() / posterior.mean[0].numel()
        lr = args.lr * min(1, (steps + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 0.5)
        optimizer.step()
        steps, seen = steps + 1, seen + images.shape[0]
        if steps % 100 == 0:
            bar.update(int(100 * progress) - bar.n)
            bar.set_postfix_str(f"step {steps} {10 * math.log10(4 / loss.item()):.2f} dB")
        if steps % 1000 == 0:
            vae.eval()
            tqdm.write(json.dumps({"step": steps, **evaluate(vae, held_out)}))
            vae.train().save_pretrained(args.output)
    vae.eval()
    unseen, known = evaluate(vae, held_out), evaluate(vae, train)
    vae.register_to_config(scaling_factor=round(1 / known["latent_std"], 5))
    vae.save_pretrained(args.output)
    report = {"steps": steps, "images": seen, "minutes": args.minutes, "held_out": unseen, "train": known}
    (args.output / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
