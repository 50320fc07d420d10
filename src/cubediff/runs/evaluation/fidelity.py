"""Whether panoramas follow the photos that they were generated from, and which original is nearest to each.

Legend: P panoramas, N originals, V views of each, D features, S face size.
"""

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor

from cubediff.evaluation.extractors import EfficientNetLite0
from cubediff.evaluation.features import Progress
from cubediff.evaluation.fidelity import nearest_by_features, nearest_originals, psnr, ssim
from cubediff.evaluation.measuring import Measured, faces_of
from cubediff.evaluation.perceptual import perceptual_distance
from cubediff.evaluation.sets import PanoramaSet, Sized
from cubediff.generation.jobs import CAMERA_KEYS, photo_file
from cubediff.generation.photos import PhotoFile, open_photo
from cubediff.generation.records import RECORD
from cubediff.geometry.photos import project_photos
from cubediff.geometry.projections import equirect_to_cube

_HIGHEST = 100.0  # dB; of pixels that are kept, whose PSNR is infinite
_TURNS = 24  # yaws at which a panorama from a text is compared with originals
_ROWS = 96  # of the panoramas that are compared
_MOST = 500  # panoramas that are compared by pixels, each with each


@torch.inference_mode()
def measure_conditions(
    samples: PanoramaSet,
    originals: PanoramaSet | None,
    wanted: Collection[str],
    progress: Progress,
    network: EfficientNetLite0 | None,
) -> Measured:
    """Compares the faces of panoramas with their photos where these cover them, and with their originals elsewhere.

    Args:
        samples: Panoramas with saved faces.
        originals: Of the same names, or None.
        wanted: Names of metrics; others are ignored.
        progress: Shows the progress.
        network: For perceptual distances, or None.

    Raises:
        ValueError: If a photo cannot be read.
    """
    rows: dict[str, list[float]] = {}
    count = len(samples.names)
    for index in progress(range(count), count, "conditions"):
        saved = faces_of(samples, index, None)
        size = saved.pixels.shape[-1]
        photos = [open_photo(_photo(photo)) for photo in samples.photos(index)]
        pictures, covered = project_photos([photos], size, saved.fov)
        _add(rows, "condition", (saved.pixels, (pictures[0] + 1) / 2, covered[0].float()), network)
        if originals is not None:
            original = equirect_to_cube(originals.panorama(index)[None], size, saved.fov, mode="bicubic")[0].clamp(0, 1)
            _add(rows, "rest", (saved.pixels, original, 1 - covered[0].float()), network)
    return Measured({name: torch.tensor(values)[:, None] for name, values in rows.items() if name in wanted})


def _add(
    rows: dict[str, list[float]],
    part: str,
    compared: tuple[Float[Tensor, "6 3 s s"], Float[Tensor, "6 3 s s"], Float[Tensor, "6 1 s s"]],
    network: EfficientNetLite0 | None,
) -> None:
    """Adds a panorama's similarity to another one at pixels of its faces: faces, those of the other one, weights."""
    faces, target, where = compared
    tall, tall_target, tall_where = (each.transpose(0, 1).flatten(1, 2) for each in compared)
    shares = where.sum((1, 2, 3))
    seen = shares > 0  # faces with such pixels
    seen_only = faces[seen], target[seen], where[seen]
    of_faces = {"ssim": ssim(*seen_only)}
    if network is not None:
        device = next(network.parameters()).device
        on_device = (each.to(device) for each in seen_only)
        of_faces["perceptual_efficientnet_lite0"] = perceptual_distance(network, *on_device).cpu()
    values = {
        "psnr": psnr(tall, tall_target, tall_where).clamp_max(_HIGHEST),
        **{name: (each * shares[seen]).sum() / shares.sum() for name, each in of_faces.items()},
    }
    for name, value in values.items():
        rows.setdefault(f"{part}_{name}", []).append(value.item())


def _photo(record: dict[str, object]) -> PhotoFile:
    camera = {key: record[key] for key in CAMERA_KEYS if record.get(key) is not None}
    return photo_file(str(record["file"]), camera, lambda key: f"{RECORD}: {key}")


@torch.inference_mode()
def retrieved_by_pixels(
    samples: PanoramaSet, originals: PanoramaSet, turns: bool, progress: Progress
) -> Float[Tensor, "p 1"]:
    """1 for each panorama that is nearest to its own original by PSNR, else 0.

    Args:
        samples: The panoramas.
        originals: Of the same names.
        turns: Whether a panorama may look in any direction, because it was generated from a text alone.
        progress: Shows the progress.

    Raises:
        ValueError: If there are too many to compare each with each.
    """
    count = len(samples.names)
    if count > _MOST:
        raise ValueError(f"{count} panoramas: each is compared with each, at most {_MOST}")
    small = [_small(panoramas) for panoramas in (samples, originals)]
    nearest = [
        nearest_originals(small[0][index : index + 1], small[1], turns=_TURNS if turns else 1)
        for index in progress(range(count), count, "retrieval")
    ]
    return (torch.cat(nearest) == torch.arange(count)).double()[:, None]


def retrieved_by_features(
    samples: Float[Tensor, "p v d"], originals: Float[Tensor, "p v d"], turns: bool
) -> Float[Tensor, "p 1"]:
    """1 for each panorama that is nearest to its own original by the features of its views, else 0.

    Args:
        samples: Features of views around the horizon, in equal steps.
        originals: Features of the same views of the originals.
        turns: Whether a panorama may look in any direction.
    """
    nearest = nearest_by_features(samples, originals, turns=turns)
    return (nearest == torch.arange(len(samples))).double()[:, None]


def _small(panoramas: PanoramaSet) -> Float[Tensor, "p 3 h w"]:
    sized = Sized(panoramas, _ROWS, "resize")
    return torch.stack([sized.panorama(index) for index in range(len(panoramas.names))])
