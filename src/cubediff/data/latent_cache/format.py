"""A cached sample and its members in a tar shard: `{key}.safetensors` with the tensors, `{key}.json` with the rest."""

import json
import math
import zlib
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cubediff.data.format.index import index_tar, read_sample
from cubediff.utils.json_text import parse_json

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
                if zlib.crc32(sample["safetensors"]) != parse_json(sample["json"])["crc32"]:
                    return f"the checksum of {key} differs"
    except Exception as error:  # tarfile and json raise many types on damaged bytes
        return f"{type(error).__name__}: {error}"
    if not index.keys:
        return "it is empty"
    unknown = set(index.keys) - set(keys)
    return f"its sample {min(unknown)} is not in the shard of the same name" if unknown else ""


def sample_shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The shapes that all samples of a dataset share, by name: of one rotation's latents, and of one caption's text."""
    return {name: list(tensor.shape[1:]) for name, tensor in sorted(tensors.items()) if name != "captions"}


def unpack_sample(record: Mapping[str, object], packed: object) -> tuple[list[float], dict[str, Tensor]]:
    """Parses the members of a cached panorama.

    Args:
        record: Of the member "json".
        packed: Content of the member "safetensors".

    Returns:
        The yaws of its K rotations, in degrees, and its tensors: latents (K, 6, C, h, w), captions (K, 6), and the text
        (M, …) by name.

    Raises:
        TypeError, ValueError: If a value has another type, shape or range, or a latent is not finite.
        safetensors.SafetensorError: If the tensors are damaged.
    """
    yaws = record["yaws"]
    if not isinstance(packed, bytes) or not isinstance(yaws, list) or not yaws:
        raise TypeError("its safetensors must be bytes, and its yaws a list of numbers")
    for yaw in yaws:
        if isinstance(yaw, bool) or not isinstance(yaw, int | float) or not math.isfinite(yaw):
            raise TypeError(f"its yaws must be numbers, got {ascii(yaw)[:40]}")
    tensors = safetensors.torch.load(packed)
    latents, captions = tensors["latents"], tensors["captions"]
    if latents.ndim != 5 or latents.shape[:2] != (len(yaws), 6) or not latents.is_floating_point():
        raise ValueError(f"its latents must be ({len(yaws)}, 6, C, h, w) floats, got {_describe(latents)}")
    if captions.shape != (len(yaws), 6) or captions.dtype != torch.int64:
        raise ValueError(f"its captions must be ({len(yaws)}, 6) integers, got {_describe(captions)}")
    for name, tensor in tensors.items():
        if name not in ("latents", "captions") and not (tensor.ndim and tensor.is_floating_point()):
            raise ValueError(f"its {name} must be floats for each caption, got {_describe(tensor)}")
        if name not in ("latents", "captions") and (captions.min() < 0 or captions.max() >= len(tensor)):
            raise ValueError(f"its captions must be below the {len(tensor)} of {name}, got {captions.tolist()}")
        if not tensor.isfinite().all():
            raise ValueError(f"its {name} is not finite")
    return [float(yaw) for yaw in yaws], tensors


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
