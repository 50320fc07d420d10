"""The trees of Structured3D and Matterport3D as they are unpacked: of all their images only panoramas are read."""

import json
from pathlib import Path

import pytest
from PIL import Image
from support.pictures import picture

from cubediff.data.building.check import check_shards
from cubediff.data.building.write import build_shards
from cubediff.data.sources import open_source
from cubediff.data.sources.cubemaps import Cubemaps
from cubediff.data.sources.selection import NO_CAPTIONS
from cubediff.data.sources.trees import Matterport3D, Structured3D
from cubediff.utils.errors import DataError


def put(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def structured3d(folder: Path, scenes: int = 4) -> Path:
    """Two rooms in each scene, with the other renderings and annotations of the data set."""
    for scene in range(scenes):
        top = folder / f"scene_{scene:05d}"
        for number, room in enumerate(("485142", "906")):
            rendering = top / "2D_rendering" / room
            for furniture in ("empty", "simple", "full"):
                for light in ("cold", "raw", "warm"):
                    image = picture(2 * scene + number).convert("RGBA")  # opaque, as in the data set
                    put(rendering / "panorama" / furniture / f"rgb_{light}light.png", image)
                for kind in ("albedo", "depth", "normal", "semantic", "instance"):
                    put(rendering / "panorama" / furniture / f"{kind}.png", picture(99))
            put(rendering / "perspective" / "full" / "0" / "rgb_rawlight.png", picture(7, 64, 48))
            put(rendering / "perspective" / "full" / "0" / "depth.png", picture(7, 64, 48))
            (rendering / "panorama" / "layout.txt").write_text("1 2\n")
            (rendering / "panorama" / "camera_xyz.txt").write_text("0 0 0")
        (top / "annotation_3d.json").write_text("{}")
    return folder


def matterport3d(folder: Path) -> Path:
    """Three scans of two skyboxes each, with the other images of the data set."""
    for scan in ("17DRP5sb8fy", "1LXtFkjw3qL", "x8F5xyUWy9e"):
        for number, panorama in enumerate(("0b02e18654324edd8d74c078b66bfb20", "af9")):
            images = folder / scan / scan / "matterport_skybox_images"
            for face in range(6):
                put(images / f"{panorama}_skybox{face}_sami.jpg", picture(6 * number + face, 16, 16))
            for kind, name in (("matterport_color", "i0_0.jpg"), ("undistorted_depth", "d0_0.png")):
                put(folder / scan / scan / f"{kind}_images" / f"{panorama}_{name}", picture(1, 80, 64))
        put(folder / scan / scan / "matterport_mesh" / "ab" / "ab_000.jpg", picture(3, 64, 64))
        put(folder / scan / scan / "house_segmentations" / "panorama_to_region.png", picture(3, 32, 32))
    return folder


ROOM = "2D_rendering/485142/panorama/full/rgb_rawlight.png"


@pytest.mark.parametrize("below", ["", "Structured3D/", "unpacked/part 1/"])
@pytest.mark.parametrize("kind", [None, "structured3d"])
def test_the_furnished_rooms_of_structured3d_are_its_panoramas(tmp_path: Path, below: str, kind: str | None) -> None:
    source = tmp_path / "in"
    structured3d(source / below)
    opened = open_source(source, NO_CAPTIONS, kind)
    entries, rejected = opened.entries()
    assert len(entries) == 8
    assert all(entry.file.endswith("/panorama/full/rgb_rawlight.png") for entry in entries)
    assert {entry.scene for entry in entries} == {f"{below}scene_{i:05d}" for i in range(4)}
    assert rejected == []


def test_structured3d_is_built_with_captions_and_every_room_is_accounted_for(tmp_path: Path) -> None:
    source = structured3d(tmp_path / "in", 3)
    (source / "scene_00001" / "2D_rendering" / "906" / "panorama" / "full" / "rgb_rawlight.png").unlink()
    damaged = source / "scene_00002" / "2D_rendering" / "906" / "panorama" / "full" / "rgb_rawlight.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    named = [f"scene_{i:05d}/{ROOM}" for i in range(3)] + [str(damaged.relative_to(source))]
    lines = [{"file": name, "caption": "a room"} for name in named]
    (tmp_path / "s3d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    opened = open_source(source, tmp_path / "s3d.jsonl")
    assert isinstance(opened, Structured3D)
    manifest = build_shards(opened, tmp_path / "out", val_fraction=0.3)
    assert not check_shards(tmp_path / "out").faults
    reasons = {
        line["file"]: line["reason"]
        for line in map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    }
    assert (manifest["samples"], manifest["rejected"]) == (3, 3)
    assert reasons["scene_00001/2D_rendering/906/panorama"] == "a room without full/rgb_rawlight.png"
    assert "truncated" in reasons[str(damaged.relative_to(source))]
    assert "has no caption in s3d.jsonl" in reasons["scene_00000/2D_rendering/906/panorama/full/rgb_rawlight.png"]


def test_other_renderings_of_structured3d_are_selected_by_a_glob(tmp_path: Path) -> None:
    source = structured3d(tmp_path / "in", 2)
    glob = "**/panorama/full/rgb_warmlight.png"
    entries, rejected = open_source(source, NO_CAPTIONS, "equirect", include=[glob]).entries()
    assert len(entries) == 4
    assert all(entry.file.endswith("full/rgb_warmlight.png") for entry in entries)
    assert rejected == []


@pytest.mark.parametrize("kind", [None, "matterport3d"])
@pytest.mark.parametrize("below", ["", "v1/scans/"])
def test_the_skyboxes_of_matterport3d_are_its_panoramas(tmp_path: Path, below: str, kind: str | None) -> None:
    source = tmp_path / "in"
    folder = matterport3d(source / below)
    faces = sorted((folder / "17DRP5sb8fy" / "17DRP5sb8fy" / "matterport_skybox_images").glob("af9*"))
    faces[0].unlink()
    opened = open_source(source, NO_CAPTIONS, kind)
    entries, rejected = opened.entries()
    assert len(entries) == 5
    assert {entry.scene for entry in entries} == {
        f"{below}{scan}/{scan}" for scan in ("17DRP5sb8fy", "1LXtFkjw3qL", "x8F5xyUWy9e")
    }
    assert [(r.file, r.reason.split(":")[0]) for r in rejected] == [
        (f"{below}17DRP5sb8fy/17DRP5sb8fy/matterport_skybox_images/af9", "a cubemap with no file for up")
    ]
    manifest = build_shards(opened, tmp_path / "out", val_fraction=0.3)
    assert manifest["samples"] == 5
    assert not check_shards(tmp_path / "out").faults


def test_a_single_scan_or_scene_is_a_tree_too(tmp_path: Path) -> None:
    scan = matterport3d(tmp_path / "scans") / "17DRP5sb8fy" / "17DRP5sb8fy"
    assert len(open_source(scan, NO_CAPTIONS).entries()[0]) == 2
    scene = structured3d(tmp_path / "Structured3D", 1) / "scene_00000"
    assert len(open_source(scene, NO_CAPTIONS).entries()[0]) == 2
    skyboxes = open_source(scan / "matterport_skybox_images", captioned=False)
    assert type(skyboxes) is Cubemaps
    assert len(skyboxes.entries()[0]) == 2


def test_a_tree_next_to_other_panoramas_is_ambiguous(tmp_path: Path) -> None:
    matterport3d(tmp_path / "scans")
    assert isinstance(open_source(tmp_path, captioned=False), Matterport3D)
    put(tmp_path / "mine.jpg", picture())
    with pytest.raises(DataError, match="of matterport3d and other images: choose with --source matterport3d or"):
        open_source(tmp_path)


@pytest.mark.parametrize("kind", ["structured3d", "matterport3d"])
def test_a_folder_without_the_tree_is_an_error(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "mine.jpg", picture())
    with pytest.raises(DataError, match=r"holds no (scene of Structured3D|cubemap)"):
        open_source(tmp_path, NO_CAPTIONS, kind).entries()
