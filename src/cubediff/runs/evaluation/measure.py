"""Measures samples, against originals where there are some: which metrics, with which warnings.

Legend: P panoramas, V views of each, D features.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cubediff.evaluation import measures
from cubediff.evaluation.captions import mirror, turn_upside_down
from cubediff.evaluation.distances import SPLITS, has_full_rank, inception_score
from cubediff.evaluation.extractors import ClipImages, EfficientNetLite0
from cubediff.evaluation.features import (
    Looking,
    NetworkExtractor,
    Progress,
    cached,
    extract,
    weights_digest,
    write_features,
)
from cubediff.evaluation.inception import InceptionV3
from cubediff.evaluation.intervals import Estimate, bootstrap, subsample
from cubediff.evaluation.measures import FACES_PROTOCOL, INCEPTION_SCORE, Distance
from cubediff.evaluation.measuring import Measured, check_faces, measure_consistency, measure_distance
from cubediff.evaluation.results import Value
from cubediff.evaluation.sets import Mapped, PanoramaSet
from cubediff.evaluation.views import EQUIRECT, PROTOCOLS
from cubediff.runs.evaluation.captions import Captions
from cubediff.runs.evaluation.fidelity import measure_conditions, retrieved_by_features, retrieved_by_pixels

_OF_CAPTIONS = ("clip_score", "fits_upright", "fits_unflipped")
_FEW = 2048  # views, below which Fréchet distances are not comparable with published ones
_NOT_PAIRED = "the samples and the originals have other names: each sample needs an original of its name"
_TURNING = "azimuth8"  # the protocol whose views are those of a turned panorama


@dataclass(frozen=True)
class Settings:
    """How sets are measured.

    Attributes:
        wanted: Names of metrics.
        protocol: Name of the views for the extractors.
        seed: Of random views and intervals.
        face_size: Of faces that are cut from panoramas, in pixels.
        draws: Numbers of draws of panoramas, and of halves for distances.
        cache: Folder for features of references.
        device: Where features are computed.
    """

    wanted: Collection[str]
    protocol: str
    seed: int
    face_size: int
    draws: tuple[int, int]
    cache: Path
    device: torch.device


@dataclass
class Evaluation:
    """Measures a set of samples.

    Attributes:
        samples: The panoramas.
        originals: The reference, or None.
        settings: How they are measured.
        progress: Shows the progress.
        values: What has been measured, by metric.
        measured: Terms of panoramas, and what was left out.
        warnings: What a reader should know.
        keys: Of the reference's features in the cache, by extractor and protocol.
    """

    samples: PanoramaSet
    originals: PanoramaSet | None
    settings: Settings
    progress: Progress
    values: dict[str, Value] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured)
    warnings: list[str] = field(default_factory=list)
    keys: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def is_paired(self) -> bool:
        """Whether each sample has an original of its name, in the same order."""
        return self.originals is not None and self.originals.names == self.samples.names

    def measure_faces(self) -> None:
        """The consistency of the samples' faces, beside that of the originals."""
        wanted, size = self.settings.wanted, self.settings.face_size
        if {*wanted}.isdisjoint({*measures.FACES, *measures.PANORAMAS}):
            return
        if not check_faces(self.samples):
            self.warnings.append(
                f"{self.samples.path} holds no saved faces: faces were cut from the panoramas, whose overlaps agree by "
                "construction; generate with --save-faces and the model's field of view as --face-fov to measure them "
                "before blending"
            )
        found = measure_consistency(self.samples, size, wanted, self.progress)
        reference = Measured()
        if self.originals is not None:
            reference = measure_consistency(self.originals, size, found.terms, self.progress)
        self.measured.left_out.update(found.left_out)
        for name, terms in found.terms.items():
            self._add(name, terms, reference.terms.get(name))

    def measure_conditions(self, network: nn.Module | None) -> None:
        """Whether the samples follow their photos; perceptual distances need EfficientNet-Lite0."""
        names = {name for name in self.settings.wanted if name.startswith(("condition_", "rest_"))}
        samples = self.samples
        if not names or not all(map(samples.photos, range(len(samples.names)))):
            return
        originals = self.originals if self.is_paired else None
        perceptual = network if isinstance(network, EfficientNetLite0) else None
        try:
            found = measure_conditions(samples, originals, names, self.progress, perceptual)
        except ValueError as error:  # a photo is gone
            self.measured.left_out.update(dict.fromkeys(names, str(error)))
        else:
            for name, terms in found.terms.items():
                self._add(name, terms)

    def explain_missing(self) -> None:
        """Says of every wanted metric without a value why it has none."""
        for name in self.settings.wanted:
            if name in self.values or name in self.measured.left_out:
                continue
            if name.startswith(("condition_", "rest_")) and self._may_turn():
                reason = "the samples were not generated from photos"
            elif self.originals is None:
                reason = "there is no reference"
            else:
                reason = _NOT_PAIRED
            self.measured.left_out[name] = reason

    def measure_retrieval(self) -> None:
        """Whether each sample is nearest to its own original, by pixels."""
        if self.originals is None or "retrieval_psnr" not in self.settings.wanted:
            return
        try:
            self._check_pairs()
            found = retrieved_by_pixels(self.samples, self.originals, self._may_turn(), self.progress)
        except ValueError as error:
            self.measured.left_out["retrieval_psnr"] = str(error)
        else:
            self._add("retrieval_psnr", found)

    def measure_features(self, name: str, network: nn.Module, folder: Path) -> None:
        """The metrics of an extractor's features, which are written to a folder."""
        wanted = {*self.settings.wanted}
        views = _Views(self, name, cast(NetworkExtractor, network), folder)
        protocol = EQUIRECT.name if name == measures.FAED else self.settings.protocol
        for each, distances in ((protocol, measures.distances(name)), (FACES_PROTOCOL, measures.omni_distances(name))):
            chosen = {label: distance for label, distance in distances.items() if label in wanted}
            if chosen and self.originals is not None:
                self._add_distances(name, each, chosen, views)
        if INCEPTION_SCORE in wanted and isinstance(network, InceptionV3):
            self._add_inception_score(network, views.samples(protocol))
        if measures.retrieval(name) in wanted and self.originals is not None:
            self._add_retrieval(name, views)
        if wanted & {*measures.CAPTIONS} and isinstance(network, ClipImages):
            self._add_captions(network, views)

    def extractors_record(self, networks: Mapping[str, nn.Module]) -> dict[str, object]:
        """Checksums of the extractors' weights, and of the reference's features by protocol."""
        return {
            name: {
                "sha256": weights_digest(network),
                "features": {protocol: {"reference": key} for protocol, key in self.keys.get(name, {}).items()},
            }
            for name, network in networks.items()
        }

    def _check_pairs(self) -> None:
        if not self.is_paired:
            raise ValueError(_NOT_PAIRED)

    def _may_turn(self) -> bool:
        """Whether the samples were generated from texts alone, which do not say where the front is."""
        return not any(map(self.samples.photos, range(len(self.samples.names))))

    def _add(
        self, name: str, terms: Float[Tensor, "p k"], reference: Float[Tensor, "q k"] | None = None, extractor: str = ""
    ) -> None:
        metric, draws, seed = measures.metric(name), self.settings.draws[0], self.settings.seed
        self.measured.terms[name] = terms
        self.values[name] = Value(
            bootstrap(metric, terms, draws=draws, seed=seed),
            "panoramas",
            measures.describe(name, extractor),
            None if reference is None else bootstrap(metric, reference, draws=draws, seed=seed),
        )

    def _warn(self, extractor: str, protocol: str, views: int, features: int) -> None:
        """Warns of distances of few views."""
        which = f"{views} {protocol} views for the distances of {extractor}"
        if not has_full_rank(views, features):
            less = " and ".join(measures.less_biased(extractor))
            self.warnings.append(
                f"{which}, which has {features} features: covariances are singular, and Fréchet distances depend on "
                "the number of views" + (f"; {less} depend on it less" if less else "")
            )
        elif views < _FEW:
            self.warnings.append(f"{which}: below {_FEW}, compare Fréchet distances only with those of as many views")

    def _add_distances(self, extractor: str, protocol: str, distances: dict[str, Distance], views: "_Views") -> None:
        features, real = views.samples(protocol), views.originals(protocol)
        each = real.shape[1] if distances.keys() <= measures.distances(extractor).keys() else 1  # face by face
        self._warn(extractor, protocol, min(len(real), len(features)) * each, real.shape[2])
        draws, seed = self.settings.draws[1], self.settings.seed
        for name, distance in distances.items():
            try:
                estimate = measure_distance(distance, real, features, draws=draws, seed=seed)
            except ValueError as error:
                self.measured.left_out[name] = str(error)
            else:
                self.values[name] = Value(estimate, "halves", distance.description)

    def _add_inception_score(self, network: InceptionV3, features: Tensor) -> None:
        logits = network.logits(features.to(self.settings.device)).cpu()
        count, seed = len(logits), self.settings.seed

        def score(chosen: Tensor) -> float:
            return inception_score(logits[chosen].flatten(0, 1), seed=seed)

        try:
            value, ends = score(torch.arange(count)), (math.nan, math.nan)
            if count >= 4 and count // 2 * logits.shape[1] >= SPLITS:
                draws = self.settings.draws[1]
                ends = subsample(lambda first, second: score(second), (count, count), draws=draws, seed=seed)
        except ValueError as error:
            self.measured.left_out[INCEPTION_SCORE] = str(error)
        else:
            estimate = Estimate(value, *ends, count)
            self.values[INCEPTION_SCORE] = Value(estimate, "halves", measures.describe(INCEPTION_SCORE))

    def _add_retrieval(self, extractor: str, views: "_Views") -> None:
        name = measures.retrieval(extractor)
        try:
            self._check_pairs()
            if self.settings.protocol != _TURNING:
                raise ValueError(f"its views are those of protocol={_TURNING}")
        except ValueError as error:
            self.measured.left_out[name] = str(error)
        else:
            found = retrieved_by_features(views.samples(_TURNING), views.originals(_TURNING), self._may_turn())
            self._add(name, found, extractor=extractor)

    def _add_captions(self, network: ClipImages, views: "_Views") -> None:
        wanted, protocol = {*self.settings.wanted}, self.settings.protocol
        prompts = self.originals.prompts if self.is_paired and self.originals is not None else self.samples.prompts
        captions = Captions(network, prompts)
        if captions.truncated:
            self.warnings.append(f"{captions.truncated} captions are longer than CLIP reads, and were truncated")
        try:
            if "clip_score" in wanted:
                self._add("clip_score", captions.scores(views.samples(protocol))[:, None].double())
            if wanted & {*_OF_CAPTIONS[1:]}:
                copies = (views.changed(protocol, change) for change in (turn_upside_down, mirror))
                fits = torch.tensor(captions.fits(views.samples(protocol), *copies)).double()
                self._add("fits_upright", fits[:, :1])
                self._add("fits_unflipped", fits[:, 1:])
        except ValueError as error:
            self.measured.left_out.update(dict.fromkeys(wanted & {*_OF_CAPTIONS} - {*self.values}, str(error)))
        try:
            if "clip_score_faces" in wanted:
                self._add("clip_score_faces", captions.scores_of_faces(views.samples(FACES_PROTOCOL))[:, None].double())
        except ValueError as error:
            self.measured.left_out["clip_score_faces"] = str(error)


