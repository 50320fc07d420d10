"""CubeDiffPipeline: panoramas from text, from a photo, or from both (CubeDiff, sections 4.3 and 5).

A diffusers pipeline whose components are stock models; it inflates them itself whenever it is built, so that a folder
can never be used uninflated.

Legend: B panoramas, 6 faces, C latent channels, h w latent size, S face size, L text tokens, D text width.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.schedulers import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from cubediff.conditions import Photo, Prompt, front_photos, prompts_by_panorama
from cubediff.encoders import FrozenEncoders
from cubediff.geometry import cube_to_equirect
from cubediff.inflate import inflate_, sync_group_norm_, widen_conv_in_
from cubediff.objective import front_mask, input_channels, unet_input


@dataclass
class CubeDiffOutput(BaseOutput):
    """`panoramas`: PIL images or a float tensor (B, 3, H, 2H); `faces`: six PIL images each or (B, 6, 3, S, S);
    tensors in [−1, 1]. With output_type="latent" `faces` holds the latents (B, 6, C, h, w) and `panoramas` nothing."""

    panoramas: Any
    faces: Any


class CubeDiffPipeline(DiffusionPipeline):
    """Generates panoramas with a UNet trained by `cubediff.train`.

    fov is the faces' field of view in degrees; position_encoding, sync_group_norm and cross_attention are those the
    UNet was trained with. All four are stored in the folder.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        fov: float = 95.0,
        position_encoding: str = "uv",
        sync_group_norm: bool = True,
        cross_attention: str = "per_face",
    ) -> None:
        super().__init__()
        expected = input_channels(vae.config.latent_channels, position_encoding)
        if unet.config.in_channels != expected:
            raise ValueError(
                f"no CubeDiff UNet: it takes {unet.config.in_channels} input channels where latents, "
                f"{position_encoding!r} positions and mask make {expected}. To start from a 2D Stable Diffusion "
                "folder use CubeDiffPipeline.from_2d(folder)"
            )
        inflate_(unet, sync_group_norm, cross_attention)
        sync_group_norm_(vae)
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.register_to_config(
            fov=fov,
            position_encoding=position_encoding,
            sync_group_norm=sync_group_norm,
            cross_attention=cross_attention,
        )

    @property
    def encoders(self) -> FrozenEncoders:
        """Of the components as they are now: `pipeline.vae = another` is a usual thing to do."""
        return FrozenEncoders(self.vae, self.text_encoder, self.tokenizer)

    # ------------------------------------------------------------------------------------------ loading

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "CubeDiffPipeline":
        """Loads a CubeDiff folder (`run_dir/export/`, or what save_pretrained wrote) or Hub id; safetensors only.

        All models arrive in float32, or in the dtype given, however they are stored.
        """
        _check_folder(pretrained_model_name_or_path)
        pipeline = super().from_pretrained(str(pretrained_model_name_or_path), use_safetensors=True, **kwargs)
        pipeline.text_encoder.to(pipeline.unet.dtype)  # which alone would keep the stored dtype by default
        return pipeline

    @classmethod
    def from_2d(cls, path: str | Path, dtype: torch.dtype = torch.float32, **options: Any) -> "CubeDiffPipeline":
        """A CubeDiff that starts from a 2D Stable Diffusion (1.x, 2.x) folder or Hub id, before any training.

        Six equal faces then give what the 2D model gives. `options` are those of the class: fov, position_encoding,
        sync_group_norm, cross_attention.
        """
        _check_folder(path)
        load = {"torch_dtype": dtype, "use_safetensors": True}
        vae = AutoencoderKL.from_pretrained(path, subfolder="vae", **load)
        unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", **load)
        channels = input_channels(vae.config.latent_channels, options.get("position_encoding", "uv"))
        if unet.config.in_channels != vae.config.latent_channels:
            raise ValueError(
                f"{path}: its UNet takes {unet.config.in_channels} channels where a 2D text-to-image one takes "
                f"{vae.config.latent_channels}: give a base model, or load a CubeDiff with from_pretrained"
            )
        return cls(
            vae=vae,
            text_encoder=CLIPTextModel.from_pretrained(path, subfolder="text_encoder", **load),
            tokenizer=CLIPTokenizer.from_pretrained(path, subfolder="tokenizer"),
            unet=widen_conv_in_(unet, channels),
            scheduler=DDIMScheduler.from_pretrained(path, subfolder="scheduler"),
            **options,
        )

    # --------------------------------------------------------------------------------------- generation

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt | Sequence[Sequence[str] | Mapping[str, str]] | None = None,
        image: Photo | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.5,
        guidance_rescale: float = 0.0,
        panorama_height: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        truncate_prompts: bool = False,
    ) -> CubeDiffOutput:
        """Generates panoramas.

        prompt: one text; six in FACES order; a dict from face name to text; a list of such sixes or dicts, one per
            panorama; or None for no text.
        image: what the front face shows: a PIL image (its central square is taken) or a float tensor (3, S, S) or
            (B, 3, S, S) in [−1, 1]; or None.
        guidance_scale: 1 and below turns guidance off. The other branch has neither text nor image.
        guidance_rescale: share in [0, 1] of "Common Diffusion Noise Schedules…" (arXiv 2305.08891), section 3.4.
        panorama_height: in pixels; twice the face size by default.
        latents: unit noise (B, 6, C, h, w); its h and w set the face size.
        output_type: "pil", "pt" or "latent".
        truncate_prompts: cut prompts that the text encoder cannot take whole, instead of refusing them.
        """
        if output_type not in ("pil", "pt", "latent"):
            raise ValueError(f"output_type={output_type!r}: use 'pil', 'pt' or 'latent'")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={num_inference_steps}: give at least 1")
        # Anew, because pipeline.unet = another and enable_attention_slicing() leave a UNet that is not inflated.
        inflate_(self.unet, self.config.sync_group_norm, self.config.cross_attention)
        device = self._execution_device
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        h = latents.shape[-1] if latents is not None else self.unet.config.sample_size
        photos = None if image is None else front_photos(image, h * scale).to(device)  # (B, 3, S, S)
        prompts = prompts_by_panorama(prompt)  # B lists of six
        sizes = {"prompt": len(prompts)}
        if photos is not None:
            sizes["image"] = len(photos)
        if latents is not None:
            sizes["latents"] = len(latents)
        batch = max(sizes.values())
        if any(size not in (1, batch) for size in sizes.values()):
            raise ValueError(f"the numbers of panoramas disagree: {sizes}; give one of each, or the same number")

        noise_shape = (batch, 6, self.vae.config.latent_channels, h, h)
        if latents is None:
            noise = randn_tensor(noise_shape, generator=generator, device=device)
        elif latents.shape[1:] != noise_shape[1:]:
            raise ValueError(f"latents are {tuple(latents.shape)} where {noise_shape} is expected")
        else:
            noise = latents.to(device).float().expand(noise_shape)

        unique = sorted({text for faces in prompts for text in faces} | {""})
        states = dict(zip(unique, self.encoders.encode_text(unique, truncate_prompts), strict=True))
        text = torch.stack([torch.stack([states[t] for t in faces]) for faces in prompts]).expand(batch, -1, -1, -1)

        known = torch.zeros_like(noise)  # clean latents of what is known, where mask is 1
        mask = torch.zeros_like(noise[:, :, :1])
        if photos is not None:
            known = self._encode_front(photos).expand(noise_shape)
            mask = front_mask(noise)
        is_known = mask.bool()
        guided = guidance_scale > 1 and (prompt is not None or photos is not None)
        if guided:  # the branch without text and image first
            text = torch.cat([states[""].expand_as(text), text])
            mask = torch.cat([torch.zeros_like(mask), mask])

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        accepted = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {"generator": generator} if "generator" in accepted else {}
        sample = noise * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            # What is known stays on its own noise trajectory in the sample; the conditional branch sees it clean.
            sample = torch.where(is_known, self.scheduler.add_noise(known, noise, t[None]), sample)
            dropped = self.scheduler.scale_model_input(sample, t)
            conditional = torch.where(is_known, known, dropped)
            if guided:
                without, with_all = self._predict(torch.cat([dropped, conditional]), mask, text, t).chunk(2)
                prediction = without + guidance_scale * (with_all - without)
                if guidance_rescale:
                    spread = with_all.std((1, 2, 3, 4), keepdim=True) / prediction.std((1, 2, 3, 4), keepdim=True)
                    prediction = prediction * torch.lerp(torch.ones_like(spread), spread, guidance_rescale)
            else:
                prediction = self._predict(conditional, mask, text, t)
            sample = self.scheduler.step(prediction, t, sample, return_dict=False, **step_kwargs)[0]
        sample = torch.where(is_known, known, sample)
        if output_type == "latent":
            self.maybe_free_model_hooks()
            return CubeDiffOutput(panoramas=None, faces=sample)
        faces = self.encoders.decode_faces(sample)
        panoramas = cube_to_equirect(faces, panorama_height or 2 * faces.shape[-1], self.config.fov, mode="bicubic")
        panoramas = panoramas.clamp(-1, 1)
        self.maybe_free_model_hooks()
        if output_type == "pt":
            return CubeDiffOutput(panoramas=panoramas, faces=faces)
        return CubeDiffOutput(panoramas=to_pil(panoramas), faces=[to_pil(six) for six in faces])

    def _predict(self, latents: Tensor, mask: Tensor, text: Tensor, t: Tensor) -> Tensor:
        inputs = unet_input(latents, mask, self.config.fov, self.config.position_encoding).to(self.unet.dtype)
        states = text.flatten(0, 1).to(self.unet.dtype)
        output = self.unet(inputs, t, encoder_hidden_states=states, return_dict=False)[0]
        return output.unflatten(0, (-1, 6)).float()

    def _encode_front(self, photos: Tensor) -> Tensor:
        """Latents (B, 6, C, h, w) of cubes that show the photo on every face: the VAE's statistics are taken over
        six faces, and the photo is all that is known of the others."""
        return self.encoders.encode_faces(photos[:, None].expand(-1, 6, -1, -1, -1))


