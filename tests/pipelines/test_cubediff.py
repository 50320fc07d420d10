"""CubeDiffPipeline: guidance and sampling against a float64 loop and against stock Stable Diffusion, conditioning,
files, and errors."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import CpuOffload
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from support.awake import awaken_
from support.stock import stock_2d
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.diffusion.schedulers import convert_scheduler, use_sampler_
from cubediff.geometry import FACES, cube_to_equirect, position_map
from cubediff.geometry.photos import Photo, paste_photos, project_photos
from cubediff.models.inflation import CubeAttnProcessor, CubeGroupNorm
from cubediff.models.tiny import sd_scheduler
from cubediff.pipelines.loading import load_pipeline, tiny_random
from cubediff.pipelines.prompts import prompts_by_panorama

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SAMPLES = Path(__file__).parents[2] / "data" / "samples"
SIX = [f"the {face}" for face in FACES]


@pytest.fixture(scope="module")
def photos() -> list[PIL.Image.Image]:
    """The middles of two sample panoramas, 64 pixels square."""
    middles = []
    for name in ("courtyard", "hotel_room"):
        panorama = cv2.imread(str(SAMPLES / f"{name}.jpg"))[..., ::-1]
        height, width = panorama.shape[:2]
        quarter = panorama[height // 4 : -height // 4, width * 3 // 8 : -width * 3 // 8]
        middles.append(PIL.Image.fromarray(cv2.resize(quarter, (64, 64), interpolation=cv2.INTER_AREA)))
    return middles


@pytest.fixture(scope="module")
def awake() -> CubeDiffPipeline:
    return awake_pipeline()


@pytest.fixture
def pipeline() -> CubeDiffPipeline:
    """A pipeline that the test may modify."""
    return awake_pipeline()


def awake_pipeline(**options: object) -> CubeDiffPipeline:
    pipeline = tiny_random(**options)
    for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        awaken_(model.eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline: CubeDiffPipeline, prompt: object = "a hall", seed: int = 0, **options: object) -> Tensor:
    """The latents (or with output_type="pt" the faces) of a short generation."""
    call = {"num_inference_steps": 3, "output_type": "latent"} | options
    if not {"latents", "generator"} & call.keys():
        call["generator"] = torch.Generator().manual_seed(seed)
    return pipeline(prompt, **call).faces


def unit_noise(*batch: int, size: int = 8, seed: int = 5) -> Tensor:
    return torch.randn(*batch, 4, size, size, generator=torch.Generator().manual_seed(seed))


def test_the_step_callback_receives_every_sample_and_may_replace_it(awake: CubeDiffPipeline) -> None:
    seen: list[tuple[int, float, Tensor]] = []

    def double_the_last(
        pipe: CubeDiffPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        assert pipe is awake
        seen.append((step, float(timestep), tensors["latents"]))
        return tensors if step < 2 else {"latents": 2 * tensors["latents"]}

    plain = sample(awake)
    assert torch.equal(sample(awake, callback_on_step_end=double_the_last), 2 * plain)
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert [timestep for _, timestep, _ in seen] == awake.scheduler.timesteps.tolist()
    assert torch.equal(seen[-1][2], plain)


@contextmanager
def counted(unet: UNet2DConditionModel) -> Iterator[list[int]]:
    """The batch size of each call of the UNet."""
    sizes: list[int] = []
    hook = unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    yield sizes
    hook.remove()


def front_latents(pipeline: CubeDiffPipeline, photo: PIL.Image.Image) -> Tensor:
    """Of a cube that has the photo in front and its continuation around it."""
    faces, _ = project_photos([[Photo(photo)]], 64, 95.0)
    assert torch.equal(faces[0, 0], tensor_of(photo))
    return pipeline.backbone.encode(faces)


def tensor_of(photo: PIL.Image.Image) -> Tensor:
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 127.5 - 1


# ------------------------------------------------------------------------------------------- offloading


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_offloaded_models_move_to_the_device_in_turn_and_generate_the_same(
    pipeline, awake, photos, device, monkeypatch
):
    expected = sample(awake, image=photos[0], output_type="pt")
    pipeline.enable_model_cpu_offload(device=device)
    came, names = [], {id(model): name for name, model in pipeline.components.items()}
    before = CpuOffload.pre_forward

    def fetched(hook, module, *args, **kwargs):
        came.append(names[id(module)])
        return before(hook, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", fetched)
    for _ in range(2):  # the second call starts from where the first left the models
        came.clear()
        generated = sample(pipeline, image=photos[0], output_type="pt")
        assert [name for name, _ in groupby(came)] == ["text_encoder", "vae", "unet", "vae"]
        torch.testing.assert_close(generated.cpu(), expected, rtol=0, atol=0 if device == "cpu" else 1e-3)
    assert next(pipeline.unet.parameters()).device.type == "cpu"


# ------------------------------------------------------------------------------ noise, sampling, guidance


def test_the_generator_determines_the_result(awake):
    first = sample(awake, seed=1)
    torch.manual_seed(99)  # the global state has no effect
    assert torch.equal(sample(awake, seed=1), first)
    assert (sample(awake, seed=2) - first).abs().max() > 0.1


def test_latents_equal_the_generators_noise_and_are_not_modified(awake):
    noise = torch.randn(1, 6, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    kept = noise.clone()
    assert torch.equal(sample(awake, latents=noise), sample(awake, seed=3))
    assert torch.equal(noise, kept)


def test_latents_set_the_size_of_the_faces(awake):
    output = awake("a hall", latents=unit_noise(1, 6, size=12), num_inference_steps=1, output_type="pt")
    assert output.faces.shape == (1, 6, 3, 96, 96)
    assert output.panoramas.shape == (1, 3, 192, 384)


def test_with_one_generator_each_a_batch_equals_single_calls(awake):
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    together = sample(awake, [SIX, ["a hall"] * 6], latents=None, generator=generators)
    torch.testing.assert_close(together[:1], sample(awake, [SIX], seed=4), rtol=0, atol=1e-4)
    torch.testing.assert_close(together[1:], sample(awake, "a hall", seed=5), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("guidance_scale", "faces"), [(1.0, 6), (0.0, 6), (3.5, 12)])
def test_one_unet_call_a_step_for_all_branches(awake, photos, guidance_scale, faces):
    with counted(awake.unet) as sizes:
        sample(awake, image=photos[0], guidance_scale=guidance_scale, num_inference_steps=4)
    assert sizes == [faces] * 4


@pytest.mark.parametrize(
    ("prompt", "with_photo", "image_scale", "faces"),
    [
        ("a hall", True, 1.5, 18),  # unconditional, photo only, both
        ("a hall", True, 1.0, 12),  # the unconditional branch has weight 0
        ("a hall", True, 3.5, 12),  # the branch of the photo alone has weight 0
        ("a hall", False, 1.5, 12),
        (None, True, 1.5, 12),
        (None, True, 1.0, 6),
    ],
)
def test_an_image_scale_computes_only_the_branches_with_a_weight(awake, photos, prompt, with_photo, image_scale, faces):
    with counted(awake.unet) as sizes:
        image = photos[0] if with_photo else None
        sample(awake, prompt, image=image, image_guidance_scale=image_scale, num_inference_steps=2)
    assert sizes == [faces] * 2


@pytest.mark.parametrize(
    ("drops", "prompt", "with_photo", "image_scale", "expected_warnings"),
    [
        ((0.1, 0.1, 0.1), "a hall", True, 1.5, []),
        (None, "a hall", True, 1.5, []),
        ((0.1, 0.1, 0.0), "a hall", True, None, ["without text and image, which guidance needs: use guidance_scale=1"]),
        ((0.1, 0.1, 0.0), "a hall", False, None, ["without text and image, which guidance needs"]),
        ((0.0, 0.1, 0.1), "a hall", True, None, []),
        ((0.0, 0.1, 0.1), "a hall", True, 1.5, ["without text, which guidance needs"]),
        ((0.1, 0.0, 0.1), "a hall", False, None, ["without an image"]),
        ((0.0, 0.0, 0.0), None, True, None, ["without text and image, which", "without text"]),
        ((0.5, 0.5, 0.0), "a hall", True, None, ["without text and image, which", "with text and image together"]),
    ],
)
def test_a_warning_names_conditions_that_were_not_trained(
    photos, caplog, drops, prompt, with_photo, image_scale, expected_warnings
):
    pipeline = awake_pipeline(drops=drops)
    image = photos[0] if with_photo else None
    sample(pipeline, prompt, image=image, image_guidance_scale=image_scale, num_inference_steps=1)
    # Other loggers may warn meanwhile, in threads of earlier tests.
    messages = [record.getMessage() for record in caplog.records if record.name == "cubediff.diffusion.guidance"]
    assert len(messages) == len(expected_warnings)
    for message, expected in zip(messages, expected_warnings, strict=True):
        assert message.startswith(f"this model was never trained {expected}")


def test_without_prompt_and_image_guidance_has_one_branch(awake):
    with counted(awake.unet) as sizes:
        free = sample(awake, None)
    assert sizes == [6] * 3
    assert torch.equal(free, sample(awake, None, guidance_scale=9.0))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("with_photo", [True, False])
@pytest.mark.parametrize(
    ("scale", "image_scale", "rescale"),
    [(1.0, None, 0.0), (4.0, None, 0.0), (4.0, None, 0.7), (4.0, 1.5, 0.0), (4.0, 1.0, 0.5), (1.0, 1.5, 0.0)],
)
def test_sampling_equals_a_float64_ddim_loop(
    pipeline, photos, monkeypatch, prediction_type, with_photo, scale, image_scale, rescale
):
    """With a UNet in closed form; the loop is written from the DDIM paper's equation 12 with eta = 0."""
    pipeline.scheduler = sd_scheduler(prediction_type)
    steps, noise = 5, unit_noise(1, 6)
    positions = position_map(8, 95.0, "uv")

    def closed_form(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        latents, place, mask = x.unflatten(0, (-1, 6)).tensor_split([4, 6], dim=2)
        around = latents.mean((1, 3, 4), keepdim=True)  # all faces of the panorama
        words = text.unflatten(0, (-1, 6)).mean((2, 3)).view(-1, 6, 1, 1, 1)
        output = 0.5 * latents + 0.8 * around + 0.3 * mask * latents + words + place.sum(2, keepdim=True) + t / 2000
        return output.flatten(0, 1)

    def forward(x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (closed_form(x, t, encoder_hidden_states),)

    monkeypatch.setattr(pipeline.unet, "forward", forward)
    image = photos[0] if with_photo else None
    got = sample(pipeline, [SIX], image=image, latents=noise, num_inference_steps=steps,
                 guidance_scale=scale, image_guidance_scale=image_scale, guidance_rescale=rescale)  # fmt: skip

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0)
    text = torch.stack([pipeline.backbone.encoders.encode_captions([p])[0] for p in SIX]).double()
    empty = pipeline.backbone.encoders.encode_captions([""]).double().expand_as(text)
    condition, unit = torch.zeros(1, 6, 4, 8, 8, dtype=torch.float64), noise.double()
    front = torch.zeros(1, 6, 1, 8, 8, dtype=torch.float64)
    if with_photo:
        condition[:] = front_latents(pipeline, photos[0])
        front[:, 0] = 1
    x = unit
    times = [801, 601, 401, 201, 1]
    for t, after in zip(times, [601, 401, 201, 1, -199], strict=True):
        a, a_after = alpha_bar[t], alpha_bar[max(after, 0)]
        x = (1 - front) * x + front * (a.sqrt() * condition + (1 - a).sqrt() * unit)

        def answer(latents: Tensor, mask: Tensor, states: Tensor, t: int = t) -> Tensor:
            x = torch.cat([latents, positions.double()[None], mask], dim=2).flatten(0, 1)
            return closed_form(x, torch.tensor(t, dtype=torch.float64), states)

        full = answer((1 - front) * x + front * condition, front, text)
        guided = full
        if with_photo and image_scale is not None:
            nothing = answer(x, 0 * front, empty)
            photo_alone = answer((1 - front) * x + front * condition, front, empty)
            guided = nothing + image_scale * (photo_alone - nothing) + scale * (full - photo_alone)
            guided = guided * (1 - rescale + rescale * full.std() / guided.std())
        elif scale != 1:
            nothing = answer(x, 0 * front, empty)
            guided = nothing + scale * (full - nothing)
            guided = guided * (1 - rescale + rescale * full.std() / guided.std())
        guided = guided.unflatten(0, (1, 6))
        if prediction_type == "epsilon":
            clean, eps = (x - (1 - a).sqrt() * guided) / a.sqrt(), guided
        else:
            clean, eps = a.sqrt() * x - (1 - a).sqrt() * guided, a.sqrt() * guided + (1 - a).sqrt() * x
        x = a_after.sqrt() * clean + (1 - a_after).sqrt() * eps
    x = (1 - front) * x + front * condition
    torch.testing.assert_close(got.double(), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "dpm", "euler"])
