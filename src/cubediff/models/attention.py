"""The attention of a UNet's transformer blocks: by diffusers' attention backends, with the text's keys and values kept
while they do not change.

Legend: N faces or cubes, P queries, L keys, C channels, D text width, H heads.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from math import isqrt

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from cubediff.geometry.conventions import FACES
from cubediff.models.visible_faces import Group, VisibleFaces, check_no_mask

KeysAndValues = tuple[Tensor, Tensor]

# Those of diffusers that compute gradients, install no code from the Hub, and are exact; on a CPU the first three.
BACKENDS = ("native", "_native_flash", "_native_math", "_native_efficient", "_native_cudnn", "flash", "xformers")
_ON_CPU = BACKENDS[:3]
# In training: `check_cudnn_tensor_shapes` and `check_cudnn_d256_bprop_head_dim` of torch's sdp_utils.cpp.
_LARGEST_CUDNN_HEAD = 128


class BackendAttnProcessor:
    """Scaled dot-product attention by the backend of `set_attention_backend`, which processors of the UNet's class in
    diffusers do not read; torch's own by default.

    It computes what `AttnProcessor2_0` computes for attention layers of transformer blocks, see `fits`.
    """

    _parallel_config = None

    def __init__(self) -> None:
        self._attention_backend: AttentionBackendName | None = None
        self._text: Hashable = None  # names the text of the next calls; None keeps no keys and values
        self._kept: dict[Hashable, KeysAndValues] = {}

    @staticmethod
    def fits(attn: nn.Module) -> bool:
        """Whether a layer has nothing beyond projections: no norm, residual or scale of its own."""
        return (
            isinstance(attn, Attention)
            and isinstance(attn.processor, AttnProcessor2_0)
            and all(part is None for part in (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k))
            and not (attn.norm_cross or attn.residual_connection)
            and attn.rescale_output_factor == 1
        )

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "n p c"],
        encoder_hidden_states: Float[Tensor, "n l d"] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "n p c"]:
        if encoder_hidden_states is None:
            query, key, value = _projected(attn, "to_qkv", ("to_q", "to_k", "to_v"), hidden_states)
        else:
            query = attn.to_q(hidden_states)
            key, value = self._keys_and_values(attn, encoder_hidden_states)
        return self.attend(attn, query, key, value, attention_mask)

    def attend(
        self,
        attn: Attention,
        query: Float[Tensor, "n p c"],
        key: Float[Tensor, "n l c"],
        value: Float[Tensor, "n l c"],
        attention_mask: Float[Tensor, "n _ l"] | None = None,
    ) -> Float[Tensor, "n p c"]:
        """The layer's output for projected queries, keys and values."""
        query, key, value = (each.unflatten(2, (attn.heads, -1)) for each in (query, key, value))
        if attention_mask is not None:
            attention_mask = attention_mask[:, None]  # the same for all heads
        attended = dispatch_attention_fn(query, key, value, attention_mask, backend=self._attention_backend)
        projection, dropout = attn.to_out
        output: Tensor = dropout(projection(attended.flatten(2)))
        return output

    def _keys_and_values(self, attn: Attention, text: Tensor) -> KeysAndValues:
        keeps = not torch.compiler.is_compiling() and self._text is not None
        if keeps and self._text in self._kept:
            return self._kept[self._text]
        key, value = _projected(attn, "to_kv", ("to_k", "to_v"), text)
        if keeps:
            self._kept[self._text] = key, value
        return key, value

    def keep_text(self, name: Hashable) -> None:
        """Keeps the keys and values of the next calls' text under a name; None forgets all of them."""
        self._text = name
        if name is None:
            self._kept.clear()


