"""CubeDiffPipeline: panoramas with Stable Diffusion 1.x or 2.x (CubeDiff, sections 4.3 and 5)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from diffusers import DDIMScheduler
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers import SchedulerMixin
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Unpack

from cubediff.diffusion.schedulers import convert_scheduler
from cubediff.geometry.conventions import FACE_FOV
from cubediff.models.finite import NonFiniteWeightsError
from cubediff.models.stable_diffusion import StableDiffusion
from cubediff.pipelines.base import CubeDiffOutput, CubePipeline
from cubediff.pipelines.folders import check_folder
from cubediff.pipelines.trust import check_components

__all__ = ["CubeDiffOutput", "CubeDiffPipeline"]


class Settings(TypedDict, total=False):
    """The settings of `CubeDiffPipeline`; see there."""

    fov: float
    position_encoding: str
    position_samples: str
    sync_group_norm: bool
    cross_attention: str
    image_drop: str
    drops: Sequence[float] | None


class CubeDiffPipeline(CubePipeline):
    """Generates panoramas with a Stable Diffusion UNet that `cubediff train` has trained.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: Components of a Stable Diffusion pipeline; the UNet has input
            channels for latents, positions and mask.
        fov: Field of view of the faces, degrees.
        position_encoding, position_samples: See `position_map`.
        sync_group_norm, cross_attention: See `inflate_`.
        image_drop: See `Objective.loss`.
        drops: Shares of training panoramas without text, without image, and without both; None if unknown.

    All settings are stored in the model folder.

    Raises:
        ValueError: If the UNet's input channels do not fit, or a setting is out of range.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        vae: ModelMixin,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: ModelMixin,
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
        self.check_input_channels(unet.config.in_channels, vae.config.latent_channels, position_encoding)
        self.register(
            {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler},
            {
                "fov": fov,
                "position_encoding": position_encoding,
                "position_samples": position_samples,
                "sync_group_norm": sync_group_norm,
                "cross_attention": cross_attention,
                "image_drop": image_drop,
                "drops": None if drops is None else list(drops),
            },
        )

    @property
    def backbone(self) -> StableDiffusion:
        return StableDiffusion(
            self.vae,
            self.text_encoder,
            self.tokenizer,
            self.unet,
            self.config.sync_group_norm,
            self.config.cross_attention,
        )

    @classmethod
    def from_2d(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        scheduler: Mapping[str, object] | None = None,
        **options: Unpack[Settings],
    ) -> "CubeDiffPipeline":
        """An untrained CubeDiff on a 2D Stable Diffusion (1.x, 2.x) folder or Hub id.

        On six equal faces its output equals that of the 2D model.

        Args:
            path: A Stable Diffusion folder in the diffusers layout, or Hub id; safetensors only.
            dtype: The dtype of all models.
            scheduler: Settings of the noise schedule to replace, such as prediction_type.
            **options: Settings of the class.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If the weights are pickled, or the UNet is not that of a 2D text-to-image model.
        """
        path = _checked(path)
        try:
            components = StableDiffusion.load_2d(path, dtype, options.get("position_encoding", "uv"))
        except SafetensorError as error:
            raise OSError(f"{path} is incomplete or damaged ({error}): copy the model again") from error
        noise_schedule = DDIMScheduler.from_pretrained(path, subfolder="scheduler")
        try:
            return cls(**components, scheduler=convert_scheduler(noise_schedule, scheduler or {}), **options)
        except NonFiniteWeightsError as error:
            raise NonFiniteWeightsError(f"{path}/{error}") from None

    @classmethod
    def from_opencubediff(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> "CubeDiffPipeline":
        """Loads the public SD 1.5 checkpoints (`hlicai/cubediff-512-…`), from a folder or the Hub.

        They are Stable Diffusion folders whose UNet takes latents, u, v and mask. Their face order
        (`FACE_ORDERS["opencubediff"]`) differs from `FACES`, but the UNet identifies a face by its position channels
        alone, so this pipeline takes and returns faces in the order of `FACES`.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If the weights are pickled, or the UNet does not take 7 input channels.
        """
        path = _checked(path)
        if (channels := StableDiffusion.input_channels(path)) != 7:
            raise ValueError(
                f"{path}: expected a UNet with 7 input channels, as the public CubeDiff checkpoints have, got "
                f"{channels}: load a 2D model with from_2d, a CubeDiff of this package with from_pretrained"
            )
        return cls(
            **StableDiffusion.load(path, dtype),
            scheduler=DDIMScheduler.from_pretrained(path, subfolder="scheduler"),
            fov=95.0,  # of the checkpoints' training, independently of FACE_FOV
            position_encoding="uv_pi",
            position_samples="corners",
            sync_group_norm=False,
            image_drop="attention",
        )


def _checked(path: str | Path) -> str | Path:
    """A Stable Diffusion folder that can be loaded, or a Hub id: what it names as classes is not used."""
    path = check_folder(path)
    if Path(path).is_dir():
        check_components(Path(path), ("vae", "text_encoder", "tokenizer", "unet", "scheduler"))
    return path
