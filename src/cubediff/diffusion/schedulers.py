"""Noise schedules and samplers (CubeDiff, section 5, samples with DDIM)."""

import inspect
from collections.abc import Mapping
from typing import Protocol, TypeVar, cast, runtime_checkable

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers import SchedulerMixin


@runtime_checkable
class HasScheduler(Protocol):
    """A diffusers pipeline with a scheduler."""

    scheduler: SchedulerMixin


PipelineT = TypeVar("PipelineT", bound=HasScheduler)

SAMPLERS: dict[str, tuple[type[SchedulerMixin], dict[str, str]]] = {
    "ddim": (DDIMScheduler, {}),
    "dpm": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "euler": (EulerDiscreteScheduler, {}),
}


def convert_scheduler(
    scheduler: SchedulerMixin, settings: Mapping[str, object], kind: type[SchedulerMixin] | None = None
) -> SchedulerMixin:
    """A scheduler with the noise schedule of another one.

    Args:
        scheduler: The scheduler whose config is used.
        settings: Settings of the config to replace.
        kind: The class of the result; by default that of `scheduler`.

    Raises:
        ValueError: If the class has no such setting, or zero terminal SNR is combined with epsilon prediction.
    """
    kind = kind or type(scheduler)
    if unknown := sorted(set(settings) - set(inspect.signature(kind).parameters)):
        raise ValueError(f"a {kind.__name__} has no settings {', '.join(unknown)}")
    config = {**scheduler.config, **settings}
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type") != "v_prediction":
        raise ValueError("rescale_betas_zero_snr=True needs prediction_type='v_prediction': at zero SNR the noise "
                         "contains no information about the image")  # fmt: skip
    config.pop("_use_default_values", None)  # else from_config replaces the values by the new class's defaults
    return cast(SchedulerMixin, kind.from_config(config))


def use_sampler_(pipeline: PipelineT, name: str) -> PipelineT:
    """Replaces the pipeline's scheduler by another sampler on the same noise schedule, in place.

    Args:
        pipeline: A diffusers pipeline.
        name: "ddim" (arXiv 2010.02502), "dpm" (DPM-Solver++ 2M, arXiv 2211.01095) or "euler" (arXiv 2206.00364,
            algorithm 2 of order one).

    Returns:
        The pipeline.

    Raises:
        ValueError: If there is no sampler of that name.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler={name!r}: use one of {', '.join(SAMPLERS)}")
    kind, settings = SAMPLERS[name]
    pipeline.scheduler = convert_scheduler(pipeline.scheduler, settings, kind)
    return pipeline
