"""Noising processes, timestep samplers and loss weightings are parts of the objective that a config replaces: a
flow-matching model is trained by the same module."""

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers import SchedulerMixin
from support.losses import SHARES, losses_of
from torch import Tensor

from cubediff.diffusion.objective import Example, Objective
from cubediff.diffusion.processes import GaussianDiffusion, NoisingProcess
from cubediff.diffusion.random import Generators, draw
from cubediff.models.backbone import Conditioning, CubeInput
from cubediff.models.tiny import sd_scheduler
from cubediff.pipelines.loading import tiny_random
from cubediff.training.module import CubeDiffModule

LATENTS = torch.randn(4, 6, 4, 8, 8, generator=torch.Generator().manual_seed(3))
TEXT = Conditioning({"text": torch.zeros(4, 6, 5, 16)})
KEEP = {"drop_text": 0.0, "drop_image": 0.0, "drop_both": 0.0}


class FlowMatching(NoisingProcess):
    """Rectified flow (arXiv 2209.03003): x_t = (1 − t)·x + t·ε with the target ε − x, and t = timestep / 1000."""

    num_timesteps, predicts_velocity = 1000, True

    def __init__(self, scheduler: SchedulerMixin) -> None:
        self.scheduler = scheduler

    def sample_noise(self, latents: Tensor, generator: Generators) -> Tensor:
        return draw(torch.randn, latents.shape, generator)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return torch.lerp(latents, noise, self._t(timesteps))

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def snr(self, timesteps: Tensor) -> Tensor:
        t = timesteps / self.num_timesteps
        return ((1 - t) / t) ** 2

    def _t(self, timesteps: Tensor) -> Tensor:
        return (timesteps / self.num_timesteps).view(-1, 1, 1, 1, 1)


class LogitNormal:
    """Timesteps whose logits are normal (Stable Diffusion 3, arXiv 2403.03206, section 3.1); no integers."""

    def __call__(self, count: int, num_timesteps: int, generator: Generators) -> Tensor:
        return num_timesteps * draw(torch.randn, (count,), generator).sigmoid()


class Asked:
    """Predicts zero and keeps its input."""

    cube: CubeInput
    timesteps: Tensor

    def predict(self, cube: CubeInput, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        self.cube, self.timesteps = cube, timesteps
        return torch.zeros_like(cube.noisy)


def loss(objective: Objective, scheduler: SchedulerMixin, seed: int = 0) -> tuple[Tensor, Asked]:
    backbone = Asked()
    example = Example(LATENTS, TEXT, TEXT, torch.zeros(6, 2, 8, 8))
    generator = torch.Generator().manual_seed(seed)
    return objective.loss(backbone, objective.noising(scheduler), example, generator).losses, backbone


def test_flow_matching_with_its_own_timesteps_is_the_mean_square_of_noise_minus_latents() -> None:
    objective = Objective(**KEEP, process=FlowMatching, timesteps=LogitNormal())
    losses, recorded = loss(objective, FlowMatchEulerDiscreteScheduler())
    t = (recorded.timesteps.double() / 1000).view(-1, 1, 1, 1, 1)
    assert ((t > 0) & (t < 1)).all()
    noise = (recorded.cube.noisy.double() - (1 - t) * LATENTS.double()) / t
    expected = (noise - LATENTS.double())[:, 1:].square().mean((1, 2, 3, 4))
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=0)


def test_the_module_trains_a_flow_matching_pipeline() -> None:
    pipeline = tiny_random()
    pipeline.register_modules(scheduler=FlowMatchEulerDiscreteScheduler())
    objective = Objective(**SHARES, process=FlowMatching, timesteps=LogitNormal())
    module = CubeDiffModule(pipeline, objective, partial(torch.optim.AdamW, lr=1e-2), trainable="full")
    module.encode_null_text()
    batch = {"faces": torch.rand(2, 6, 3, 64, 64) * 2 - 1, "prompts": [["a hall"] * 6] * 2}
    before = module.unet.conv_out.weight.clone()
    optimizer = module.optimizer(module.trained_parameters.values())
    losses = losses_of(module, batch)
    losses.mean().backward()
    optimizer.step()
    assert losses.isfinite().all()
    assert not torch.equal(module.unet.conv_out.weight, before)


def test_a_weighting_gets_the_losses_the_timesteps_and_the_process() -> None:
    def weigh(losses: Tensor, timesteps: Tensor, process: NoisingProcess) -> Tensor:
        return losses * process.snr(timesteps)

    plain, recorded = loss(Objective(**KEEP), sd_scheduler())
    weighted, _ = loss(Objective(**KEEP, weighting=weigh), sd_scheduler())
    snr = GaussianDiffusion()(sd_scheduler()).snr(recorded.timesteps)
    torch.testing.assert_close(weighted, plain * snr)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"weighting": lambda losses, timesteps, process: losses, "min_snr_gamma": 5.0},
            "a weighting and min_snr_gamma",
        ),
        ({"process": FlowMatching, "offset_noise": 0.1}, "a process and offset_noise"),
    ],
)
def test_a_part_and_its_short_form_exclude_each_other(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**KEEP, **parts)
