"""The training objective: noisy latents, a clean condition, condition dropout, the loss on everything else
(CubeDiff, sections 4.2 and 4.3).

Legend: B panoramas, 6 faces, C latent channels, P position channels, h w latent size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from diffusers.schedulers import SchedulerMixin
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from cubediff.diffusion.conditions import CONDITIONS as CONDITIONS
from cubediff.diffusion.processes import GaussianDiffusion, NoisingProcess
from cubediff.diffusion.random import Generators, draw, host_generators
from cubediff.diffusion.timesteps import TimestepSampler, UniformTimesteps
from cubediff.diffusion.weightings import LossWeighting, MinSNR
from cubediff.geometry.atlas import needs_border
from cubediff.geometry.conventions import FACE_FOV
from cubediff.geometry.overlap import sample_overlaps
from cubediff.models.backbone import Conditioning, CubeInput, to_device_async
from cubediff.models.inputs import front_mask, hidden_faces


@runtime_checkable
class Predicts(Protocol):
    """The part of a `Backbone` that the objective uses."""

    def predict(self, cube: CubeInput, timesteps: Tensor, conditioning: Conditioning) -> Tensor: ...


@dataclass(frozen=True)
class Example:
    """B panoramas to train on.

    Attributes:
        latents: Clean latents of all faces.
        conditioning: Their text.
        null: The conditioning on no text, of one panorama.
        positions: Position channels.
        clean: Clean latents of the condition, used where `mask` is 1; None for the front face of `latents`.
        mask: 1 on latent pixels of the condition; None for the front face.
        fov: Field of view of the faces, in degrees.
    """

    latents: Float[Tensor, "b 6 c h w"]
    conditioning: Conditioning
    null: Conditioning
    positions: Float[Tensor, "6 p h w"]
    clean: Float[Tensor, "b 6 c h w"] | None = None
    mask: Float[Tensor, "b 6 1 h w"] | None = None
    fov: float = FACE_FOV


@dataclass(frozen=True)
class ConditionDropout:
    """Which panoramas of a batch are trained without their text and without their image."""

    text: Bool[Tensor, " b"]
    image: Bool[Tensor, " b"]

    def to(self, device: torch.device) -> "ConditionDropout":
        """The dropout, which is on the CPU, on a device; nothing waits for the device."""
        return ConditionDropout(to_device_async(self.text, device), to_device_async(self.image, device))

    @property
    def conditions(self) -> Int[Tensor, " b"]:
        """The remaining condition of each panorama, as an index into `CONDITIONS`."""
        return self.image.long() + 2 * self.text.long()


class Losses(NamedTuple):
    """The loss of each panorama, its timestep, and its condition dropout."""

    losses: Float[Tensor, " b"]
    timesteps: Shaped[Tensor, " b"]
    dropout: ConditionDropout


@dataclass(frozen=True)
class Objective:
    """Denoising loss of CubeDiff.

    Attributes:
        drop_text, drop_image, drop_both: Shares of panoramas that are trained without their text, without their image,
            or without both; drawn for each panorama.
        min_snr_gamma: Shorthand for `weighting=MinSNR(gamma)`; None for none.
        offset_noise: Shorthand for `process=GaussianDiffusion(offset_noise)`.
        timesteps: Draws the timesteps; None for uniform ones.
        process: Creates the noising process from the pipeline's scheduler; None for Gaussian diffusion.
        weighting: Weights the losses by timestep; None for equal weights.
        overlap_weight: Weight of `overlap_error`, by which faces err alike where they overlap; 0 for none.

    Raises:
        ValueError: If a value is out of range, or a component is given together with its short form.
    """

    drop_text: float
    drop_image: float
    drop_both: float
    min_snr_gamma: float | None = None
    offset_noise: float = 0.0
    timesteps: TimestepSampler | None = None
    process: Callable[[SchedulerMixin], NoisingProcess] | None = None
    weighting: LossWeighting | None = None
    overlap_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.overlap_weight < 0:
            raise ValueError(f"overlap_weight={self.overlap_weight}: expected 0 (none) or a positive weight")
        shares = (self.drop_text, self.drop_image, self.drop_both)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                f"drop_text, drop_image, drop_both = {shares} must each be at least 0 and add up to at most 1"
            )
        if self.weighting is not None and self.min_snr_gamma is not None:
            raise ValueError("objective has a weighting and min_snr_gamma: set min_snr_gamma=null, or no weighting")
        if self.process is not None and self.offset_noise:
            raise ValueError("objective has a process and offset_noise: set offset_noise=0, or no process")
        GaussianDiffusion(self.offset_noise)  # checks the short forms' ranges
        _ = self._weighting

    @property
    def _weighting(self) -> LossWeighting | None:
        return self.weighting if self.min_snr_gamma is None else MinSNR(self.min_snr_gamma)

    def noising(self, scheduler: SchedulerMixin) -> NoisingProcess:
        """The noising process on the noise schedule of a pipeline's scheduler."""
        return (self.process or GaussianDiffusion(self.offset_noise))(scheduler)

    def sample_dropout(self, count: int, generator: Generators) -> ConditionDropout:
        """Draws the condition dropout of `count` panoramas."""
        u = draw(torch.rand, (count,), generator)
        both = u < self.drop_both
        text = (u >= self.drop_both) & (u < self.drop_both + self.drop_text)
        image = (u >= self.drop_both + self.drop_text) & (u < self.drop_both + self.drop_text + self.drop_image)
        return ConditionDropout(text=both | text, image=both | image)

    def loss(
        self,
        backbone: Predicts,
        process: NoisingProcess,
        example: Example,
        generator: Generators,
        image_drop: str = "noise",
    ) -> Losses:
        """Mean squared error of each panorama over the latent pixels that are not part of its condition.

        All panoramas have the same weight, independently of their condition, so the loss of a batch is the mean.

        Args:
            backbone: Predicts the target.
            process: See `noising`.
            example: The panoramas.
            generator: On the latents' device. With one generator for each panorama its draws do not depend on the
                others in the batch.
            image_drop: How an image is dropped: "noise" (its faces are noised and its mask is 0) or "attention" (it
                stays, and no query attends to its faces). "attention" draws the condition dropout on the CPU, by
                generators of the same seeds; a batch with conditioning photos synchronizes with the device once, to
                read the faces that they lie on.

        Raises:
            ValueError: If `timesteps` or `weighting` returns another shape than (B,).
        """
        latents = example.latents
        by_attention = image_drop == "attention"
        dropout = self.sample_dropout(len(latents), host_generators(generator) if by_attention else generator)
        timesteps = (self.timesteps or UniformTimesteps())(len(latents), process.num_timesteps, generator)
        _check_shape(timesteps, len(latents), "timesteps", self.timesteps)
        noise = process.sample_noise(latents, generator)
        noisy = process.add_noise(latents, noise, timesteps)
        target = process.target(latents, noise, timesteps)
        clean, mask = example.clean, example.mask
        if clean is None or mask is None:
            clean, mask = latents, front_mask(latents)
        hidden = None
        if by_attention:
            hidden = hidden_faces(example.mask, dropout.image)
            dropout = dropout.to(latents.device)
        else:
            mask = mask * (~dropout.image).view(-1, 1, 1, 1, 1)
        cube = CubeInput(noisy, clean, mask, example.positions, hidden)
        prediction = backbone.predict(cube, timesteps, example.conditioning.where(dropout.text, example.null))
        weight = (1 - mask).expand_as(latents)
        error = (prediction - target) * weight
        losses = error.square().flatten(1).sum(1) / weight.flatten(1).sum(1)
        if self.overlap_weight:
            losses = losses + self.overlap_weight * overlap_error(error, example.fov)
        if (weighting := self._weighting) is not None:
            losses = weighting(losses, timesteps, process)
            _check_shape(losses, len(latents), "weighting", weighting)
        return Losses(losses, timesteps, dropout)


