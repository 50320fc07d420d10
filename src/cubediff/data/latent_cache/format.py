"""A cached sample and its members in a tar shard: `{key}.safetensors` with the tensors, `{key}.json` with the rest."""

import json
import zlib
from typing import NamedTuple

import safetensors.torch
from jaxtyping import Float, Int
from torch import Tensor


class CachedPanorama(NamedTuple):
    """A panorama encoded at K yaw rotations, whose faces show M different captions."""

    yaws: list[float]  # degrees, one per rotation
    latents: Float[Tensor, "k 6 c h w"]  # as `Backbone.encode` returns them
    text: dict[str, Tensor]  # encodings (M, …) of `texts`, as `Backbone.encode_captions` names them
    captions: Int[Tensor, "k 6"]  # for each face, an index into `texts`
    texts: list[str]  # the M captions


def pack_sample(key: str, panorama: CachedPanorama) -> dict[str, bytes]:
    """Serializes a cached panorama.

    Returns:
        The content of its tar members by suffix: "safetensors" and "json".
    """
    tensors = {"latents": panorama.latents, "captions": panorama.captions, **panorama.text}
    packed = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    record = {"key": key, "yaws": panorama.yaws, "captions": panorama.texts, "crc32": zlib.crc32(packed)}
    return {
        "safetensors": packed,
        "json": json.dumps(record, ensure_ascii=False).encode(),
    }
