"""The data module of panoramas: workers decode equirectangular uint8 images, and the batch's device renders their faces
(CubeDiff, section 4.3)."""

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from typing_extensions import Unpack

from cubediff.data.batches.augmentation import Augmentation, Yaw
from cubediff.data.batches.conditioning_photos import PhotoCamera, RandomPhotos
from cubediff.data.batches.decoding import DecodedPanorama, PanoramaDecoder
from cubediff.data.batches.types import CubeBatch, PanoramaBatch
from cubediff.data.streaming.data_module import ShardDataModule
from cubediff.data.streaming.settings import StreamOptions, stream_options
from cubediff.geometry.conventions import FACE_FOV, rotation_matrix, tan_half
from cubediff.geometry.perspective import equirect_to_perspective
from cubediff.geometry.photos import Photo, project_photos
from cubediff.geometry.projections import equirect_to_cube

log = logging.getLogger(__name__)


class PanoramaOptions(StreamOptions, total=False):
    """The fields of `Augmentation` and `StreamSettings` as keyword arguments of `PanoramaDataModule`."""

    yaw: Yaw
    face_caption_probability: float
    face_caption_jitter: float
    photos: RandomPhotos | None
    flip: float


class PanoramaDataModule(ShardDataModule[DecodedPanorama, PanoramaBatch]):
    """Batches of cubes from shards of panoramas, as `cubediff prepare` writes them.

    Training panoramas are augmented; validation shows them as they are stored.

    Args:
        path: Of the dataset; see `ShardDataModule`.
        batch_size: Panoramas per device.
        face_size: Of the rendered faces, in pixels.
        fov: Field of view of the rendered faces, in degrees.
        panorama_height: Rows that the workers resize panoramas to; None is 2 · `face_size`.
        jpeg_scaling: Decode JPEGs that are at least twice as high at 1/2, 1/4 or 1/8 of their size, then resize the
            rest; False decodes them at full size. A checkpoint's value replaces it.
        **options: The fields of `Augmentation` and `StreamSettings`.

    Raises:
        ValueError: If a value is out of range.
    """

    content = "panoramas"

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        batch_size: int,
        face_size: int,
        fov: float = FACE_FOV,
        panorama_height: int | None = None,
        jpeg_scaling: bool = True,
        **options: Unpack[PanoramaOptions],
    ) -> None:
        super().__init__(path, batch_size, **stream_options(options, PanoramaOptions))
        if face_size < 1:
            raise ValueError(f"face_size must be at least 1 pixel, got {face_size}")
        tan_half(fov)  # raises for an angle that is no field of view
        self.face_size = face_size
        self.fov = fov
        self.panorama_height = panorama_height or 2 * face_size
        self.jpeg_scaling = jpeg_scaling
        self.augmentation = Augmentation(
            options.get("yaw", Augmentation.yaw),
            options.get("face_caption_probability", Augmentation.face_caption_probability),
            options.get("face_caption_jitter", Augmentation.face_caption_jitter),
            options.get("photos", Augmentation.photos),
            options.get("flip", Augmentation.flip),
        )

    def decoder(self, split: str) -> PanoramaDecoder:
        """The decoder of panoramas, the same for both splits; the stream gives no rng for validation."""
        return PanoramaDecoder(self.panorama_height, self.augmentation, self.jpeg_scaling)

    def state_dict(self) -> dict[str, int]:
        """The state of `ShardDataModule`, and whether JPEGs are scaled."""
        return {**super().state_dict(), "jpeg_scaling": self.jpeg_scaling}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resumes the stream of a checkpoint with the same pixels; the first checkpoints were made without scaling.

        Raises:
            DataError: If the checkpoint has no position.
        """
        super().load_state_dict(state_dict)
        scaling = bool(state_dict.get("jpeg_scaling", False))
        if scaling != self.jpeg_scaling:
            log.warning(
                "data.jpeg_scaling=%s is ignored: the stream resumes with the checkpoint's %s",
                str(self.jpeg_scaling).lower(),
                str(scaling).lower(),
            )
        self.jpeg_scaling = scaling

    def on_after_batch_transfer(self, batch: PanoramaBatch, dataloader_idx: int) -> CubeBatch:
        """Renders the rotated faces of every panorama, and its conditioning photo, on the batch's device."""
        panorama = batch["panorama"].float().div_(127.5).sub_(1.0)
        rotation = rotation_matrix(batch["yaw"])
        faces = equirect_to_cube(panorama, self.face_size, self.fov, rotation=rotation, mode="bicubic")
        cubes = CubeBatch(faces=faces.clamp_(-1, 1), yaw=batch["yaw"], prompts=batch["prompts"], key=batch["key"])
        if "position" in batch:
            cubes["position"] = batch["position"]
        if "counted" in batch:
            cubes["counted"] = batch["counted"]
        if any(batch["cameras"]):
            panoramas = zip(batch["cameras"], cubes["faces"], panorama, batch["yaw"], strict=True)
            photos = [[self._photo(camera, cube[0], image, yaw)] for camera, cube, image, yaw in panoramas]
            cubes["known"], cubes["covered"] = project_photos(photos, self.face_size, self.fov)
        return cubes

    def _photo(self, camera: PhotoCamera | None, front: Tensor, panorama: Tensor, yaw: Tensor) -> Photo:
        """The photo that a panorama is conditioned on; it has as many pixels as a face."""
        if camera is None:
            return Photo(front)
        rows, columns = (round(self.face_size * camera.aspect**power) for power in (-0.5, 0.5))
        rotation = (yaw + camera.yaw, camera.pitch, camera.roll)
        image = equirect_to_perspective(panorama[None], (rows, columns), camera.fov, *rotation, mode="bicubic")[0]
        return Photo(image.clamp_(-1, 1), camera.fov, camera.yaw, camera.pitch, camera.roll)