def test_every_sampler_keeps_the_noise_schedule_and_the_front_face(pipeline, photos, name):
    stored = pipeline.scheduler.config
    use_sampler_(pipeline, name)
    for setting in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset", "timestep_spacing"):
        assert pipeline.scheduler.config[setting] == stored[setting]
    latents = sample(pipeline, image=photos[0], num_inference_steps=6)
    clean = front_latents(pipeline, photos[0])
    assert torch.equal(latents[:, 0], clean[:, 0])
    assert latents.isfinite().all()
    assert torch.equal(sample(pipeline, image=photos[0], num_inference_steps=6), latents)  # no state is left over


# ------------------------------------------------------------------------------------------------ prompts


def test_six_prompts_of_a_panorama_are_a_nested_list_or_a_dict(awake):
    as_list = sample(awake, [SIX])
    shuffled = {face: f"the {face}" for face in reversed(FACES)}
    assert torch.equal(sample(awake, shuffled), as_list)
    assert torch.equal(sample(awake, [shuffled]), as_list)
    assert (sample(awake, [SIX[::-1]]) - as_list).abs().max() > 0.01
    assert torch.equal(sample(awake, "a hall"), sample(awake, [["a hall"] * 6]))


def test_a_list_of_prompts_is_a_batch(awake):
    noise = unit_noise(6, 6)
    each = sample(awake, SIX, latents=noise)
    assert each.shape == (6, 6, 4, 8, 8)
    for i in (0, 5):
        alone = sample(awake, SIX[i], latents=noise[i : i + 1])
        torch.testing.assert_close(each[i : i + 1], alone, rtol=0, atol=1e-4)


