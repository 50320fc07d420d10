"""The batches that data modules produce, key by key. B is the number of panoramas of one device."""

from typing import TypedDict

from torch import Tensor
from typing_extensions import NotRequired

from cubediff.data.batches.conditioning_photos import PhotoCamera


class PanoramaBatch(TypedDict):
    """Decoded panoramas on the host, before their faces are rendered."""

    panorama: Tensor  # (B, 3, H, 2H) uint8
    yaw: Tensor  # (B,) float32, degrees
    prompts: list[list[str]]  # six per panorama, in FACES order after the rotation by `yaw`
    cameras: list[PhotoCamera | None]  # of the conditioning photos; None conditions on the front face
    key: list[str]
    position: NotRequired[list[int]]  # indices of the samples in the training or validation stream
    counted: NotRequired[bool]  # validation only; False if the batch pads this rank to the other ranks' number


class CubeBatch(TypedDict):
    """Cubes as the training step receives them.

    `known` and `covered` are present if a panorama of the batch is conditioned on something else than its front face.
    """

    faces: Tensor  # (B, 6, 3, S, S) float in [-1, 1]
    yaw: Tensor  # (B,) float32, degrees
    prompts: list[list[str]]
    key: list[str]
    position: NotRequired[list[int]]
    counted: NotRequired[bool]
    known: NotRequired[Tensor]  # (B, 6, 3, S, S) float in [-1, 1], the conditioning photos projected to the faces
    covered: NotRequired[Tensor]  # (B, 6, 1, S, S) bool, where `known` is valid


class LatentBatch(TypedDict):
    """Cached latents and text states as the training step receives them, in the precision of the cache."""

    latents: Tensor  # (B, 6, C, h, w), posterior means × scaling factor
    text: Tensor  # (B, 6, L, D), text states of each face's caption
    yaw: Tensor  # (B,) float32, degrees
    key: list[str]
    position: NotRequired[list[int]]
    counted: NotRequired[bool]
