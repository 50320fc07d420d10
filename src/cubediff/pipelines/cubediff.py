"""CubeDiffPipeline: panoramas with Stable Diffusion 1.x or 2.x (CubeDiff, sections 4.3 and 5)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.schedulers import SchedulerMixin
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from typing_extensions import Unpack

from cubediff.diffusion.schedulers import convert_scheduler
from cubediff.geometry.conventions import FACE_FOV
from cubediff.models.finite import NonFiniteWeightsError
from cubediff.models.lora import fusable_biases
from cubediff.models.stable_diffusion import StableDiffusion, widen_2d_
from cubediff.pipelines.base import CubePipeline
from cubediff.pipelines.call import CubeDiffOutput
from cubediff.pipelines.folders import FORMAT, check_folder, is_file_path, only_variant, read_config, read_index
from cubediff.pipelines.single_file import PARTS, check_options, load_single_file
from cubediff.pipelines.trust import check_components

__all__ = ["CubeDiffOutput", "CubeDiffPipeline"]


class Settings(TypedDict, total=False):
    """The settings of `CubeDiffPipeline`; see there."""

    fov: float | None
    position_encoding: str | None
    position_samples: str | None
    sync_group_norm: bool | None
    sync_vae_group_norm: bool | None
    cross_attention: str | None
    inflate: str | None
    conv_padding: str | None
    image_drop: str | None
    drops: Sequence[float] | None
    photo_encoding: str | None
    average_overlap: bool | None


DEFAULTS = Settings(
    fov=FACE_FOV,
    position_encoding="uv",
    position_samples="centers",
    sync_group_norm=True,
    sync_vae_group_norm=True,
    cross_attention="per_face",
    inflate="all",
    conv_padding="zeros",
    image_drop="noise",
    drops=None,
    photo_encoding="cube",
    average_overlap=False,
)

# Of the public SD 1.5 checkpoints (`hlicai/cubediff-512-…`), as their code has it.
OPENCUBEDIFF = Settings(
    fov=95.0,  # independently of FACE_FOV
    position_encoding="uv_pi",
    position_samples="corners",
    sync_group_norm=False,
    sync_vae_group_norm=True,
    cross_attention="per_face",
    inflate="all",
    conv_padding="zeros",
    image_drop="attention",
    photo_encoding="face",
    average_overlap=False,
)


class CubeDiffPipeline(CubePipeline, StableDiffusionLoraLoaderMixin):
    """Generates panoramas with a Stable Diffusion UNet that `cubediff train` has trained.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: Components of a Stable Diffusion pipeline; the UNet has input
            channels for latents, positions and mask.
        fov: Field of view of the faces, degrees.
        position_encoding, position_samples: See `position_map`.
        sync_group_norm, cross_attention, inflate, conv_padding: See `inflate_`.
        sync_vae_group_norm: Whether the GroupNorms of the VAE span six faces, as in the paper.
        image_drop: See `Objective.loss`.
        drops: Shares of training panoramas without text, without image, and without both; None if unknown.
        photo_encoding: "cube": the six faces that a photo lies on are encoded together; "face": each is encoded alone,
            by the VAE with plain GroupNorms.
        average_overlap: Whether calls average overlapping faces unless they say it, see `CubePipeline.__call__`.

    A setting that is None is that of the pipeline that used the UNet last, so that `CubeDiffPipeline(**components)`
    keeps them; with a UNet that none has used, it is that of `DEFAULTS`.

    All settings are stored in the model folder.

    Raises:
        ValueError: If the UNet's input channels do not fit, or a setting is out of range.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        fov: float | None = None,
        position_encoding: str | None = None,
        position_samples: str | None = None,
        sync_group_norm: bool | None = None,
        cross_attention: str | None = None,
        inflate: str | None = None,
        conv_padding: str | None = None,
        image_drop: str | None = None,
        drops: Sequence[float] | None = None,
        photo_encoding: str | None = None,
        average_overlap: bool | None = None,
        sync_vae_group_norm: bool | None = None,
    ) -> None:
        super().__init__()
        given = Settings(
            fov=None if fov is None else float(fov),  # a config may hold an integer
            position_encoding=position_encoding,
            position_samples=position_samples,
            sync_group_norm=sync_group_norm,
            sync_vae_group_norm=sync_vae_group_norm,
            cross_attention=cross_attention,
            inflate=inflate,
            conv_padding=conv_padding,
            image_drop=image_drop,
            drops=None if drops is None else list(drops),
            photo_encoding=photo_encoding,
            average_overlap=average_overlap,
        )
        settings = self.complete_settings(unet, given, DEFAULTS)
        encoding = str(settings["position_encoding"])
        self.check_input_channels(unet.config.in_channels, vae.config.latent_channels, encoding)
        self.register(
            {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler},
            settings,
        )

    @property
    def backbone(self) -> StableDiffusion:
        return StableDiffusion(
            self.vae,
            self.text_encoder,
            self.tokenizer,
            self.unet,
            self.config.sync_vae_group_norm,
            sync_group_norm=self.config.sync_group_norm,
            cross_attention=self.config.cross_attention,
            inflate=self.config.inflate,
            conv_padding=self.config.conv_padding,
            fov=self.config.fov,
        )

    @classmethod
    def from_2d(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        scheduler: Mapping[str, object] | None = None,
        variant: str | None = None,
        revision: str | None = None,
        config: str | Path | None = None,
        **options: Unpack[Settings],
    ) -> "CubeDiffPipeline":
        """An untrained CubeDiff on a 2D Stable Diffusion (1.x, 2.x) folder, Hub id or single file.

        On six equal faces its output equals that of the 2D model.

        Args:
            path: A Stable Diffusion folder in the diffusers layout, a Hub id, or a single file in the original layout;
                safetensors only.
            dtype: The dtype of all models.
            scheduler: Settings of the noise schedule to replace, such as prediction_type.
            variant: Of the weights, such as "fp16"; by default the plain ones, or those of a folder's only variant.
            revision: Branch, tag or commit of a Hub id.
            config: The folder or Hub id with the configs and the tokenizer of a single file, which holds weights alone;
                by default the Hub id that diffusers takes for it.
            **options: Settings of the class.

        Raises:
            FileNotFoundError: If there is no such folder or file.
            ValueError: If the weights are pickled, the UNet is not that of a 2D text-to-image model, or a single file
                has no configs that fit.
        """
        check_options(path, config, variant=variant, revision=revision)
        if is_file_path(path):
            components, noise_schedule = load_single_file(path, config, dtype, scheduler or {})
        else:
            path = _checked(path)
            try:
                components = StableDiffusion.load(path, dtype, variant or only_variant(Path(path)), revision)
            except SafetensorError as error:
                raise OSError(f"{path} is incomplete or damaged ({error}): copy the model again") from error
            noise_schedule = DDIMScheduler.from_pretrained(path, subfolder="scheduler", revision=revision)
        widen_2d_(components, path, options.get("position_encoding") or "uv")
        try:
            return cls(**components, scheduler=convert_scheduler(noise_schedule, scheduler or {}), **options)
        except NonFiniteWeightsError as error:
            separator = ": " if is_file_path(path) else "/"
            raise NonFiniteWeightsError(f"{path}{separator}{error}") from None

    @classmethod
    def from_opencubediff(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> "CubeDiffPipeline":
        """`from_pretrained`, which recognises the public SD 1.5 checkpoints; kept for programs that call it."""
        return cls.from_pretrained(path, torch_dtype=dtype)

    @classmethod
    def folder_settings(cls, folder: Path) -> Settings:
        """Recognises the public SD 1.5 checkpoints by their UNet's input channels: latents, u, v and mask.

        Their face order (`FACE_ORDERS["opencubediff"]`) differs from `FACES`, but the UNet identifies a face by its
        position channels alone, so this pipeline takes and returns faces in the order of `FACES`.

        Args:
            folder: A Stable Diffusion folder.

        Raises:
            ValueError: If it holds a 2D model, or one of another kind.
        """
        if is_own(folder):
            return {}
        if is_opencubediff(folder):
            return OPENCUBEDIFF
        kind = read_index(folder).get("_class_name")
        raise ValueError(
            f"{folder} holds a {kind}, which generates no panoramas: use a folder that "
            f"`cubediff train` exported; a 2D Stable Diffusion model is trained with model.pipeline.path={folder}, or "
            f"loaded untrained with {cls.__name__}.from_2d"
        )

    # ------------------------------------------------------------------------------------------------ LoRA

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | dict[str, Tensor],
        adapter_name: str | None = None,
        **kwargs: object,
    ) -> None:
        """Loads LoRA weights: of a run with model.trainable=lora, or any that diffusers loads; safetensors only.

        Loaded into the model that the run started from, its export's adapter gives the exported model, and can be
        scaled (`set_adapters`) or fused (`fuse_lora`).

        Args:
            pretrained_model_name_or_path_or_dict: The export of a run, its `unet_lora/`, another folder or file, a Hub
                id, or a state dict.
            adapter_name: A name for `set_adapters`.
            **kwargs: As for diffusers' Stable Diffusion pipeline.
        """
        with fusable_biases(self.unet):
            super().load_lora_weights(
                pretrained_model_name_or_path_or_dict, adapter_name=adapter_name, use_safetensors=True, **kwargs
            )

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | Path | dict[str, Tensor], **kwargs: object
    ) -> tuple[Mapping[str, object] | None, ...]:
        """Reads LoRA weights, as diffusers does; the names of a run's export lack the prefix of the network."""
        source = pretrained_model_name_or_path_or_dict
        if not isinstance(source, dict) and (adapter := Path(source) / f"{cls.unet_name}_lora").is_dir():
            source = adapter
        weights, *others = super().lora_state_dict(source, **kwargs)
        if any(name.startswith((f"{cls.unet_name}.", f"{cls.text_encoder_name}.")) for name in weights):
            return weights, *others
        return tuple(
            each if each is None else {f"{cls.unet_name}.{name}": value for name, value in each.items()}
            for each in (weights, *others)
        )


def is_own(folder: Path) -> bool:
    """Whether this package wrote a model folder."""
    index = read_index(folder)
    return FORMAT in index or "position_encoding" in index  # the first folders have no version


def stored_settings(folder: Path) -> dict[str, object]:
    """The settings that a model folder holds or implies; none for a 2D model, and for what is no local folder."""
    if not (folder / "model_index.json").is_file():
        return {}
    if is_opencubediff(folder):
        return dict(OPENCUBEDIFF)
    return {name: value for name, value in read_index(folder).items() if name in DEFAULTS}


def is_opencubediff(folder: Path) -> bool:
    """Whether a local folder has the layout of the public SD 1.5 checkpoints."""
    config = folder / "unet" / "config.json"
    return not is_own(folder) and config.is_file() and read_config(config).get("in_channels") == 7


def _checked(path: str | Path) -> str | Path:
    """A Stable Diffusion folder that can be loaded, or a Hub id: what it names as classes is not used."""
    path = check_folder(path)
    if Path(path).is_dir():
        check_components(Path(path), PARTS)
    return path
