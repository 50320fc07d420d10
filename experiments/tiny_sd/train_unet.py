"""Trains tiny_sd's UNet, text encoder and tokenizer on views of panoramas, given its autoencoder.

    python experiments/tiny_sd/train_unet.py PANORAMAS VAE OUTPUT --minutes 30

The views are encoded once, to a pool of latents that training samples from. The learning rate follows a cosine over the
given minutes. Writes a Stable Diffusion folder with float16 weights to OUTPUT.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from tokenizers import Tokenizer, models, trainers
from tqdm import tqdm
from transformers import CLIPTokenizer
from views import Views

from cubediff.models.tiny import sd_scheduler, small_text_encoder
from cubediff.models.tokenizer import byte_tokenizer

SIZE = 128
WIDTH = 128


def train_tokenizer(captions: list[str], merges: int = 1200) -> CLIPTokenizer:
    """Trains the byte-pair merges of a CLIP tokenizer on `captions`."""
    like = byte_tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = like.normalizer, like.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=len(byte_tokenizer()) + merges, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    return byte_tokenizer(json.loads(tokenizer.to_str())["model"]["merges"])


def build_unet() -> UNet2DConditionModel:
    """A UNet of 5 M parameters for 16 × 16 latents."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )


def drop_words(caption: str, draw: random.Random) -> str:
    """Drops words of four captions in ten, so that the model also follows shorter wordings."""
    if draw.random() < 0.6:
        return caption
    kept = [word for word in caption.split() if draw.random() < 0.7]
    return " ".join(kept) or caption


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("panoramas", type=Path)
    parser.add_argument("vae", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--start", type=Path, help="Stable Diffusion folder whose UNet, text encoder and tokenizer to start from"
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--views", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    draw = random.Random(args.seed)
    train = Views(args.panoramas, SIZE, held_out=False, seed=args.seed)
    vae = AutoencoderKL.from_pretrained(args.vae, use_safetensors=True).to(args.device).eval().requires_grad_(False)

    batches, captions = [], []
    for _ in tqdm(range(0, args.views, 32), desc="encoding views"):
        images, texts = train.sample(32)
        with torch.no_grad():
            batches.append(vae.encode(images.to(args.device)).latent_dist.mean * vae.config.scaling_factor)
        captions += texts
    latents = torch.cat(batches)
    if args.start:
        started = StableDiffusionPipeline.from_pretrained(args.start, use_safetensors=True).to(torch.float32)
        tokenizer, text_encoder, unet = started.tokenizer, started.text_encoder.train(), started.unet.train()
    else:
        tokenizer = train_tokenizer([text for r in train.records for text in (r["caption"], *r["faces"].values())])
        text_encoder, unet = small_text_encoder(tokenizer, WIDTH, layers=2), build_unet()
    text_encoder, unet = text_encoder.to(args.device), unet.to(args.device)
    scheduler = DDPMScheduler.from_config(sd_scheduler().config)
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters, {len(tokenizer)} tokens")

    def loss_of(z: torch.Tensor, texts: list[str], generator: torch.Generator | None = None) -> torch.Tensor:
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        noise = torch.randn(z.shape, generator=generator, device=z.device)
        t = torch.randint(1000, (len(z),), generator=generator, device=z.device)
        states = text_encoder(ids.to(z.device))[0]
        predicted = unet(scheduler.add_noise(z, noise, t), t, encoder_hidden_states=states).sample
        return F.mse_loss(predicted, noise)

    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    ema = EMAModel(parameters, decay=0.998, foreach=True)
    start, steps, smooth = time.monotonic(), 0, 1.0
    bar = tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}")
    while (progress := (time.monotonic() - start) / (60 * args.minutes)) < 1:
        chosen = draw.sample(range(len(latents)), args.batch)
        texts = ["" if draw.random() < 0.1 else drop_words(captions[i], draw) for i in chosen]
        loss = loss_of(latents[chosen], texts)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (steps + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.step(parameters)
        steps, smooth = steps + 1, 0.98 * smooth + 0.02 * loss.item()
        if steps % 20 == 0:
            bar.update(int(100 * progress) - bar.n)
            bar.set_postfix_str(f"step {steps} loss {smooth:.4f}")
    ema.copy_to(parameters)
    for part in (vae, unet):
        part.register_to_config(_name_or_path="")  # else the config holds the path that it was loaded from
    generator = torch.Generator(args.device).manual_seed(1)
    with torch.no_grad():
        known = loss_of(latents[:128], captions[:128], generator).item()
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=sd_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(args.output)
    report = {
        "steps": steps,
        "batch": args.batch,
        "minutes": args.minutes,
        "parameters": {
            "vae": sum(p.numel() for p in vae.parameters()),
            "unet": sum(p.numel() for p in unet.parameters()),
            "text_encoder": sum(p.numel() for p in text_encoder.parameters()),
        },
        "loss": known,
    }
    (args.output / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
