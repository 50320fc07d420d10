"""From shards of panoramas to batches of cubes (the paper's training data): panoramas leave the workers as
equirectangular uint8 and become faces on the batch's own device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from cubediff.data.batches.cameras import Camera, RandomViews
from cubediff.data.batches.views import CubeBatch, PanoramaBatch, PanoramaDecoder
from cubediff.data.streaming.shards import ShardDataModule
from cubediff.geometry.conventions import FACE_FOV, rotation_matrix
from cubediff.geometry.photos import Photo, known_faces
from cubediff.geometry.projections import equirect_to_cube, equirect_to_perspective


class PanoramaDataModule(ShardDataModule):
    """Batches of cubes from what `python -m cubediff.prepare` wrote; `path`, `batch_size` and `options` are those of
    `ShardDataModule`.

    `face_size` in pixels and `fov` in degrees are the faces'; `panorama_height` (default 2·`face_size`) is what the
    workers resize to. With "uniform" `yaw` a panorama is turned by any angle; where it has captions of its faces these
    are used with `face_caption_probability`, and it is then turned by a multiple of 90 degrees within
    `face_caption_jitter`, so that they stay true. A share `flip` is mirrored; captions that tell left from right then
    lie. `photos` conditions a share of the panoramas on a photo that looks anywhere, and not on their front face.
    Validation shows panoramas unturned.
    """

    content = "panoramas"

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        batch_size: int,
        face_size: int,
        fov: float = FACE_FOV,
        panorama_height: int | None = None,
        yaw: Literal["uniform", "none"] = "uniform",
        face_caption_probability: float = 0.5,
        face_caption_jitter: float = 15.0,
        photos: RandomViews | None = None,
        flip: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(path, batch_size, **options)
        if face_size < 1:
            raise ValueError(f"face_size {face_size} must be at least 1")
        if yaw not in ("uniform", "none"):
            raise ValueError(f"yaw {yaw!r} is not one of 'uniform', 'none'")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip {flip} is a share: give a number in [0, 1]")
        if not 0 <= face_caption_probability <= 1 or not 0 <= face_caption_jitter <= 45:
            raise ValueError(
                f"face_caption_probability {face_caption_probability} must be in [0, 1], face_caption_jitter "
                f"{face_caption_jitter} in [0, 45] degrees"
            )
        self.face_size = face_size
        self.fov = fov
        self.panorama_height = panorama_height or 2 * face_size
        self.yaw = yaw
        self.face_caption_probability = face_caption_probability
        self.face_caption_jitter = face_caption_jitter
        self.photos = photos
        self.flip = flip

    def decoder(self, split: str) -> PanoramaDecoder:
        if split == "val":
            return PanoramaDecoder(self.panorama_height)
        return PanoramaDecoder(
            self.panorama_height,
            self.face_caption_probability,
            self.face_caption_jitter,
            self.yaw == "uniform",
            self.photos,
            self.flip,
        )

    def on_after_batch_transfer(self, batch: PanoramaBatch, dataloader_idx: int) -> CubeBatch:
        """Renders the faces of every panorama, turned by its yaw, where the batch now is."""
        panorama = batch["panorama"].float().div_(127.5).sub_(1.0)
        rotation = rotation_matrix(batch["yaw"])
        faces = equirect_to_cube(panorama, self.face_size, self.fov, rotation=rotation, mode="bicubic")
        cubes = CubeBatch(faces=faces.clamp_(-1, 1), yaw=batch["yaw"], prompts=batch["prompts"], key=batch["key"])
        for name in ("position", "counted"):
            if name in batch:
                cubes[name] = batch[name]
        if any(batch["cameras"]):
            taken = zip(batch["cameras"], cubes["faces"], panorama, batch["yaw"], strict=True)
            photos = [[self._photo(camera, six[0], image, yaw)] for camera, six, image, yaw in taken]
            cubes["known"], cubes["covered"] = known_faces(photos, self.face_size, self.fov)
        return cubes

    def _photo(self, camera: Camera | None, front: Tensor, panorama: Tensor, yaw: Tensor) -> Photo:
        """The photo that a panorama is conditioned on; it has as many pixels as a face."""
        if camera is None:
            return Photo(front)
        rows, columns = (round(self.face_size * camera.aspect**power) for power in (-0.5, 0.5))
        turn = (yaw + camera.yaw, camera.pitch, camera.roll)
        picture = equirect_to_perspective(panorama[None], (rows, columns), camera.fov, *turn, mode="bicubic")[0]
        return Photo(picture.clamp_(-1, 1), camera.fov, camera.yaw, camera.pitch, camera.roll)
