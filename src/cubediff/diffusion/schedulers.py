"""Noise schedules and the ways to sample on them (CubeDiff, section 5, samples with DDIM)."""

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers import SchedulerMixin

PipelineT = TypeVar("PipelineT", bound=DiffusionPipeline)


def rescheduled(
    scheduler: SchedulerMixin, settings: Mapping[str, Any], kind: type[SchedulerMixin] | None = None
) -> SchedulerMixin:
    """A scheduler (of class `kind`, if given) with the noise schedule of `scheduler` and changed settings."""
    kind = kind or type(scheduler)
    if unknown := sorted(set(settings) - set(inspect.signature(kind).parameters)):
        raise ValueError(f"a {kind.__name__} has no settings {', '.join(unknown)}")
    merged = {**scheduler.config, **settings}
    if merged.get("rescale_betas_zero_snr") and merged.get("prediction_type") != "v_prediction":
        raise ValueError("rescale_betas_zero_snr=True needs prediction_type='v_prediction': at zero signal the noise "
                         "says nothing about the picture")  # fmt: skip
    merged.pop("_use_default_values", None)  # else from_config takes the new class's defaults for the old one's
    return kind.from_config(merged)


SAMPLERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "dpm": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "euler": (EulerDiscreteScheduler, {}),
}


def use_sampler_(pipeline: PipelineT, name: str) -> PipelineT:
    """Samples with "ddim", "dpm" (DPM-Solver++ 2M, arXiv 2211.01095) or "euler" (arXiv 2206.00364, algorithm 2 of
    order one) from now on, on the model's own noise schedule."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler={name!r}: use one of {', '.join(SAMPLERS)}")
    kind, settings = SAMPLERS[name]
    pipeline.scheduler = rescheduled(pipeline.scheduler, settings, kind)
    return pipeline
