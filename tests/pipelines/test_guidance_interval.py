"""Guidance in an interval of the steps, and branches one after the other: calls of the network, and results."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import diffusers
import pytest
import torch
from support.awake import awake_pipeline
from torch import Tensor

from cubediff import CubeDiffPipeline, Photo
from cubediff.diffusion.guidance import make_guidance
from cubediff.diffusion.schedulers import SCHEDULERS, convert_scheduler
from cubediff.models.backbone import CubeInput
from cubediff.models.stable_diffusion import StableDiffusion
from cubediff.models.tiny import sd_scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of schedulers in diffusers

PHOTO = Photo(torch.linspace(-1, 1, 32).expand(3, 32, 32), fov=80.0)
BOTH = {"image": PHOTO, "image_guidance_scale": 1.5, "guidance_rescale": 0.5}


@pytest.fixture(scope="module")
def pipeline() -> CubeDiffPipeline:
    return awake_pipeline()


def noise(count: int = 1) -> Tensor:
    return torch.randn(count, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def sample(pipeline: CubeDiffPipeline, **options: object) -> Tensor:
    options = {"num_inference_steps": 5, "latents": noise(), "generator": torch.Generator().manual_seed(1)} | options
    result: Tensor = pipeline("a hall", output_type="latent", **options).faces
    return result


def trajectory(pipeline: CubeDiffPipeline, **options: object) -> list[Tensor]:
    """The latents after each step."""
    found: list[Tensor] = []

    def keep(_: object, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found.append(tensors["latents"])
        return tensors

    sample(pipeline, callback_on_step_end=keep, **options)
    return found


@contextmanager
def panoramas_of_calls(pipeline: CubeDiffPipeline) -> Iterator[list[int]]:
    """The number of panoramas in each call of the network."""
    counts: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0]) // 6))
    yield counts
    hook.remove()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [2, 2, 2, 2, 2]),
        ({"guidance_start": 0.2, "guidance_stop": 0.6}, [1, 2, 2, 1, 1]),
        ({"guidance_start": 0.5, "guidance_stop": 0.5}, [1, 1, 1, 1, 1]),
        ({"guidance_start": 0.8, "latents": noise(2)}, [2, 2, 2, 2, 4]),
        ({"guidance_stop": 0.4, **BOTH}, [3, 3, 1, 1, 1]),
        ({"guidance_stop": 0.4, "guidance_scale": 1.0}, [1, 1, 1, 1, 1]),
        ({"guidance_stop": 0.4, "sequential_guidance": True}, [1, 1, 1, 1, 1, 1, 1]),
        ({"guidance_start": 0.8, "sequential_guidance": True, **BOTH}, [1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_network_gets_one_branch_where_guidance_does_not_apply(
    pipeline: CubeDiffPipeline, options: dict[str, object], expected: list[int]
) -> None:
    with panoramas_of_calls(pipeline) as counts:
        sample(pipeline, **options)
    assert counts == expected


@pytest.mark.parametrize("name", SCHEDULERS)
def test_steps_before_the_interval_are_those_without_guidance_with_every_scheduler(
    pipeline: CubeDiffPipeline, name: str
) -> None:
    """With a photo, averaged overlaps and rescaling; and steps before its end are those with guidance."""
    pipeline.scheduler = convert_scheduler(sd_scheduler(), {}, getattr(diffusers, name))
    common = {**BOTH, "average_overlap": True, "num_inference_steps": 4}
    guided = trajectory(pipeline, **common)
    without = trajectory(pipeline, **common, guidance_start=0.0, guidance_stop=0.0)
    late = trajectory(pipeline, **common, guidance_start=0.5)
    early = trajectory(pipeline, **common, guidance_stop=0.5)
    half = len(guided) // 2
    for count, one, other in ((half, late, without), (half, early, guided)):
        assert max((a - b).abs().max() for a, b in zip(one[:count], other[:count], strict=True)) < 1e-4
        assert (one[-1] - other[-1]).abs().max() > 1e-3
        assert one[-1].isfinite().all()


def test_sampling_in_an_interval_is_that_of_a_loop_over_branches(pipeline: CubeDiffPipeline) -> None:
    """The loop predicts each branch alone, and keeps nothing of the text."""
    backbone, scheduler = pipeline.backbone, convert_scheduler(sd_scheduler(), {})
    pipeline.scheduler = convert_scheduler(sd_scheduler(), {})
    texts = [backbone.encode_text([[text] * 6]) for text in ("", "a hall")]
    scheduler.set_timesteps(5)
    latents = noise()
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            empty = torch.zeros_like(latents)
            cube = CubeInput(latents, empty, empty[:, :, :1], pipeline.positions(8, latents.device))
            without, with_text = (backbone.predict(cube, t, text) for text in texts)
            prediction = without + 3.5 * (with_text - without) if 1 <= step < 4 else with_text
            latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
    got = sample(pipeline, guidance_start=0.2, guidance_stop=0.8)
    torch.testing.assert_close(got, latents, rtol=0, atol=1e-4)


@pytest.mark.parametrize("image_drop", ["noise", "attention"])
@pytest.mark.parametrize("options", [{}, {"image": PHOTO}, BOTH], ids=["text", "text_and_photo", "two_scales"])
def test_branches_one_after_the_other_differ_by_rounding(image_drop: str, options: dict[str, object]) -> None:
    pipeline = awake_pipeline(image_drop=image_drop)
    options = {**options, "latents": noise(2), "guidance_start": 0.2, "negative_prompt": "people"}
    together, sequential = (sample(pipeline, **options, sequential_guidance=each) for each in (False, True))
    torch.testing.assert_close(sequential, together, rtol=0, atol=2e-4)


@pytest.mark.parametrize("cross_attention", ["per_face", "joint"])
@pytest.mark.parametrize("sequential", [False, True])
def test_kept_texts_change_nothing(cross_attention: str, sequential: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = awake_pipeline(cross_attention=cross_attention)
    options = {"guidance_start": 0.2, "guidance_stop": 0.8, "sequential_guidance": sequential}
    kept = sample(pipeline, **options)
    monkeypatch.setattr(StableDiffusion, "constant_conditioning", lambda _: nullcontext())
    assert torch.equal(sample(pipeline, **options), kept)


@pytest.mark.parametrize(("sequential", "texts"), [(False, 2), (True, 2)])
def test_each_text_of_a_call_is_projected_once(pipeline: CubeDiffPipeline, sequential: bool, texts: int) -> None:
    """Together: that of both branches, and that of the last. One after the other: that of either."""
    layers = [module for name, module in pipeline.unet.named_modules() if name.endswith("attn2.to_k")]
    runs: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_: runs.append(1)) for layer in layers]
    sample(pipeline, guidance_start=0.4, sequential_guidance=sequential)
    for hook in hooks:
        hook.remove()
    assert len(runs) == texts * len(layers)


@pytest.mark.parametrize(
    "interval", [(-0.1, 1.0), (1.0, 1.0), (0.5, 0.4), (0.0, 1.1), (float("nan"), 1.0), (0.0, float("nan"))]
)
def test_an_interval_outside_the_steps_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=rf"guidance_start={interval[0]} and guidance_stop={interval[1]}: expected"):
        make_guidance(True, False, 3.5, interval=interval)


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (0.2, 0.8), (0.33, 0.66), (0.29, 0.9)])
@pytest.mark.parametrize("steps", [1, 8, 50, 100])
def test_steps_are_counted_as_in_diffusers(start: float, stop: float, steps: int) -> None:
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.5, start=start, stop=stop)
    ours = make_guidance(True, False, 3.5, interval=(start, stop))
    for step in range(steps):
        guider.set_state(step, steps, torch.tensor(0))
        assert ours.applies(step, steps) == (guider.num_conditions == 2)
