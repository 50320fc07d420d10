"""Cubemaps with a record beside them, and faces that overlap: both become the panorama they were rendered from."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.pictures import SAMPLES, psnr, shown

from cubediff.cubemaps.conventions import CONVENTIONS
from cubediff.cubemaps.files import CubemapFormat, write_cubemap
from cubediff.cubemaps.layouts import Cube
from cubediff.data.sources import open_source
from cubediff.geometry import FACES, equirect_to_cube
from cubediff.images.writing import encode_png
from cubediff.utils.errors import DataError

HEIGHT = 256


@lru_cache
def panorama() -> np.ndarray:
    with Image.open(SAMPLES / "st_fagans_interior.jpg") as image:
        return np.asarray(image.resize((2 * HEIGHT, HEIGHT), Image.Resampling.LANCZOS))


@lru_cache
def cube(fov: float, size: int = 256) -> Cube:
    tensor = torch.from_numpy(panorama().copy()).permute(2, 0, 1)[None]
    faces = equirect_to_cube(tensor, size, fov, mode="bicubic")[0].permute(0, 2, 3, 1).numpy()
    return dict(zip(FACES, faces, strict=True))


def read(source: Path, kind: str | None = None) -> tuple[np.ndarray, dict[str, object]]:
    """The only panorama of a source, at the size of `panorama`, and how it was converted."""
    opened = open_source(source, kind=kind, captioned=False)
    entries, rejected = opened.entries()
    assert rejected == []
    (entry,) = entries
    found = opened.load(entry, quality=100)
    image = Image.fromarray(shown(found.jpeg).astype(np.uint8)).resize((2 * HEIGHT, HEIGHT), Image.Resampling.BOX)
    return np.asarray(image), found.record


def assert_same(image: np.ndarray) -> None:
    assert psnr(image, panorama()) > 28  # 11 with a face in a wrong place


@pytest.mark.parametrize("fov", [90.0, 95.0])
@pytest.mark.parametrize("layout", ["faces", "strip"])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_faces_of_every_convention_are_read_by_their_record(
    tmp_path: Path, convention: str, layout: str, fov: float
) -> None:
    path = tmp_path / ("sky" if layout == "faces" else "sky.png")
    write_cubemap(path, cube(fov), CubemapFormat(layout, convention, fov), encode_png)
    image, record = read(tmp_path)
    assert_same(image)
    assert record["face_size"] == 256
    assert record.get("face_fov", 90.0) == fov


@pytest.mark.parametrize("layout", ["cross", "cross-vertical"])
def test_crosses_of_95_degrees_are_read_by_their_record(tmp_path: Path, layout: str) -> None:
    write_cubemap(tmp_path / "sky.png", cube(95.0), CubemapFormat(layout, "unity", 95.0), encode_png)
    assert_same(read(tmp_path)[0])


def test_the_folder_of_the_faces_may_be_the_source(tmp_path: Path) -> None:
    write_cubemap(tmp_path, cube(95.0), CubemapFormat("faces", "unreal", 95.0), encode_png)
    (tmp_path.parent / f"{tmp_path.name}.txt").write_text("a room")
    assert_same(read(tmp_path)[0])


def test_a_record_may_name_any_files(tmp_path: Path) -> None:
    order = ["up", "front", "right", "back", "left", "down"]
    for number, face in enumerate(order):
        Image.fromarray(np.rot90(cube(90.0)[face], number % 4)).save(tmp_path / f"room{number}.png")
    record = {"field_of_view": 90, "order": order, "rotation": [90 * (number % 4) for number in range(6)]}
    (tmp_path / "faces.json").write_text(json.dumps(record | {"files": [f"room{number}.png" for number in range(6)]}))
    image, described = read(tmp_path)
    assert_same(image)
    assert described["cubemap"] == "recorded"


def test_captions_stand_beside_cubemaps_with_a_record(tmp_path: Path) -> None:
    write_cubemap(tmp_path / "hall", cube(95.0), CubemapFormat("faces", "cubediff", 95.0), encode_png)
    (tmp_path / "hall.txt").write_text("a hall")
    write_cubemap(tmp_path / "sky.png", cube(90.0), CubemapFormat("cross"), encode_png)
    (tmp_path / "sky.json").write_text('{"caption": "a sky"}')
    entries, rejected = open_source(tmp_path).entries()
    assert rejected == []
    assert [(entry.file, entry.caption) for entry in entries] == [("hall", "a hall"), ("sky.png", "a sky")]
    source = open_source(tmp_path)
    assert [path.name for path in source.files(entries[0])][-1] == "faces.json"
    assert [path.name for path in source.files(entries[1])] == ["sky.png", "sky.faces.json"]


@pytest.mark.parametrize("fov", [92.0, 95.0, 110.0])
def test_faces_that_overlap_are_refused_with_the_evidence_and_a_remedy(tmp_path: Path, fov: float) -> None:
    write_cubemap(tmp_path, cube(fov), CubemapFormat("faces", "cubediff", fov), encode_png)
    (tmp_path / "faces.json").unlink()
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert f"neighbours agree as faces of {fov:g}°" in str(error.value)
    assert f'faces.json with {{"field_of_view": {fov:g}}}' in str(error.value)
    (tmp_path / "faces.json").write_text(f'{{"field_of_view": {fov:g}}}')
    assert_same(read(tmp_path)[0])


def test_an_image_of_faces_that_overlap_is_refused_too(tmp_path: Path) -> None:
    write_cubemap(tmp_path / "sky.png", cube(95.0), CubemapFormat("cross", "cubediff", 95.0), encode_png)
    (tmp_path / "sky.faces.json").unlink()
    with pytest.raises(DataError, match="neighbours agree as faces of 95°"):
        read(tmp_path)


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.glob("*.jpg"))[::4])
def test_faces_of_90_degrees_are_not_taken_for_wider_ones(tmp_path: Path, name: str) -> None:
    with Image.open(SAMPLES / name) as image:
        tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    faces = equirect_to_cube(tensor, 64, 90.0)[0].permute(0, 2, 3, 1).numpy()
    write_cubemap(tmp_path, dict(zip(FACES, faces, strict=True)), CubemapFormat(), encode_png)
    (tmp_path / "faces.json").unlink()
    read(tmp_path)


@pytest.mark.parametrize("content", ['{"field_of_view": 45}', '{"field_of_view": 90, "order": []}', '{"field_of_view'])
def test_scenes_with_an_invalid_record_are_rejected_by_name(tmp_path: Path, content: str) -> None:
    for name in ("good", "bad"):
        write_cubemap(tmp_path / name, cube(90.0, 32), CubemapFormat(), encode_png)
    (tmp_path / "bad/faces.json").write_text(content)
    entries, rejected = open_source(tmp_path, captioned=False).entries()
    assert [entry.file for entry in entries] == ["good"]
    assert [rejection.file for rejection in rejected] == ["bad"]
    assert "faces.json" in rejected[0].reason


def test_a_record_whose_file_is_missing_is_rejected_by_name(tmp_path: Path) -> None:
    write_cubemap(tmp_path / "sky", cube(90.0, 32), CubemapFormat("faces", "three"), encode_png)
    (tmp_path / "sky/py.png").unlink()
    _, rejected = open_source(tmp_path, kind="cubemaps", captioned=False).entries()
    assert [(r.file, r.reason) for r in rejected] == [
        ("sky", "faces.json lists py, and there is no file of this name: correct or remove it")
    ]


def test_a_named_scheme_counts_more_than_the_order_of_a_record(tmp_path: Path) -> None:
    write_cubemap(tmp_path, cube(95.0), CubemapFormat("faces", "unreal", 95.0), encode_png)
    record = json.loads((tmp_path / "faces.json").read_text())
    (tmp_path / "faces.json").write_text(json.dumps(record | {"order": list(FACES), "rotation": [0] * 6}))
    image, described = read(tmp_path, "unreal")
    assert_same(image)
    assert described["face_fov"] == 95


@pytest.mark.parametrize("convention", ["three", "unreal", "blender"])
@pytest.mark.parametrize("layout", ["faces", "strip"])
def test_images_of_engines_without_a_record_are_read_by_the_name_of_the_convention(
    tmp_path: Path, convention: str, layout: str
) -> None:
    path = tmp_path / ("sky" if layout == "faces" else "sky.png")
    write_cubemap(path, cube(90.0), CubemapFormat(layout, convention), encode_png)
    for record in tmp_path.rglob("*.json"):
        record.unlink()
    if convention == "blender":  # the others are cube maps with other axes: their edges meet in any case
        with pytest.raises(DataError, match=r"its faces meet as 'blender'.*pass --source blender"):
            read(tmp_path)
    assert_same(read(tmp_path, convention)[0])
