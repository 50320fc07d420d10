"""From a sample's bytes to a batch of turned panoramas with true captions (the paper's training data, rotated at
random)."""

import json
import math
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from typing_extensions import NotRequired

from cubediff.data.batches.cameras import Camera, RandomViews
from cubediff.geometry.conventions import FACES

_WALLS = 4  # the first four of FACES, each 90 degrees of yaw after the one before


class PanoramaBatch(TypedDict):
    """A batch as the workers give it. `prompts` holds six captions per panorama, in FACES order as seen
    after `yaw`."""

    panorama: Tensor  # (B, 3, H, 2H) uint8
    yaw: Tensor  # (B,) float32, degrees
    prompts: list[list[str]]
    cameras: list[Camera | None]  # where to the photo looks that is the condition; None: the front face is it
    key: list[str]
    position: NotRequired[list[int]]  # in the run's stream, or in the validation
    counted: NotRequired[bool]  # of a batch of the validation: it is no other batch's stand-in


class CubeBatch(TypedDict):
    """A batch as the training step gets it; `known` and `covered` (see `known_faces`) where the condition is not simply
    the front face."""

    faces: Tensor  # (B, 6, 3, S, S) float in [-1, 1]
    yaw: Tensor  # (B,) float32, degrees
    prompts: list[list[str]]
    key: list[str]
    position: NotRequired[list[int]]
    counted: NotRequired[bool]
    known: NotRequired[Tensor]  # (B, 6, 3, S, S) float in [-1, 1]
    covered: NotRequired[Tensor]  # (B, 6, 1, S, S) bool


class View(NamedTuple):
    """What one panorama is seen as: turned by `yaw` degrees, with a caption for each of FACES, and the photo that it is
    conditioned on where that is not its front face."""

    yaw: float
    prompts: list[str]
    camera: Camera | None = None


# ---- one sample --------------------------------------------------------------------------------------------


def draw_view(
    caption: str,
    faces: dict[str, str] | None,
    rng: random.Random,
    face_caption_probability: float = 0.5,
    jitter: float = 15.0,
    turn: bool = True,
) -> View:
    """A yaw and captions that are true of it: captions of the faces only within `jitter` degrees of the
    quarter turn that they then are rolled by, else the panorama's own caption on every face at any yaw."""
    if faces is None or rng.random() >= face_caption_probability:
        return View(rng.uniform(0.0, 360.0) if turn else 0.0, [caption] * len(FACES))
    captions = [faces[f] for f in FACES]
    if not turn:
        return View(0.0, captions)
    quarter = rng.randrange(_WALLS)
    walls = captions[quarter:_WALLS] + captions[:quarter]
    return View(90.0 * quarter + rng.uniform(-jitter, jitter), walls + captions[_WALLS:])


def resize_panorama(image: UInt8[np.ndarray, "h w c"], height: int) -> UInt8[np.ndarray, "oh ow c"]:
    """An equirectangular image (h, 2h, 3) at `height`: areas averaged to shrink (none crosses the seam),
    bicubic to enlarge, with the neighbours across the seam and beyond the poles."""
    rows = image.shape[0]
    if rows >= height:
        return image if rows == height else cv2.resize(image, (2 * height, height), interpolation=cv2.INTER_AREA)
    step = rows // math.gcd(rows, height)  # that many rows become a whole number of rows
    pad = step * math.ceil(2 / step)
    poles = np.roll(image, rows, axis=1)[::-1]
    image = np.concatenate([poles[-pad:], image, poles[:pad]])
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


# ---- a batch -----------------------------------------------------------------------------------------------


class _Panorama(NamedTuple):
    key: str
    image: UInt8[np.ndarray, "h w 3"]
    view: View


@dataclass(frozen=True)
class PanoramaDecoder:
    """Makes batches of panoramas of `height` pixels from samples, each turned as its rng says, a share `flip` of them
    mirrored; without an rng as it is, with its own caption on every face. The other fields are those of `draw_view`."""

    height: int
    face_caption_probability: float = 0.5
    jitter: float = 15.0
    turn: bool = True
    photos: RandomViews | None = None
    flip: float = 0.0

    def sample(self, key: str, members: Mapping[str, bytes], rng: random.Random | None) -> _Panorama:
        image, record = decode_sample(members, self.height)
        if rng is None:
            return _Panorama(key, image, View(0.0, [record["caption"]] * len(FACES)))
        faces = record.get("faces")
        if self.flip and rng.random() < self.flip:
            image = np.ascontiguousarray(image[:, ::-1])
            faces = {**faces, "right": faces["left"], "left": faces["right"]} if faces else None
        view = draw_view(record["caption"], faces, rng, self.face_caption_probability, self.jitter, self.turn)
        return _Panorama(key, image, view._replace(camera=self.photos.draw(rng)) if self.photos else view)

    def batch(self, samples: list[_Panorama]) -> PanoramaBatch:
        images = torch.from_numpy(np.stack([s.image for s in samples]))
        return PanoramaBatch(
            panorama=images.permute(0, 3, 1, 2),  # a view, in the images' own order of bytes: turning that takes longer
            yaw=torch.tensor([s.view.yaw for s in samples], dtype=torch.float32),
            prompts=[s.view.prompts for s in samples],
            cameras=[s.view.camera for s in samples],
            key=[s.key for s in samples],
        )
