"""A CubeDiff of stock classes with random weights and no files, small enough for tests and dry runs on a laptop."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cubediff.inflate import widen_conv_in_
from cubediff.objective import input_channels
from cubediff.pipeline import CubeDiffPipeline
from cubediff.samplers import rescheduled


def sd_scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.x."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def byte_tokenizer(merges: Sequence[tuple[str, str]] = (), max_length: int = 77) -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary is every byte, inside and at the end of a word, and what `merges` make."""
    symbols = sorted(ByteLevel.alphabet())
    specials = ["<|startoftext|>", "<|endoftext|>"]
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), *specials]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in merges], model_max_length=max_length)


def small_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """An untrained CLIP text encoder with one head per 32 channels, for the tokenizer's vocabulary and length."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def tiny_random(
    seed: int = 0,
    position_encoding: str = "uv",
    scheduler: Mapping[str, Any] | None = None,
    **options: Any,
) -> CubeDiffPipeline:
    """An untrained CubeDiff for 64-pixel faces with about 0.3 M parameters, the same for the same seed.

    `scheduler` and `options` are those of CubeDiffPipeline.from_2d.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=64,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=32,
            attention_head_dim=2,
        )
        tokenizer = byte_tokenizer(max_length=128)
        text_encoder = small_text_encoder(tokenizer, width=32, layers=1)
        widen_conv_in_(unet, input_channels(4, position_encoding))
    return CubeDiffPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=rescheduled(sd_scheduler(), scheduler or {}),
        position_encoding=position_encoding,
        **options,
    )
