"""The metrics of an evaluation by name: what they measure, and how they are computed from terms or features.

Legend: P panoramas, V views of each, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from cubediff.evaluation import consistency
from cubediff.evaluation.consistency import ERP_WRAP, Metric
from cubediff.evaluation.discontinuity import (
    discontinuity_as_published_code,
    discontinuity_of_border,
    discontinuity_of_edges,
)
from cubediff.evaluation.distances import (
    cmmd,
    density_coverage,
    frechet_distance,
    frechet_distance_infinite,
    kernel_distance,
    omnifid,
    precision_recall,
)
from cubediff.utils.plugins import plugins

INCEPTION_SCORE = "is"
FAED = "faed"  # the extractor of whole panoramas, and its Fréchet distance
METRICS = "cubediff.metrics"  # the entry-point group of other packages' metrics
FACES_PROTOCOL = "faces"  # whose views give the readings of OmniFID

Better = Literal["lower", "higher", "neither"]
Family = Literal["consistency", "distances", "fidelity", "captions"]
Compare = Callable[[Float[Tensor, "p v d"], Float[Tensor, "q v d"]], float]


@dataclass(frozen=True)
class Description:
    """What a report says about a metric.

    Attributes:
        family: The section.
        better: Which values are better; neither for a measure of content, such as sharpness.
        text: One line.
        unit: "" for a plain number.
    """

    family: Family
    better: Better
    text: str
    unit: str = ""


@dataclass(frozen=True)
class OwnMetric:
    """A metric of another package.

    Attributes:
        metric: How it is computed.
        description: What a report says about it.
        of: Whether its terms are those of six faces, or of an equirectangular panorama (B, 3, H, 2H) in [0, 1].
    """

    metric: Metric
    description: Description
    of: Literal["faces", "panoramas"] = "faces"


@dataclass(frozen=True)
class Distance:
    """A distance of two sets.

    Attributes:
        compute: Maps features of the reference and of the samples to the distance.
        least: Number of views that it needs.
        description: What it measures.
    """

    compute: Compare
    least: int
    description: Description


def _first(terms: Tensor) -> Tensor:
    return terms[0]


def _no_terms(images: Tensor, fov: float) -> Tensor:
    raise TypeError("the terms of this metric are not computed from faces")


FACES: dict[str, Metric] = {
    **consistency.METRICS,
    "discontinuity_edges": Metric(lambda faces, fov: discontinuity_of_edges(faces, fov)[:, None], _first),
}
"""Metrics of six faces."""

PANORAMAS: dict[str, Metric] = {
    "erp_wrap": ERP_WRAP,
    "discontinuity_border": Metric(lambda panoramas, fov: discontinuity_of_border(panoramas)[:, None], _first),
    "discontinuity_public_code": Metric(
        lambda panoramas, fov: discontinuity_as_published_code(panoramas)[:, None], _first
    ),
}
"""Metrics of an equirectangular panorama."""

DESCRIPTIONS = {
    "overlap_rms": Description("consistency", "lower", "RMS difference of faces where both see the same direction"),
    "overlap_psnr": Description("consistency", "higher", "PSNR of faces where both see the same direction", "dB"),
    "overlap_ssim": Description("consistency", "higher", "structural similarity of faces where they overlap"),
    "overlap_relative": Description("consistency", "lower", "RMS difference in overlaps, relative to the detail there"),
    "colour_step": Description("consistency", "lower", "RMS difference of mean colours where faces overlap"),
    "edge_step": Description("consistency", "lower", "difference of the colours on both sides of the cube's edges"),
    "edge_ratio": Description("consistency", "lower", "gradient across edges over that beside, relative to other cuts"),
    "corner_rms": Description("consistency", "lower", "RMS difference of the three faces around a corner"),
    "step_beyond_overlap": Description(
        "consistency", "lower", "colour step 3.5° to 12° away from the upright edges, relative to the faces' centres"
    ),
    "discontinuity_edges": Description("consistency", "lower", "discontinuity score of the cube's edges"),
    "sharpness": Description("consistency", "neither", "mean gradient inside the faces"),
    "erp_wrap": Description("consistency", "lower", "gradient across the panorama's border, relative to that inside"),
    "discontinuity_border": Description("consistency", "lower", "discontinuity score of the panorama's border"),
    "discontinuity_public_code": Description(
        "consistency", "lower", "the score as public code computes it, which does not see the border"
    ),
    "condition_psnr": Description("fidelity", "higher", "PSNR where photos cover the faces, mean", "dB"),
    "condition_ssim": Description("fidelity", "higher", "structural similarity where photos cover the faces"),
    "rest_psnr": Description("fidelity", "higher", "PSNR against the original elsewhere, mean", "dB"),
    "rest_ssim": Description("fidelity", "higher", "structural similarity to the original elsewhere"),
    "retrieval_psnr": Description("fidelity", "higher", "share of panoramas nearest to their own original by PSNR"),
}
"""Of the metrics that need no extractor."""

CAPTIONS = {
    "clip_score": Description("captions", "higher", "CLIP score of the views with the panorama's caption"),
    "clip_score_faces": Description("captions", "higher", "CLIP score of the faces with their own captions"),
    "fits_upright": Description(
        "captions", "higher", "share of panoramas whose caption fits them better than their upside-down copy"
    ),
    "fits_unflipped": Description(
        "captions",
        "higher",
        "share of panoramas whose caption fits them better than their copy with left and right flipped",
    ),
}
"""Of the metrics that need captions and CLIP."""

PERCEPTUAL = {
    f"{part}_perceptual_efficientnet_lite0": Description(
        "fidelity", "lower", f"perceptual distance of features of efficientnet_lite0 {where}"
    )
    for part, where in (("condition", "where photos cover the faces"), ("rest", "to the original elsewhere"))
}
"""Of the perceptual distances of conditions."""

_OTHERS = {
    **CAPTIONS,
    **PERCEPTUAL,
    INCEPTION_SCORE: Description("distances", "higher", "Inception score"),
}
_OWNERS = {
    **dict.fromkeys(CAPTIONS, "clip"),
    **dict.fromkeys(PERCEPTUAL, "efficientnet_lite0"),
    INCEPTION_SCORE: "inception",
}


def add_installed_metrics() -> None:
    """Adds the metrics that installed packages register in the entry-point group `cubediff.metrics`.

    Raises:
        ValueError: If one cannot be imported, is no `OwnMetric`, or has the name of another metric.
    """
    for name, where, own in plugins(METRICS, "metric"):
        if not isinstance(own, OwnMetric):
            raise ValueError(f"{where}: expected an OwnMetric of cubediff.evaluation.measures, got {own!r:.200}")
        if DESCRIPTIONS.setdefault(name, own.description) is not own.description:
            raise ValueError(f"{where}: {name} is the name of another metric: choose another one")
        (FACES if own.of == "faces" else PANORAMAS)[name] = own.metric


def metric(name: str) -> Metric:
    """How a value is made of the terms of panoramas: as it is defined for faces or panoramas, else by their mean.

    Raises:
        ValueError: If the metric is of a package that is not installed.
    """
    if found := {**FACES, **PANORAMAS}.get(name):
        return found
    if name in DESCRIPTIONS or name in _OTHERS or name.startswith(retrieval("")):
        return Metric(_no_terms, _first)
    raise ValueError("it is a metric of a package that is not installed")


def omni_distances(extractor: str) -> dict[str, Distance]:
    """The readings of OmniFID of an extractor's features of faces, by name; none of whole panoramas."""
    if extractor == FAED:
        return {}
    return {
        _omni_name(reading, extractor): Distance(
            partial(_omni_reading, reading=reading), 2, Description("distances", "lower", text)
        )
        for reading, text in _OMNI.items()
    }


