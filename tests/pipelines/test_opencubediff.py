"""The public SD 1.5 checkpoints' layout: a random folder with it, and its sampling reimplemented from the description.

Described: input channels are 4 latents, u, v, mask; u and v are both divided by 2π and shifted by ½, on corner samples
of 95° faces; faces come front, back, left, right, top, bottom; self-attention is inflated, cross-attention per face,
the UNet's GroupNorms are plain, the VAE's see all faces, except for the photo, which is encoded alone; unconditional
is: empty prompts, and no query sees a key of the front face; one scale over both; DDIM with epsilon; the front latent
is put back before every step.
"""

import json
import math
import shutil
from pathlib import Path

import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from support.awake import awaken_
from support.generating import refused, run, succeed
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.geometry import FACES
from cubediff.models.tiny import sd_scheduler
from cubediff.pipelines.cubediff import OPENCUBEDIFF
from cubediff.pipelines.loading import load_for_generation, load_pipeline, tiny_random

THEIRS = ("front", "back", "left", "right", "up", "down")
TO_THEIRS = [FACES.index(face) for face in THEIRS]  # indices of their faces among FACES
PROMPTS = [f"the {face}" for face in FACES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = tiny_random()
    config = {key: value for key, value in tiny.unet.config.items() if not key.startswith("_")}
    path = tmp_path_factory.mktemp("public")
    StableDiffusionPipeline(
        vae=awaken_(AutoencoderKL.from_config(tiny.vae.config).eval()),
        text_encoder=awaken_(tiny.text_encoder.eval()),
        tokenizer=tiny.tokenizer,
        unet=awaken_(UNet2DConditionModel(**config | {"in_channels": 7}).eval()),
        scheduler=sd_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> CubeDiffPipeline:
    pipeline = CubeDiffPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def their_positions(size: int) -> Tensor:
    """u and v (6, 2, S, S) in their face order."""
    line = torch.linspace(-1, 1, size, dtype=torch.float64) * math.tan(math.radians(95 / 2))
    a, b = torch.meshgrid(line, -line, indexing="xy")  # to the right, upwards
    one = torch.ones_like(a)
    rays = {
        "front": (a, b, one),
        "back": (-a, b, -one),
        "left": (-one, b, a),
        "right": (one, b, -a),
        "up": (a, one, -b),
        "down": (a, -one, b),
    }
    channels = []
    for x, y, z in (rays[face] for face in THEIRS):
        u, v = torch.atan2(x, z), torch.atan2(y, (x * x + z * z).sqrt())
        channels.append(torch.stack([u / (2 * math.pi) + 0.5, v / (2 * math.pi) + 0.5]))
    return torch.stack(channels).float()


class TheirAttention:
    """Self-attention over the tokens of six faces, with −inf on the front face's keys where it is dropped."""

    def __init__(self) -> None:
        self.dropped = [False]

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask=None):
        six = hidden_states.unflatten(0, (-1, 6))
        out = []
        for tokens, dropped in zip(six, self.dropped, strict=True):
            joined = tokens.flatten(0, 1)
            q, k, v = (layer(joined).unflatten(1, (attn.heads, -1)).transpose(0, 1)
                       for layer in (attn.to_q, attn.to_k, attn.to_v))  # fmt: skip
            scores = q @ k.mT / q.shape[-1] ** 0.5
            if dropped:
                scores[..., : tokens.shape[1]] = -torch.inf
            mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
            out.append(attn.to_out[0](mixed).unflatten(0, (6, -1)))
        return torch.stack(out).flatten(0, 1)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> tuple[UNet2DConditionModel, TheirAttention]:
    """A stock UNet with their attention, never touched by cubediff."""
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    attention = TheirAttention()
    unet.set_attn_processor({n: attention if ".attn1." in n else p for n, p in unet.attn_processors.items()})
    return unet, attention


@torch.no_grad()
def test_sampling_equals_the_description(folder, pipeline, theirs, photo):
    unet, attention = theirs
    noise = torch.randn(1, 6, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    inputs_of_step: list[Tensor] = []
    answers: list[Tensor] = []
    hooks = [
        pipeline.unet.register_forward_pre_hook(lambda _, args: inputs_of_step.append(args[0])),
        pipeline.unet.register_forward_hook(lambda _, args, out: answers.append(out[0])),
    ]
    generated = pipeline([PROMPTS], image=photo, latents=noise, num_inference_steps=8, output_type="latent").faces
    for hook in hooks:
        hook.remove()

    text = pipeline.backbone.encoders.encode_captions([PROMPTS[i] for i in TO_THEIRS])
    states = torch.cat([pipeline.backbone.encoders.encode_captions([""]).expand_as(text), text])
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
    front = vae.encode(photo[None]).latent_dist.mean[0] * vae.config.scaling_factor
    mask = torch.zeros(6, 1, 8, 8)
    mask[0] = 1
    attention.dropped = [True, False]
    alpha_bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    x = noise[0, TO_THEIRS].clone()
    times = [876, 751, 626, 501, 376, 251, 126, 1]
    for step, (t, after) in enumerate(zip(times, [*times[1:], 0], strict=True)):
        x[0] = front
        inputs = torch.cat([x, their_positions(8), mask], dim=1).repeat(2, 1, 1, 1)
        in_their_order = [branch * 6 + i for branch in (0, 1) for i in TO_THEIRS]
        torch.testing.assert_close(inputs_of_step[step][in_their_order], inputs, rtol=0, atol=1e-4)  # rounding adds up
        answer = unet(inputs_of_step[step][in_their_order], t, states).sample
        torch.testing.assert_close(answers[step][in_their_order], answer, rtol=0, atol=1e-5)
        nothing, full = unet(inputs, t, states).sample.chunk(2)
        eps = nothing + 3.5 * (full - nothing)
        a, b = (float(alpha_bar[i]) for i in (t, after))
        x = b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
    x[0] = front
    assert ((generated[0, TO_THEIRS] - x).norm() / x.norm()) < 1e-4


def test_each_of_its_peculiarities_has_an_effect(pipeline, photo):
    """Otherwise the test above could not detect them."""
    noise = torch.randn(1, 6, 4, 8, 8, generator=torch.Generator().manual_seed(7))

    def generate() -> Tensor:
        return pipeline([PROMPTS], image=photo, latents=noise, num_inference_steps=2, output_type="latent").faces

    before, kept = generate(), dict(pipeline.config)
    others = {
        "position_encoding": "uv",
        "position_samples": "centers",
        "sync_group_norm": True,
        "image_drop": "noise",
        "photo_encoding": "cube",
    }
    for name, value in others.items():
        pipeline.register_to_config(**{name: value})
        assert (generate() - before).abs().max() > 1e-3, name
        pipeline.register_to_config(**{name: kept[name]})
    assert torch.equal(generate(), before)


def test_a_saved_checkpoint_loads_as_a_cubediff_folder_and_generates_the_same(pipeline, photo, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = CubeDiffPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    call = {"image": photo, "num_inference_steps": 2, "output_type": "latent"}
    generated = [p("a hall", generator=torch.Generator().manual_seed(0), **call).faces for p in (pipeline, loaded)]
    assert torch.equal(*generated)


@pytest.mark.parametrize("class_name", ["StableDiffusionPipeline", "CubeDiffPipeline", "AnotherPipeline"])
def test_the_layout_is_recognised_whatever_class_the_folder_names(folder, tmp_path, class_name):
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"_class_name": class_name}))
    loaded = [load_for_generation(model), load_pipeline(model, **OPENCUBEDIFF), CubeDiffPipeline.from_pretrained(model)]
    for pipeline in loaded:
        assert {key: pipeline.config[key] for key in OPENCUBEDIFF} == OPENCUBEDIFF
    with pytest.raises(ValueError, match=r"was trained with position_encoding='uv_pi', not 'uv'"):
        load_pipeline(model, position_encoding="uv")