def _check_shape(result: object, count: int, key: str, component: object) -> None:
    """Raises ValueError if a component's result is not one value for each of `count` panoramas.

    A scalar, or (B, B) of (B, 1) times (B,), fails much later without the name of the component.
    """
    if isinstance(result, Tensor) and result.shape == (count,):
        return
    got = f"the shape {tuple(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
    named = component if hasattr(component, "__qualname__") else type(component)
    value = {"weighting": "loss", "timesteps": "timestep"}[key]
    raise ValueError(
        f"model.objective.{key}: {named.__module__}.{named.__qualname__} returned {got}, expected ({count},): "
        f"one {value} for each panorama"
    )


def overlap_error(errors: Float[Tensor, "b 6 c h w"], fov: float) -> Float[Tensor, " b"]:
    """Mean squared difference between the errors of two faces in the directions that both see.

    Latents of a real panorama differ between faces where they overlap, because each face projects the scene in its own
    way. So the errors shall agree, not the latents. The network that minimizes the mean squared error alone minimizes
    this as well.

    Args:
        errors: Prediction less target, 0 where the condition is known.
        fov: Field of view of the faces, in degrees.

    Raises:
        ValueError: If no pixel centre of a face lies between pixel centres of another one.
    """
    size = errors.shape[-1]
    if needs_border(size, fov):
        raise ValueError(
            f"overlap_weight needs faces that overlap by a pixel or more; those of {size} latent pixels and {fov:g}° "
            "do not: set overlap_weight=0, or a larger face_size or fov"
        )
    samples = sample_overlaps(errors, fov)
    squares = (samples.own - samples.other).square().mean(1)
    return (squares * samples.inside).sum(1) / samples.inside.sum()