def distances(extractor: str) -> dict[str, Distance]:
    """The distances of an extractor's features of views, by name.

    Distances of Inception's features have the names that the field gives them, others are named after their extractor.
    """
    if extractor == FAED:
        return {FAED: Distance(_pooled(frechet_distance), 2, _described("Fréchet distance", extractor))}
    found = {
        _name("fd", extractor): Distance(_pooled(frechet_distance), 2, _described("Fréchet distance", extractor)),
        _name("fd_infinite", extractor): Distance(
            _pooled(frechet_distance_infinite), 20, _described("Fréchet distance for infinitely many views", extractor)
        ),
        _name("kd", extractor): Distance(_pooled(kernel_distance), 2, _described("kernel distance × 100", extractor)),
    }
    for number, name in enumerate(("precision", "recall")):
        found[f"{name}_{extractor}"] = Distance(
            partial(_one_of, precision_recall, number), 4, _described(name, extractor, better="higher")
        )
    for number, name in enumerate(("density", "coverage")):
        found[f"{name}_{extractor}"] = Distance(
            partial(_one_of, density_coverage, number), 6, _described(name, extractor, better="higher")
        )
    if extractor == "clip":
        found["cmmd"] = Distance(_pooled(cmmd), 2, _described("maximum mean discrepancy (CMMD)", extractor))
    return found


