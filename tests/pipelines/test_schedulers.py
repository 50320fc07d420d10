"""Schedulers: those of diffusers that work, each by name; timesteps from pure noise to the end; bad ones refused."""

import importlib
import inspect

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.schedulers import SchedulerMixin
from support.awake import awaken_
from support.stock import stock_2d
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.diffusion.schedulers import SAMPLERS, SCHEDULERS, NoiseLevel, convert_scheduler, noise_level, use_sampler_
from cubediff.models.backbone import CubeInput
from cubediff.models.tiny import sd_scheduler
from cubediff.pipelines.loading import tiny_random

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of schedulers in diffusers


@pytest.fixture(scope="module")
def stock() -> StableDiffusionPipeline:
    return stock_2d()


@pytest.fixture(scope="module")
def untrained(stock: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> CubeDiffPipeline:
    folder = tmp_path_factory.mktemp("2d")
    stock.save_pretrained(folder)
    pipeline = CubeDiffPipeline.from_2d(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def scheduler_of(name: str) -> SchedulerMixin:
    return convert_scheduler(sd_scheduler(), {}, getattr(diffusers, name))


def constant_noise(monkeypatch: pytest.MonkeyPatch, scheduler: SchedulerMixin) -> None:
    """Noise that a scheduler adds does not depend on the number of faces."""
    module = importlib.import_module(type(scheduler).__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.full(tuple(shape), 0.3))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_generates_what_it_does_in_the_stock_pipeline(
    stock: StableDiffusionPipeline, untrained: CubeDiffPipeline, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """On six equal faces an untrained CubeDiff is the 2D model."""
    stock.scheduler, untrained.scheduler = scheduler_of(name), scheduler_of(name)
    constant_noise(monkeypatch, stock.scheduler)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    expected = stock("a forest", latents=noise, height=64, width=64, **call).images
    faces = untrained("a forest", latents=noise.expand(1, 6, -1, -1, -1), **call).faces
    for face in faces[0]:
        torch.testing.assert_close(face[None], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_keeps_a_photo_at_the_noise_level_of_its_step(
    untrained: CubeDiffPipeline, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pipeline = untrained
    pipeline.scheduler = scheduler_of(name)
    inputs: list[Tensor] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, args: inputs.append(args[0][:6, :4]))
    levels: list[NoiseLevel] = []
    scale = type(pipeline.scheduler).scale_model_input

    def record(scheduler: SchedulerMixin, sample: Tensor, t: Tensor) -> Tensor:
        scaled: Tensor = scale(scheduler, sample, t)
        if len(levels) == len(inputs):  # the level itself is found by scaling
            levels.append(NoiseLevel(torch.ones(()), torch.zeros(())))
            levels[-1] = noise_level(scheduler, t, len(levels) - 1)
        return scaled

    monkeypatch.setattr(type(pipeline.scheduler), "scale_model_input", record)
    noise = torch.randn(1, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    photo = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    faces = pipeline("a", image=photo, latents=noise, num_inference_steps=4, guidance_scale=3.0, output_type="latent",
                     generator=torch.Generator().manual_seed(2)).faces  # fmt: skip
    hook.remove()
    assert faces.isfinite().all()
    clean = faces[:, 0]
    assert len(inputs) == len(levels) >= 4
    for (alpha, sigma), received in zip(levels, inputs, strict=True):
        torch.testing.assert_close(received[:1], alpha * clean + sigma * noise[:, 0], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "IPNDMScheduler", "EDMEulerScheduler"]
)
def test_other_schedulers_are_refused_by_name(untrained: CubeDiffPipeline, name: str) -> None:
    untrained.scheduler = getattr(diffusers, name)()
    with pytest.raises(ValueError, match=f"scheduler {name}: no model of this package is trained for it"):
        untrained("a")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 20, 50, 200, 334, 600, 999, 1000])
def test_samplers_start_at_pure_noise(sampler: str, steps: int) -> None:
    pipeline = use_sampler_(tiny_random(), sampler)
    pipeline.scheduler.set_timesteps(steps)
    timesteps = pipeline.scheduler.timesteps
    assert 900 <= timesteps.max() < 1000
    assert timesteps.min() >= 0
    assert len(timesteps) == steps
    pipeline.scheduler.set_timesteps(20)  # an earlier call leaves nothing behind
    assert pipeline.scheduler.config.timestep_spacing == sd_scheduler().config.timestep_spacing


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 501, 999, 1000])
def test_samplers_give_finite_latents_at_any_number_of_steps(sampler: str, steps: int) -> None:
    pipeline = use_sampler_(tiny_random(), sampler)
    pipeline.set_progress_bar_config(disable=True)
    call = {"guidance_scale": 1.0, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    assert pipeline("a", num_inference_steps=steps, **call).faces.isfinite().all()


def exact_ddim(pipeline: CubeDiffPipeline, noise: Tensor, timesteps: list[int]) -> Tensor:
    """DDIM in float64 (arXiv 2010.02502, equation 12 with eta = 0); before the first alpha comes the first alpha."""
    alphas = pipeline.scheduler.alphas_cumprod.double()
    sample = noise.double()
    text = pipeline.backbone.encode_text([["a"] * 6])
    positions = pipeline.positions(8, torch.device("cpu"))
    empty = torch.zeros_like(noise), torch.zeros_like(noise[:, :, :1])
    for t, following in zip(timesteps, [*timesteps[1:], 0], strict=True):
        epsilon = pipeline.backbone.predict(
            CubeInput(sample.float(), *empty, positions), torch.tensor(t), text
        ).double()
        clean = (sample - (1 - alphas[t]).sqrt() * epsilon) / alphas[t].sqrt()
        sample = alphas[following].sqrt() * clean + (1 - alphas[following]).sqrt() * epsilon
    return sample


@pytest.mark.parametrize("timesteps", [[900, 500, 100], [999, 998, 3, 2], [400], [951, 901, 851]])
def test_ddim_steps_to_the_next_of_the_given_timesteps(timesteps: list[int]) -> None:
    pipeline = tiny_random()
    awaken_(pipeline.unet)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = exact_ddim(pipeline, noise, timesteps)
    got = pipeline("a", timesteps=timesteps, guidance_scale=1.0, latents=noise, output_type="latent").faces
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert type(pipeline.scheduler) is DDIMScheduler


def test_ddim_with_the_timesteps_that_it_would_have_equals_ddim() -> None:
    pipeline = tiny_random()
    awaken_(pipeline.unet)
    pipeline.set_progress_bar_config(disable=True)
    call = {"output_type": "latent", "eta": 0.5}
    pipeline.scheduler.set_timesteps(8)
    timesteps = pipeline.scheduler.timesteps.tolist()
    first, second = (
        pipeline("a", **steps, generator=torch.Generator().manual_seed(0), **call).faces
        for steps in ({"num_inference_steps": 8}, {"timesteps": timesteps})
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 1001}, "num_inference_steps=1001: expected 1 to 1000"),
        (
            {"num_inference_steps": 1000},
            "with timestep_spacing='leading' has no timestep 1000 of 1000: use fewer steps",
        ),
        ({"timesteps": [100, 500]}, r"timesteps=\[100, 500\]: expected decreasing integers from 999 to 0"),
        ({"timesteps": [1000]}, "expected decreasing integers from 999 to 0"),
        ({"timesteps": [5, -1]}, "expected decreasing integers from 999 to 0"),
        ({"timesteps": []}, "expected decreasing integers from 999 to 0"),
    ],
)
def test_timesteps_that_do_not_exist_raise(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_random()("a", **options)


def test_a_stored_scheduler_is_used_as_it_is_while_no_sampler_is_named() -> None:
    pipeline = tiny_random()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline("a", num_inference_steps=200, timesteps=None, output_type="latent", callback_on_step_end=stop)
    assert pipeline.scheduler.timesteps[0] == 801
    assert "set_timesteps" not in vars(pipeline.scheduler)
    assert list(inspect.signature(use_sampler_(pipeline, "dpm").scheduler.set_timesteps).parameters) == list(
        inspect.signature(DPMSolverMultistepScheduler().set_timesteps).parameters
    )


def stop(pipeline: CubeDiffPipeline, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    pipeline._interrupt = True
    return tensors
