"""Procedural panoramas: reproducible, seamless, and described correctly by their captions."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cubediff.data import build_shards, create_example_dataset
from cubediff.data.example import COLOURS, GROUNDS, SKIES, draw_example
from cubediff.geometry import FACES
from cubediff.prepare import app


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, str, dict[str, str]]]:
    return [draw_example(128, seed=0, index=i) for i in range(16)]


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]


def hue(colour: np.ndarray) -> np.ndarray:
    """A colour without its brightness."""
    return colour / np.linalg.norm(colour)


@pytest.mark.slow
def test_the_dataset_is_a_folder_that_prepare_takes(tmp_path: Path) -> None:
    folder = create_example_dataset(5, tmp_path / "example", size=(64, 128))
    assert len(records(folder)) == 5
    for record in records(folder):
        with Image.open(folder / record["file"]) as image:
            assert image.size == (128, 64)
        assert list(record["faces"]) == list(FACES)
    manifest = build_shards(folder, tmp_path / "shards", val_fraction=0.2)
    assert (manifest["samples"], manifest["rejected"], manifest["with_face_captions"]) == (5, 0, 5)
    result = CliRunner().invoke(app, [str(folder), str(tmp_path / "other")])
    assert result.exit_code == 0


def test_a_panorama_depends_on_the_seed_and_its_number_alone(tmp_path: Path) -> None:
    few = create_example_dataset(2, tmp_path / "few", size=(32, 64))
    more = create_example_dataset(4, tmp_path / "more", size=(32, 64))
    other = create_example_dataset(2, tmp_path / "other", size=(32, 64), seed=1)
    for record in records(few):
        assert (few / record["file"]).read_bytes() == (more / record["file"]).read_bytes()
        assert (few / record["file"]).read_bytes() != (other / record["file"]).read_bytes()
    assert records(few) == records(more)[:2] != records(other)


def test_the_scenes_vary(scenes: list) -> None:
    captions = [caption for _, caption, _ in scenes]
    assert len(set(captions)) == len(scenes)
    assert sum(any(sky.caption in c for c in captions) for sky in SKIES) >= 3
    assert sum(any(ground in c for c in captions) for ground in GROUNDS) >= 4
    differences = [np.abs(a[0].astype(float) - b[0]).mean() for a, b in pairwise(scenes)]
    assert min(differences) > 10


def test_objects_have_the_colour_that_their_caption_names(scenes: list) -> None:
    """The pixels at the named face's centre are nearer to the named colour than to any other."""
    checked = 0
    for image, _, faces in scenes:
        for wall, face in enumerate(FACES[:4]):
            words = faces[face].lower().split()
            if not {"wall", "ball", "house"} & set(words):
                continue
            column = (64 * wall + 128) % 256
            mean_colour = image[63:66, [column - 7, column - 6, column + 5, column + 6]].reshape(-1, 3).mean(0)
            nearest = min(COLOURS, key=lambda c: float(np.linalg.norm(hue(mean_colour) - hue(np.array(COLOURS[c])))))
            assert nearest in words, (faces[face], mean_colour)
            checked += 1
    assert checked >= 16


def test_objects_are_only_on_the_faces_of_their_captions(scenes: list) -> None:
    """Half-way between two faces there is only sky and ground: no face shows an object of its neighbour."""
    for image, _, faces in scenes:
        for column in (32, 96, 160, 224):
            near = image[60:63, column - 1 : column + 1].reshape(-1, 3).mean(0)
            far = image[60:63, [column - 3, column + 2]].reshape(-1, 3).mean(0)
            assert np.abs(near - far).max() < 12, faces


def test_the_panoramas_caption_names_the_objects_of_every_face(scenes: list) -> None:
    for _, caption, faces in scenes:
        assert faces["up"][1:] in caption
        assert faces["down"][1:] in caption
        assert not {"left", "right", "front", "behind"} & set(caption.lower().split())  # it holds at any yaw
        for face in FACES[:4]:
            thing = faces[face].split(f" on {faces['down'].lower()}")[0]
            assert thing[1:] in caption


def test_sky_is_above_ground_is_below_and_the_seam_does_not_show(scenes: list) -> None:
    for image, _, faces in scenes:
        picture = image.astype(float)
        across = np.abs(picture[:, 0] - picture[:, -1]).mean()
        usual = np.abs(np.diff(picture, axis=1)).mean((0, 2)).max()
        assert across <= usual
        assert np.ptp(picture[0], axis=0).max() < 60  # at the zenith all columns look the same way
        if faces["down"] == "Green grass":
            assert picture[100:, :, 1].mean() > picture[100:, :, [0, 2]].mean() + 10
        if faces["up"] == "A clear blue sky":
            assert picture[:20, :, 2].mean() > picture[:20, :, 0].mean() + 60


@pytest.mark.parametrize("size", [(64, 100), (8, 16), (128, 64)])
def test_a_size_that_is_not_a_panorama_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected 1:2 and at least 16x32"):
        create_example_dataset(1, tmp_path, size=size)


def test_zero_panoramas_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_samples is 0"):
        create_example_dataset(0, tmp_path)