class PooledAttnProcessor(BackendAttnProcessor):
    """Self-attention in which a face sees all its own keys, and means of 2 × 2 keys of the other five faces.

    Of the others, only those of `visible_faces` if they are given.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "n p c"],
        encoder_hidden_states: Float[Tensor, "n l d"] | None = None,
        attention_mask: Tensor | None = None,
        visible_faces: VisibleFaces | None = None,
    ) -> Float[Tensor, "n p c"]:
        check_no_mask(attention_mask)
        query, key, value = _projected(attn, "to_qkv", ("to_q", "to_k", "to_v"), hidden_states)
        pooled_key, pooled_value = _pooled(key), _pooled(value)
        if visible_faces is None:
            keys = torch.cat([key, _of_other_faces(pooled_key)], 1)
            values = torch.cat([value, _of_other_faces(pooled_value)], 1)
            return self.attend(attn, query, keys, values)

        def attend(group: Group) -> Tensor:
            own_query, own_key, own_value = (each.index_select(0, group.rows) for each in (query, key, value))
            keys, values = (group.keys(pooled) for pooled in (pooled_key, pooled_value))
            return self.attend(attn, own_query, torch.cat([own_key, keys], 1), torch.cat([own_value, values], 1))

        return visible_faces.of_faces.map(attend)


def _pooled(tokens: Float[Tensor, "n p c"]) -> Float[Tensor, "n q c"]:
    """Means of 2 × 2 tokens of square faces; of fewer at the end of odd ones."""
    size = isqrt(tokens.shape[1])
    faces = tokens.mT.unflatten(2, (size, size))
    return F.avg_pool2d(faces, 2, ceil_mode=True, count_include_pad=False).flatten(2).mT


def _of_other_faces(tokens: Float[Tensor, "n q c"]) -> Float[Tensor, "n r c"]:
    """For each face, the tokens of the other five faces of its panorama, one face after the other."""
    faces = tokens.unflatten(0, (-1, len(FACES))).unbind(1)
    others = [torch.cat([*faces[:face], *faces[face + 1 :]], 1) for face in range(len(FACES))]
    return torch.stack(others, 1).flatten(0, 1)


def set_attention_backend_(network: ModelMixin, backend: str, device_type: str) -> None:
    """Makes a network's attention use a backend of diffusers.

    Args:
        network: The network.
        backend: One of `BACKENDS`.
        device_type: The device that the network computes on, such as "cuda".

    Raises:
        ValueError: If the backend is unknown, does not run on the device, takes no heads of the network's size, or if
            its package is not installed.
    """
    head = max(layer.inner_dim // layer.heads for layer in network.modules() if isinstance(layer, Attention))
    fitting = [
        name
        for name in (_ON_CPU if device_type == "cpu" else BACKENDS)
        if not (name == "_native_cudnn" and head > _LARGEST_CUDNN_HEAD)
    ]
    if backend not in fitting:
        raise ValueError(
            f"model.attention_backend={backend}: on a device of type {device_type}, with attention heads of {head} "
            f"channels, use one of {', '.join(fitting)}"
        )
    try:
        network.set_attention_backend(backend)
    except (RuntimeError, ImportError) as error:
        raise ValueError(f"model.attention_backend={backend}: {error}") from error


@contextmanager
def constant_text(network: nn.Module) -> Iterator[Callable[[Hashable], None]]:
    """Within it, cross-attention projects each text once.

    Yields:
        A function that names the text of the next calls; calls of one name must have the same text.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, Attention) and layer.is_cross_attention]
    processors = [processor for layer in layers if (processor := _backend_processor(layer)) is not None]

    def keep_text(name: Hashable) -> None:
        for processor in processors:
            processor.keep_text(name)

    try:
        yield keep_text
    finally:
        keep_text(None)


def fuse_projections_(network: nn.Module, enabled: bool = True) -> None:
    """Makes one matrix product of the projections to queries, keys and values, or to keys and values of the text.

    diffusers' own function replaces the processors of the layers, and with them the attention that spans six faces.

    Args:
        network: A network whose attention layers have this module's processor.
        enabled: False makes the projections separate again.

    Raises:
        ValueError: If the layers have LoRA adapters, which the fused projections would not have.
    """
    if enabled and getattr(network, "peft_config", None):
        raise ValueError("cannot fuse the projections of a network with LoRA adapters: call fuse_lora() and "
                         "unload_lora_weights() first")  # fmt: skip
    for layer in network.modules():
        if not isinstance(layer, Attention) or _backend_processor(layer) is None:
            continue
        if enabled and not layer.fused_projections:
            with torch.no_grad():
                layer.fuse_projections()
        elif not enabled and layer.fused_projections:
            delattr(layer, "to_kv" if layer.is_cross_attention else "to_qkv")
            layer.fused_projections = False


def _backend_processor(layer: Attention) -> BackendAttnProcessor | None:
    processor = getattr(layer.processor, "inner", layer.processor)
    return processor if isinstance(processor, BackendAttnProcessor) else None


def _projected(attn: Attention, fused: str, names: tuple[str, ...], states: Tensor) -> tuple[Tensor, ...]:
    if hasattr(attn, fused):  # self-attention has no "to_kv" for keys of other tokens than its queries
        parts: tuple[Tensor, ...] = getattr(attn, fused)(states).chunk(len(names), dim=-1)
        return parts
    return tuple(getattr(attn, name)(states) for name in names)