class _Views:
    """The features of the views of an evaluation's sets, each computed once.

    Args:
        evaluation: The evaluation, which records the keys of the reference's features.
        name: Of the extractor.
        extractor: The network.
        folder: The folder for the features of the samples.
    """

    def __init__(self, evaluation: Evaluation, name: str, extractor: NetworkExtractor, folder: Path) -> None:
        self._evaluation, self._name, self._extractor, self._folder = evaluation, name, extractor, folder
        self._known: dict[tuple[str, str], Tensor] = {}

    def samples(self, protocol: str) -> Float[Tensor, "p v d"]:
        """Of the samples."""
        if (known := self._known.get(("samples", protocol))) is not None:
            return known
        features = self._extract(self._evaluation.samples, protocol)
        write_features(self._folder / f"{self._name}_{protocol}.safetensors", features)
        self._known["samples", protocol] = features
        return features

    def originals(self, protocol: str) -> Float[Tensor, "q v d"]:
        """Of the reference."""
        if (known := self._known.get(("originals", protocol))) is not None:
            return known
        evaluation, originals = self._evaluation, self._evaluation.originals
        assert originals is not None
        looking = self._looking(protocol)
        features, key = cached(evaluation.settings.cache, originals, looking, self._extractor, evaluation.progress)
        evaluation.keys.setdefault(self._name, {})[protocol] = key
        self._known["originals", protocol] = features
        return features

    def changed(self, protocol: str, change: Callable[[Tensor], Tensor]) -> Float[Tensor, "p v d"]:
        """Of copies of the samples."""
        return self._extract(Mapped(self._evaluation.samples, change), protocol)

    def _extract(self, panoramas: PanoramaSet, protocol: str) -> Tensor:
        return extract(panoramas, self._looking(protocol), self._extractor, self._evaluation.progress)

    def _looking(self, protocol: str) -> Looking:
        settings = self._evaluation.settings
        return Looking({**PROTOCOLS, EQUIRECT.name: EQUIRECT}[protocol], settings.seed, settings.device)