def test_the_command_generates_with_the_public_layout(folder, tmp_path):
    PIL.Image.new("RGB", (64, 64), "red").save(tmp_path / "photo.png")
    succeed(folder, tmp_path / "out", "--image", tmp_path / "photo.png", prompt="a hall")
    with PIL.Image.open(tmp_path / "out/panorama.jpg") as panorama:
        assert panorama.size == (256, 128)


def test_a_photo_that_is_encoded_alone_does_not_depend_on_the_other_faces(pipeline, photo):
    """The latents of a face equal those of the stock VAE, and the norms are synchronized again afterwards."""
    faces = torch.rand(2, 6, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    vae = pipeline.vae
    together = pipeline.backbone.encode(faces)
    alone = pipeline.backbone.encode_each(faces)
    stock = AutoencoderKL.from_config(vae.config).eval()
    stock.load_state_dict(vae.state_dict())
    with torch.no_grad():
        expected = stock.encode(faces.flatten(0, 1)).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(alone.flatten(0, 1), expected, rtol=0, atol=1e-5)
    assert (alone - together).abs().max() > 1e-3
    assert torch.equal(pipeline.backbone.encode(faces), together)


def test_other_layouts_are_refused_with_what_to_do(folder, tmp_path):
    with pytest.raises(ValueError, match="load a CubeDiff with from_pretrained"):
        CubeDiffPipeline.from_2d(folder)
    shutil.copytree(folder, tmp_path / "2d")
    config = tmp_path / "2d/unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 4}))
    model = tmp_path / "2d"
    result = run(model, tmp_path / "out", prompt="a hall")
    refused(result, f"error: {model} holds a StableDiffusionPipeline, which generates no panoramas: ")
    assert f"a 2D Stable Diffusion model is trained with model.pipeline.path={model}" in result.stderr
