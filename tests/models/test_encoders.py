"""Pixels to latents and back with statistics over six faces, and prompts to text states."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from support.awake import awaken_
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.geometry import equirect_to_cube
from cubediff.models.encoders import FrozenEncoders, fingerprint, same_fingerprint
from cubediff.models.tokenizer import byte_tokenizer
from cubediff.pipelines.loading import tiny_random

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
SCALING = 0.37  # of no real model, so that a hard-coded factor is detected


@pytest.fixture(scope="module")
def stock_vae() -> AutoencoderKL:
    vae = awaken_(tiny_random().vae)
    stock = AutoencoderKL.from_config(vae.config, scaling_factor=SCALING).eval()
    stock.load_state_dict(vae.state_dict())
    return stock


@pytest.fixture
def encoders(stock_vae: AutoencoderKL) -> FrozenEncoders:
    pipeline = tiny_random()
    return FrozenEncoders(copy.deepcopy(stock_vae).train(), awaken_(pipeline.text_encoder).train(), pipeline.tokenizer)


@pytest.fixture(scope="module")
def cubes() -> Tensor:
    """Two sample panoramas on cubes of 64-pixel faces, in [−1, 1]."""
    images = [cv2.imread(str(SAMPLES / f"{name}.jpg")) for name in ("courtyard", "hotel_room")]
    small = np.stack([cv2.resize(image, (256, 128), interpolation=cv2.INTER_AREA) for image in images])
    panoramas = torch.from_numpy(small[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    return equirect_to_cube(panoramas, 64)


# ------------------------------------------------------------------------------------------------- pixels


@torch.no_grad()
def test_without_synchronized_norms_faces_pass_through_the_stock_vae(stock_vae: AutoencoderKL, cubes: Tensor) -> None:
    pipeline = tiny_random()
    plain = FrozenEncoders(copy.deepcopy(stock_vae), pipeline.text_encoder, pipeline.tokenizer, sync_group_norm=False)
    synced = FrozenEncoders(copy.deepcopy(stock_vae), pipeline.text_encoder, pipeline.tokenizer)
    expected = stock_vae.encode(cubes[0]).latent_dist.mean * SCALING
    for latents in (plain.encode(cubes), plain.encode_each(cubes), synced.encode_each(cubes)):
        assert (latents[0] - expected).abs().max() < 1e-5
    assert (synced.encode(cubes)[0] - expected).abs().max() > 1e-2
    faces = stock_vae.decode(expected / SCALING).sample.clamp(-1, 1)
    assert (plain.decode(expected[None])[0] - faces).abs().max() < 1e-5
    assert (synced.decode(expected[None])[0] - faces).abs().max() > 1e-2
    assert plain.fingerprint() != synced.fingerprint()


@torch.no_grad()
def test_latents_of_six_equal_faces_are_the_stock_posterior_mean_times_the_scaling_factor(encoders, stock_vae, cubes):
    face = cubes[0, :1]
    expected = stock_vae.encode(face).latent_dist.mean * SCALING
    got = encoders.encode(face.expand(1, 6, -1, -1, -1))
    assert got.shape == (1, 6, 4, 8, 8)
    assert (got - expected).abs().max() < 1e-5 < 1e-1 < expected.std()


@torch.no_grad()
def test_six_equal_latents_decode_as_the_stock_model_decodes_them_divided_by_the_scaling_factor(encoders, stock_vae):
    latent = 0.1 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = stock_vae.decode(latent / SCALING).sample.clamp(-1, 1)
    got = encoders.decode(latent.expand(1, 6, -1, -1, -1))
    assert (got - expected).abs().max() < 1e-4 < 1e-1 < expected.std()
    assert got.abs().max() <= 1


def test_a_panorama_is_encoded_and_decoded_the_same_alone_and_among_others(encoders, cubes):
    together = encoders.encode(cubes)
    for i in range(2):
        assert torch.equal(encoders.encode(cubes[i : i + 1])[0], together[i])
        assert torch.equal(encoders.decode(together[i : i + 1])[0], encoders.decode(together)[i])


def test_every_face_takes_part_in_the_statistics_of_the_others(encoders, cubes):
    latents = encoders.encode(cubes[:1])
    decoded = encoders.decode(latents)
    for face in range(6):
        there = cubes[:1].clone()
        there[0, face] = 1.0
        assert ((encoders.encode(there) - latents).abs().amax((0, 2, 3, 4)) > 1e-4).all()
        changed = latents.clone()
        changed[0, face] *= -3
        assert ((encoders.decode(changed) - decoded).abs().amax((0, 2, 3, 4)) > 1e-4).all()


def test_both_models_are_frozen_and_in_evaluation_mode(encoders, cubes):
    for model in (encoders.vae, encoders.text_encoder):
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(m.training for m in model.modules())
    latents = encoders.encode(cubes[:1].requires_grad_(True))
    decoded = encoders.decode(latents.requires_grad_(True))
    assert not decoded.requires_grad
    assert not encoders.encode_captions(["a room"]).requires_grad
    assert not isinstance(encoders, torch.nn.Module)


def test_a_half_precision_vae_takes_and_returns_float32(encoders, cubes):
    expected = encoders.encode(cubes[:1])
    encoders.vae.to(torch.bfloat16)
    latents = encoders.encode(cubes[:1])
    assert latents.dtype == encoders.decode(latents).dtype == torch.float32
    assert (latents - expected).abs().max() < 0.1 * expected.abs().max()


# --------------------------------------------------------------------------------------------------- text


@torch.no_grad()
def test_text_states_equal_a_direct_call_of_the_text_encoder(encoders):
    prompts = ["a courtyard at night", ""]
    tokenizer = encoders.tokenizer
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[start, *tokenizer(prompt, add_special_tokens=False).input_ids, end] for prompt in prompts]
    ids = torch.tensor([row + [pad] * (tokenizer.model_max_length - len(row)) for row in rows])
    expected = encoders.text_encoder(ids).last_hidden_state
    got = encoders.encode_captions(prompts)
    assert torch.equal(got, expected)
    assert (got[0] - got[1]).abs().max() > 0.1


def test_the_longest_prompt_is_encoded_and_a_longer_one_raises(encoders):
    limit = encoders.tokenizer.model_max_length - 2
    assert encoders.encode_captions(["x" * limit]).shape == (1, limit + 2, 32)
    with pytest.raises(
        ValueError, match=rf"'x{{40}}'… has {limit + 1} tokens and the text encoder takes {limit}: shor"
    ):
        encoders.encode_captions(["short", "x" * (limit + 1)])


def test_truncation_keeps_the_beginning_and_names_what_is_lost(encoders, caplog):
    limit = encoders.tokenizer.model_max_length - 2
    fits = "x " * limit
    with caplog.at_level(logging.WARNING, "cubediff"):
        cut = encoders.encode_captions([fits + "tail", "y " * limit + "END"], truncate=True)
        encoders.encode_captions([fits + "tail"], truncate=True)
        FrozenEncoders(encoders.vae, encoders.text_encoder, encoders.tokenizer).encode_captions(
            [fits + "tail"], truncate=True
        )
    assert torch.equal(cut, encoders.encode_captions([fits, "y " * limit]))
    expected = f"has {limit + 4} tokens and the text encoder takes {limit}: its end is ignored: 'tail'"
    assert [expected in message for message in caplog.messages] == [True, False]
    assert caplog.messages[1].endswith("its end is ignored: 'end'")


def test_truncated_captions_of_a_dataset_are_named_up_to_a_number(encoders, caplog):
    limit = encoders.tokenizer.model_max_length - 2
    with caplog.at_level(logging.WARNING, "cubediff"):
        for i in range(30):
            encoders.encode_captions(["x " * limit + f"number {i}"], truncate=True)
    assert len(caplog.messages) == 10
    assert caplog.messages[-1].endswith("'number 9' (further truncated prompts are not named)")


@pytest.mark.parametrize("text", ["a street, at dusk!", "x=3 (~50 %)", "café ☕ 日本"])
def test_the_byte_tokenizer_decodes_any_text_in_lower_case(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(decoded.split()) == "".join(text.split())


def test_merges_shorten_the_tokens_of_the_byte_tokenizer():
    merged = byte_tokenizer(merges=[("t", "h"), ("th", "e</w>")])
    assert len(byte_tokenizer()("the hall").input_ids) == 2 + 7
    assert len(merged("the hall").input_ids) == 2 + 5
    assert merged.decode(merged("the hall").input_ids, skip_special_tokens=True).strip() == "the hall"


# -------------------------------------------------------------------------------------------- fingerprints


def test_the_fingerprint_depends_on_weights_settings_and_tokenizer() -> None:
    def fingerprint(change: Callable[[CubeDiffPipeline], object] = lambda pipeline: None) -> str:
        pipeline = tiny_random()
        change(pipeline)
        return FrozenEncoders(pipeline.vae, pipeline.text_encoder, pipeline.tokenizer).fingerprint()

    def other_merges(pipeline: CubeDiffPipeline) -> None:
        pipeline.tokenizer = byte_tokenizer([("t", "h"), ("th", "e</w>")])

    def shorter(pipeline: CubeDiffPipeline) -> None:
        pipeline.tokenizer = byte_tokenizer(max_length=20)

    changes: dict[str, Callable[[CubeDiffPipeline], object]] = {
        "weights": lambda pipeline: awaken_(pipeline.vae),
        "scaling": lambda pipeline: pipeline.vae.register_to_config(scaling_factor=SCALING),
        "shift": lambda pipeline: pipeline.vae.register_to_config(shift_factor=0.1),
        "activation": lambda pipeline: setattr(pipeline.text_encoder.config, "hidden_act", "gelu"),
        "merges": other_merges,
        "length": shorter,
    }
    own = fingerprint()
    assert own == fingerprint()
    assert own == fingerprint(lambda pipeline: pipeline.vae.register_to_config(sample_size=99, force_upcast=False))
    prints = {name: fingerprint(change) for name, change in changes.items()}
    assert len({own, *prints.values()}) == len(changes) + 1
    assert [name for name, other in prints.items() if same_fingerprint(own, other)] == []


def test_a_fingerprint_of_the_first_form_covers_the_weights_only() -> None:
    pipeline = tiny_random()
    encoders = FrozenEncoders(pipeline.vae, pipeline.text_encoder, pipeline.tokenizer)
    first = fingerprint(pipeline.vae.state_dict(), pipeline.text_encoder.state_dict())
    pipeline.vae.register_to_config(scaling_factor=SCALING)
    assert same_fingerprint(first, encoders.fingerprint())
    assert same_fingerprint(encoders.fingerprint(), first)
    assert not same_fingerprint("0" * 64, encoders.fingerprint())
