"""Which parameters are trained."""

from typing import Literal

from diffusers import UNet2DConditionModel

Trainable = Literal["attention", "value_output", "lora", "full"]


LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


def select_trainable_(unet: UNet2DConditionModel, trainable: Trainable, lora_rank: int = 16) -> UNet2DConditionModel:
    """Freezes all of `unet` but what is trained, which always takes in conv_in: without it the position and mask
    channels, whose kernels start at zero, could never act.

    "attention": every attention layer. "value_output": their value and output projections alone. "lora": low-rank
    additions to their projections (peft; arXiv 2106.09685), with alpha = rank. "full": everything.
    """
    if trainable not in ("attention", "value_output", "lora", "full"):
        raise ValueError(f"trainable={trainable!r}: use 'attention', 'value_output', 'lora' or 'full'")
    if trainable == "lora":
        from peft import LoraConfig  # takes a second to import

        unet.add_adapter(LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=list(LORA_LAYERS)))
    for name, parameter in unet.named_parameters():
        layers = name.split(".")
        attention = "attn1" in layers or "attn2" in layers
        chosen = {
            "attention": attention,
            "value_output": attention and ("to_v" in layers or "to_out" in layers),
            "lora": "lora_A" in layers or "lora_B" in layers,
            "full": True,
        }[trainable]
        parameter.requires_grad_(chosen or layers[0] == "conv_in")
    return unet
