"""Perspective views of captioned panoramas: what a 2D diffusion model of everyday pictures learns from."""

import json
import random
from pathlib import Path

import cv2
import numpy as np
import torch

from cubediff.geometry import FACES, equirect_to_perspective

# Scenes never trained on, by asset: they measure the autoencoder.
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
    """Random square views of a folder of panoramas with a captions.jsonl (as `cubediff.prepare` reads it).

    Panoramas are kept at twice the view size in height, so that a 95° view is sampled at about one pixel a pixel.
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
            raise ValueError(f"{path}: not a readable image")
        image = cv2.resize(image, (4 * self.size, 2 * self.size), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)

    def sample(self, count: int, level: float = 2 / 3) -> tuple[torch.Tensor, list[str]]:
        """`count` views (N, 3, S, S) in [−1, 1] and a caption for each; a share `level` of them look at the horizon.

        A view has the field of view of a cube's face, so that the pictures' scale is that of the faces. Its caption
        is the panorama's, that of the face nearest to where it looks, or both.
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

    def _caption(self, record: dict, yaw: float, pitch: float) -> str:
        looks = {90: "up", -90: "down"}
        face = looks.get(round(pitch), FACES[round(yaw / 90) % 4])
        draw = self.random.random()
        if draw < 0.4:
            return record["caption"]
        if draw < 0.8:
            return record["faces"][face]
        return f"{record['faces'][face]}. {record['caption']}"
