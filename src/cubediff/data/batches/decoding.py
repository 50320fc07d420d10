"""From a sample's JPEG and JSON record to a panorama of a fixed size, and from panoramas to a batch."""

import json
import math
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from cubediff.data.batches.augmentation import Augmentation, AugmentedView, unaugmented
from cubediff.data.batches.types import PanoramaBatch


def resize_panorama(image: UInt8[np.ndarray, "h w c"], height: int) -> UInt8[np.ndarray, "oh ow c"]:
    """Resizes an equirectangular image without a seam.

    Shrinks by area averaging, where no output pixel crosses the seam; enlarges bicubically with the neighbours across
    the seam and beyond the poles.

    Args:
        image: (h, 2h, 3).
        height: The rows of the result, which has twice as many columns.
    """
    rows = image.shape[0]
    if rows >= height:
        return image if rows == height else cv2.resize(image, (2 * height, height), interpolation=cv2.INTER_AREA)
    step = rows // math.gcd(rows, height)  # the fewest rows that become an integer number of output rows
    pad = step * math.ceil(2 / step)
    beyond_poles = np.roll(image, rows, axis=1)[::-1]
    image = np.concatenate([beyond_poles[-pad:], image, beyond_poles[:pad]])
    image = np.concatenate([image[:, -pad:], image, image[:, :pad]], axis=1)
    margin = pad * height // rows
    size = (2 * height + 2 * margin, height + 2 * margin)
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)[margin:-margin, margin:-margin]


def decode_sample(members: Mapping[str, bytes], height: int) -> tuple[UInt8[np.ndarray, "h w 3"], dict[str, Any]]:
    """The panorama (height, 2·height, 3) and its record. Raises ValueError, KeyError, TypeError or cv2.error where they
    are not whole."""
    record = json.loads(members["json"])
    if zlib.crc32(members["jpg"]) != record["crc32"]:
        raise ValueError("its JPEG is not the one that was written (crc32 differs)")
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(members["jpg"], np.uint8), flags)
    if image is None or image.shape[1] != 2 * image.shape[0]:
        raise ValueError("its JPEG cannot be decoded to a 2:1 panorama")
    return resize_panorama(image, height), record


class DecodedPanorama(NamedTuple):
    """A sample of a `PanoramaBatch`."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    view: AugmentedView


@dataclass(frozen=True)
class PanoramaDecoder:
    """Decodes samples to panoramas and collates them; safe to use from several threads.

    Args:
        height: The rows of the panoramas, in pixels.
        augmentation: Draws how a sample with an rng is shown; one without an rng is shown as it is stored.
    """

    height: int
    augmentation: Augmentation

    def sample(self, key: str, members: Mapping[str, bytes], rng: random.Random | None) -> DecodedPanorama:
        image, record = decode_sample(members, self.height)
        if rng is None:
            return DecodedPanorama(key, image, unaugmented(record["caption"]))
        view = self.augmentation.draw(record["caption"], record.get("faces"), rng)
        return DecodedPanorama(key, np.ascontiguousarray(image[:, ::-1]) if view.flipped else image, view)

    def batch(self, samples: list[DecodedPanorama]) -> PanoramaBatch:
        images = torch.from_numpy(np.stack([s.image for s in samples]))
        return PanoramaBatch(
            panorama=images.permute(0, 3, 1, 2),  # stays channels-last in memory: a copy would take longer
            yaw=torch.tensor([s.view.yaw for s in samples], dtype=torch.float32),
            prompts=[s.view.prompts for s in samples],
            cameras=[s.view.camera for s in samples],
            key=[s.key for s in samples],
        )
