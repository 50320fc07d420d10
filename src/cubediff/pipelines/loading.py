"""Loads pipelines: what training starts from, and a small random one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from cubediff.diffusion.schedulers import rescheduled
from cubediff.models.inputs import input_channels
from cubediff.models.stable_diffusion import widen_conv_in_
from cubediff.models.tiny import byte_tokenizer, sd_scheduler, small_text_encoder
from cubediff.pipelines.cubediff import CubeDiffPipeline
from cubediff.pipelines.folders import find_model


def load_pipeline(path: str | Path, scheduler: Mapping[str, Any] | None = None, **options: Any) -> CubeDiffPipeline:
    """What a training run starts from: a CubeDiff folder as it is, or a new CubeDiff on a 2D Stable Diffusion folder.

    `scheduler` (settings of the noise schedule) and `options` (fov, position_encoding, position_samples,
    sync_group_norm, cross_attention, image_drop) must be those a CubeDiff folder was made with.
    """
    path = find_model(path)
    index = Path(path) / "model_index.json"
    if not (index.is_file() and json.loads(index.read_text()).get("_class_name") == CubeDiffPipeline.__name__):
        return CubeDiffPipeline.from_2d(path, scheduler=scheduler, **options)
    pipeline = CubeDiffPipeline.from_pretrained(path)
    differing = {k: (v, pipeline.config[k]) for k, v in options.items() if pipeline.config[k] != v}
    noise_schedule = pipeline.scheduler.config
    differing |= {k: (v, noise_schedule[k]) for k, v in (scheduler or {}).items() if noise_schedule[k] != v}
    if differing:
        told = ", ".join(f"{k} {theirs!r} and not {ours!r}" for k, (ours, theirs) in differing.items())
        raise ValueError(f"{path} was trained with {told}: give the same options, or start from a 2D model")
    return pipeline


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
