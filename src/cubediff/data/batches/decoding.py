"""Decodes a sample's JPEG and JSON record to a panorama of a fixed size, and collates panoramas to a batch."""

import math
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from cubediff.data.batches.augmentation import Augmentation, AugmentedView, unaugmented
from cubediff.data.batches.types import PanoramaBatch
from cubediff.data.format.validation import caption_text
from cubediff.data.streaming.stream import Sample
from cubediff.geometry.conventions import FACES
from cubediff.images.jpeg import decode_jpeg, jpeg_size
from cubediff.utils.json_text import parse_json

_MAX_RECORD = 1 << 22  # bytes of a sample's json


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


def read_record(sample: Sample) -> Mapping[str, object]:
    """The JSON record of a sample; a stage may have parsed it.

    Raises:
        TypeError: If it is not an object.
        ValueError: If it is not JSON.
    """
    record = sample["json"]
    if isinstance(record, bytes | str):
        if len(record) > _MAX_RECORD:
            raise ValueError(f"its json has {len(record)} bytes, more than {_MAX_RECORD}")
        record = parse_json(record)
    if not isinstance(record, Mapping):
        raise TypeError(f"its json must be an object, got a {type(record).__name__}")
    return record


def verify_member(sample: Sample, suffix: str) -> None:
    """Raises ValueError if a member's bytes differ from those whose CRC-32 the record has."""
    content = sample[suffix]
    if not isinstance(content, bytes) or zlib.crc32(content) != read_record(sample)["crc32"]:
        raise ValueError(f"its {suffix} was changed or damaged after it was written (crc32 differs)")


def decode_image(content: object, min_height: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a panorama.

    Args:
        content: JPEG bytes, or an RGB image that a stage has decoded, uint8 (H, 2H, 3).
        min_height: Rows that a JPEG has at least where it is decoded at a reduced size, see `decode_jpeg`.

    Raises:
        ValueError: If it is not a panorama, or has too many pixels, which its header tells before they are decoded.
    """
    if isinstance(content, bytes):
        width, height = jpeg_size(content)
    elif isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.ndim == 3:
        height, width, _ = content.shape
    else:
        raise ValueError(f"its jpg must be JPEG bytes or a uint8 array (H, 2H, 3), got a {type(content).__name__}")
    if width != 2 * height or (isinstance(content, np.ndarray) and content.shape[2] != 3):
        raise ValueError(f"its jpg has {width}x{height} pixels, expected a 2:1 panorama")
    return decode_jpeg(content, min_height) if isinstance(content, bytes) else content


def face_captions(record: Mapping[str, object]) -> dict[str, str] | None:
    """The captions of the faces by name, None if the record has none.

    Raises:
        TypeError: If they are not an object of texts.
        ValueError: If a face has no caption, or one that is not valid text.
    """
    faces = record.get("faces")
    if faces is None:
        return None
    if not isinstance(faces, Mapping):
        raise TypeError(f"its faces must be an object of captions, got a {type(faces).__name__}")
    if missing := [face for face in FACES if face not in faces]:
        raise ValueError(f"its faces have no caption for {', '.join(missing)}")
    return {face: caption_text(faces[face], f"faces.{face}") for face in FACES}


class DecodedPanorama(NamedTuple):
    """A sample of a `PanoramaBatch`."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    view: AugmentedView


@dataclass(frozen=True)
class PanoramaDecoder:
    """Decodes samples to panoramas and collates them.

    A stage of `data.stages` may replace `jpg` by an RGB image as a uint8 array (H, 2H, 3) or other JPEG bytes, and
    `json` by a dict.

    Args:
        height: The rows of the panoramas, in pixels.
        augmentation: Augments samples that are decoded with an rng; samples without one are not augmented.
        jpeg_scaling: Decode JPEGs that are at least twice as high at 1/2, 1/4 or 1/8 of their size.
    """

    height: int
    augmentation: Augmentation
    jpeg_scaling: bool

    def verify(self, sample: Sample) -> None:
        """Checks the JPEG's checksum."""
        verify_member(sample, "jpg")

    def decode(self, sample: Sample, rng: random.Random | None) -> DecodedPanorama:
        """Decodes and resizes a panorama, augmented if there is an rng."""
        record = read_record(sample)
        key, caption, faces = str(sample["__key__"]), caption_text(record["caption"], "caption"), face_captions(record)
        image = decode_image(sample["jpg"], self.height if self.jpeg_scaling else None)
        image = resize_panorama(image, self.height)
        if rng is None:
            return DecodedPanorama(key, image, unaugmented(caption))
        view = self.augmentation.draw(caption, faces, rng)
        return DecodedPanorama(key, np.ascontiguousarray(image[:, ::-1]) if view.flipped else image, view)

    def collate(self, samples: Sequence[DecodedPanorama]) -> PanoramaBatch:
        """Stacks panoramas to a batch."""
        images = torch.from_numpy(np.stack([s.image for s in samples]))
        return PanoramaBatch(
            panorama=images.permute(0, 3, 1, 2),  # stays channels-last in memory: a copy would take longer
            yaw=torch.tensor([s.view.yaw for s in samples], dtype=torch.float32),
            prompts=[s.view.prompts for s in samples],
            cameras=[s.view.camera for s in samples],
            key=[s.key for s in samples],
        )
