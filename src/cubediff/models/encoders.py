"""The frozen ends of latent diffusion: pixels to latents and back, prompts to text states (CubeDiff, section 4.1).

A plain class, not an nn.Module, so that a LightningModule holding it neither trains nor checkpoints it.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from cubediff.models.stable_diffusion import sync_group_norm_

log = logging.getLogger(__name__)


class FrozenEncoders:
    """A VAE whose GroupNorms see all six faces, and a text encoder with its tokenizer; neither is ever trained."""

    _told_truncated = False

    def __init__(self, vae: AutoencoderKL, text_encoder: torch.nn.Module, tokenizer) -> None:
        vae = sync_group_norm_(vae).requires_grad_(False).eval()
        self.vae = vae.to(memory_format=torch.channels_last)  # what convolutions are fastest on, CPU and GPU
        self.text_encoder = text_encoder.requires_grad_(False).eval()
        self.tokenizer = tokenizer

    def to(self, device: torch.device | str) -> "FrozenEncoders":
        self.vae.to(device)
        self.text_encoder.to(device)
        return self

    def release(self) -> None:
        """Gives the models' memory back; they can no longer be used."""
        self.vae.to("meta")
        self.text_encoder.to("meta")

    def fingerprint(self) -> str:
        """Of both models' weights, in float32 (SHA-256, hexadecimal)."""
        return fingerprint(self.vae.state_dict(), self.text_encoder.state_dict())

    @torch.no_grad()
    def encode_faces(self, faces: Float[Tensor, "b 6 3 s s"]) -> Float[Tensor, "b 6 c h w"]:
        """Latents (posterior mean × scaling factor, float32) of faces in [−1, 1]; one panorama at a time."""
        faces = faces.to(self.vae.dtype)
        latents = torch.stack([self.vae.encode(cube).latent_dist.mean for cube in faces])
        return latents.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_faces(self, latents: Float[Tensor, "b 6 c h w"]) -> Float[Tensor, "b 6 3 s s"]:
        """Faces in [−1, 1], float32, of latents; one panorama at a time."""
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        return torch.stack([self.vae.decode(cube).sample for cube in latents]).float().clamp(-1, 1)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str], truncate: bool = False) -> Float[Tensor, "n l d"]:
        """The text encoder's last hidden states. A prompt that does not fit is an error, or cut if `truncate`."""
        limit = self.tokenizer.model_max_length
        prompts = list(prompts)
        for prompt, ids in zip(prompts, self.tokenizer(prompts, verbose=False).input_ids, strict=True):
            if len(ids) > limit:
                told = f"the prompt {prompt[:40]!r}… has {len(ids) - 2} tokens and the text encoder takes {limit - 2}"
                if not truncate:
                    raise ValueError(f"{told}: shorten it, or give one prompt per face")
                if not FrozenEncoders._told_truncated:
                    log.warning("%s: it is cut, as others may be (told once)", told)
                FrozenEncoders._told_truncated = True
        ids = self.tokenizer(prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        return self.text_encoder(sent(ids.input_ids, next(self.text_encoder.parameters()).device))[0]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`, without waiting until it has done what it was asked before."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def fingerprint(*weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of named weights in float32, one model after the other, hexadecimal."""
    digest = hashlib.sha256()
    for model in weights:
        for name, weight in sorted(model.items()):
            digest.update(name.encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
