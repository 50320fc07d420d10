"""The keys of the batches that data modules produce, in addition to those of `StreamBatch`.

B is the number of panoramas of one device.
"""

from typing import NotRequired

from torch import Tensor

from cubediff.data.batches.conditioning_photos import PhotoCamera
from cubediff.data.streaming.stream import StreamBatch


class PanoramaBatch(StreamBatch):
    """Decoded panoramas on the host, before their faces are rendered."""

    panorama: Tensor  # (B, 3, H, 2H) uint8
    yaw: Tensor  # (B,) float32, degrees
    prompts: list[list[str]]  # six per panorama, in FACES order after the rotation by `yaw`
    cameras: list[PhotoCamera | None]  # of the conditioning photos; None conditions on the front face
    shard: NotRequired[str]  # of all panoramas; when caching latents


class CubeBatch(StreamBatch):
    """Cubes as the training step receives them.

    `known` and `covered` are present if a panorama of the batch is conditioned on a photo instead of its front face.
    """

    faces: Tensor  # (B, 6, 3, S, S) float in [-1, 1]
    yaw: Tensor  # (B,) float32, degrees
    prompts: list[list[str]]
    known: NotRequired[Tensor]  # (B, 6, 3, S, S) float in [-1, 1], the conditioning photos projected to the faces
    covered: NotRequired[Tensor]  # (B, 6, 1, S, S) bool, where `known` is valid
    shard: NotRequired[str]


class LatentBatch(StreamBatch):
    """Cached latents and text states as the training step receives them, in the precision of the cache."""

    latents: Tensor  # (B, 6, C, h, w), posterior means × scaling factor
    text: dict[str, Tensor]  # encodings (B, 6, …) of each face's caption, by the backbone's names
    yaw: Tensor  # (B,) float32, degrees
