"""The frozen encoders of Stable Diffusion: faces to latents and back, captions to text states (CubeDiff, section 4.1).

Legend: B panoramas, 6 faces, C latent channels, h w latent size, S face size, N captions, L tokens, D text width.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from cubediff.models import chunked_vae
from cubediff.models.backbone import execution_device, no_autocast, to_device_async
from cubediff.models.blocks import keep_memory_format_
from cubediff.models.inflation import sync_group_norm_
from cubediff.utils.text import printable

log = logging.getLogger(__name__)

# Settings that change latents or text states and do not show in the weights.
_VAE_SETTINGS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "norm_num_groups", "act_fn")
_TEXT_SETTINGS = ("hidden_act", "layer_norm_eps", "num_attention_heads")


class FrozenEncoders:
    """A VAE and a text encoder with its tokenizer; neither is trained.

    A plain class, not an nn.Module, so that a LightningModule that holds it neither trains nor checkpoints it.

    Args:
        vae, text_encoder, tokenizer: Components of a Stable Diffusion pipeline.
        sync_group_norm: Synchronize the GroupNorms of the VAE over the six faces of a panorama.
    """

    def __init__(
        self, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, sync_group_norm: bool = True
    ) -> None:
        self.sync_group_norm = sync_group_norm
        keep_memory_format_(vae)
        vae = sync_group_norm_(vae, sync_group_norm).requires_grad_(False).eval()
        self.vae = vae.to(memory_format=torch.channels_last)  # the fastest format for convolutions, on CPU and GPU
        self.text_encoder = text_encoder.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self._warnings_left = 10  # of truncated captions: a dataset may hold millions

    def fingerprint(self) -> str:
        """SHA-256 over both models' weights in float32, and after a dash over their settings and the tokenizer."""
        settings: dict[str, object] = {
            "vae": {key: self.vae.config.get(key) for key in _VAE_SETTINGS},
            "text_encoder": {key: getattr(self.text_encoder.config, key, None) for key in _TEXT_SETTINGS},
            "tokenizer": _describe(self.tokenizer),
        }
        if not self.sync_group_norm:  # not in the fingerprints of earlier versions
            settings["sync_group_norm"] = False
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return f"{fingerprint(self.vae.state_dict(), self.text_encoder.state_dict())}-{digest}"

    @torch.no_grad()
    def encode(self, faces: Float[Tensor, "b 6 3 s s"]) -> Float[Tensor, "b 6 c h w"]:
        """Latents (posterior mean × scaling factor, float32) of faces in [−1, 1]; one panorama at a time.

        Large faces pass through the VAE in chunks, see `chunked_vae`.
        """
        with self._autocast():
            return self._encode(faces)

    @torch.no_grad()
    def encode_each(self, faces: Float[Tensor, "b 6 3 s s"]) -> Float[Tensor, "b 6 c h w"]:
        """Latents as those of `encode`, but each face is encoded as the stock VAE does."""
        sync_group_norm_(self.vae, enabled=False)
        try:
            return self._encode(faces)
        finally:
            sync_group_norm_(self.vae, self.sync_group_norm)

    def _encode(self, faces: Float[Tensor, "b 6 3 s s"]) -> Float[Tensor, "b 6 c h w"]:
        faces = faces.to(self.vae.dtype)
        with self._cubes():
            latents = torch.stack([self.vae.encode(cube).latent_dist.mean for cube in faces])
        return latents.float() * float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b 6 c h w"]) -> Float[Tensor, "b 6 3 s s"]:
        """Faces in [−1, 1], float32, of latents; one panorama at a time, large faces in chunks."""
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        with self._cubes(), self._autocast():
            return torch.stack([self.vae.decode(cube).sample for cube in latents]).float().clamp(-1, 1)

    def _autocast(self) -> AbstractContextManager[object]:
        """No autocast if the weights have 16 bits: it would cast nothing but the input of the resizing, to float32.

        torch's own group norm on CUDA, which runs where norms are not synchronized, needs it.
        """
        has_16_bits = self.vae.dtype in (torch.bfloat16, torch.float16)
        is_needless = has_16_bits and self.sync_group_norm
        return no_autocast(execution_device(self.vae)) if is_needless else nullcontext()

    @contextmanager
    def _cubes(self) -> Iterator[None]:
        """Within it the VAE takes the six faces of a panorama together, in the chunks of `chunked_vae`."""
        vae = self.vae
        sliced, vae.use_slicing = vae.use_slicing, False  # a slice is divided in `chunked_vae`
        vae._encode = partial(chunked_vae.encode, vae, sliced=sliced)
        vae._decode = lambda latents: DecoderOutput(sample=chunked_vae.decode(vae, latents, sliced))
        try:
            yield
        finally:
            vae.use_slicing = sliced
            del vae._encode, vae._decode

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str], truncate: bool = False) -> Float[Tensor, "n l d"]:
        """The text encoder's last hidden states.

        Raises:
            ValueError: If a caption has more tokens than the text encoder takes and `truncate` is false.
        """
        limit = self.tokenizer.model_max_length
        captions = list(captions)
        for caption, ids in zip(captions, self.tokenizer(captions, verbose=False).input_ids, strict=True):
            if len(ids) > limit:
                self._too_long(caption, ids, truncate)
        ids = self.tokenizer(captions, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        states: Tensor = self.text_encoder(to_device_async(ids.input_ids, execution_device(self.text_encoder)))[0]
        return states

    def _too_long(self, caption: str, ids: Sequence[int], truncate: bool) -> None:
        limit = self.tokenizer.model_max_length
        start = printable(caption[:40])
        message = f"the prompt {start!r}… has {len(ids) - 2} tokens and the text encoder takes {limit - 2}"
        if not truncate:
            raise ValueError(f"{message}: shorten it, or pass one prompt per face")
        if self._warnings_left:
            self._warnings_left -= 1
            lost = printable(self.tokenizer.decode(ids[limit - 1 : -1])).strip()
            last = "" if self._warnings_left else " (further truncated prompts are not named)"
            _warn_once(f"{message}: its end is ignored: {lost!r}{last}")


@lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def fingerprint(*state_dicts: Mapping[str, Tensor]) -> str:
    """SHA-256 of named weights in float32, one state dict after the other, hexadecimal."""
    digest = hashlib.sha256()
    for weights in state_dicts:
        for name, weight in sorted(weights.items()):
            digest.update(name.encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def same_fingerprint(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same components; the first ones covered the weights only."""
    # strict=False: the first fingerprints lack the second part.
    return all(a == b for a, b in zip(one.split("-"), other.split("-"), strict=False))


def _describe(tokenizer: CLIPTokenizer) -> dict[str, object]:
    """What the token ids of a caption depend on: the vocabulary, and how its own words are merged from letters."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    words = sorted({token.removesuffix("</w>") for token in vocabulary if re.fullmatch("[a-z]+(</w>)?", token)})
    return {
        "vocabulary": sorted(vocabulary.items()),
        "words": tokenizer(words, verbose=False).input_ids,
        "max_length": tokenizer.model_max_length,
        "padding": tokenizer.pad_token,
    }
