"""Inflates a 2D diffusion UNet and VAE to the six faces of a cube (CubeDiff, sections 3 and 4).

Everything works in place and keeps state-dict keys and pretrained weights, so that the files on disk remain those of
stock diffusers models. Faces are folded into the batch as (B·6, …), panorama-major.
"""

from collections.abc import Callable
from functools import partial
from typing import TypedDict, TypeVar

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_processor import SlicedAttnProcessor, XFormersAttnProcessor
from jaxtyping import Float
from torch import Tensor, nn

from cubediff.geometry.conventions import FACE_FOV, FACES
from cubediff.models.attention import BackendAttnProcessor, PooledAttnProcessor
from cubediff.models.blocks import change_class_, keep_memory_format_
from cubediff.models.group_norm import cube_group_norm
from cubediff.models.padding import pad_convolutions_
from cubediff.models.visible_faces import Group, VisibleFaces, check_no_mask

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class InflationOptions(TypedDict, total=False):
    """The options of `inflate_`."""

    sync_group_norm: bool
    cross_attention: str
    inflate: str
    conv_padding: str
    fov: float


def _by_panorama(faces: Tensor) -> Tensor:
    """Unfolds (B·6, …) to (B, 6, …)."""
    _check_faces(faces)
    unfolded: Tensor = faces.unflatten(0, (-1, len(FACES)))
    return unfolded


def _check_faces(faces: Tensor) -> None:
    if faces.shape[0] % len(FACES):
        raise ValueError(
            f"expected a batch of B·6 faces, got {faces.shape[0]}, which is not a multiple of six: pass all six faces "
            "of each panorama"
        )


class _WrappingProcessor:
    """An attention processor that calls another one.

    Args:
        inner: The processor that computes the attention.
    """

    _parallel_config = None

    def __init__(self, inner: Callable[..., Tensor]) -> None:
        self.inner = inner

    @property
    def _attention_backend(self) -> AttentionBackendName | None:
        """What `set_attention_backend` sets, of the inner processor."""
        return getattr(self.inner, "_attention_backend", None)

    @_attention_backend.setter
    def _attention_backend(self, backend: AttentionBackendName | None) -> None:
        if isinstance(self.inner, BackendAttnProcessor):
            self.inner._attention_backend = backend


class FaceAttnProcessor(_WrappingProcessor):
    """Attention of each face to itself, also of a face that is hidden from the others, or to its own text."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Float[Tensor, "b6 n c"],
        encoder_hidden_states: Float[Tensor, "b6 l d"] | None = None,
        attention_mask: Tensor | None = None,
        visible_faces: VisibleFaces | None = None,
    ) -> Float[Tensor, "b6 n c"]:
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)


class CubeAttnProcessor(_WrappingProcessor):
    """Attention over the tokens of all six faces: (B·6, N, C) attends as (B, 6·N, C).

    On cross-attention the text tokens of the six faces are concatenated likewise. Self-attention sees the faces of
    `visible_faces` alone, if they are given in the UNet's `cross_attention_kwargs`.

    Args:
        inner: The processor that computes the attention.
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Float[Tensor, "b6 n c"],
        encoder_hidden_states: Float[Tensor, "b6 l d"] | None = None,
        attention_mask: Tensor | None = None,
        visible_faces: VisibleFaces | None = None,
    ) -> Float[Tensor, "b6 n c"]:
        check_no_mask(attention_mask)
        joint = _by_panorama(hidden_states).flatten(1, 2)
        if encoder_hidden_states is not None:
            attended = self.inner(attn, joint, _by_panorama(encoder_hidden_states).flatten(1, 2))
        elif visible_faces is None:
            attended = self.inner(attn, joint)
        else:
            attended = visible_faces.of_panoramas.map(partial(self._attend, attn, hidden_states, joint))
        return attended.reshape(hidden_states.shape)

    def _attend(self, attn: nn.Module, faces: Tensor, joint: Tensor, group: Group) -> Tensor:
        """The attention of a group of panoramas to their visible faces."""
        queries = joint.index_select(0, group.rows)
        if group.faces.shape[1] == len(FACES):
            return self.inner(attn, queries)
        return self.inner(attn, queries, group.keys(faces))


class CubeGroupNorm(nn.GroupNorm):
    """GroupNorm with mean and variance over all six faces of a panorama (CubeDiff, section 4.1)."""

    def forward(self, input: Float[Tensor, "b6 c *space"]) -> Float[Tensor, "b6 c *space"]:
        _check_faces(input)
        return cube_group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def sync_group_norm_(module: ModuleT, enabled: bool = True) -> ModuleT:
    """Synchronizes every GroupNorm inside a module over the six faces of each panorama, in place.

    Args:
        module: A UNet, an AutoencoderKL or any other module. Its weights and state-dict keys do not change.
        enabled: False makes the norms plain again.

    Returns:
        The module.

    Example:
        >>> vae = sync_group_norm_(nn.Sequential(nn.GroupNorm(2, 4)))
        >>> type(vae[0]).__name__
        'CubeGroupNorm'
    """
    old, new = (nn.GroupNorm, CubeGroupNorm) if enabled else (CubeGroupNorm, nn.GroupNorm)
    for child in module.modules():
        if type(child) is old:
            change_class_(child, new)
    return module


