"""Whether two evaluations measured a metric in the same way, and which of their settings differ."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from cubediff.evaluation import measures
from cubediff.evaluation.measures import FACES_PROTOCOL, Distance
from cubediff.evaluation.results import Stored, flatten
from cubediff.evaluation.views import PROTOCOLS

_LISTED = ("settings", "samples.height", "reference.path", "faces", "views", "versions")
_MAX_TEXT = 60  # of a value in a message, in characters


def check_measured_equally(first: Stored, second: Stored, name: str) -> None:
    """Checks what determines the values of a metric: heights, faces, the reference, extractors and views.

    Raises:
        ValueError: If one of them differs; the message names it.
    """
    for path in _conditions(first, name):
        for key, (a, b) in differing(first, second, path):
            raise ValueError(f"{key} is {short(a)} in A and {short(b)} in B")


def differing_settings(first: Stored, second: Stored) -> dict[str, tuple[object, object]]:
    """The values of settings that differ, by dotted key of `metrics.json`; views only of protocols that both used."""
    found = {key: pair for section in _LISTED for key, pair in differing(first, second, tuple(section.split(".")))}
    return {key: pair for key, pair in found.items() if not (key.startswith("views.") and None in pair)}


def differing(first: Stored, second: Stored, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[object, object]]]:
    """The values below a path of keys of `metrics.json` that differ."""
    a, b = (dict(flatten(at(stored.metrics, *path), ".".join(path))) for stored in (first, second))
    for key in dict.fromkeys([*a, *b]):
        if a.get(key) != b.get(key):
            yield key, (a.get(key), b.get(key))


def _conditions(stored: Stored, name: str) -> Iterator[tuple[str, ...]]:
    """The paths whose values must be equal for values of a metric to be compared."""
    family, height = at(stored.metrics, "metrics", name, "family"), ("samples", "height")
    if family == "consistency":
        if name not in measures.PANORAMAS:
            yield ("faces",)
        if name in measures.PANORAMAS or at(stored.metrics, "faces", "saved") is False:  # cut from the panorama
            yield height
        return
    yield height
    if name.startswith(("condition_", "rest_")):
        yield ("faces",)
    if family in ("distances", "fidelity"):
        yield "reference", "sha256"
    if family == "fidelity":
        yield "settings", "condition"
    if (distance := stored_distance(stored, name)) is not None:
        extractor, protocol, _ = distance
        yield "extractors", extractor, "sha256"
        yield "views", protocol, "size"
        yield "views", protocol, "yaw_pitch_fov"
        return
    for extractor in mapping(at(stored.metrics, "extractors")):
        if name in measures.names(extractor):
            yield "extractors", extractor, "sha256"
            yield "settings", "protocol"
            used = PROTOCOLS.get(str(at(stored.metrics, "settings", "protocol")))
            if used is not None and not used.same_for_all:
                yield "settings", "seed"


def stored_distance(stored: Stored, name: str) -> tuple[str, str, Distance] | None:
    """A distance whose features are stored, with its extractor and the protocol of its views; None if it is none."""
    for extractor, entry in mapping(at(stored.metrics, "extractors")).items():
        protocols = mapping(at(entry, "features"))
        if name in (omni := measures.omni_distances(extractor)) and FACES_PROTOCOL in protocols:
            return extractor, FACES_PROTOCOL, omni[name]
        if name in (distances := measures.distances(extractor)) and protocols:
            protocol = next((each for each in protocols if each != FACES_PROTOCOL), FACES_PROTOCOL)
            return extractor, protocol, distances[name]
    return None


def short(value: object) -> str:
    """A value of a record as text, at most 60 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def at(value: Any, *keys: str) -> object:
    """The value of nested keys; None if one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def mapping(value: object) -> Mapping[str, object]:
    """The value itself; empty if it is no mapping."""
    return value if isinstance(value, Mapping) else {}
