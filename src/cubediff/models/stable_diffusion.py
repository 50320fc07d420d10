"""Turns a 2D diffusion UNet and VAE into ones that see the six faces of a cube at once (CubeDiff, sections 3 and 4).

Everything works in place and leaves classes, state-dict keys and pretrained weights as they are, so that the files on
disk stay those of stock diffusers models. Faces travel as a batch (B·6, …), panorama-major.
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from cubediff.geometry.conventions import FACES

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def _by_panorama(faces: Tensor) -> Tensor:
    """(B·6, …) as (B, 6, …)."""
    if faces.shape[0] % len(FACES):
        raise ValueError(
            f"a batch of {faces.shape[0]} faces is no multiple of six: give all six faces of each panorama"
        )
    return faces.unflatten(0, (-1, len(FACES)))


class CubeAttnProcessor:
    """Attention over the tokens of all six faces: (B·6, N, C) attends as (B, 6·N, C); `inner` does the attention.

    On cross-attention the text tokens of the six faces are joined likewise. The UNet's `attention_mask` says for each
    face, (B·6, 1), whether its keys are seen (1) or barred from every query (0), as CubeDiff, section 4.3, drops the
    image; it arrives here as diffusers' bias (B·6, 1, 1).
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Float[Tensor, "b6 n c"],
        encoder_hidden_states: Float[Tensor, "b6 l d"] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "b6 n c"]:
        joined = _by_panorama(hidden_states).flatten(1, 2)
        if encoder_hidden_states is not None:
            if attention_mask is not None:
                raise ValueError("joint cross-attention takes no mask: leave encoder_attention_mask out of the call")
            encoder_hidden_states = _by_panorama(encoder_hidden_states).flatten(1, 2)
        elif attention_mask is not None:
            if attention_mask.shape != (len(hidden_states), 1, 1):
                raise ValueError(f"attention_mask must be (B·6, 1), whether a face is seen, not "
                                 f"{tuple(attention_mask.shape[::2])}")  # fmt: skip
            barred = _by_panorama(attention_mask).flatten(1).repeat_interleave(hidden_states.shape[1], 1) < 0
            attention_mask = torch.zeros_like(barred, dtype=joined.dtype).masked_fill(barred, -torch.inf)[:, None]
        attended = self.inner(attn, joined, encoder_hidden_states, attention_mask)
        return attended.reshape(hidden_states.shape)


class CubeGroupNorm(nn.GroupNorm):
    """GroupNorm whose mean and variance are taken over the six faces of each panorama."""

    def forward(self, input: Float[Tensor, "b6 c *space"]) -> Float[Tensor, "b6 c *space"]:
        by_channel = _by_panorama(input).transpose(1, 2)  # (B, C, 6, …)
        normed = F.group_norm(by_channel, self.num_groups, self.weight, self.bias, self.eps)
        return normed.transpose(1, 2).reshape(input.shape)


def sync_group_norm_(module: ModuleT, enabled: bool = True) -> ModuleT:
    """Makes every GroupNorm inside `module` (a UNet, an AutoencoderKL) a CubeGroupNorm, or plain again."""
    old, new = (nn.GroupNorm, CubeGroupNorm) if enabled else (CubeGroupNorm, nn.GroupNorm)
    for child in module.modules():
        if type(child) is old:
            child.__class__ = new
    return module


def inflate_(
    unet: UNet2DConditionModel, sync_group_norm: bool = True, cross_attention: str = "per_face"
) -> UNet2DConditionModel:
    """Lets every self-attention of `unet` see all six faces; the UNet then takes batches of B·6 faces.

    cross_attention: "per_face" (each face reads its own caption) or "joint" (all faces read the captions of all,
    the paper's inflated cross-attention). Calling it again with other options replaces the first call's.
    """
    if cross_attention not in ("per_face", "joint"):
        raise ValueError(f"cross_attention={cross_attention!r}: use 'per_face' or 'joint'")
    processors = {}
    for name, processor in unet.attn_processors.items():
        plain = processor.inner if isinstance(processor, CubeAttnProcessor) else processor
        layer = name.split(".")[-2]
        if layer not in ("attn1", "attn2"):
            raise ValueError(f"cannot inflate a {type(unet).__name__} with the attention layer {name!r}: only the "
                             "transformer blocks of Stable Diffusion UNets (attn1, attn2) are known")  # fmt: skip
        if layer == "attn2" and cross_attention == "per_face":
            processors[name] = plain
        else:  # one that is there already stays: compiled code is bound to it
            processors[name] = processor if isinstance(processor, CubeAttnProcessor) else CubeAttnProcessor(plain)
    if not processors:
        raise ValueError(f"this {type(unet).__name__} has no attention layers, so its faces could never see each other")
    if unet.config["only_cross_attention"] is True:
        raise ValueError("cannot inflate a UNet with only_cross_attention=True: it has no self-attention")
    if any(unet.attn_processors[name] is not processor for name, processor in processors.items()):
        unet.set_attn_processor(processors)
    return sync_group_norm_(unet, sync_group_norm)


def widen_conv_in_(unet: UNet2DConditionModel, in_channels: int) -> UNet2DConditionModel:
    """Gives the UNet's first convolution `in_channels` inputs: its own kernels first, zeros for the new channels.

    Until it is trained the widened UNet therefore gives the same output whatever is in the new channels.
    """
    old = unet.conv_in
    if in_channels < old.in_channels:
        raise ValueError(f"cannot narrow conv_in from {old.in_channels} to {in_channels} channels")
    if in_channels == old.in_channels:
        return unet
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    new = new.to(device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    unet.conv_in = new.requires_grad_(old.weight.requires_grad)
    unet.register_to_config(in_channels=in_channels)
    return unet