def load_pipeline(path: str | Path, **options: Any) -> CubeDiffPipeline:
    """What a training run starts from: a CubeDiff folder as it is, or a new CubeDiff on a 2D Stable Diffusion folder.

    `options` (fov, position_encoding, sync_group_norm, cross_attention) must be those a CubeDiff folder was made with.
    """
    index = Path(path) / "model_index.json"
    if not (index.is_file() and json.loads(index.read_text()).get("_class_name") == CubeDiffPipeline.__name__):
        return CubeDiffPipeline.from_2d(path, **options)
    pipeline = CubeDiffPipeline.from_pretrained(path)
    differing = {k: (v, pipeline.config[k]) for k, v in options.items() if pipeline.config[k] != v}
    if differing:
        told = ", ".join(f"{k} {theirs!r} and not {ours!r}" for k, (ours, theirs) in differing.items())
        raise ValueError(f"{path} was trained with {told}: give the same options, or start from a 2D model")
    return pipeline


def _check_folder(path: str | Path) -> None:
    """An error for what is neither a pipeline folder nor could be a Hub id (`owner/name`)."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(f"{folder}: no model_index.json in it, so no model folder; a training run writes "
                                    "one to its export/")  # fmt: skip
    elif folder.is_absolute() or len(folder.parts) != 2 or folder.parts[0] in (".", ".."):
        raise FileNotFoundError(f"{folder}: no such model folder (looked from {Path.cwd()})")


def to_pil(images: Tensor) -> list[PIL.Image.Image]:
    """PIL images of a float tensor (N, 3, H, W) in [−1, 1]."""
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(pixel) for pixel in pixels]