def names(extractor: str) -> list[str]:
    """The names of all metrics that need an extractor's features."""
    if extractor == FAED:
        return [FAED]
    others = [name for name, owner in _OWNERS.items() if owner == extractor]
    return [*distances(extractor), *omni_distances(extractor), retrieval(extractor), *others]


def less_biased(extractor: str) -> list[str]:
    """The distances of an extractor's features that depend less on the number of views than the Fréchet distance."""
    return [] if extractor == FAED else [_name("fd_infinite", extractor), _name("kd", extractor)]


def retrieval(extractor: str) -> str:
    """The metric that counts panoramas nearest to their own original by the features of an extractor."""
    return f"retrieval_{extractor}"


def describe(name: str, extractor: str = "") -> Description:
    """The description of a metric of panoramas or of an extractor."""
    if name == retrieval(extractor):
        return Description(
            "fidelity", "higher", f"share of panoramas nearest to their own original by features of {extractor}"
        )
    return {**DESCRIPTIONS, **_OTHERS}[name]


_OMNI = {
    "omnifid": "Fréchet distances of the faces: mean of sides, up and down; sides one by one",
    "omnifid_pooled_sides": "Fréchet distances of the faces: mean of sides, up and down; sides together",
    "omnifid_pooled": "Fréchet distance of all faces together",
}
_NAMES = {
    ("fd", "inception"): "fid",
    ("fd_infinite", "inception"): "fid_infinite",
    ("kd", "inception"): "kid",
    ("fd", "clip"): "clip_fid",
}


def _name(distance: str, extractor: str) -> str:
    return _NAMES.get((distance, extractor), f"{distance}_{extractor}")


def _omni_name(reading: str, extractor: str) -> str:
    return reading if extractor == "inception" else f"{reading.replace('omnifid', 'omnifd')}_{extractor}"


def _described(what: str, extractor: str, better: Better = "lower") -> Description:
    return Description("distances", better, f"{what} of the features of {extractor}")


def _pooled(distance: Callable[[Tensor, Tensor], float]) -> Compare:
    """All views of all panoramas together."""
    return lambda real, other: distance(real.flatten(0, 1), other.flatten(0, 1))


def _one_of(pair: Callable[[Tensor, Tensor], tuple[float, float]], number: int, real: Tensor, other: Tensor) -> float:
    return pair(real.flatten(0, 1), other.flatten(0, 1))[number]


def _omni_reading(real: Tensor, other: Tensor, reading: str) -> float:
    return omnifid(real, other)[reading]
