"""Noise schedules and samplers (CubeDiff, section 5, samples with DDIM)."""

import inspect
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import wraps
from itertools import pairwise
from types import MethodType
from typing import NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from diffusers.schedulers import SchedulerMixin
from jaxtyping import Float, Shaped
from torch import Tensor


@runtime_checkable
class HasScheduler(Protocol):
    """A diffusers pipeline with a scheduler."""

    scheduler: SchedulerMixin


PipelineT = TypeVar("PipelineT", bound=HasScheduler)

SAMPLERS: dict[str, tuple[type[SchedulerMixin], dict[str, str]]] = {
    "ddim": (DDIMScheduler, {}),
    "dpm": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
}

# The schedulers of diffusers whose noise schedule is that of Stable Diffusion.
SCHEDULERS = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)


def convert_scheduler(
    scheduler: SchedulerMixin, settings: Mapping[str, object], kind: type[SchedulerMixin] | None = None
) -> SchedulerMixin:
    """A scheduler with the noise schedule of another one.

    Args:
        scheduler: The scheduler whose config is used.
        settings: Settings of the config to replace, and those of `noise_settings`.
        kind: The class of the result; by default that of `scheduler`.

    Raises:
        ValueError: If the class has no such setting, or zero terminal SNR is combined with epsilon prediction.
    """
    kind = kind or type(scheduler)
    settings = noise_settings(scheduler, settings)
    if unknown := sorted(set(settings) - set(inspect.signature(kind).parameters)):
        raise ValueError(f"a {kind.__name__} has no settings {', '.join(unknown)}")
    config = {**scheduler.config, **settings}
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type") != "v_prediction":
        raise ValueError("rescale_betas_zero_snr=True needs prediction_type='v_prediction': at zero SNR the noise "
                         "contains no information about the image")  # fmt: skip
    config.pop("_use_default_values", None)  # else from_config replaces the values by the new class's defaults
    return cast(SchedulerMixin, kind.from_config(config))


def noise_settings(scheduler: SchedulerMixin, settings: Mapping[str, object]) -> dict[str, object]:
    """Settings of a scheduler in which `snr_factor` is replaced by the betas that it means.

    Args:
        scheduler: A scheduler whose config has the noise schedule of Stable Diffusion.
        settings: Settings. `snr_factor` multiplies the signal-to-noise ratio of every timestep (simple diffusion,
            arXiv 2301.11093, section 3.1): below 1 there is more noise, as suits large images, above 1 less, as suits
            small ones.

    Raises:
        ValueError: If the factor is not positive.
    """
    given = dict(settings)
    if (factor := given.pop("snr_factor", None)) is None:
        return given
    if not (isinstance(factor, int | float) and 0 < factor < math.inf):
        raise ValueError(f"snr_factor={factor!r}: expected a positive number; 1 leaves the noise schedule as it is")
    given["trained_betas"] = None
    if factor != 1:
        config = {**scheduler.config, **given, "rescale_betas_zero_snr": False}  # it comes after trained_betas
        config.pop("_use_default_values", None)
        kept = 1 - DDIMScheduler.from_config(config).betas.double()
        signal = kept.cumprod(0)
        shifted = factor * signal / (factor * signal + 1 - signal)
        given["trained_betas"] = (1 - shifted / torch.cat([shifted.new_ones(1), shifted[:-1]])).tolist()
    return given


def use_sampler_(pipeline: PipelineT, name: str) -> PipelineT:
    """Replaces the pipeline's scheduler by another sampler on the same noise schedule, in place.

    Args:
        pipeline: A diffusers pipeline.
        name: "ddim" (arXiv 2010.02502), "dpm" (DPM-Solver++ 2M, arXiv 2211.01095), "unipc" (arXiv 2302.04867) or
            "euler" (arXiv 2206.00364, algorithm 2 of order one).

    Returns:
        The pipeline.

    Raises:
        ValueError: If there is no sampler of that name.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler={name!r}: use one of {', '.join(SAMPLERS)}")
    kind, settings = SAMPLERS[name]
    pipeline.scheduler = _starting_from_noise(convert_scheduler(pipeline.scheduler, settings, kind))
    return pipeline


def _starting_from_noise(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Makes `set_timesteps` use trailing spacing where another one would start late, or after the last timestep.

    The first timestep is that of pure noise, at least 900 of 1000. With leading spacing it is 599 for 600 steps, and
    for 1000 steps it is 1000, which does not exist.
    """
    kind, spacing = type(scheduler), scheduler.config.timestep_spacing

    @wraps(kind.set_timesteps)
    def set_timesteps(self: SchedulerMixin, *args: object, **kwargs: object) -> None:
        self.register_to_config(timestep_spacing=spacing)
        kind.set_timesteps(self, *args, **kwargs)
        count = self.config.num_train_timesteps
        given = kwargs.get("timesteps") is not None or kwargs.get("sigmas") is not None
        if not given and not 0.9 * count <= self.timesteps.max() < count:
            self.register_to_config(timestep_spacing="trailing")
            kind.set_timesteps(self, *args, **kwargs)

    scheduler.set_timesteps = MethodType(set_timesteps, scheduler)  # copies of the scheduler get a bound copy
    return scheduler


