"""Perspective views of captioned panoramas, the training images of tiny_sd."""

import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from cubediff.geometry import FACES, equirect_to_perspective

# Assets that are not trained on, for the evaluation of the autoencoder.
HELD_OUT = (
    "autoshop_01",
    "brown_photostudio_02",
    "chinese_garden",
    "crystal_falls",
    "leadenhall_market",
    "snowy_field",
)
FOV = 95.0


class Views:
    """Random square views of a folder of panoramas with a captions.jsonl, as `cubediff prepare` reads it.

    Args:
        folder: The folder of panoramas.
        size: Width and height of a view in pixels. Panoramas are resized to twice this height, at which a view of 95°
            has about as many pixels as the part of the panorama that it shows.
        held_out: Whether to draw views of the held-out assets or of all others.
        seed: Seed of the random views.
    """

    def __init__(self, folder: Path, size: int, held_out: bool, seed: int = 0) -> None:
        records = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
        self.records = [r for r in records if (r["asset"] in HELD_OUT) == held_out]
        if not self.records:
            raise ValueError(f"{folder}: no {'held-out' if held_out else 'training'} panorama in captions.jsonl")
        self.size = size
        self.random = random.Random(seed)
        self.panoramas = torch.stack([self._load(folder / r["file"]) for r in self.records])  # (N, 3, H, 2H) uint8

    def _load(self, path: Path) -> torch.Tensor:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"{path}: expected an image that OpenCV reads")
        image = cv2.resize(image, (4 * self.size, 2 * self.size), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)

    def sample(self, count: int, level: float = 2 / 3) -> tuple[torch.Tensor, list[str]]:
        """Draws `count` views (N, 3, S, S) in [−1, 1] with captions; a share `level` of them look at the horizon.

        A view has the field of view of a cube's face, so that objects appear at the same scale. Its caption is that of
        the panorama, that of the nearest face, or both.
        """
        chosen = [self.random.randrange(len(self.records)) for _ in range(count)]
        yaw = torch.tensor([self.random.uniform(-180, 180) for _ in chosen])
        pitch = torch.tensor([0.0 if self.random.random() < level else self.random.choice((-90, 90)) for _ in chosen])
        images = self.panoramas[chosen].float() / 127.5 - 1
        views = equirect_to_perspective(images, self.size, FOV, yaw, pitch, mode="bicubic", antialias=False)
        captions = [
            self._caption(self.records[i], float(y), float(p)) for i, y, p in zip(chosen, yaw, pitch, strict=True)
        ]
        return views.clamp(-1, 1), captions

    def _caption(self, record: dict[str, Any], yaw: float, pitch: float) -> str:
        looks = {90: "up", -90: "down"}
        face = looks.get(round(pitch), FACES[round(yaw / 90) % 4])
        of_panorama: str = record["caption"]
        of_face: str = record["faces"][face]
        draw = self.random.random()
        if draw < 0.4:
            return of_panorama
        if draw < 0.8:
            return of_face
        return f"{of_face}. {of_panorama}"
