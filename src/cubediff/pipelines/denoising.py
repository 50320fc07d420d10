"""The denoising loop of a pipeline call, and its inputs.

Legend: B panoramas, 6 faces, C latent channels, P position channels, h w latent size, S face size.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
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
class BranchInputs:
    """The constant inputs of one call of the network, for R branches of guidance, concatenated along the panoramas."""

    conditioning: Conditioning
    clean: Tensor  # (R·B, 6, C, h, w)
    mask: Tensor  # (R·B, 6, 1, h, w)
    hidden: Tensor | None  # (R·B, 6), on the CPU


@dataclass(frozen=True)
class DenoisingInputs:
    """The constant inputs of the denoising loop.

    Attributes:
        scheduler: With its timesteps set.
        guidance: Combines the predictions of the branches.
        guided: The calls of the network in a step that guidance applies to: one for all branches, or one for each.
        unguided: The call in other steps, for the last branch.
        positions: Position channels (6, P, h, w).
        average: Averages overlaps; None if they stay as they are.
    """

    scheduler: SchedulerMixin
    guidance: Guidance
    guided: Sequence[BranchInputs]
    unguided: BranchInputs
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
        calls = inputs.guided if inputs.guidance.applies(step, len(on_device)) else [inputs.unguided]
        predictions = [one for call in calls for one in _predict(backbone, scaled, on_device[step], call, inputs)]
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


def _predict(
    backbone: Backbone, scaled: Tensor, t: Tensor, call: BranchInputs, inputs: DenoisingInputs
) -> tuple[Tensor, ...]:
    """The predictions of the branches of a call."""
    branches = len(call.mask) // len(scaled)
    cube = CubeInput(torch.cat([scaled] * branches), call.clean, call.mask, inputs.positions, call.hidden)
    return backbone.predict(cube, t, call.conditioning).chunk(branches)


def _noise_coefficients(scheduler: SchedulerMixin, t: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of sample and noise in the scheduler's `add_noise`, found on the CPU.

    On the device some schedulers search the timestep among theirs, which waits for it.
    """
    one, zero = torch.ones(1), torch.zeros(1)
    return scheduler.add_noise(one, zero, t[None])[0], scheduler.add_noise(zero, one, t[None])[0]
