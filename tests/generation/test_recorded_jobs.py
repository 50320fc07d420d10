"""`--jobs DIR/generation.json` generates the panorama of a record again."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from support.generating import SAMPLES, pixels, record, refused, run, save_model, save_photo, succeed
from support.promises import promised

DOCS = "docs/generation.md"
SIX = [word for face in ("a gate", "a wall", "a field", "a wall", "clouds", "gravel") for word in ("--prompt", face)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("recorded") / "model")


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same panorama with the same record, and the same faces."""
    faces = [sorted(path.name for path in folder.glob("faces/*")) for folder in (one, other)]
    return faces[0] == faces[1] and record(one) == record(other) and np.array_equal(pixels(one), pixels(other))


@pytest.mark.parametrize(
    "words",
    [
        ("--prompt", "a hall", "--seed", 5, "--preset", "fast", "--negative-prompt", "people", "--format", "png"),
        (*SIX, "--sampler", "euler", "--guidance-start", 0.2, "--height", 64),
        ("--prompt", "a hall", "--image", "photo.png", "--fov", 60, "--yaw", 40, "--paste-image"),
        ("--image", "photo.png", "--save-faces", "--face-fov", 95, "--convention", "three"),
        ("--prompt", "a hall", "--panorama", "panorama.png", "--mask", "mask.png"),
    ],
    ids=["text", "six texts", "text and photo", "photo with faces", "edited panorama"],
)  # fmt: skip
def test_the_panorama_of_a_record_is_generated_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[Any, ...]
) -> None:
    promised(DOCS, "A `generation.json` in place of a jobs file generates its panorama again")
    monkeypatch.chdir(tmp_path)
    save_photo(tmp_path / "photo.png")
    with PIL.Image.open(SAMPLES / "courtyard.jpg") as panorama:
        panorama.resize((256, 128)).save("panorama.png")
    mask = np.zeros((128, 256), np.uint8)
    mask[90:] = 255
    PIL.Image.fromarray(mask).save("mask.png")
    succeed(model, tmp_path / "first", *words)
    succeed(model, tmp_path / "again", "--jobs", "first/generation.json", "--seed", 9, "--steps", 7)
    assert same(tmp_path / "first", tmp_path / "again")
    changed = json.loads((tmp_path / "first/generation.json").read_text()) | {"seed": 77}
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed/generation.json").write_text(json.dumps(changed))
    succeed(model, tmp_path / "other", "--jobs", "changed/generation.json")
    assert not np.array_equal(pixels(tmp_path / "first"), pixels(tmp_path / "other"))


def test_photos_that_have_changed_are_refused(model: Path, tmp_path: Path) -> None:
    promised(DOCS, "photos that have changed since are refused")
    photo = save_photo(tmp_path / "photo.png")
    succeed(model, tmp_path / "first", "--image", photo)
    shutil.copy(SAMPLES / "courtyard.jpg", photo)
    words = ("--jobs", tmp_path / "first/generation.json")
    refused(run(model, tmp_path / "again", *words), f"{photo} has changed since {tmp_path / 'first/generation.json'}")
    photo.unlink()
    refused(run(model, tmp_path / "again", *words), str(photo))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ('{"prompt": "a hall"}\n', "is no record of a panorama: pass a generation.json, or JSON lines under another"),
        ('{"prompt": "a hall", "images": [], "seed": -1}', "seed must be an integer from 0"),
        ('{"prompt": "a hall", "images": [], "seed": 1, "sampler": "magic"}', "sampler must be one of ddim"),
        ('{"prompt": "a hall", "images": 3, "seed": 1}', "is no record of a panorama"),
        ('{"prompt": "a hall", "images": [{"file": 1}], "seed": 1}', "is no record of a panorama"),
        ('{"prompt": "a hall", "images": [], "panorama": [1], "seed": 1}', "is no record of a panorama"),
    ],
)
def test_damaged_records_are_refused(model: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "generation.json").write_text(content)
    refused(run(model, tmp_path / "out", "--jobs", tmp_path / "generation.json"), message)