def test_each_face_receives_the_text_states_of_its_prompt(awake):
    received: list[Tensor] = []
    hook = awake.unet.register_forward_pre_hook(
        lambda _, args, kwargs: received.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    sample(awake, [SIX, ["a hall"] * 6], num_inference_steps=1, generator=None, latents=unit_noise(2, 6))
    hook.remove()
    empty, six, hall = (awake.backbone.encoders.encode_captions(texts) for texts in ([""], SIX, ["a hall"]))
    expected = torch.cat([empty.expand(12, -1, -1), six, hall.expand(6, -1, -1)])  # both branches, panorama-major
    torch.testing.assert_close(received[0], expected, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------- image


def test_the_front_face_is_the_encoded_photo_which_affects_all_other_faces(awake, photos):
    generated = [sample(awake, image=photo) for photo in photos]
    for latents, photo in zip(generated, photos, strict=True):
        clean = front_latents(awake, photo)
        assert torch.equal(latents[:, 0], clean[:, 0])
    moved = (generated[0] - generated[1]).abs().amax((0, 2, 3, 4))
    assert (moved > 1e-2).all(), moved
    without = (generated[0] - sample(awake)).abs().amax((0, 2, 3, 4))
    assert (without > 1e-2).all(), without


def test_the_photo_is_clean_with_its_mask_in_one_branch_and_noised_in_the_other(awake, photos):
    inputs: list[Tensor] = []
    hook = awake.unet.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    sample(awake, image=photos[0], num_inference_steps=3)
    hook.remove()
    clean = front_latents(awake, photos[0])[0, 0]
    for x in inputs:
        without, with_photo = x.unflatten(0, (2, 6))
        assert torch.equal(with_photo[0, :4], clean)
        assert torch.equal(with_photo[:, 6].mean((1, 2)), torch.eye(6)[0])
        assert not without[:, 6].any()
        assert (without[0, :4] - clean).abs().max() > 1e-3
        assert torch.equal(without[1:, :6], with_photo[1:, :6])


def test_pasted_photos_keep_their_pixels_and_fade_into_the_generated_ones(awake, photos):
    view = Photo(photos[0], fov=60.0, yaw=30.0, pitch=10.0)
    plain, pasted = (sample(awake, image=view, output_type="pt", paste_image=paste) for paste in (False, True))
    pictures, covered = project_photos([[view]], 64, 95.0)
    assert torch.equal(pasted[covered.expand_as(pasted)], pictures[covered.expand_as(pasted)])
    beyond = F.max_pool2d(covered[0].float(), 33, 1, 16)[None] == 0  # 16 pixels, which are two of the latents
    assert beyond.any()
    assert torch.equal(pasted[beyond.expand_as(pasted)], plain[beyond.expand_as(plain)])
    around = ~covered & ~beyond
    near = (pictures - plain)[covered.expand_as(plain)]
    change = (pasted - plain)[around.expand_as(plain)]
    assert change.abs().max() > 0.1 * near.abs().max()
    assert near.min() - 1e-5 <= change.min()
    assert change.max() <= near.max() + 1e-5


def test_pasted_photos_do_not_smear_their_border():
    """A picture of columns, in flat surroundings: its columns end where it ends, and its mean colour fades."""
    columns = torch.tensor([-1.0, 1.0]).repeat(32).expand(1, 6, 3, 64, 64)
    covered = torch.zeros(1, 6, 1, 64, 64, dtype=torch.bool)
    covered[0, 0, 0, 16:40, 16:48] = True
    pasted = paste_photos(torch.full((1, 6, 3, 64, 64), 0.5), columns, covered, radius=4)
    assert torch.equal(pasted[covered.expand_as(pasted)], columns[covered.expand_as(pasted)])
    below = pasted[0, 0, 0, 40:48, 16:48]
    assert below.diff(dim=1).abs().max() < 0.05
    assert below[0].mean() < 0.2  # near the mean of the columns, 0, where the surroundings have 0.5
    assert (below.diff(dim=0).mean(1) > 0).all()
    assert torch.equal(pasted[0, 1:], torch.full((5, 3, 64, 64), 0.5))


def test_pil_and_tensor_photos_give_the_same_result(awake, photos):
    expected = sample(awake, image=photos[0])
    for image in (tensor_of(photos[0]), tensor_of(photos[0])[None]):
        assert torch.equal(sample(awake, image=image), expected)


def test_a_pil_photo_is_cropped_to_its_central_square(awake, photos):
    wide = PIL.Image.new("RGB", (100, 64), "red")
    wide.paste(photos[0], (18, 0))
    assert torch.equal(sample(awake, image=wide), sample(awake, image=photos[0]))
    large = photos[0].resize((256, 256), PIL.Image.Resampling.NEAREST)
    assert (sample(awake, image=large) - sample(awake, image=photos[0])).abs().max() < 0.5


def test_one_photo_serves_several_prompts_and_several_photos_one(awake, photos):
    two = torch.stack([tensor_of(photo) for photo in photos])
    noise = unit_noise(1, 6).expand(2, -1, -1, -1, -1)
    both = sample(awake, "a hall", image=two, latents=noise)
    for i, photo in enumerate(photos):
        torch.testing.assert_close(both[i : i + 1], sample(awake, "a hall", image=photo, latents=noise[:1]),
                                   rtol=0, atol=1e-4)  # fmt: skip
    prompts = [SIX, ["a hall"] * 6]
    both = sample(awake, prompts, image=photos[0], latents=unit_noise(1, 6))
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(both[i : i + 1], sample(awake, [prompt], image=photos[0], latents=noise[:1]),
                                   rtol=0, atol=1e-4)  # fmt: skip


# ------------------------------------------------------------------------------------------------- output


def test_the_three_output_types_agree(awake, photos):
    call = {"image": photos[0], "num_inference_steps": 2, "latents": unit_noise(1, 6)}
    latent = awake("a hall", output_type="latent", **call)
    tensors = awake("a hall", output_type="pt", **call)
    pictures = awake("a hall", **call)
    assert latent.panoramas is None
    assert torch.equal(tensors.faces, awake.backbone.encoders.decode(latent.faces))
    expected = cube_to_equirect(tensors.faces, 128, 95.0, mode="bicubic").clamp(-1, 1)
    assert torch.equal(tensors.panoramas, expected)
    assert [face.size for face in pictures.faces[0]] == [(64, 64)] * 6
    assert pictures.panoramas[0].size == (256, 128)
    for picture, tensor in [*zip(pictures.faces[0], tensors.faces[0], strict=True),
                            (pictures.panoramas[0], tensors.panoramas[0])]:  # fmt: skip
        assert (tensor_of(picture) - tensor).abs().max() <= 0.5 / 127.5 + 1e-6
    assert awake("a hall", panorama_height=50, **call).panoramas[0].size == (100, 50)


def test_the_panorama_is_rendered_at_the_pipelines_field_of_view():
    wide = awake_pipeline(fov=110.0)
    output = wide("a hall", num_inference_steps=1, latents=unit_noise(1, 6), output_type="pt")
    expected = cube_to_equirect(output.faces, 128, 110.0, mode="bicubic").clamp(-1, 1)
    assert torch.equal(output.panoramas, expected)


# -------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def folder_2d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("2d")
    stock_2d().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(awake: CubeDiffPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    awake.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize(
    ("prediction_type", "scheduler"),
    [
        ("epsilon", DDIMScheduler),
        ("v_prediction", DDIMScheduler),
        ("epsilon", DPMSolverMultistepScheduler),
        ("epsilon", EulerDiscreteScheduler),
    ],
)
def test_before_training_equal_noise_on_every_face_generates_the_2d_models_image(
    tmp_path, prediction_type, scheduler, guidance_scale
):
    """Stock Stable Diffusion in diffusers is the reference; float32, six steps, latents of size 1 to 10."""
    stock = stock_2d(prediction_type)
    stock.save_pretrained(tmp_path)
    cube = CubeDiffPipeline.from_2d(tmp_path)
    cube.set_progress_bar_config(disable=True)
    stock.scheduler, cube.scheduler = (scheduler.from_config(cube.scheduler.config) for _ in range(2))
    noise = unit_noise(1)
    call = {"num_inference_steps": 6, "guidance_scale": guidance_scale}
    expected = stock("a hall by night", latents=noise, output_type="latent", **call).images
    got = sample(cube, "a hall by night", latents=noise.expand(1, 6, -1, -1, -1), **call)
    assert (got[0] - expected).abs().max() < 2e-4 < 0.5 < expected.std()
    pixels = stock("a hall by night", latents=noise, output_type="pt", **call).images
    faces = sample(cube, "a hall by night", latents=noise.expand(1, 6, -1, -1, -1), output_type="pt", **call)
    assert ((faces[0] + 1) / 2 - pixels).abs().max() < 2e-3


def test_a_saved_pipeline_loads_inflated_and_generates_the_same(awake, saved, photos):
    loaded = CubeDiffPipeline.from_pretrained(saved)
    loaded.set_progress_bar_config(disable=True)
    processors = loaded.unet.attn_processors
    assert {name.split(".")[-2] for name, p in processors.items() if isinstance(p, CubeAttnProcessor)} == {"attn1"}
    for model in (loaded.unet, loaded.vae):
        norms = [m for m in model.modules() if isinstance(m, torch.nn.GroupNorm)]
        assert norms
        assert all(type(norm) is CubeGroupNorm for norm in norms)
    assert torch.equal(sample(loaded, [SIX], image=photos[0]), sample(awake, [SIX], image=photos[0]))
    index = json.loads((saved / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]


@pytest.mark.parametrize(
    "options",
    [
        {"fov": 100.0},
        {"position_encoding": "uv_pi"},
        {"position_encoding": "xyz"},
        {"sync_group_norm": False},
        {"cross_attention": "joint"},
        {"position_samples": "corners"},
    ],
)
def test_settings_are_stored_in_the_folder_and_have_an_effect(tmp_path, options, awake):
    original = awake_pipeline(**options)
    expected = sample(original, [SIX])
    assert (expected - sample(awake, [SIX])).abs().max() > 1e-4
    original.save_pretrained(tmp_path)
    loaded = CubeDiffPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert {key: loaded.config[key] for key in options} == options
    assert torch.equal(sample(loaded, [SIX]), expected)


def test_a_half_precision_folder_loads_in_float32_or_in_torch_dtype(tmp_path, photos):
    original = awake_pipeline()
    expected = sample(original, image=photos[0])
    original.to(torch.bfloat16).save_pretrained(tmp_path)
    models = ("unet", "vae", "text_encoder")
    for option, dtype in [({}, torch.float32), ({"dtype": torch.bfloat16}, torch.bfloat16)]:  # fmt: skip
        loaded = CubeDiffPipeline.from_pretrained(tmp_path, **option)
        loaded.set_progress_bar_config(disable=True)
        assert {getattr(loaded, model).dtype for model in models} == {dtype}
        got = sample(loaded, image=photos[0])
        assert got.dtype == torch.float32
        assert (got - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_attention_slicing_or_a_replaced_unet_or_vae_is_inflated_again(pipeline, awake, photos):
    expected = sample(awake, image=photos[0], output_type="pt")
    pipeline.enable_attention_slicing("max")
    sliced = sample(pipeline, image=photos[0], output_type="pt")
    assert (sliced - expected).abs().max() < 1e-2  # the same but for rounding; uninflated it would be elsewhere
    plain = UNet2DConditionModel.from_config(pipeline.unet.config).eval()
    plain.load_state_dict(awake.unet.state_dict())
    vae = AutoencoderKL.from_config(pipeline.vae.config).eval()
    vae.load_state_dict(awake.vae.state_dict())
    pipeline.unet, pipeline.vae = plain, vae
    assert torch.equal(sample(pipeline, image=photos[0], output_type="pt"), expected)
    assert all(type(m) is CubeGroupNorm for m in vae.modules() if isinstance(m, torch.nn.GroupNorm))
    with torch.no_grad():
        vae.decoder.conv_out.bias.add_(1)
    assert not torch.equal(sample(pipeline, image=photos[0], output_type="pt"), expected)


def test_loading_a_2d_folder_as_cubediff_or_the_reverse_raises(folder_2d, saved):
    with pytest.raises(ValueError, match=r"StableDiffusionPipeline, which generates no panoramas: .*\.from_2d"):
        CubeDiffPipeline.from_pretrained(folder_2d)
    with pytest.raises(
        ValueError, match="expected a UNet with 4 input channels, as 2D text-to-image models have, got 7"
    ):
        CubeDiffPipeline.from_2d(saved)
    assert CubeDiffPipeline.from_2d(folder_2d, position_encoding="xyz").unet.config.in_channels == 8


def test_a_replaced_noise_schedule_is_used_and_saved(folder_2d, tmp_path):
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipeline = CubeDiffPipeline.from_2d(folder_2d, scheduler=zero)
    assert pipeline.scheduler.alphas_cumprod[-1] < 1e-7
    pipeline.save_pretrained(tmp_path)
    loaded = CubeDiffPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded.scheduler.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
    assert sample(use_sampler_(loaded, "dpm"), [SIX]).isfinite().all()
    assert loaded.scheduler.config.rescale_betas_zero_snr
    with pytest.raises(ValueError, match="rescale_betas_zero_snr=True needs prediction_type='v_prediction'"):
        CubeDiffPipeline.from_2d(folder_2d, scheduler={"rescale_betas_zero_snr": True})
    with pytest.raises(ValueError, match="a DDIMScheduler has no settings beta_stop"):
        convert_scheduler(pipeline.scheduler, {"beta_stop": 1})
    with pytest.raises(ValueError, match="was trained with prediction_type='v_prediction', not 'epsilon'"):
        load_pipeline(tmp_path, scheduler={"prediction_type": "epsilon"})


def test_load_pipeline_loads_both_kinds_and_refuses_options_that_differ_from_the_folder(folder_2d, saved):
    assert load_pipeline(folder_2d, fov=91.0).config.fov == 91.0
    same = load_pipeline(saved, fov=95.0, position_encoding="uv", sync_group_norm=True, cross_attention="per_face")
    assert same.config.fov == 95.0
    with pytest.raises(ValueError, match=r"was trained with fov=95\.0, not 90\.0, sync_group_norm=True, not False"):
        load_pipeline(saved, fov=90.0, sync_group_norm=False)


@pytest.mark.slow
def test_pickled_weights_are_not_saved(awake, tmp_path):
    with pytest.raises(ValueError, match="safe_serialization=False: from_pretrained refuses pickled weights"):
        awake.save_pretrained(tmp_path / "model", safe_serialization=False)
    assert not (tmp_path / "model").exists()


def test_pickled_weights_are_refused_with_a_command_that_converts_them(folder_2d, saved, tmp_path):
    for source, load in ((saved, CubeDiffPipeline.from_pretrained), (folder_2d, CubeDiffPipeline.from_2d)):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        torch.save(load_file(weights), weights.with_suffix(".bin"))
        weights.unlink()
        with pytest.raises(ValueError, match="pickled weights, which can run code") as refused:
            load(folder)
        command = str(refused.value).splitlines()[1].strip().replace("python", sys.executable, 1)
        subprocess.run(command, shell=True, check=True)
        load(folder)


def test_a_folder_that_is_missing_or_holds_no_model_is_named(tmp_path):
    for load in (CubeDiffPipeline.from_pretrained, CubeDiffPipeline.from_2d, load_pipeline):
        with pytest.raises(FileNotFoundError, match="nowhere: no such model folder"):
            load(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"nowhere: no such model folder \(looked from /"):
            load("nowhere")
        with pytest.raises(FileNotFoundError, match=f"{tmp_path}: no model_index.json in it"):
            load(tmp_path)


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "a prompt is empty"),
        (" \n", "a prompt is empty"),
        ([*SIX[:5], ""], "a prompt is empty"),
        ([SIX[:5]], "5 prompts for one panorama: pass one, or six"),
        ([], "prompt is an empty list"),
        ([[]], "0 prompts for one panorama"),
        ({"front": "a", "sky": "b"}, r"prompts for the faces \['front', 'sky'\]: pass one for each of front, right"),
    ],
)
def test_invalid_prompts_raise(awake, prompt, message):
    with pytest.raises(ValueError, match=message):
        sample(awake, prompt)


@pytest.mark.parametrize("prompt", [7, ["a", 7], [["a"] * 5 + [7]], dict.fromkeys(FACES, 7)])
def test_prompts_that_are_not_texts_raise(prompt):
    with pytest.raises(ValueError, match="a prompt is of type int: pass a text"):
        prompts_by_panorama(prompt)


def test_a_long_prompt_is_truncated_with_a_warning_or_refused(awake, caplog):
    long = sample(awake, "many words " * 99)
    assert torch.equal(long, sample(awake, "many words " * 98))
    assert "has 891 tokens and the text encoder takes 126: its end is ignored: 'many words many" in caplog.text
    with pytest.raises(ValueError, match="tokens and the text encoder takes 126: shorten it"):
        sample(awake, "many words " * 99, truncate_prompts=False)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((3, 64, 64), 255.0), r"values from 255 to 255: scale it to \[-1, 1\]"),
        (torch.full((3, 64, 64), float("nan")), "values from nan to nan"),
        (torch.full((3, 64, 64), float("inf")), "values from inf to inf"),
        ([], "image is an empty list"),
        (torch.zeros(64, 64, 3), r"image is \(64, 64, 3\)"),
        (torch.zeros(4, 64, 64), r"image is \(4, 64, 64\)"),
    ],
)
def test_invalid_photos_raise(awake, image, message):
    with pytest.raises(ValueError, match=message):
        sample(awake, image=image)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_photo_with_more_than_eight_bits_raises(awake, mode):
    with pytest.raises(ValueError, match=f"image has mode '{mode}', more than 8 bits a channel"):
        sample(awake, image=PIL.Image.new(mode, (64, 64)))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_photos_of_all_eight_bit_modes_are_accepted(awake, photos, mode):
    photo = photos[0].convert(mode)
    assert torch.equal(sample(awake, image=photo), sample(awake, image=photo.convert("RGB")))


