"""Files of a cubemap: what is written, and what a record may say."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cubediff.cubemaps.conventions import CONVENTIONS, FaceImage, engine_images
from cubediff.cubemaps.files import (
    CubemapFormat,
    CubemapRecord,
    read_record,
    record_path,
    remove_cubemap,
    write_cubemap,
)
from cubediff.geometry import FACES
from cubediff.images.writing import encode_png
from cubediff.utils.errors import DataError

CUBE = {face: np.full((8, 8, 3), 20 * number, np.uint8) for number, face in enumerate(FACES)}


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_six_files_have_the_names_and_the_record_of_their_convention(tmp_path: Path, convention: str) -> None:
    folder = write_cubemap(tmp_path / "faces", CUBE, CubemapFormat("faces", convention, 95.0), encode_png)
    images = engine_images(convention)
    assert contents(folder) == sorted([f"{image.name}.png" for image in images] + ["faces.json"])
    record = json.loads((folder / "faces.json").read_text())
    assert record["field_of_view"] == 95
    assert record["convention"] == convention
    for file, face, turn in zip(record["files"], record["order"], record["rotation"], strict=True):
        pixels = np.asarray(Image.open(folder / file))
        np.testing.assert_array_equal(pixels, np.rot90(CUBE[face], turn // 90))
    assert read_record(folder / "faces.json") == CubemapRecord(95.0, images)
    remove_cubemap(folder)
    assert not folder.exists()


@pytest.mark.parametrize("layout", ["cross", "cross-vertical", "strip", "dice"])
def test_one_image_has_its_record_beside_it(tmp_path: Path, layout: str) -> None:
    path = write_cubemap(tmp_path / "sky.png", CUBE, CubemapFormat(layout, "three"), encode_png)
    assert contents(tmp_path) == ["sky.faces.json", "sky.png"]
    record = json.loads((tmp_path / "sky.faces.json").read_text())
    assert record["layout"] == ("cross" if layout == "dice" else layout)
    assert record["files"] == ["sky.png"]
    read = read_record(record_path(path, layout))
    assert read is not None
    assert [image.face for image in read.images or ()] == record["order"]
    with Image.open(path) as image:
        assert image.size == {"cross-vertical": (24, 32), "strip": (48, 8)}.get(layout, (32, 24))
    remove_cubemap(path)
    assert contents(tmp_path) == []


def test_removing_keeps_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "px.png").write_bytes(b"mine")
    (tmp_path.parent / "outside.png").write_bytes(b"mine")
    write_cubemap(tmp_path, CUBE, CubemapFormat(), encode_png)
    record = json.loads((tmp_path / "faces.json").read_text())
    (tmp_path / "faces.json").write_text(json.dumps(record | {"files": [*record["files"], "../outside.png", 3]}))
    remove_cubemap(tmp_path)
    assert contents(tmp_path) == ["px.png"]
    assert (tmp_path.parent / "outside.png").exists()


def test_faces_of_former_versions_without_a_record_are_removed(tmp_path: Path) -> None:
    for face in FACES:
        Image.fromarray(CUBE[face]).save(tmp_path / f"{face}.png")
    remove_cubemap(tmp_path)
    assert not tmp_path.exists()


def test_a_record_needs_only_the_field_of_view(tmp_path: Path) -> None:
    file = tmp_path / "faces.json"
    assert read_record(file) is None
    for other in ('{"caption": "a hall"}', "[1]"):
        file.write_text(other)
        assert read_record(file) is None
    file.write_text('{"field_of_view": 95}')
    assert read_record(file) == CubemapRecord(95.0, None)
    order = ["front", "back", "left", "right", "up", "down"]
    file.write_text(json.dumps({"field_of_view": 90, "order": order, "files": [f"{i}.jpg" for i in range(6)]}))
    images = tuple(FaceImage(str(number), face) for number, face in enumerate(order))
    assert read_record(file) == CubemapRecord(90.0, images)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"field_of_view": 80}, "field_of_view is 80: expected degrees, at least 90 and below 180"),
        ({"field_of_view": True}, "field_of_view is True"),
        ({"field_of_view": "95°"}, "field_of_view is '95°'"),
        ({"field_of_view": 90, "version": 2}, "newer version of cubediff"),
        ({"field_of_view": 90, "order": ["front"] * 6}, "each once"),
        ({"field_of_view": 90, "order": 3}, "order is 3"),
        ({"field_of_view": 90, "order": list(FACES), "rotation": [45] * 6}, "expected six of 0, 90, 180 and 270"),
        ({"field_of_view": 90, "order": list(FACES), "files": ["a.png"] * 6}, "the names of six files"),
        ({"field_of_view": 90, "order": list(FACES), "layout": "cross"}, "are not those of a cross"),
        ({"field_of_view": 90, "order": list(FACES), "layout": "net"}, "layout is 'net'"),
    ],
)
def test_invalid_records_are_refused_by_their_key(tmp_path: Path, record: dict[str, object], message: str) -> None:
    (tmp_path / "faces.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=message) as error:
        read_record(tmp_path / "faces.json")
    assert "faces.json" in str(error.value)


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "faces.json").write_text('{"field_of_view": 9')
    with pytest.raises(DataError, match="is not JSON"):
        read_record(tmp_path / "faces.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("net",), "unknown layout"),
        (("faces", "godot"), "unknown convention"),
        (("faces", "three", 89.0), "a field of view of 89°"),
        (("faces", "three", 180.0), "a field of view of 180°"),
        (("faces", "three", float("nan")), "a field of view of nan°"),
    ],
)
def test_invalid_formats_are_refused(values: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CubemapFormat(*values)
