"""A cached sample and its members in a tar shard: `{key}.safetensors` with the tensors, `{key}.json` with the rest."""

import json
import zlib
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from jaxtyping import Float, Int
from torch import Tensor

from cubediff.data.format.index import index_tar, read_sample

_END_OF_TAR = bytes(1024)  # two blocks of zeros follow the last member


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


def find_fault(tar: Path, keys: Collection[str]) -> str:
    """Reads a shard of latents completely.

    Args:
        tar: The shard.
        keys: The keys of the samples that it may hold.

    Returns:
        Why it is not a complete shard of these samples; "" if it is.
    """
    try:
        index = index_tar(tar)
        with tar.open("rb") as file:
            file.seek(index.offsets[-1])
            if file.read(len(_END_OF_TAR)) != _END_OF_TAR:
                return "it ends early"
            for key, (start, end) in zip(index.keys, pairwise(index.offsets), strict=True):
                sample = read_sample(file.fileno(), start, end)
                if zlib.crc32(sample["safetensors"]) != json.loads(sample["json"])["crc32"]:
                    return f"the checksum of {key} differs"
    except Exception as error:  # tarfile and json raise many types on damaged bytes
        return f"{type(error).__name__}: {error}"
    if not index.keys:
        return "it is empty"
    unknown = set(index.keys) - set(keys)
    return f"its sample {min(unknown)} is not in the shard of the same name" if unknown else ""