def test_invalid_or_different_numbers_of_panoramas_raise(awake):
    with pytest.raises(ValueError, match=r"disagree: \{'prompt': 2, 'image': 3\}"):
        sample(awake, [SIX, SIX], image=torch.zeros(3, 3, 64, 64))
    with pytest.raises(ValueError, match=r"disagree: \{'prompt': 2, 'latents': 3\}"):
        sample(awake, [SIX, SIX], latents=unit_noise(3, 6))
    with pytest.raises(ValueError, match=r"expected latents of shape \(1, 6, 4, 8, 8\), got \(1, 5, 4, 8, 8\)"):
        sample(awake, latents=unit_noise(1, 5))
    with pytest.raises(ValueError, match="output_type='jpg': use one of pil, np, pt, latent"):
        sample(awake, output_type="jpg")
    with pytest.raises(ValueError, match="sampler='magic': use one of ddim, dpm, unipc, euler"):
        use_sampler_(awake, "magic")
    with pytest.raises(ValueError, match="num_inference_steps=0: expected an integer from 1"):
        sample(awake, num_inference_steps=0)
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"{count} generators for 2 panoramas: pass one for each, or one for all"):
            sample(awake, [SIX, SIX], generator=[torch.Generator() for _ in range(count)])


def test_the_small_models_load_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_pipeline("experiments/cubediff_tiny/model").unet.config.in_channels == 7
    assert load_pipeline("experiments/tiny_sd/model").unet.config.in_channels == 7


def test_a_folder_in_the_working_directory_comes_before_the_one_in_the_checkout(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, "experiments/tiny_sd/model")
    here = CubeDiffPipeline.from_pretrained(saved).unet.config
    assert load_pipeline("experiments/tiny_sd/model").unet.config.block_out_channels == here.block_out_channels
    monkeypatch.chdir("/")
    assert load_pipeline("experiments/tiny_sd/model").unet.config.block_out_channels != here.block_out_channels


def test_the_error_of_an_installed_wheel_locates_the_small_models(tmp_path, monkeypatch):
    monkeypatch.setattr("cubediff.pipelines.folders._CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="/cubediff and set model"):
        load_pipeline("experiments/tiny_sd/model")
