"""The denoising loop neither reads from its device nor copies to it.

The device is "meta", whose tensors hold no data: reading one raises, and copies to it are recorded.
"""

from typing import Any

import pytest
import torch
from support.copies import Copies

from cubediff import CubeDiffPipeline, Photo
from cubediff.diffusion.schedulers import use_sampler_
from cubediff.pipelines import denoising
from cubediff.pipelines.loading import tiny_random


class EndOfLoopError(Exception):
    """Raised after the last step, before the loop reads whether all latents are finite."""


def to_meta(value: Any) -> Any:
    """The value, its fields or its tensors on the meta device."""
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {name: to_meta(each) for name, each in value.items()}
    if isinstance(value, list):
        return [to_meta(each) for each in value]
    if hasattr(value, "__dataclass_fields__"):
        return type(value)(**{name: to_meta(getattr(value, name)) for name in value.__dataclass_fields__})
    return value


def run_on_meta(pipeline: CubeDiffPipeline, monkeypatch: pytest.MonkeyPatch, steps: int, **call: Any) -> Copies:
    """A call whose denoising loop runs on the meta device, to its last step; the copies of that loop."""
    copies, denoise = Copies(), denoising.denoise

    def on_meta(backbone: Any, noise: Any, condition: Any, inputs: Any, options: Any, progress: Any, *_: Any) -> None:
        backbone.network.to("meta")
        tensors = [to_meta(each) for each in (noise, condition, inputs)]
        done = []

        def on_step_end(step: int, t: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
            done.append(step)
            if len(done) == steps:
                raise EndOfLoopError
            return sample

        def again() -> None:
            done.clear()
            inputs.scheduler.set_timesteps(steps)
            with pytest.raises(EndOfLoopError):
                denoise(backbone, *tensors, options, progress, on_step_end, lambda: False)

        again()  # creates cached tensors
        with copies:
            again()
        raise EndOfLoopError

    monkeypatch.setattr("cubediff.pipelines.base.denoise", on_meta)
    with pytest.raises(EndOfLoopError):
        pipeline("a hall", num_inference_steps=steps, **call)
    return copies


@pytest.mark.parametrize("average_overlap", [False, True])
@pytest.mark.parametrize("photo", [False, True])
@pytest.mark.parametrize("sampler", ["ddim", "dpm", "euler"])
def test_a_step_waits_for_nothing(
    sampler: str, photo: bool, average_overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = use_sampler_(tiny_random(), sampler)
    image = Photo(torch.zeros(3, 32, 32), fov=80.0) if photo else None
    copies = run_on_meta(pipeline, monkeypatch, 4, image=image, guidance_rescale=0.5, average_overlap=average_overlap)
    assert copies.shapes == [(4,)]  # the timesteps


@pytest.mark.parametrize("sequential", [False, True])
def test_a_step_outside_the_guidance_interval_waits_for_nothing(
    sequential: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {"guidance_start": 0.25, "guidance_stop": 0.75, "sequential_guidance": sequential}
    copies = run_on_meta(tiny_random(), monkeypatch, 4, image=Photo(torch.zeros(3, 32, 32), fov=80.0), **call)
    assert copies.shapes == [(4,)]  # the timesteps


def test_without_a_photo_no_noise_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny_random()
    monkeypatch.setattr(type(pipeline.scheduler), "add_noise", lambda *_: pytest.fail("noise was added"))
    pipeline("a hall", num_inference_steps=2)
