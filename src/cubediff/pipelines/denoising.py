"""The denoising loop of a pipeline call, and its inputs.

Legend: B panoramas, 6 faces, C latent channels, P position channels, h w latent size, S face size.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from diffusers.schedulers import SchedulerMixin
from torch import Tensor

from cubediff.diffusion.guidance import Guidance
from cubediff.diffusion.overlap_average import OverlapAverage
from cubediff.diffusion.schedulers import noise_level
from cubediff.models.backbone import Backbone, Conditioning, CubeInput, to_device_async
from cubediff.pipelines.call import NON_FINITE


@dataclass(frozen=True)
class Condition:
    """Photos and panoramas to edit on the faces: clean latents where `mask` is 1, for pasting the pixels where
    `covered`. The network sees those where `seen` is 1, see `photo_coverage`."""

    clean: Tensor  # (B, 6, C, h, w)
    mask: Tensor  # (B, 6, 1, h, w)
    seen: Tensor  # (B, 6, 1, h, w)
    pixels: Tensor | None = None  # (B, 6, 3, S, S); None if nothing is known
    covered: Tensor | None = None  # (B, 6, 1, S, S)


@dataclass(frozen=True)
class DenoisingInputs:
    """The constant inputs of the denoising loop, the branches of guidance concatenated along the panoramas."""

    scheduler: SchedulerMixin
    guidance: Guidance
    conditioning: Conditioning
    clean: Tensor
    mask: Tensor
    hidden: Tensor | None  # on the CPU
    positions: Tensor
    average: OverlapAverage | None


def denoise(
    backbone: Backbone,
    noise: Tensor,
    condition: Condition,
    inputs: DenoisingInputs,
    step_options: Mapping[str, object],
    progress_bar: Callable[[Tensor], Iterable[Tensor]],
    on_step_end: Callable[[int, Tensor, Tensor], Tensor],
    interrupted: Callable[[], bool],
) -> Tensor:
    """Denoised latents (B, 6, C, h, w), with the clean latents of the condition where its mask is 1.

    No step waits for the device: the scheduler's timesteps are on the CPU, and whether latents are finite is read at
    the end.

    Args:
        backbone: Predicts.
        noise: Unit noise (B, 6, C, h, w).
        condition: What is known of the faces.
        inputs: The other inputs.
        step_options: Arguments of the scheduler's `step`, for those that take them.
        progress_bar: Iterates over the timesteps.
        on_step_end: Called with the step, its timestep and the sample; returns the sample to continue with.
        interrupted: Whether to end after a step.

    Raises:
        FloatingPointError: If a latent is not finite after a step.
    """
    scheduler = inputs.scheduler
    parameters = inspect.signature(scheduler.step).parameters
    options = {key: value for key, value in step_options.items() if key in parameters}
    is_clean = condition.mask.bool() if condition.pixels is not None else None
    on_device = to_device_async(scheduler.timesteps, noise.device)
    branches = len(inputs.guidance.branches)
    sample, finite = noise * scheduler.init_noise_sigma, list[Tensor]()
    for step, t in enumerate(progress_bar(scheduler.timesteps)):
        if is_clean is not None:
            # The condition follows its own noise trajectory in the sample; branches with the image see photos clean.
            scale, level = _noise_coefficients(scheduler, t)
            sample = torch.where(is_clean, scale * condition.clean + level * noise, sample)
        scaled = scheduler.scale_model_input(sample, t)
        if is_clean is not None and not getattr(scheduler, "state_in_first_order", True):
            alpha, sigma = noise_level(scheduler, t, step)  # add_noise knows first evaluations only
            scaled = torch.where(is_clean, alpha * condition.clean + sigma * noise, scaled)
        cube = CubeInput(torch.cat([scaled] * branches), inputs.clean, inputs.mask, inputs.positions, inputs.hidden)
        predictions = backbone.predict(cube, on_device[step], inputs.conditioning).chunk(branches)
        prediction = inputs.guidance.combine(predictions, t)
        if inputs.average is not None:
            prediction = inputs.average(prediction, scaled, t, step)
        sample = scheduler.step(prediction, t, sample, return_dict=False, **options)[0]
        sample = on_step_end(step, t, sample)
        finite.append(sample.isfinite().all())  # read at the end: reading it here would wait for the device
        if interrupted():
            break
    if not (flags := torch.stack(finite)).all():
        step = int(flags.int().argmin())
        raise FloatingPointError(NON_FINITE.format(f"the latents of step {step + 1} of {len(scheduler.timesteps)}"))
    return sample if is_clean is None else torch.where(is_clean, condition.clean, sample)


def _noise_coefficients(scheduler: SchedulerMixin, t: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of sample and noise in the scheduler's `add_noise`, found on the CPU.

    On the device some schedulers search the timestep among theirs, which waits for it.
    """
    one, zero = torch.ones(1), torch.zeros(1)
    return scheduler.add_noise(one, zero, t[None])[0], scheduler.add_noise(zero, one, t[None])[0]
