"""The arguments that users of diffusers know: negative prompts, several panoramas per prompt, steps, output types."""

import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from support.awake import awaken_
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.diffusion.guidance import make_guidance
from cubediff.diffusion.schedulers import use_sampler_
from cubediff.pipelines.call import check_call
from cubediff.pipelines.loading import tiny_random

SIX = [f"the face {i}" for i in range(6)]


@pytest.fixture
def pipeline() -> CubeDiffPipeline:
    pipeline = tiny_random()
    awaken_(pipeline.unet)
    awaken_(pipeline.text_encoder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(count: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def faces(pipeline: CubeDiffPipeline, *arguments: object, **options: object) -> Tensor:
    options = {"latents": noise(), "num_inference_steps": 2, "output_type": "latent"} | options
    result: Tensor = pipeline(*arguments, **options).faces
    return result


def test_a_negative_prompt_replaces_no_text_in_the_unconditional_prediction(pipeline) -> None:
    """Guidance leads from the prediction with the negative prompt to that with the prompt."""
    states: list[Tensor] = []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda _, args, kwargs: states.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    faces(pipeline, "a forest", negative_prompt="people")
    faces(pipeline, "a forest", negative_prompt=[SIX])
    faces(pipeline, "a forest", negative_prompt="")
    faces(pipeline, "a forest")
    hook.remove()
    encode = pipeline.backbone.encoders.encode_captions
    one, six, empty, absent = states[::2]
    assert torch.equal(one, torch.cat([encode(["people"] * 6), encode(["a forest"] * 6)]))
    assert torch.equal(six[:6], encode(SIX))
    assert torch.equal(empty, absent)
    assert torch.equal(absent[:6], encode([""] * 6))


def test_a_negative_prompt_without_a_prompt_leads_a_photo_away_from_it(pipeline) -> None:
    photo = torch.zeros(3, 64, 64)
    assert not torch.equal(faces(pipeline, image=photo, negative_prompt="people"), faces(pipeline, image=photo))


def test_negative_prompts_are_one_for_all_panoramas_or_one_for_each(pipeline) -> None:
    both = [SIX, ["a hall"] * 6]
    joint = faces(pipeline, both, negative_prompt=[["people"] * 6, ["cars"] * 6], latents=noise(2))
    for i, negative in enumerate(("people", "cars")):
        alone = faces(pipeline, both[i : i + 1], negative_prompt=negative, latents=noise(2)[i : i + 1])
        torch.testing.assert_close(joint[i : i + 1], alone, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="the numbers of panoramas disagree"):
        faces(pipeline, both, negative_prompt=[SIX] * 3, latents=None)


def test_several_panoramas_per_prompt_are_adjacent(pipeline) -> None:
    both, photos = [SIX, ["a hall"] * 6], torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    joint = faces(pipeline, both, image=photos, num_images_per_prompt=2, latents=noise(4))
    assert joint.shape == (4, 6, 4, 8, 8)
    for i in range(4):
        alone = faces(pipeline, [both[i // 2]], image=photos[i // 2], latents=noise(4)[i : i + 1])
        torch.testing.assert_close(joint[i : i + 1], alone, rtol=0, atol=1e-4)
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    assert len(faces(pipeline, "a", num_images_per_prompt=3, latents=None, generator=seeds)) == 3
    with pytest.raises(ValueError, match="2 latents for 3 panoramas"):
        faces(pipeline, "a", num_images_per_prompt=3, latents=noise(2))


def test_output_types_hold_the_same_panorama(pipeline) -> None:
    tensors, arrays, images = (
        pipeline("a", latents=noise(), num_inference_steps=1, output_type=kind) for kind in ("pt", "np", "pil")
    )
    assert arrays.panoramas.shape == (1, 128, 256, 3)
    assert arrays.faces.shape == (1, 6, 64, 64, 3)
    np.testing.assert_allclose(
        arrays.panoramas, (tensors.panoramas / 2 + 0.5).permute(0, 2, 3, 1).clamp(0, 1), atol=1e-6
    )
    assert np.abs(arrays.panoramas[0] * 255 - np.asarray(images.panoramas[0], np.float32)).max() <= 1
    panoramas, six = pipeline("a", latents=noise(), num_inference_steps=1, output_type="pt", return_dict=False)
    assert torch.equal(panoramas, tensors.panoramas)
    assert torch.equal(six, tensors.faces)
    with pytest.raises(ValueError, match="output_type='pillow': use one of pil, np, pt, latent"):
        pipeline("a", output_type="pillow")


def test_eta_adds_noise_to_ddim_from_the_generator(pipeline) -> None:
    def sample(seed: int, eta: float) -> Tensor:
        return faces(pipeline, "a", eta=eta, generator=torch.Generator().manual_seed(seed), num_inference_steps=4)

    assert torch.equal(sample(0, 0.0), sample(1, 0.0))
    assert torch.equal(sample(0, 1.0), sample(0, 1.0))
    assert not torch.equal(sample(0, 1.0), sample(1, 1.0))
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        sample(0, 1.5)
    use_sampler_(pipeline, "dpm")
    assert torch.equal(sample(0, 0.0), sample(0, 1.0))  # ignored


def test_timesteps_and_sigmas_are_those_of_the_schedulers_that_take_them(pipeline) -> None:
    use_sampler_(pipeline, "dpm")
    assert isinstance(pipeline.scheduler, DPMSolverMultistepScheduler)
    faces(pipeline, "a", timesteps=[900, 500, 100])
    assert pipeline.scheduler.timesteps.tolist() == [900, 500, 100]
    use_sampler_(pipeline, "euler")
    assert isinstance(pipeline.scheduler, EulerDiscreteScheduler)
    faces(pipeline, "a", sigmas=[10.0, 2.0, 0.5, 0.0])
    assert pipeline.scheduler.sigmas.tolist() == [10.0, 2.0, 0.5, 0.0]


def test_a_callback_replaces_latents_and_interrupts(pipeline) -> None:
    calls: list[int] = []

    def stop(pipe: CubeDiffPipeline, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(step)
        assert list(tensors) == ["latents"]
        pipe._interrupt = step == 1
        return {"latents": torch.full_like(tensors["latents"], step)}

    assert (faces(pipeline, "a", num_inference_steps=5, callback_on_step_end=stop) == 1).all()
    assert calls == [0, 1]
    faces(pipeline, "a", num_inference_steps=3, callback_on_step_end=lambda *_: {})  # the last call's interrupt is over
    with pytest.raises(ValueError, match=r"callback_on_step_end_tensor_inputs=\['image'\]: use latents"):
        faces(pipeline, "a", callback_on_step_end=stop, callback_on_step_end_tensor_inputs=["image"])


def test_a_value_that_is_not_finite_is_an_error_that_names_the_step(pipeline) -> None:
    def spoil(_: object, step: int, __: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": tensors["latents"] * (torch.nan if step == 2 else 1)}

    for kind in ("latent", "pt", "np", "pil"):
        with pytest.raises(FloatingPointError, match="the latents of step 3 of 5 are NaN or infinite: use float32"):
            faces(pipeline, "a", num_inference_steps=5, callback_on_step_end=spoil, output_type=kind)


def test_vae_slicing_gives_the_same_panorama(pipeline) -> None:
    """The autoencoder's norms see all six faces; a slice is one of them."""
    photo = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))
    call = {"image": photo, "latents": noise(2), "num_inference_steps": 2, "output_type": "pt"}
    plain = pipeline("a", **call).panoramas
    pipeline.vae.enable_slicing()
    assert (pipeline("a", **call).panoramas - plain).abs().max() < 1e-3
    assert pipeline.vae.use_slicing


def test_arguments_of_the_2d_pipeline_have_its_defaults() -> None:
    ours, theirs = (inspect.signature(kind.__call__).parameters for kind in (CubeDiffPipeline, StableDiffusionPipeline))
    defaults = {"guidance_scale": 3.5, "callback_on_step_end_tensor_inputs": ("latents",)}  # and a tuple, not a list
    for name in ours.keys() & theirs.keys() - {"self"}:
        assert ours[name].default == defaults.get(name, theirs[name].default), name


def test_prompt_embeds_replace_prompts(pipeline) -> None:
    encode = pipeline.backbone.encoders.encode_captions
    expected = faces(pipeline, "a forest", negative_prompt="people")
    embeds = {"prompt_embeds": encode(["a forest"]), "negative_prompt_embeds": encode(["people"])}
    assert torch.equal(faces(pipeline, **embeds), expected)
    assert torch.equal(faces(pipeline, prompt_embeds=encode(SIX)[None]), faces(pipeline, [SIX]))
    two = faces(pipeline, prompt_embeds=encode(["a forest", "a hall"]), latents=noise(2))
    torch.testing.assert_close(two, faces(pipeline, ["a forest", "a hall"], latents=noise(2)), rtol=0, atol=1e-5)
    short = {"prompt_embeds": encode(["a"])[:, :9], "negative_prompt_embeds": encode([""])[:, :9]}
    assert not torch.equal(faces(pipeline, **short), faces(pipeline, "a"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a", "prompt_embeds": torch.zeros(1, 9, 32)}, "prompt and prompt_embeds are both given"),
        ({"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 9, 32)}, "negative_prompt_embeds are both"),
        (
            {"prompt_embeds": torch.zeros(1, 9, 31)},
            r"has shape \(1, 9, 31\): expected \(B, L, 32\), or \(B, 6, L, 32\)",
        ),
        ({"prompt_embeds": torch.zeros(1, 5, 9, 32)}, r"has shape \(1, 5, 9, 32\)"),
        ({"prompt_embeds": torch.zeros(1, 9, 32)}, "prompt_embeds and negative_prompt_embeds of the same length"),
        ({"prompt": "a", "face_size": 60}, "face_size=60: expected a positive multiple of 8"),
        ({"prompt": "a", "face_size": 0}, "face_size=0: expected a positive multiple of 8"),
        ({"prompt": "a", "face_size": 128}, "face_size=128 and latents of size 8, which are for faces of 64 pixels"),
        ({"prompt": "a", "height": 64, "width": 64}, "a panorama is twice as wide as it is high"),
        ({"prompt": "a", "height": 64, "panorama_height": 32}, "a panorama is twice as wide"),
        ({"prompt": "a", "width": 63}, "an even width"),
        ({"prompt": "a", "height": 0}, "expected a positive number of pixels"),
    ],
)
def test_sizes_and_embeddings_that_do_not_fit_raise(pipeline, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        faces(pipeline, **options)


def test_face_size_sets_the_latents_and_height_or_width_the_panorama(pipeline) -> None:
    call = {"num_inference_steps": 1, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    large = pipeline("a", face_size=96, **call)
    assert large.faces.shape == (1, 6, 96, 96, 3)
    assert large.panoramas.shape == (1, 192, 384, 3)
    for size in ({"height": 50}, {"width": 100}, {"height": 50, "width": 100}, {"panorama_height": 50}):
        assert pipeline("a", **size, **call).panoramas.shape == (1, 50, 100, 3)
    equal = {"latents": noise(), "num_inference_steps": 1, "output_type": "latent"}
    assert torch.equal(pipeline("a", face_size=64, **equal).faces, pipeline("a", **equal).faces)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (check_call, ("pil", 2.5, 1, 0.0), r"num_inference_steps=2\.5: expected an integer from 1"),
        (check_call, ("pil", 25, "2", 0.0), "num_images_per_prompt='2': expected an integer from 1"),
        (make_guidance, (True, False, "3"), "guidance_scale='3': expected a finite number"),
    ],
)
def test_arguments_of_other_types_are_named(
    function: Callable[..., object], arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(function)(*arguments)  # without the tests' check of annotations