class _ExactDDIMScheduler(DDIMScheduler):
    """DDIM that steps to the next one of its timesteps, which need not be equally spaced.

    The scheduler of diffusers steps by num_train_timesteps // num_inference_steps.
    """

    @classmethod
    def at(cls, scheduler: DDIMScheduler, timesteps: Sequence[int]) -> "_ExactDDIMScheduler":
        """A scheduler with the settings of another one, at given timesteps."""
        exact: _ExactDDIMScheduler = cls.from_config(scheduler.config)
        exact.timesteps = torch.tensor(timesteps)
        exact.next_timestep = dict(pairwise([*timesteps, -1]))  # below 0: the end, without noise
        return exact

    @wraps(DDIMScheduler.step)
    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: object) -> object:
        """As `DDIMScheduler.step`."""
        distance = int(timestep) - self.next_timestep[int(timestep)]
        # The only use of this number: num_train_timesteps // it is the distance to the next timestep.
        self.num_inference_steps = Fraction(2 * self.config.num_train_timesteps, 2 * distance + 1)
        return super().step(model_output, timestep, sample, **options)


def sampling_scheduler(
    scheduler: SchedulerMixin,
    steps: int,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
) -> SchedulerMixin:
    """The scheduler of one sampling, with its timesteps set.

    They are on the CPU, where schedulers look their schedule up by them: on a GPU each step would wait for them.

    Args:
        scheduler: The pipeline's scheduler.
        steps: Number of denoising steps, unless `timesteps` or `sigmas` say it.
        timesteps: The timesteps themselves, decreasing.
        sigmas: The noise levels themselves.

    Returns:
        `scheduler`; or, for DDIM at timesteps that are not equally spaced, one that steps from each to the next.

    Raises:
        ValueError: If the scheduler is of a kind that is not supported, cannot take these timesteps, or has no timestep
            for that many steps.
    """
    kind = type(scheduler).__name__
    if not any(base.__name__ in SCHEDULERS for base in type(scheduler).__mro__):
        raise ValueError(
            f"scheduler {kind}: no model of this package is trained for it (flow-matching and other kinds of noise); "
            f"use one of {', '.join(SCHEDULERS)}, or use_sampler_(pipeline, 'ddim')"
        )
    count = int(scheduler.config.num_train_timesteps)
    if timesteps is not None:
        values = [int(t) for t in timesteps]
        if not values or any(a <= b for a, b in pairwise([count, *values, -1])):
            raise ValueError(f"timesteps={values}: expected decreasing integers from {count - 1} to 0")
        if isinstance(scheduler, DDIMScheduler) and sigmas is None:
            return _ExactDDIMScheduler.at(scheduler, values)
    elif sigmas is None and not 1 <= steps <= count:
        raise ValueError(f"num_inference_steps={steps}: expected 1 to {count}, the model's training timesteps")
    retrieve_timesteps(scheduler, steps, torch.device("cpu"), timesteps, sigmas)
    if scheduler.timesteps.max() >= count:
        raise ValueError(
            f"num_inference_steps={steps}: a {kind} with timestep_spacing={scheduler.config.timestep_spacing!r} has no "
            f"timestep {int(scheduler.timesteps.max())} of {count}: use fewer steps, or use_sampler_(pipeline, 'ddim')"
        )
    if type(scheduler) is DDIMScheduler and 2 * steps > count:  # its own step would be up to twice too short
        return _ExactDDIMScheduler.at(scheduler, scheduler.timesteps.tolist())
    return scheduler


class NoiseLevel(NamedTuple):
    """The network's input in a denoising step is alpha·x0 + sigma·noise, with alpha² + sigma² = 1."""

    alpha: Float[Tensor, ""]
    sigma: Float[Tensor, ""]


def noise_level(scheduler: SchedulerMixin, t: Shaped[Tensor, ""], step: int) -> NoiseLevel:
    """The noise level of the network's input in a step of a diffusers scheduler.

    Args:
        scheduler: After `set_timesteps`, with `step` steps taken.
        t: The step's timestep.
        step: Its index in `scheduler.timesteps`.

    Raises:
        ValueError: If the class has no noise schedule of Stable Diffusion.
    """
    if (sigmas := getattr(scheduler, "sigmas", None)) is not None:
        ratio = sigmas[step].cpu().double()  # sigma / alpha; they are on the CPU, where float64 exists
        if not getattr(scheduler, "state_in_first_order", True):
            # The second evaluation of a step may lie between two of `sigmas`; the input is scaled by alpha.
            ratio = (scheduler.scale_model_input(torch.ones(()), t).cpu().double() ** -2 - 1).clamp_min(0).sqrt()
        alpha = (ratio.square() + 1).rsqrt()
        return NoiseLevel(alpha.float(), (ratio * alpha).float())
    if (alphas := getattr(scheduler, "alphas_cumprod", None)) is None:
        raise ValueError(
            f"average_overlap=True with a {type(scheduler).__name__}, which has no noise schedule of Stable Diffusion: "
            "use another scheduler, such as DDIMScheduler, or average_overlap=False"
        )
    return NoiseLevel(alphas[t].sqrt(), (1 - alphas[t]).sqrt())
