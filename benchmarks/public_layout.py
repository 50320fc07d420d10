"""Compares the time of a call with that of a plain implementation of the public SD 1.5 checkpoints' sampling.

    python benchmarks/public_layout.py [--threads N] [--rounds N] [--steps N]

Both sample a panorama from a photo and six prompts, with the same components: those of cubediff_tiny, and a network of
its size with random weights in the layout of `hlicai/cubediff-512-…`. The plain implementation is stock diffusers with
attention over six faces: it calls the network twice a step, once for each branch of guidance. Their latents are
compared first. Calls take turns; times are CPU seconds, which other programs on the machine disturb least. A ratio is
the plain time divided by ours in the same round.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from cubediff import CubeDiffPipeline
from cubediff.geometry import FACES
from cubediff.geometry.conventions import face_directions, yaw_pitch
from cubediff.models.tiny import sd_scheduler
from cubediff.pipelines.cubediff import OPENCUBEDIFF

MODEL = Path(__file__).parents[1] / "experiments/cubediff_tiny/model"
PROMPTS = [f"the {face} of a hall" for face in FACES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours, plain = build()
    photo = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise = torch.randn(1, 6, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    call = {"latents": noise, "num_inference_steps": args.steps, "output_type": "latent"}
    ways = {
        "plain": lambda: plain(photo, noise[0], args.steps),
        "ours": lambda: ours([PROMPTS], image=photo, **call).faces[0],
    }
    difference = (ways["ours"]() - ways["plain"]()).norm() / ways["plain"]().norm()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(times["plain"], times["ours"], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    print(f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds of {args.steps} steps")
    print(f"relative difference of the latents: {difference:.1e}")
    print(", ".join(f"{name}: {statistics.median(laps):.2f} s" for name, laps in times.items()))
    print(f"speed relative to the plain implementation: median {median:.3f}, quartiles {low:.3f} to {high:.3f}")


def build() -> "tuple[CubeDiffPipeline, Plain]":
    """The pipeline and the plain implementation with the same weights."""
    tiny = CubeDiffPipeline.from_pretrained(MODEL)
    config = {key: value for key, value in tiny.unet.config.items() if not key.startswith("_")}
    torch.manual_seed(0)
    networks = [UNet2DConditionModel(**config | {"in_channels": 7}).eval() for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    vae = AutoencoderKL.from_pretrained(MODEL, subfolder="vae", torch_dtype=torch.float32).eval()
    components = tiny.components | {"unet": networks[0], "scheduler": sd_scheduler()}
    pipeline = CubeDiffPipeline(**components, **OPENCUBEDIFF)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, Plain(networks[1], vae, tiny, sd_scheduler())


class Plain:
    """Sampling with stock components, as the public checkpoints' implementation does it."""

    def __init__(
        self, unet: UNet2DConditionModel, vae: AutoencoderKL, tiny: CubeDiffPipeline, scheduler: DDIMScheduler
    ) -> None:
        self.unet, self.vae, self.tokenizer, self.text_encoder = unet, vae, tiny.tokenizer, tiny.text_encoder
        self.scheduler = scheduler
        self.front_hidden = False
        processors = unet.attn_processors
        unet.set_attn_processor({name: self.attend if ".attn1." in name else processors[name] for name in processors})

    def attend(self, attn: nn.Module, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        """Attention over the tokens of each panorama; those of the front face are no keys where they are hidden."""
        tokens = hidden_states.view(-1, 6 * hidden_states.shape[1], hidden_states.shape[2])
        query, key, value = (
            layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        mask = None
        if self.front_hidden:
            mask = torch.zeros(2 * tokens.shape[1:2])
            mask[:, : hidden_states.shape[1]] = -torch.inf
        mixed = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
        return attn.to_out[0](mixed).view_as(hidden_states)

    def encode(self, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids)[0]

    @torch.no_grad()
    def __call__(self, photo: Tensor, latents: Tensor, steps: int) -> Tensor:
        text, nothing = self.encode(PROMPTS), self.encode([""] * 6)
        front = self.vae.encode(photo[None]).latent_dist.mean[0] * self.vae.config.scaling_factor
        mask = torch.zeros_like(latents[:, :1])
        mask[0] = 1
        size = latents.shape[-1]
        positions = torch.stack(yaw_pitch(corner_directions(size)), 1).float() / (2 * torch.pi) + 0.5
        self.scheduler.set_timesteps(steps)
        latents = latents.clone()
        for timestep in self.scheduler.timesteps:
            latents[0] = front
            inputs = torch.cat([latents, positions, mask], 1)
            self.front_hidden = True
            unconditional = self.unet(inputs, timestep, nothing).sample
            self.front_hidden = False
            conditional = self.unet(inputs, timestep, text).sample
            guided = unconditional + 3.5 * (conditional - unconditional)
            latents = self.scheduler.step(guided, timestep, latents).prev_sample
        latents[0] = front
        return latents


def corner_directions(size: int) -> Tensor:
    """Directions (6, size, size, 3) of samples of 95° faces that include their corners."""
    wide = 2 * torch.atan(torch.tan(torch.deg2rad(torch.tensor(95.0 / 2, dtype=torch.float64))) * size / (size - 1))
    return face_directions(size, float(torch.rad2deg(wide)), torch.float64)


if __name__ == "__main__":
    main()
