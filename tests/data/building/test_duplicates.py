"""Near-duplicates of real panoramas: rotated, re-encoded and scaled copies are found, and different scenes differ with
a margin."""

import itertools
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from cubediff.data.building.duplicates import BITS, THRESHOLD, hash_jpeg, near_duplicates, perceptual_hash

SAMPLES = sorted((Path(__file__).parents[3] / "data" / "samples").glob("*.jpg"))


def rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates in yaw by any angle; fractions of a column are interpolated linearly."""
    columns, part = divmod(degrees / 360 * image.shape[1], 1)
    mixed = (1 - part) * np.roll(image, int(columns), 1) + part * np.roll(image, int(columns) + 1, 1)
    return np.round(mixed).astype(np.uint8)


def scaled(image: np.ndarray, by: float) -> np.ndarray:
    return cv2.resize(image, None, fx=by, fy=by, interpolation=cv2.INTER_AREA if by < 1 else cv2.INTER_CUBIC)


def encoded(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


COPIES = {
    "coded again": lambda image: encoded(image, 30),
    "half as large": lambda image: scaled(image, 0.5),
    "twice as large": lambda image: scaled(image, 2),
    **{f"turned by {d}": lambda image, d=d: rotated(image, d) for d in (1.3, 37.3, 90, 181.7, 270, 358.2)},
    "mirrored": lambda image: image[:, ::-1],
    "all of it": lambda image: encoded(rotated(scaled(image, 0.5), 123.4), 50)[:, ::-1],
}


@pytest.fixture(scope="module")
def panoramas() -> list[np.ndarray]:
    return [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in SAMPLES]


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The number of differing bits of two hashes, the minimum over a flip of one image."""
    mirrored = np.concatenate([b[:128], 1 - b[128:]])
    return min(int((a != b).sum()), int((a != mirrored).sum()))


def bits(image: np.ndarray) -> np.ndarray:
    return np.unpackbits(perceptual_hash(image))


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_within_half_the_threshold(panoramas: list[np.ndarray], copy: str) -> None:
    distances = [apart(bits(image), bits(COPIES[copy](image))) for image in panoramas]
    assert max(distances) <= THRESHOLD // 2


def test_different_scenes_differ_by_far_more_than_the_threshold(panoramas: list[np.ndarray]) -> None:
    hashes = [bits(image) for image in panoramas]
    pairs = list(itertools.combinations(hashes, 2))
    assert len(pairs) == 300
    assert min(apart(a, b) for a, b in pairs) > 1.5 * THRESHOLD
    assert abs(np.mean([(a != b).mean() for a, b in pairs]) - 0.5) < 0.05  # of different scenes they agree by chance


@pytest.mark.parametrize("width", [512, 1024, 2048])
def test_a_jpeg_decoded_at_reduced_size_has_almost_the_same_hash(panoramas: list[np.ndarray], width: int) -> None:
    for image in panoramas:
        jpeg = cv2.imencode(".jpg", cv2.resize(image, (width, width // 2)), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        assert (np.unpackbits(hash_jpeg(jpeg, width)) != bits(image)).sum() <= 8
    with pytest.raises(ValueError, match="decode"):
        hash_jpeg(jpeg[:10], width)


def test_pairs_are_those_of_a_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (60, 32), np.uint8)
    for i in range(0, 30, 3):  # a copy of some, with up to 60 bits flipped
        flips = np.zeros(BITS, np.uint8)
        flips[rng.choice(BITS, 6 * (i // 3) + 1, replace=False)] = 1
        mirror = np.repeat(np.uint8([0, i % 2]), BITS // 2)
        hashes[59 - i] = hashes[i] ^ np.packbits(flips ^ mirror)
    monkeypatch.setattr("cubediff.data.building.duplicates._BLOCK", 7)
    expected = []
    for i, j in itertools.combinations(range(60), 2):
        distance = apart(np.unpackbits(hashes[i]), np.unpackbits(hashes[j]))
        if distance <= THRESHOLD:
            expected.append((i, j, distance))
    assert len(expected) >= 5
    assert list(zip(*(part.tolist() for part in near_duplicates(hashes)), strict=True)) == expected


def test_a_thousand_equal_panoramas_are_not_a_million_pairs() -> None:
    hashes = np.zeros((1001, 32), np.uint8)
    hashes[500:] = 255
    hashes[1000, 0] = 0b11111110
    first, second, distance = near_duplicates(hashes)
    assert len(first) == 499 + 499 + 1
    assert set(zip(first.tolist(), distance.tolist(), strict=True)) == {(0, 0), (500, 0), (500, 1)}
    assert 1000 in second
    assert len(near_duplicates(hashes[:0]).first) == 0


@pytest.mark.slow
def test_twenty_thousand_panoramas_are_compared_in_seconds() -> None:
    """A double loop in Python would take minutes; 50 000 take six times as long as this."""
    hashes = np.random.default_rng(0).integers(0, 256, (20_000, 32), np.uint8)
    hashes[17] = hashes[19_999]
    start = time.perf_counter()
    pairs = near_duplicates(hashes)
    assert time.perf_counter() - start < 60
    assert [part.tolist() for part in pairs] == [[17], [19_999], [0]]
