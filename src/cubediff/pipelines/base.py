"""The pipeline of every backbone: panoramas from text, from photos, or from both (CubeDiff, sections 4.3 and 5).

Legend: B panoramas, 6 faces, C latent channels, P position channels, h w latent size, S face size.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from safetensors import SafetensorError
from torch import Tensor

from cubediff.diffusion.guidance import Branch, Guidance, make_guidance, warn_untrained_conditions
from cubediff.diffusion.overlap_average import OverlapAverage
from cubediff.diffusion.schedulers import sampling_scheduler
from cubediff.geometry.gains import correct_gains
from cubediff.geometry.panoramas import Panorama
from cubediff.geometry.photos import Photo, paste_photos, project_photos
from cubediff.geometry.projections import cube_to_equirect
from cubediff.images.writing import to_pil
from cubediff.models.backbone import Backbone, Conditioning
from cubediff.models.finite import NonFiniteWeightsError, check_finite
from cubediff.models.inputs import hidden_faces, input_channels, latent_mask, positions
from cubediff.models.precision import cast_weights_
from cubediff.pipelines.call import (
    NON_FINITE,
    CubeDiffOutput,
    Faces,
    Panoramas,
    StepCallback,
    StepEnd,
    batch_size,
    check_call,
    latent_size,
    panorama_size,
    repeat_rows,
    to_numpy,
)
from cubediff.pipelines.cards import PipelineWithCard
from cubediff.pipelines.completeness import complete_weights
from cubediff.pipelines.denoising import BranchInputs, Condition, DenoisingInputs, denoise
from cubediff.pipelines.editing import Edits, photo_coverage
from cubediff.pipelines.folders import FORMAT, FORMAT_VERSION, check_folder, only_variant
from cubediff.pipelines.prompts import Image, Prompts, photos_by_panorama
from cubediff.pipelines.text import branch_texts, encode_prompts
from cubediff.pipelines.trust import check_components

PipelineT = TypeVar("PipelineT", bound="CubePipeline")
_SETTINGS = "_cubediff_settings"  # attribute of a network: the settings of the pipeline that used it last


class CubePipeline(PipelineWithCard, ABC):
    """A diffusers pipeline that generates panoramas with any `Backbone`.

    A subclass lists its components and settings in `__init__`, where diffusers looks for them, calls `register`, and
    returns its backbone. Components are stock models: the pipeline inflates them whenever it is built or called, so
    that a folder can never be used uninflated.
    """

    _callback_tensor_inputs = ("latents",)
    _interrupt = False

    @property
    def interrupt(self) -> bool:
        """Whether a callback has ended the sampling."""
        return self._interrupt

    @property
    @abstractmethod
    def backbone(self) -> Backbone:
        """The current components; `pipeline.vae = vae` replaces one of them."""

    def register(self, components: Mapping[str, object], settings: Mapping[str, object]) -> None:
        """Registers components and settings, and inflates the components.

        Args:
            components: Models, tokenizers and the scheduler by their diffusers names.
            settings: The content of model_index.json: at least `fov` (of the faces, degrees), `position_encoding` and
                `position_samples` (see `position_map`), `image_drop` (see `Objective.loss`) and `drops`, the shares of
                training panoramas without text, without image, and without both, or None if unknown. Optional:
                `photo_encoding`, "cube" (the default: the six faces that a photo lies on are encoded together) or
                "face" (each is encoded alone); `average_overlap`, whether calls average overlaps unless they say it.

        Raises:
            ValueError: If a setting is out of range, or a weight is not finite.
        """
        check_finite(components)
        if settings["image_drop"] not in ("noise", "attention"):
            raise ValueError(f"image_drop={settings['image_drop']!r}: use 'noise' or 'attention'")
        photo_encoding = settings.get("photo_encoding", "cube")
        if photo_encoding not in ("cube", "face"):
            raise ValueError(f"photo_encoding={photo_encoding!r}: use 'cube' or 'face'")
        average = settings.get("average_overlap", False)
        if not isinstance(average, bool):
            raise ValueError(f"average_overlap={average!r}: use true or false")
        self.register_modules(**components)
        self.register_to_config(**settings, **{FORMAT: FORMAT_VERSION})
        backbone = self.backbone
        backbone.inflate_()
        setattr(backbone.network, _SETTINGS, dict(settings))

    def enable_vae_slicing(self) -> None:
        """Encodes and decodes face by face, also small faces; large ones are divided in any case.

        Results differ by rounding: the GroupNorm statistics remain those of all faces. See
        `cubediff.models.chunked_vae`.
        """
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Encodes and decodes as many faces at once as fit."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Encodes and decodes faces that are larger than the autoencoder's `sample_size` strip by strip.

        It takes longer and less of the device's memory; results differ by rounding. See `cubediff.models.chunked_vae`.
        """
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Encodes and decodes whole faces."""
        self.vae.disable_tiling()

    def fuse_qkv_projections(self) -> None:
        """Makes one matrix product of the projections to queries, keys and values; attention still spans six faces."""
        self.backbone.fuse_projections(True)

    def unfuse_qkv_projections(self) -> None:
        """Separates the projections again, as before saving the pipeline."""
        self.backbone.fuse_projections(False)

    def cast_weights(self, dtype: torch.dtype) -> None:
        """Casts the weights of all models for calls without autocast; GroupNorms over six faces keep theirs."""
        backbone = self.backbone
        plain_encoder = self.config.get("photo_encoding") == "face"  # its norms are plain while it encodes photos
        for name, module in backbone.components().items():
            cast_weights_(module, dtype, keep_norms=name == backbone.network_name or not plain_encoder)

    @staticmethod
    def complete_settings(
        network: ModelMixin, given: Mapping[str, object], defaults: Mapping[str, object]
    ) -> dict[str, object]:
        """Settings in which None is replaced by the setting of the pipeline that used a network last, or a default.

        Args:
            network: The trained network.
            given: The arguments of the pipeline's `__init__`.
            defaults: The settings for a network that no pipeline has used.
        """
        known = {**defaults, **getattr(network, _SETTINGS, {})}
        return {name: known[name] if value is None else value for name, value in given.items()}

    def positions(self, size: int, device: torch.device) -> Tensor:
        """The position channels (6, P, h, h) of latents of height h = `size`."""
        config = self.config
        return positions(size, config.fov, config.position_encoding, config.position_samples, device)

    # ------------------------------------------------------------------------------------------ generation

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts | None = None,
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
        truncate_prompts: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        negative_prompt: Prompts | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        return_dict: bool = True,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        face_size: int | None = None,
        height: int | None = None,
        width: int | None = None,
        average_overlap: bool | None = None,
        guidance_start: float = 0.0,
        guidance_stop: float = 1.0,
        sequential_guidance: bool = False,
        gain_correction: bool = False,
    ) -> CubeDiffOutput | Any:
        """Generates panoramas.

        Args:
            prompt: A text, or a dict from face name to text; a list of texts, of dicts or of six texts each (in the
                order of `FACES`), one entry per panorama; or None for no text.
            image: A `Photo`, which has a field of view and a direction; or, looking straight ahead, a PIL image, the
                path of a file, a float tensor (3, H, W) in [−1, 1] or an array (H, W, 3), of uint8 or of floats in
                [0, 1]. A list of images is a batch, one per panorama, and so are a tensor (B, 3, H, W) and an array
                (B, H, W, 3). Several photos of one panorama are a list of `Photo`; those of several panoramas are
                lists of images in a list. A `Panorama` is edited: the result has its size and its kept pixels; a list
                of `Panorama` is a batch, a `Panorama` with a `Photo` or several is for one. None for no image.
            num_inference_steps: Denoising steps, from 1 to the number of training timesteps.
            guidance_scale: Guidance scale; 1 and below turns guidance off. The unconditional branch has neither text
                nor image.
            image_guidance_scale: A guidance scale for the image alone; guidance_scale is then the text's
                (InstructPix2Pix, arXiv 2211.09800, equation 3). Three branches if both are given.
            guidance_rescale: Share in [0, 1] of "Common Diffusion Noise Schedules…" (arXiv 2305.08891), section 3.4.
            paste_image: Keep the photos' own pixels instead of the autoencoder's reconstruction; around
                them, the generated colours are adapted over two latent pixels, see `paste_photos`.
            panorama_height: As `height`.
            generator: One generator, or one per generated panorama.
            latents: Unit noise (B, 6, C, h, w); its height and width set the face size.
            output_type: "pil", "np", "pt" or "latent".
            truncate_prompts: Truncate prompts that are too long for the text encoder, with a warning that quotes what
                is ignored; False raises instead.
            callback_on_step_end: Called after every denoising step with the pipeline, the number of the step, its
                timestep and {"latents": the sample (B, 6, C, h, w)}; returns the dict, whose sample is used. A callback
                that sets `pipeline._interrupt` ends the sampling after its step.
            callback_on_step_end_tensor_inputs: The keys of that dict, among `_callback_tensor_inputs`.
            negative_prompt: In place of no text in the predictions that guidance leads away from; as `prompt`, or "".
            num_images_per_prompt: Panoramas to generate for each prompt and photo; those of a prompt are adjacent.
            eta: Noise that DDIM adds in each step, from 0 to 1 (arXiv 2010.02502, equation 16); other schedulers ignore
                it.
            timesteps, sigmas: The steps themselves, for DDIM and for schedulers that take them.
            return_dict: False returns the tuple (panoramas, faces).
            prompt_embeds: In place of `prompt`, its text states: (B, L, D), or (B, 6, L, D) with a text per face.
            negative_prompt_embeds: The same in place of `negative_prompt`.
            face_size: In pixels, a multiple of the autoencoder's scale; by default the one the model was trained with.
            height, width: Of the panorama, in pixels, width = 2 · height; by default its height is twice the face size.
            average_overlap: Average the predicted clean latents where faces see the same directions, at every step, so
                that the panorama has no edges between faces; see `OverlapAverage`. None: as the model folder says.
            guidance_start, guidance_stop: Fractions of the steps in [0, 1] between which guidance applies (arXiv
                2404.07724), as in diffusers' guiders. In the other steps the network predicts the conditional branch
                alone, which saves the time of the others.
            sequential_guidance: Predict the branches of guidance one after the other: the activations of one branch
                are in memory at a time. Results differ by rounding.
            gain_correction: Multiply the decoded faces by gains that make their colours agree where they overlap, see
                `correct_gains`; faces that show a photo keep their colours.

        Returns:
            Panoramas and faces.

        Raises:
            ValueError: If an argument is out of range, or the numbers of panoramas differ.
            FloatingPointError: If a latent is not finite after a step, or a pixel at the end.
        """
        check_call(output_type, num_inference_steps, num_images_per_prompt, eta)
        callback = StepEnd(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        scheduler = sampling_scheduler(self.scheduler, num_inference_steps, timesteps, sigmas)
        self._interrupt = False
        backbone = self.backbone
        backbone.inflate_()  # again: pipeline.unet = another and enable_attention_slicing() leave an uninflated network
        photos = None if image is None else photos_by_panorama(image)
        edits = Edits(photos, panorama_size(height, width, panorama_height), output_type)
        prompts, embeds = (prompt, negative_prompt), (prompt_embeds, negative_prompt_embeds)
        own, negative = encode_prompts(backbone, prompts, embeds, truncate_prompts)
        batch = batch_size(len(own), len(negative), photos, latents, generator, num_images_per_prompt)
        has_text = prompt is not None or prompt_embeds is not None
        has_photo = any(isinstance(each, Photo) for own in photos or () for each in own)
        interval = guidance_start, guidance_stop
        guidance = make_guidance(has_text, has_photo, guidance_scale, image_guidance_scale, guidance_rescale, interval)
        warn_untrained_conditions(guidance.branches, self.config.drops)
        noise = self._noise(backbone, batch, latent_size(backbone, face_size, latents), latents, generator)
        texts = branch_texts(guidance, repeat_rows(own, batch), repeat_rows(negative, batch))
        condition = self._condition(backbone, photos, noise)
        fixed = self._fixed_gains(condition) if gain_correction else None
        inputs = self._inputs(scheduler, guidance, texts, condition, average_overlap, sequential_guidance)
        with backbone.constant_conditioning():
            sample = denoise(backbone, noise, condition, inputs, {"generator": generator, "eta": eta},
                             self.progress_bar, partial(callback, self), lambda: self.interrupt)  # fmt: skip
        output = self._decoded(sample, fixed, condition if paste_image else None, edits, output_type)
        self.maybe_free_model_hooks()
        return CubeDiffOutput(*output) if return_dict else output

    def _fixed_gains(self, condition: Condition) -> Tensor:
        """The faces (B, 6) whose gain is not corrected."""
        if self.config.fov <= 90:
            raise ValueError(f"gain_correction=True with faces of {self.config.fov:g}°, which do not overlap: use "
                             "gain_correction=False, or a model whose fov is above 90°")  # fmt: skip
        return condition.mask.flatten(2).amax(2).bool()

    def _decoded(
        self, sample: Tensor, fixed: Tensor | None, pasted: Condition | None, edits: Edits, output_type: str
    ) -> tuple[Panoramas, Faces]:
        """Panoramas and faces of latents: with the pixels of `pasted` where it has photos, and with corrected gains if
        `fixed` (B, 6) says which faces keep theirs."""
        if output_type == "latent":
            return None, sample
        faces = self.backbone.decode(sample)
        if fixed is not None:
            faces = correct_gains(faces / 2 + 0.5, self.config.fov, fixed) * 2 - 1
        if pasted is not None and pasted.pixels is not None and pasted.covered is not None:
            pixels, covered = pasted.pixels.to(faces), pasted.covered.to(faces.device)
            faces = paste_photos(faces, pixels, covered, self.backbone.latent_scale)
        panoramas = cube_to_equirect(faces, edits.height or 2 * faces.shape[-1], self.config.fov, mode="bicubic")
        panoramas = panoramas.clamp(-1, 1)
        if not faces.isfinite().all():
            raise FloatingPointError(NON_FINITE.format("pixels of the decoded faces"))
        panoramas, faces = edits.apply(panoramas, faces, self.config.fov, self.backbone.latent_scale)
        if output_type == "pt":
            return panoramas, faces
        if output_type == "np":
            return edits.with_kept_values(to_numpy(panoramas)), to_numpy(faces)
        return edits.with_profiles(to_pil(panoramas)), [to_pil(six) for six in faces]

    def _noise(
        self,
        backbone: Backbone,
        batch: int,
        size: int,
        latents: Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Tensor:
        """Unit noise (B, 6, C, h, w) with h = `size`."""
        device = self._execution_device
        shape = (batch, 6, backbone.latent_channels, size, size)
        if latents is None:
            return cast(Tensor, randn_tensor(shape, generator=generator, device=device))
        if latents.shape[1:] != shape[1:]:
            raise ValueError(f"expected latents of shape {shape}, got {tuple(latents.shape)}")
        return latents.to(device).float().expand(shape)

    def _condition(self, backbone: Backbone, photos: list[list[Photo | Panorama]] | None, noise: Tensor) -> Condition:
        """The photos as latents, and the mask of the latent pixels that they cover."""
        nothing = torch.zeros_like(noise[:, :, :1])
        if photos is None:
            return Condition(torch.zeros_like(noise), nothing, nothing)
        scale, fov, device = backbone.latent_scale, self.config.fov, noise.device
        pixels, covered = project_photos(photos, noise.shape[-1] * scale, fov)
        mask = latent_mask(covered, scale)
        if (mask.flatten(1).amax(1) == 0).any():
            raise ValueError(
                f"a photo covers, or a Panorama keeps, no {scale} × {scale} pixels of a face: use a photo with a "
                "larger fov, or paint less of the mask white"
            )
        encode = backbone.encode_each if self.config.get("photo_encoding") == "face" else backbone.encode
        covered = photo_coverage(photos, covered, fov)
        rows = (encode(pixels.to(device)), mask.to(device), latent_mask(covered, scale).to(device), pixels, covered)
        return Condition(*(repeat_rows(row, len(noise)) for row in rows))

    def _inputs(
        self,
        scheduler: SchedulerMixin,
        guidance: Guidance,
        texts: Sequence[Conditioning],
        condition: Condition,
        average_overlap: bool | None,
        sequential: bool,
    ) -> DenoisingInputs:
        """The inputs of all calls of the network, which predicts all branches together, or one after the other."""
        branches = list(zip(guidance.branches, texts, strict=True))
        guided = [self._branch_inputs(each, condition) for each in (zip(branches) if sequential else [branches])]
        if average_overlap is None:
            average_overlap = bool(self.config.get("average_overlap"))
        average = None
        if average_overlap:
            average = OverlapAverage(scheduler, self.config.fov, condition.clean, condition.mask.bool())
        return DenoisingInputs(
            scheduler=scheduler,
            guidance=guidance,
            guided=guided,
            unguided=guided[-1] if sequential else self._branch_inputs(branches[-1:], condition),
            positions=self.positions(condition.seen.shape[-1], condition.seen.device),
            average=average,
        )

    def _branch_inputs(self, branches: Sequence[tuple[Branch, Conditioning]], condition: Condition) -> BranchInputs:
        """Inputs of branches and their texts; one without the image has no mask, or does not attend to its faces."""
        mask, by_noise = condition.seen, self.config.image_drop == "noise"
        masks = [mask if branch.image or not by_noise else torch.zeros_like(mask) for branch, _ in branches]
        dropped = torch.tensor([not branch.image for branch, _ in branches])
        hidden = None
        if not by_noise and not all(branch.image for branch, _ in branches):
            hidden = hidden_faces(torch.cat(masks), dropped.repeat_interleave(len(mask)))
        return BranchInputs(
            conditioning=Conditioning.cat(text for _, text in branches),
            clean=torch.cat([condition.clean] * len(branches)),
            mask=torch.cat(masks),
            hidden=hidden,
        )

    # --------------------------------------------------------------------------------------------- loading

    @classmethod
    def from_pretrained(cls: type[PipelineT], pretrained_model_name_or_path: str | Path, **kwargs: object) -> PipelineT:
        """Loads a CubeDiff folder (`run_dir/export/`, or one that save_pretrained wrote) or Hub id; safetensors only.

        All models are loaded in float32, or in `dtype` (`torch_dtype`), independently of the dtype that they are stored
        in. A folder that holds one variant of the weights alone, such as fp16, needs no `variant`.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If the folder names classes of other libraries or has pickled weights only, see
                `check_components`; or with `trust_remote_code=True`.
        """
        folder = Path(check_folder(pretrained_model_name_or_path))
        if kwargs.pop("trust_remote_code", False):
            raise ValueError("trust_remote_code=True: a model folder brings no code; register its class as a backbone")
        if not folder.is_dir():
            folder = Path(cls.download(folder.as_posix(), use_safetensors=True, trust_remote_code=False, **kwargs))
        if "variant" not in kwargs:
            kwargs["variant"] = only_variant(folder)
        kwargs = {**cls.folder_settings(folder), **kwargs}
        packages = {kind.__module__.partition(".")[0] for kind in cls.__mro__ if issubclass(kind, CubePipeline)}
        check_components(folder, cls._get_signature_keys(cls)[0], packages - {"cubediff"})
        try:
            with complete_weights():
                pipeline = super().from_pretrained(str(folder), use_safetensors=True, trust_remote_code=False, **kwargs)
        except NonFiniteWeightsError as error:
            raise NonFiniteWeightsError(f"{folder}/{error}") from None
        except (OSError, SafetensorError) as error:
            cause = str(error).strip().splitlines()[0]
            raise OSError(f"{folder} is incomplete or damaged ({cause}): copy or export the model again") from error
        backbone = pipeline.backbone
        dtype = next(backbone.network.parameters()).dtype
        for module in backbone.frozen_components().values():
            if next(module.parameters()).dtype != dtype:  # transformers models keep their stored dtype by default
                module.to(dtype)
        return cast(PipelineT, pipeline)

    @classmethod
    def folder_settings(cls, folder: Path) -> Mapping[str, object]:
        """Settings of a folder whose model_index.json holds none, because other software wrote it.

        Args:
            folder: A model folder.

        Raises:
            ValueError: If the folder holds no model that generates panoramas.
        """
        return {}

    def check_input_channels(self, channels: int, latent_channels: int, position_encoding: str) -> None:
        """Checks that a network takes latents, position map and mask.

        Args:
            channels: Input channels of the network.
            latent_channels: Channels of the latents.
            position_encoding: See `position_map`.

        Raises:
            ValueError: If the number of input channels is another one.
        """
        expected = input_channels(latent_channels, position_encoding)
        if channels != expected:
            raise ValueError(
                f"expected a CubeDiff network with {expected} input channels (latents, {position_encoding!r} positions "
                f"and mask), got {channels} channels. To start from a 2D model folder use "
                f"{type(self).__name__}.from_2d(folder)"
            )
