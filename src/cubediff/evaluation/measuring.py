"""Measures a set of panoramas: terms of each panorama, and distances to a reference.

Legend: P panoramas, K terms, V views of each, D features, S face size.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cubediff.evaluation import measures
from cubediff.evaluation.features import Progress
from cubediff.evaluation.intervals import Estimate, subsample
from cubediff.evaluation.measures import Distance
from cubediff.evaluation.sets import PanoramaSet, SavedFaces
from cubediff.geometry.conventions import FACE_FOV
from cubediff.geometry.projections import equirect_to_cube
from cubediff.utils.errors import DataError


@dataclass
class Measured:
    """The terms of panoramas.

    Attributes:
        terms: Of each metric, (P, K) in float64.
        left_out: Why a metric has none.
    """

    terms: dict[str, Float[Tensor, "p k"]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def faces_of(panoramas: PanoramaSet, index: int, size: int | None) -> SavedFaces:
    """The saved faces of a panorama; without any, faces of 95° that are cut from it, as `equirect_to_cube` does.

    Args:
        panoramas: The set.
        index: Of the panorama.
        size: Of faces that are cut, in pixels; None: half of the panorama's height.
    """
    saved = panoramas.faces(index)
    if saved is not None:
        return saved
    panorama = panoramas.panorama(index)
    return SavedFaces(equirect_to_cube(panorama[None], size or panorama.shape[1] // 2, FACE_FOV)[0], FACE_FOV)


def check_faces(panoramas: PanoramaSet) -> bool:
    """Whether the panoramas of a set have saved faces.

    Raises:
        DataError: If only some have them.
    """
    without = [name for index, name in enumerate(panoramas.names) if not panoramas.has_faces(index)]
    if without and len(without) < len(panoramas.names):
        raise DataError(
            f"{panoramas.path}: {len(without)} of {len(panoramas.names)} panoramas have no saved faces, first "
            f"{without[0]}: generate all of them with --save-faces and the model's field of view as --face-fov, or none"
        )
    return not without


def _checked(name: str, terms: object) -> Tensor:
    """The terms of one panorama, which a metric of another package may give in another form."""
    if not isinstance(terms, Tensor) or terms.ndim != 2 or len(terms) != 1:
        found = f"a tensor {tuple(terms.shape)}" if isinstance(terms, Tensor) else f"{type(terms).__name__}"
        raise ValueError(f"the metric {name}: expected the terms of one panorama as a tensor (1, K), got {found}")
    return terms


@torch.inference_mode()
def measure_consistency(
    panoramas: PanoramaSet, size: int | None, wanted: Collection[str], progress: Progress
) -> Measured:
    """Measures how well faces agree, before blending if they were saved.

    Args:
        panoramas: The set.
        size: Of faces that are cut from panoramas without saved ones, see `faces_of`.
        wanted: Names of metrics; others than those of faces and panoramas are ignored.
        progress: Shows the progress.

    Returns:
        The terms. Metrics of overlaps are left out where faces do not overlap.

    Raises:
        DataError: If a panorama is damaged.
        ValueError: If a metric of another package gives no terms (B, K).
    """
    rows: dict[str, list[Tensor]] = {name: [] for name in (*measures.FACES, *measures.PANORAMAS) if name in wanted}
    measured = Measured()
    count = len(panoramas.names)
    for index in progress(range(count), count, f"faces: {panoramas.path.name}"):
        saved = faces_of(panoramas, index, size)
        whole = panoramas.panorama(index)[None]
        for name in [name for name in rows if name not in measured.left_out]:
            try:
                if name in measures.FACES:
                    terms = measures.FACES[name].terms(saved.pixels[None], saved.fov)
                else:
                    terms = measures.PANORAMAS[name].terms(whole, saved.fov)
            except ValueError as error:
                measured.left_out[name] = f"{panoramas.names[index]}: {error}"
            else:
                rows[name].append(_checked(name, terms)[0].double())
    measured.terms = {name: torch.stack(each) for name, each in rows.items() if name not in measured.left_out}
    return measured


def measure_distance(
    distance: Distance, real: Float[Tensor, "p v d"], other: Float[Tensor, "q v d"], *, draws: int, seed: int
) -> Estimate:
    """A distance, with the interval of halves of both sets; see `subsample`.

    Args:
        distance: The distance.
        real: Features of the reference.
        other: Features of the samples.
        draws: Number of halves.
        seed: Of the halves.

    Raises:
        ValueError: If a set has fewer views than the distance needs.
    """
    views = real.shape[1]
    for name, features in (("the reference", real), ("the samples", other)):
        if (count := len(features) * views) < distance.least:
            raise ValueError(f"{count} views of {name}, at least {distance.least} are needed")

    def halves(first: Int[Tensor, " m"], second: Int[Tensor, " m"]) -> float:
        return distance.compute(real[first], other[second])

    value = distance.compute(real, other)
    half = min(len(real), len(other)) // 2
    if half < 2 or half * views < distance.least:
        return Estimate(value, float("nan"), float("nan"), len(other))
    return Estimate(value, *subsample(halves, (len(real), len(other)), draws=draws, seed=seed), len(other))
