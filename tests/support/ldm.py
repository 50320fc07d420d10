"""Writes a Stable Diffusion to a single file, in the key layout of CompVis/stable-diffusion (version 1.x) or
Stability-AI/stablediffusion (2.x).

The UNet's blocks are numbered in the order of the computation: the first convolution, then each ResNet with its
attention, and each downsampler; behind the middle, each ResNet with its attention and the upsampler that follows. The
VAE's decoder counts its levels from the finest.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
MIDDLE = {f"mid_block.{name}": f"middle_block.{i}" for i, name in enumerate(("resnets.0", "attentions.0", "resnets.1"))}
VAE_NAMES = {
    r"down_blocks\.(\d+)\.resnets": r"down.\1.block",
    r"down_blocks\.(\d+)\.downsamplers\.0": r"down.\1.downsample",
    r"up_blocks\.(\d+)\.resnets": r"up.\1.block",
    r"up_blocks\.(\d+)\.upsamplers\.0": r"up.\1.upsample",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm",
    r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out",
    r"mid_block\.attentions\.0\.to_": "mid.attn_1.",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
}
OPEN_CLIP = {
    r"^embeddings\.position_embedding\.weight": "positional_embedding",
    r"^embeddings\.token_embedding": "token_embedding",
    r"^final_layer_norm": "ln_final",
    r"^encoder\.layers": "transformer.resblocks",
    "layer_norm(.)": r"ln_\1",
    "self_attn": "attn",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
}


def write_single_file(
    pipeline: DiffusionPipeline, file: Path, open_clip: bool = False, dtype: torch.dtype = torch.float32
) -> Path:
    """Writes UNet, VAE and text encoder of a pipeline to a file, and returns it."""
    save_file({name: value.to(dtype) for name, value in single_file_weights(pipeline, open_clip).items()}, file)
    return file


def single_file_weights(pipeline: DiffusionPipeline, open_clip: bool = False) -> dict[str, Tensor]:
    """The weights of a pipeline by their names in the original layout."""
    text = (open_clip_weights if open_clip else clip_weights)(pipeline.text_encoder)
    parts = {UNET: unet_weights(pipeline.unet), VAE: vae_weights(pipeline.vae), TEXT: text}
    return {prefix + name: value.contiguous().clone() for prefix, part in parts.items() for name, value in part.items()}


def unet_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    places = {**UNET_ENDS, **MIDDLE}
    number = 1
    for b, block in enumerate(unet.down_blocks):
        for r in range(len(block.resnets)):
            places[f"down_blocks.{b}.resnets.{r}"] = f"input_blocks.{number}.0"
            places[f"down_blocks.{b}.attentions.{r}"] = f"input_blocks.{number}.1"
            number += 1
        if block.downsamplers:
            places[f"down_blocks.{b}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for b, block in enumerate(unet.up_blocks):
        for r in range(len(block.resnets)):
            places[f"up_blocks.{b}.resnets.{r}"] = f"output_blocks.{number}.0"
            places[f"up_blocks.{b}.attentions.{r}"] = f"output_blocks.{number}.1"
            number += 1
        last = 2 if hasattr(block, "attentions") else 1
        places[f"up_blocks.{b}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{last}.conv"
    weights = {}
    for name, value in unet.state_dict().items():
        place = next(place for place in places if name.startswith(f"{place}."))
        inner = name.removeprefix(f"{place}.")
        layer, _, rest = inner.partition(".")
        weights[f"{places[place]}.{f'{RESNET[layer]}.{rest}' if '.resnets.' in place else inner}"] = value
    return weights


def vae_weights(vae: AutoencoderKL) -> dict[str, Tensor]:
    levels = len(vae.config.block_out_channels)
    weights = {}
    for name, value in vae.state_dict().items():
        counted = re.sub(r"up_blocks\.(\d+)", lambda match: f"up_blocks.{levels - 1 - int(match[1])}", name)
        convolution = value[..., None, None] if ".attentions." in name and value.ndim == 2 else value
        weights[replaced(counted, VAE_NAMES)] = convolution
    return weights


def clip_weights(text_encoder: CLIPTextModel) -> dict[str, Tensor]:
    names = {f"transformer.text_model.{name}": value for name, value in bare(text_encoder).items()}
    positions = torch.arange(text_encoder.config.max_position_embeddings)[None]
    return {**names, "transformer.text_model.embeddings.position_ids": positions}


def open_clip_weights(text_encoder: CLIPTextModel) -> dict[str, Tensor]:
    weights = bare(text_encoder)
    for layer in range(text_encoder.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            each = [weights.pop(f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            weights[f"encoder.layers.{layer}.self_attn.in_proj_{kind}"] = torch.cat(each)
    width = text_encoder.config.hidden_size
    others = {"text_projection": torch.eye(width), "logit_scale": torch.tensor(4.6)}  # of the whole CLIP model
    return {f"model.{name}": value for name, value in others.items()} | {
        f"model.{replaced(name, OPEN_CLIP)}": value for name, value in weights.items()
    }


def bare(text_encoder: CLIPTextModel) -> dict[str, Tensor]:
    """The weights of a text encoder without the prefix that some versions of transformers have."""
    return {name.removeprefix("text_model."): value for name, value in text_encoder.state_dict().items()}


def replaced(name: str, patterns: Mapping[str, str]) -> str:
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name
