"""CubeDiffPipeline: panoramas from text, from a photo, or from both (CubeDiff, sections 4.3 and 5).

A diffusers pipeline whose components are stock models; it inflates them itself whenever it is built, so that a folder
can never be used uninflated.

Legend: B panoramas, 6 faces, C latent channels, h w latent size, S face size, L text tokens, D text width.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.schedulers import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from cubediff.diffusion.guidance import guidance_branches, warn_of_the_unknown
from cubediff.diffusion.schedulers import rescheduled
from cubediff.geometry.conventions import FACE_FOV
from cubediff.geometry.photos import faded, known_faces
from cubediff.geometry.projections import cube_to_equirect
from cubediff.images.writing import to_pil
from cubediff.models.encoders import FrozenEncoders
from cubediff.models.inputs import input_channels, latent_mask, positions, seen_faces, unet_input
from cubediff.models.stable_diffusion import inflate_, sync_group_norm_, widen_conv_in_
from cubediff.pipelines.folders import check_folder
from cubediff.pipelines.prompts import Image, Prompt, photos_by_panorama, prompts_by_panorama


@dataclass
class CubeDiffOutput(BaseOutput):
    """`panoramas`: PIL images or a float tensor (B, 3, H, 2H); `faces`: six PIL images each or (B, 6, 3, S, S);
    tensors in [−1, 1]. With output_type="latent" `faces` holds the latents (B, 6, C, h, w) and `panoramas` nothing."""

    panoramas: Any
    faces: Any


class CubeDiffPipeline(DiffusionPipeline):
    """Generates panoramas with a UNet trained by `cubediff.train`.

    fov is the faces' field of view in degrees; position_encoding and position_samples (see `position_map`),
    sync_group_norm, cross_attention and image_drop (see `Objective.loss`) are those the UNet was trained with; drops
    the shares of panoramas that lost their text, their image, and both, where that is known. All are stored in the
    folder.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        fov: float = FACE_FOV,
        position_encoding: str = "uv",
        position_samples: str = "centers",
        sync_group_norm: bool = True,
        cross_attention: str = "per_face",
        image_drop: str = "noise",
        drops: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if image_drop not in ("noise", "attention"):
            raise ValueError(f"image_drop={image_drop!r}: use 'noise' or 'attention'")
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
            position_samples=position_samples,
            sync_group_norm=sync_group_norm,
            cross_attention=cross_attention,
            image_drop=image_drop,
            drops=None if drops is None else list(drops),
        )

    @property
    def encoders(self) -> FrozenEncoders:
        """Of the components as they are now: `pipeline.vae = another` is a usual thing to do."""
        return FrozenEncoders(self.vae, self.text_encoder, self.tokenizer)

    def positions(self, size: int, device: torch.device) -> Tensor:
        """The position channels (6, p, h, h) of latents h = `size` high."""
        config = self.config
        return positions(size, config.fov, config.position_encoding, config.position_samples, device)

    # ------------------------------------------------------------------------------------------ loading

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "CubeDiffPipeline":
        """Loads a CubeDiff folder (`run_dir/export/`, or what save_pretrained wrote) or Hub id; safetensors only.

        All models arrive in float32, or in the dtype given, however they are stored.
        """
        path = check_folder(pretrained_model_name_or_path)
        pipeline = super().from_pretrained(str(path), use_safetensors=True, **kwargs)
        pipeline.text_encoder.to(pipeline.unet.dtype)  # which alone would keep the stored dtype by default
        return pipeline

    @classmethod
    def from_2d(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        scheduler: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "CubeDiffPipeline":
        """A CubeDiff that starts from a 2D Stable Diffusion (1.x, 2.x) folder or Hub id, before any training.

        Six equal faces then give what the 2D model gives. `scheduler` replaces settings of its noise schedule, such as
        prediction_type; `options` are those of the class.
        """
        path = check_folder(path)
        load = {"torch_dtype": dtype, "use_safetensors": True}
        vae = AutoencoderKL.from_pretrained(path, subfolder="vae", **load)
        unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", **load)
        channels = input_channels(vae.config.latent_channels, options.get("position_encoding", "uv"))
        if unet.config.in_channels != vae.config.latent_channels:
            raise ValueError(
                f"{path}: its UNet takes {unet.config.in_channels} channels where a 2D text-to-image one takes "
                f"{vae.config.latent_channels}: give a base model, or load a CubeDiff with from_pretrained or "
                "from_opencubediff"
            )
        widen_conv_in_(unet, channels)
        noise_schedule = DDIMScheduler.from_pretrained(path, subfolder="scheduler")
        return cls(
            vae=vae,
            text_encoder=CLIPTextModel.from_pretrained(path, subfolder="text_encoder", **load),
            tokenizer=CLIPTokenizer.from_pretrained(path, subfolder="tokenizer"),
            unet=unet,
            scheduler=rescheduled(noise_schedule, scheduler or {}),
            **options,
        )

    @classmethod
    def from_opencubediff(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> "CubeDiffPipeline":
        """The public SD 1.5 checkpoints (`hlicai/cubediff-512-…`), from a folder or the Hub: a Stable Diffusion folder
        whose UNet takes latents, u, v and mask.

        Their faces come in another order (`FACE_ORDERS["opencubediff"]`), which the UNet cannot tell from ours: it
        knows a face by its position channels alone. So everything at this interface is in FACES order.
        """
        path = check_folder(path)
        load = {"torch_dtype": dtype, "use_safetensors": True}
        unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", **load)
        if unet.config.in_channels != 7:
            raise ValueError(
                f"{path}: its UNet takes {unet.config.in_channels} channels where the public CubeDiff checkpoints take "
                "7: load a 2D model with from_2d, our own with from_pretrained"
            )
        return cls(
            vae=AutoencoderKL.from_pretrained(path, subfolder="vae", **load),
            text_encoder=CLIPTextModel.from_pretrained(path, subfolder="text_encoder", **load),
            tokenizer=CLIPTokenizer.from_pretrained(path, subfolder="tokenizer"),
            unet=unet,
            scheduler=DDIMScheduler.from_pretrained(path, subfolder="scheduler"),
            fov=95.0,  # the checkpoints were trained with 95°, independently of FACE_FOV
            position_encoding="uv_pi",
            position_samples="corners",
            sync_group_norm=False,
            image_drop="attention",
        )

    # --------------------------------------------------------------------------------------- generation

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt | Sequence[Sequence[str] | Mapping[str, str]] | None = None,
        image: Image | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.5,
        image_guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        paste_image: bool = False,
        panorama_height: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        truncate_prompts: bool = False,
    ) -> CubeDiffOutput:
        """Generates panoramas.

        prompt: one text; six in FACES order; a dict from face name to text; a list of such sixes or dicts, one per
            panorama; or None for no text.
        image: what is known of a panorama: a `Photo`, which says where it looks and how wide; a PIL image or float
            tensor (3, H, W) in [−1, 1] for one that looks straight ahead; a list of several of one panorama; a list of
            such lists, one per panorama; a tensor (B, 3, H, W), a front face for each; or None.
        guidance_scale: 1 and below turns guidance off. The other branch has neither text nor image.
        image_guidance_scale: guides towards the image by its own scale, and by guidance_scale from there towards the
            text (InstructPix2Pix, arXiv 2211.09800, equation 3); three branches where there are both.
        guidance_rescale: share in [0, 1] of "Common Diffusion Noise Schedules…" (arXiv 2305.08891), section 3.4.
        paste_image: put the photos' own pixels where they show, instead of what the autoencoder makes of them; they
            fade into the panorama around them over two latent pixels.
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
        photos = None if image is None else photos_by_panorama(image)
        prompts = prompts_by_panorama(prompt)  # B lists of six
        sizes = {"prompt": len(prompts)}
        if photos is not None:
            sizes["image"] = len(photos)
        if latents is not None:
            sizes["latents"] = len(latents)
        batch = max(sizes.values())
        if any(size not in (1, batch) for size in sizes.values()):
            raise ValueError(f"the numbers of panoramas disagree: {sizes}; give one of each, or the same number")
        branches = guidance_branches(prompt is not None, photos is not None, guidance_scale, image_guidance_scale)
        warn_of_the_unknown(branches, self.config.drops)

        noise_shape = (batch, 6, self.vae.config.latent_channels, h, h)
        if latents is None:
            noise = randn_tensor(noise_shape, generator=generator, device=device)
        elif latents.shape[1:] != noise_shape[1:]:
            raise ValueError(f"latents are {tuple(latents.shape)} where {noise_shape} is expected")
        else:
            noise = latents.to(device).float().expand(noise_shape)

        unique = sorted({text for faces in prompts for text in faces} | {""})
        states = dict(zip(unique, self.encoders.encode_text(unique, truncate_prompts), strict=True))
        own = torch.stack([torch.stack([states[t] for t in faces]) for faces in prompts]).expand(batch, -1, -1, -1)
        text = torch.cat([own if branch.text else states[""].expand_as(own) for branch in branches])

        known = torch.zeros_like(noise)  # clean latents of what is known, where mask is 1
        mask = torch.zeros_like(noise[:, :, :1])
        if photos is not None:
            pictures, covered = known_faces(photos, h * scale, self.config.fov)
            own = latent_mask(covered, scale)
            if (own.flatten(1).amax(1) == 0).any():
                raise ValueError(f"a photo covers no {scale} × {scale} pixels of a face: give one with a larger fov")
            mask = own.to(device).expand_as(mask)
            known = self.encoders.encode_faces(pictures.to(device)).expand(noise_shape)
        is_known = mask.bool()
        noised = self.config.image_drop == "noise"
        masks = torch.cat([mask if branch.image or not noised else torch.zeros_like(mask) for branch in branches])
        dropped = torch.tensor([not branch.image for branch in branches], device=device).repeat_interleave(batch)
        seen = None if noised else seen_faces(masks, dropped)
        weights = [branch.weight for branch in branches]
        places = self.positions(h, device)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        accepted = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {"generator": generator} if "generator" in accepted else {}
        sample = noise * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            # What is known stays on its own noise trajectory in the sample; branches with the image see it clean.
            sample = torch.where(is_known, self.scheduler.add_noise(known, noise, t[None]), sample)
            scaled = self.scheduler.scale_model_input(sample, t)
            inputs = torch.where(masks.bool(), torch.cat([known] * len(branches)), torch.cat([scaled] * len(branches)))
            predictions = self._predict(inputs, masks, places, text, t, seen).chunk(len(branches))
            prediction = sum((w * p for w, p in zip(weights, predictions, strict=True)), torch.zeros_like(sample))
            if guidance_rescale and len(branches) > 1:
                spread = predictions[-1].std((1, 2, 3, 4), keepdim=True) / prediction.std((1, 2, 3, 4), keepdim=True)
                prediction = prediction * torch.lerp(torch.ones_like(spread), spread, guidance_rescale)
            sample = self.scheduler.step(prediction, t, sample, return_dict=False, **step_kwargs)[0]
        sample = torch.where(is_known, known, sample)
        if output_type == "latent":
            self.maybe_free_model_hooks()
            return CubeDiffOutput(panoramas=None, faces=sample)
        faces = self.encoders.decode_faces(sample)
        if photos is not None and paste_image:
            faces = torch.lerp(faces, pictures.to(faces), faded(covered, scale).to(faces))
        panoramas = cube_to_equirect(faces, panorama_height or 2 * faces.shape[-1], self.config.fov, mode="bicubic")
        panoramas = panoramas.clamp(-1, 1)
        self.maybe_free_model_hooks()
        if output_type == "pt":
            return CubeDiffOutput(panoramas=panoramas, faces=faces)
        return CubeDiffOutput(panoramas=to_pil(panoramas), faces=[to_pil(six) for six in faces])

    def _predict(
        self, latents: Tensor, mask: Tensor, places: Tensor, text: Tensor, t: Tensor, seen: Tensor | None
    ) -> Tensor:
        inputs = unet_input(latents, mask, places).to(self.unet.dtype)
        states = text.flatten(0, 1).to(self.unet.dtype)
        hidden = {} if seen is None else {"attention_mask": seen}
        output = self.unet(inputs, t, encoder_hidden_states=states, return_dict=False, **hidden)[0]
        return output.unflatten(0, (-1, 6)).float()
