"""What a pipeline call takes and returns: its output types, its batch size, its callback.

Legend: B panoramas, 6 faces, C latent channels, h w latent size, S face size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from cubediff.geometry.panoramas import Panorama
from cubediff.geometry.photos import Photo
from cubediff.models.backbone import Backbone, Conditioning

StepCallback = Callable[[DiffusionPipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
Float32Array = npt.NDArray[np.float32]
Panoramas = list[PIL.Image.Image] | Tensor | Float32Array | None
Faces = list[list[PIL.Image.Image]] | Tensor | Float32Array
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
NON_FINITE = "{} are NaN or infinite: use float32 or bfloat16 if the model runs in float16, or another model"


@dataclass
class CubeDiffOutput(BaseOutput):
    """The result of a pipeline call.

    The types of the attributes depend on the call's `output_type`, which a type checker does not follow.

    Attributes:
        panoramas: PIL images; with output_type="pt" a float tensor (B, 3, H, 2H) in [−1, 1]; with "np" an array
            (B, H, 2H, 3) in [0, 1]; with "latent" None.
        faces: Six PIL images per panorama; with output_type="pt" a float tensor (B, 6, 3, S, S) in [−1, 1]; with "np"
            an array (B, 6, S, S, 3) in [0, 1]; with "latent" latents (B, 6, C, h, w).
    """

    panoramas: Any
    faces: Any


class StepEnd:
    """Calls `callback_on_step_end` with the tensors that it asks for, and returns the sample.

    Raises:
        ValueError: If it asks for tensors that are not among those offered.
    """

    def __init__(self, function: StepCallback | None, inputs: Sequence[str], offered: Sequence[str]) -> None:
        if unknown := set(inputs) - set(offered):
            raise ValueError(f"callback_on_step_end_tensor_inputs={sorted(unknown)}: use {', '.join(offered)}")
        self.function, self.inputs = function, inputs

    def __call__(self, pipeline: DiffusionPipeline, step: int, t: Tensor, sample: Tensor) -> Tensor:
        if self.function is None:
            return sample
        tensors = {"latents": sample}
        returned = self.function(pipeline, step, t, {key: tensors[key] for key in self.inputs})
        return returned.get("latents", sample)


def check_call(output_type: str, num_inference_steps: int, num_images_per_prompt: int, eta: float) -> None:
    """Raises ValueError for an argument of a call that is out of range."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type={output_type!r}: use one of {', '.join(OUTPUT_TYPES)}")
    for name, value in {
        "num_inference_steps": num_inference_steps, "num_images_per_prompt": num_images_per_prompt
    }.items():  # fmt: skip
        if not _is_count(value):
            raise ValueError(f"{name}={value!r}: expected an integer from 1")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: expected a number from 0 to 1")


def _is_count(value: Any) -> bool:
    try:
        return index(value) >= 1
    except TypeError:
        return False


def panorama_size(height: int | None, width: int | None, panorama_height: int | None) -> int | None:
    """The panorama's height that a call's arguments ask for, in pixels; None if they leave it open."""
    given = {
        "height": height,
        "panorama_height": panorama_height,
        "half of width": None if width is None else width / 2,
    }
    sizes = {name: size for name, size in given.items() if size is not None}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{sizes}: a panorama is twice as wide as it is high; pass height={min(sizes.values()):.0f} alone"
        )
    if not sizes:
        return None
    size = next(iter(sizes.values()))
    if size < 1 or size != int(size):
        raise ValueError(f"{sizes}: expected a positive number of pixels, and an even width")
    return int(size)


def latent_size(backbone: Backbone, face_size: int | None, latents: Tensor | None) -> int:
    """Height and width of the latents for faces of `face_size` pixels; without it that of `latents` or of the model."""
    if face_size is None:
        return backbone.sample_size if latents is None else latents.shape[-1]
    size, rest = divmod(face_size, backbone.latent_scale)
    if size < 1 or rest:
        raise ValueError(
            f"face_size={face_size}: expected a positive multiple of {backbone.latent_scale}, the pixels of a latent "
            "pixel"
        )
    if latents is not None and latents.shape[-1] != size:
        raise ValueError(
            f"face_size={face_size} and latents of size {latents.shape[-1]}, which are for faces of "
            f"{latents.shape[-1] * backbone.latent_scale} pixels: pass one of the two"
        )
    return size


def batch_size(
    prompts: int,
    negative: int,
    photos: list[list[Photo | Panorama]] | None,
    latents: Tensor | None,
    generator: torch.Generator | list[torch.Generator] | None,
    per_prompt: int,
) -> int:
    """The number of panoramas to generate, of those of each argument."""
    sizes = {"prompt": prompts}
    if negative > 1:
        sizes["negative_prompt"] = negative
    if photos is not None:
        sizes["image"] = len(photos)
    if latents is not None and per_prompt == 1:
        sizes["latents"] = len(latents)
    batch = max(sizes.values())
    if any(size not in (1, batch) for size in sizes.values()):
        raise ValueError(f"the numbers of panoramas disagree: {sizes}; pass one of each, or the same number")
    if latents is not None and len(latents) not in (1, batch * per_prompt):
        raise ValueError(
            f"{len(latents)} latents for {batch * per_prompt} panoramas: pass one for each, or one for all"
        )
    if isinstance(generator, list) and len(generator) != batch * per_prompt:
        raise ValueError(
            f"{len(generator)} generators for {batch * per_prompt} panoramas: pass one for each, or one for all"
        )
    return batch * per_prompt


RowsT = TypeVar("RowsT", Tensor, Conditioning)


def repeat_rows(values: RowsT, batch: int) -> RowsT:
    """Repeats the rows of a tensor or conditioning to `batch` rows; equal rows are adjacent."""
    if isinstance(values, Conditioning):
        return values.map(lambda tensor: repeat_rows(tensor, batch))
    return values.repeat_interleave(batch // len(values), 0)


def to_numpy(images: Tensor) -> Float32Array:
    """Arrays (…, H, W, 3) in [0, 1] of images (…, 3, H, W) in [−1, 1]."""
    array: Float32Array = (images / 2 + 0.5).clamp(0, 1).movedim(-3, -1).float().cpu().numpy()
    return array
