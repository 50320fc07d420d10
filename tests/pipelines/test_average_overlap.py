"""average_overlap of the pipeline: against a float64 loop, with photos, stored in the folder, with every sampler."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from support.awake import awaken_
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.diffusion.schedulers import SAMPLERS, use_sampler_
from cubediff.geometry.overlap import blend_overlaps, sample_overlaps
from cubediff.models.backbone import Conditioning, CubeInput
from cubediff.models.stable_diffusion import StableDiffusion
from cubediff.pipelines.cubediff import OPENCUBEDIFF
from cubediff.pipelines.loading import load_pipeline, tiny_random


@pytest.fixture
def pipeline() -> CubeDiffPipeline:
    return awake()


def awake(**options: object) -> CubeDiffPipeline:
    pipeline = tiny_random(**options)
    awaken_(pipeline.unet)
    awaken_(pipeline.text_encoder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(count: int = 1, seed: int = 0, size: int = 16) -> Tensor:
    return torch.randn(count, 6, 4, size, size, generator=torch.Generator().manual_seed(seed))


def faces(pipeline: CubeDiffPipeline, **options: object) -> Tensor:
    options = {"prompt": "a hall", "latents": noise(), "num_inference_steps": 3, "output_type": "latent"} | options
    result: Tensor = pipeline(**options).faces
    return result


def disagreement(latents: Tensor) -> float:
    """RMS difference of latents that see the same direction."""
    samples = sample_overlaps(latents)
    return (samples.own - samples.other)[..., samples.inside].square().mean().sqrt().item()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sampling_is_that_of_a_float64_loop_that_averages_clean_latents(
    prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is replaced by a function, so that the loop needs no network in float64."""

    def network(x: Tensor, text: float) -> Tensor:
        return (0.8 * x + 0.3 * text).sin()

    def predict(self: StableDiffusion, cube: CubeInput, t: Tensor, conditioning: Conditioning) -> Tensor:
        without, with_text = cube.noisy.chunk(2)
        return torch.cat([network(without, 0.0), network(with_text, 1.0)])

    monkeypatch.setattr(StableDiffusion, "predict", predict)
    pipeline = awake(scheduler={"prediction_type": prediction})
    latents = faces(pipeline, average_overlap=True, num_inference_steps=5, guidance_scale=2.0)

    cumulative = DDIMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod.double()
    x, steps = noise().double(), [801, 601, 401, 201, 1]
    for t, previous in zip(steps, [*steps[1:], 0], strict=True):
        alpha, sigma = cumulative[t].sqrt(), (1 - cumulative[t]).sqrt()
        output = 2 * network(x, 1.0) - network(x, 0.0)
        clean = alpha * x - sigma * output if prediction == "v_prediction" else (x - sigma * output) / alpha
        clean = blend_overlaps(clean, 95.0)
        rest = (x - alpha * clean) / sigma
        x = cumulative[previous].sqrt() * clean + (1 - cumulative[previous]).sqrt() * rest
    torch.testing.assert_close(latents.double(), x, rtol=0, atol=1e-4)
    assert disagreement(latents) < 0.3 * disagreement(
        faces(pipeline, average_overlap=False, num_inference_steps=5, guidance_scale=2.0)
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_averages_without_another_call_of_the_network(sampler: str, pipeline: CubeDiffPipeline) -> None:
    use_sampler_(pipeline, sampler)
    calls: list[Tensor] = []
    pipeline.unet.register_forward_hook(lambda *_: calls.append(torch.empty(0)))
    plain = faces(pipeline, average_overlap=False)
    count = len(calls)
    averaged = faces(pipeline, average_overlap=True)
    assert len(calls) == 2 * count
    assert disagreement(averaged) < 0.5 * disagreement(plain)


def test_a_photos_latents_stay_and_their_neighbours_continue_them(pipeline: CubeDiffPipeline) -> None:
    photo = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(1))
    plain, averaged = (faces(pipeline, image=photo, average_overlap=average) for average in (False, True))
    assert torch.equal(plain[:, 0], averaged[:, 0])
    assert disagreement(averaged) < 0.5 * disagreement(plain)


def test_the_folder_says_whether_calls_average_and_a_call_may_say_otherwise(tmp_path: Path) -> None:
    pipeline = awake(average_overlap=True)
    assert torch.equal(faces(pipeline), faces(pipeline, average_overlap=True))
    plain = faces(pipeline, average_overlap=False)
    assert not torch.equal(faces(pipeline), plain)
    pipeline.save_pretrained(tmp_path / "on")
    index = json.loads((tmp_path / "on" / "model_index.json").read_text())
    assert index["average_overlap"] is True
    loaded = CubeDiffPipeline.from_pretrained(tmp_path / "on")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(faces(loaded), faces(pipeline))
    del index["average_overlap"]  # as in folders of earlier versions
    (tmp_path / "on" / "model_index.json").write_text(json.dumps(index))
    older = CubeDiffPipeline.from_pretrained(tmp_path / "on")
    older.set_progress_bar_config(disable=True)
    assert torch.equal(faces(older), plain)
    told = CubeDiffPipeline.from_pretrained(tmp_path / "on", average_overlap=True)
    told.set_progress_bar_config(disable=True)
    assert torch.equal(faces(told), faces(pipeline))
    assert OPENCUBEDIFF["average_overlap"] is False


def test_a_run_that_starts_from_a_folder_exports_its_setting(tmp_path: Path) -> None:
    tiny_random(average_overlap=True).save_pretrained(tmp_path / "start")
    load_pipeline(tmp_path / "start", position_encoding="uv").save_pretrained(tmp_path / "export")
    assert json.loads((tmp_path / "export" / "model_index.json").read_text())["average_overlap"] is True


def test_panoramas_of_a_batch_are_averaged_alone(pipeline: CubeDiffPipeline) -> None:
    joint = faces(pipeline, prompt=[["a hall"] * 6, ["a wood"] * 6], latents=noise(2), average_overlap=True)
    for i, prompt in enumerate(("a hall", "a wood")):
        alone = faces(pipeline, prompt=prompt, latents=noise(2)[i : i + 1], average_overlap=True)
        torch.testing.assert_close(joint[i : i + 1], alone, rtol=0, atol=1e-4)


def test_faces_that_do_not_overlap_are_refused() -> None:
    pipeline = awake(fov=90.0)
    faces(pipeline)
    with pytest.raises(ValueError, match=r"average_overlap=True with faces of 90°, .*use average_overlap=False"):
        faces(pipeline, average_overlap=True)


def test_a_setting_that_is_neither_true_nor_false_is_refused(pipeline: CubeDiffPipeline) -> None:
    """A string in a folder's model_index.json would count as true, also 'false'."""
    with pytest.raises(ValueError, match="average_overlap='false': use true or false"):
        pipeline.register(pipeline.components, {**pipeline.config, "average_overlap": "false"})
