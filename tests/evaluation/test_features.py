"""Features of sets of panoramas, and their cache."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from support.generating import SAMPLES
from torch import Tensor, nn

from cubediff.evaluation.features import Looking, cached, extract, weights_digest
from cubediff.evaluation.opened_sets import open_set
from cubediff.evaluation.views import EQUIRECT, PROTOCOLS, render_views
from cubediff.utils.errors import DataError

NAMES = ["courtyard", "dancing_hall"]
HORIZON = Looking(PROTOCOLS["azimuth8"], 0, torch.device("cpu"))


class MeanColour(nn.Module):
    """Three features: the mean colour of a view, weighted."""

    name = "mean_colour"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.calls = 0

    def forward(self, views: Tensor) -> Tensor:
        self.calls += 1
        return self.weight * views.mean((2, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "panoramas"
    found.mkdir()
    for name in NAMES:
        shutil.copy(SAMPLES / f"{name}.jpg", found)
    return found


def silent(items: Iterable[int], total: int, title: str) -> Iterable[int]:
    return items


def test_features_are_those_of_the_views_of_each_panorama(folder: Path) -> None:
    panoramas, network = open_set(folder), MeanColour()
    features = extract(panoramas, HORIZON, network, silent)
    assert features.shape == (2, 8, 3)
    protocol = PROTOCOLS["azimuth8"]
    views = render_views(panoramas.panorama(1), protocol.views(1), protocol.size).clamp(0, 1)
    torch.testing.assert_close(features[1], views.mean((2, 3)))
    whole = extract(panoramas, Looking(EQUIRECT, 0, torch.device("cpu")), network, silent)
    torch.testing.assert_close(whole[0, 0], panoramas.panorama(0).mean((1, 2)))


def test_features_are_computed_once_for_the_same_files_views_and_weights(folder: Path, tmp_path: Path) -> None:
    def features(network: nn.Module, looking: Looking = HORIZON) -> tuple[Tensor, str]:
        return cached(tmp_path / "cache", open_set(folder), looking, network, silent)

    network = MeanColour()
    first, key = features(network)
    again, same = features(network)
    assert network.calls == 2  # a call for each panorama
    assert same == key
    assert torch.equal(first, again)
    other_seed = Looking(PROTOCOLS["cubediff_paper"], 1, torch.device("cpu"))
    keys = {key, features(MeanColour(2.0))[1], features(network, other_seed)[1]}
    keys.add(features(network, Looking(PROTOCOLS["cubediff_paper"], 0, torch.device("cpu")))[1])
    shutil.copy(SAMPLES / "hotel_room.jpg", folder / "courtyard.jpg")
    changed, other = features(network)
    assert len({*keys, other}) == 5
    assert not torch.equal(changed[0], first[0])
    assert torch.equal(changed[1], first[1])


def test_a_damaged_file_of_the_cache_is_named(folder: Path, tmp_path: Path) -> None:
    _, key = cached(tmp_path, open_set(folder), HORIZON, MeanColour(), silent)
    (tmp_path / f"{key}.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match=rf"{key}\.safetensors is damaged .*: remove it"):
        cached(tmp_path, open_set(folder), HORIZON, MeanColour(), silent)


def test_weights_of_any_dtype_have_a_digest() -> None:
    network = MeanColour()
    digests = {weights_digest(network), weights_digest(MeanColour(1.5)), weights_digest(network.half())}
    assert len(digests) == 3