def inflate_(
    unet: UNet2DConditionModel,
    sync_group_norm: bool = True,
    cross_attention: str = "per_face",
    inflate: str = "all",
    conv_padding: str = "zeros",
    fov: float = FACE_FOV,
) -> UNet2DConditionModel:
    """Makes the self-attention of a UNet attend to all six faces, in place; it then takes batches of B·6 faces.

    Args:
        unet: A Stable Diffusion UNet. Its weights and state-dict keys do not change.
        sync_group_norm: Synchronize its GroupNorms too (see `sync_group_norm_`).
        cross_attention: "per_face" (each face attends to its own caption) or "joint" (every face attends to all
            captions, the paper's inflated cross-attention). A second call replaces the options of the first.
        inflate: The self-attention at the full resolution of the latents, which takes most of the time: "all" (to all
            faces, as in the paper and at the other resolutions), "below_top" (of each face to itself) or "pooled_top"
            (to the face itself and to means of 2 × 2 keys of the others).
        conv_padding: What convolutions see beyond the border of a face: "zeros", as in the paper, or "faces" (the
            neighbouring faces, see `pad_faces`; the network must be trained with it).
        fov: Field of view of the faces, in degrees; for conv_padding="faces".

    Returns:
        The UNet.

    Raises:
        ValueError: If an option is none of these, or the UNet's attention layers are not those of Stable Diffusion.
    """
    for name, value, choices in (
        ("cross_attention", cross_attention, ("per_face", "joint")),
        ("inflate", inflate, ("all", "below_top", "pooled_top")),
        ("conv_padding", conv_padding, ("zeros", "faces")),
    ):
        if value not in choices:
            raise ValueError(f"{name}={value!r}: use {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}")
    top = ("down_blocks.0.", f"up_blocks.{len(unet.up_blocks) - 1}.")
    processors = {}
    for name, processor in unet.attn_processors.items():
        plain = processor.inner if isinstance(processor, _WrappingProcessor) else processor
        is_stock = BackendAttnProcessor.fits(unet.get_submodule(name.removesuffix(".processor")))
        if is_stock or isinstance(plain, PooledAttnProcessor):
            plain = BackendAttnProcessor()
        layer = name.split(".")[-2]
        if layer not in ("attn1", "attn2"):
            raise ValueError(f"cannot inflate a {type(unet).__name__} with the attention layer {name!r}: only the "
                             "transformer blocks of Stable Diffusion UNets (attn1, attn2) are supported")  # fmt: skip
        if layer == "attn1" and inflate != "all" and name.startswith(top):
            processors[name] = _top_processor(processor, plain, inflate)
        elif layer == "attn2" and cross_attention == "per_face":
            processors[name] = processor if isinstance(processor, FaceAttnProcessor) else FaceAttnProcessor(plain)
        else:  # an existing one is kept: compiled code is bound to it
            processors[name] = processor if isinstance(processor, CubeAttnProcessor) else CubeAttnProcessor(plain)
    if not processors:
        raise ValueError(f"this {type(unet).__name__} has no attention layers, so its faces could never attend to "
                         "each other")  # fmt: skip
    if unet.config["only_cross_attention"] is True:
        raise ValueError("cannot inflate a UNet with only_cross_attention=True: it has no self-attention")
    if any(unet.attn_processors[name] is not processor for name, processor in processors.items()):
        unet.set_attn_processor(processors)
    keep_memory_format_(unet)
    pad_convolutions_(unet, fov if conv_padding == "faces" else None)
    return sync_group_norm_(unet, sync_group_norm)


def _top_processor(processor: object, plain: Callable[..., Tensor], inflate: str) -> Callable[..., Tensor]:
    """The processor of self-attention at the full resolution; the present one if it is of that kind."""
    if inflate == "below_top":
        return processor if isinstance(processor, FaceAttnProcessor) else FaceAttnProcessor(plain)
    if isinstance(processor, PooledAttnProcessor):
        return processor
    if not isinstance(plain, BackendAttnProcessor | SlicedAttnProcessor | XFormersAttnProcessor):
        raise ValueError(f"inflate='pooled_top' has attention of its own and cannot use {type(plain).__name__}: call "
                         "unet.set_default_attn_processor() first")  # fmt: skip
    return PooledAttnProcessor()


def widen_conv_in_(unet: UNet2DConditionModel, in_channels: int) -> UNet2DConditionModel:
    """Widens the UNet's first convolution to `in_channels` inputs, in place: pretrained kernels first, then zeros.

    Until it is trained, the widened UNet ignores the new channels, so that its output does not change.

    Args:
        unet: The UNet.
        in_channels: The new number of input channels.

    Returns:
        The UNet, whose config has the new number of channels.

    Raises:
        ValueError: If the UNet has more input channels already.
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
