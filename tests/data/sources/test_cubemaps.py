"""Cubemaps: a panorama written as the files of each scheme, by the scheme's published definition, is read as the same
panorama, up to the loss of the projections themselves."""

import json
import pickle
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from support.image_files import icc, png
from support.pictures import SAMPLES, psnr, shown

from cubediff.data.sources import open_source
from cubediff.data.sources.cubemaps import Cubemaps
from cubediff.geometry import FACES, cube_to_equirect, equirect_to_cube, equirect_to_perspective
from cubediff.images.hdr import tone_map
from cubediff.utils.errors import DataError

SCENES = ("st_fagans_interior", "forest_slope")
Face = Callable[[np.ndarray], np.ndarray]  # a panorama's view


@lru_cache
def panorama(name: str) -> np.ndarray:
    return np.asarray(Image.open(SAMPLES / f"{name}.jpg"))


@lru_cache
def round_trip(name: str) -> float:
    """PSNR of projecting to 90° faces of a quarter of the width and back."""
    tensor = torch.from_numpy(panorama(name).copy()).permute(2, 0, 1)[None]
    faces = equirect_to_cube(tensor, tensor.shape[-1] // 4, fov=90.0)
    back = cube_to_equirect(faces, tensor.shape[-2], fov=90.0, mode="bicubic")
    return psnr(back[0].permute(1, 2, 0).numpy(), panorama(name))


def camera(yaw: float, pitch: float = 0.0) -> Face:
    """The view of a 90° camera that is rotated to the right by `yaw`, then up by `pitch`."""

    def view(image: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        return (
            equirect_to_perspective(tensor, image.shape[1] // 4, 90.0, float(yaw), float(pitch))[0]
            .permute(1, 2, 0)
            .numpy()
        )

    return view


def towards(right: tuple, up: tuple, forward: tuple) -> Face:
    """The image whose columns grow along `right`, rows against `up`, around `forward` (x right, y up, z forward): the
    mean of four bilinear samples per pixel, wrapped around."""

    def view(image: np.ndarray) -> np.ndarray:
        height, width, _ = image.shape
        fine = width // 2
        s = (2 * np.arange(fine) + 1) / fine - 1
        x, y, z = (s * right[k] - s[:, None] * up[k] + forward[k] for k in range(3))
        column = (np.arctan2(x, z) / (2 * np.pi) + 0.5) * width - 0.5
        row = (0.5 - np.arctan2(y, np.hypot(x, z)) / np.pi) * height - 0.5
        around = np.concatenate([image[:, -1:], image, image[:, :1]], 1).astype(np.float32)
        maps = (column + 1).astype(np.float32), row.astype(np.float32)
        samples = cv2.remap(around, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.round(samples.reshape(fine // 2, 2, fine // 2, 2, 3).mean((1, 3))).astype(np.uint8)

    return view


def opengl(names: str) -> dict[str, Face]:
    """The cube-map table of the OpenGL specification: sc, tc and ma of a direction (rx, ry, rz); rows grow with tc."""
    table = (
        ((0, 0, -1), (0, -1, 0), (1, 0, 0)),
        ((0, 0, 1), (0, -1, 0), (-1, 0, 0)),
        ((1, 0, 0), (0, 0, 1), (0, 1, 0)),
        ((1, 0, 0), (0, 0, -1), (0, -1, 0)),
        ((1, 0, 0), (0, -1, 0), (0, 0, 1)),
        ((-1, 0, 0), (0, -1, 0), (0, 0, -1)),
    )
    faces = (towards(sc, tuple(-c for c in tc), ma) for sc, tc, ma in table)
    return dict(zip(names.split(), faces, strict=True))


def quake(names: str = "sky{} rt bk lf ft up dn") -> dict[str, Face]:
    """Quake's table (axes: x forward, y left, z up): the index of each axis, from 1, among s, t and depth."""
    st_to_vec = ((3, -1, 2), (-3, 1, 2), (1, 3, 2), (-1, -3, 2), (-2, -1, 3), (2, -1, -3))
    skytexorder = (0, 2, 1, 3, 4, 5)
    pattern, *endings = names.split()
    files = {}
    for side, axes in enumerate(st_to_vec):
        s, t, depth = (np.array([np.sign(a) * (abs(a) == k) for a in axes]) for k in (1, 2, 3))
        s, t, depth = (tuple(np.array([-v[1], v[2], v[0]], float)) for v in (s, t, depth))
        files[pattern.format(endings[skytexorder[side]])] = towards(s, t, depth)
    return files


def named_from_inside(names: str, *, order: str = "front right back left") -> dict[str, Face]:
    """The faces as a viewer inside names them: `names` of front, right, back, left, up, down; `order` is clockwise."""
    cameras = {name: camera(90.0 * i) for i, name in enumerate(order.split())}
    cameras |= {"up": camera(0.0, 90.0), "down": camera(0.0, -90.0)}
    return dict(zip(names.split(), (cameras[f] for f in FACES), strict=True))


MATTERPORT = {  # PanoBasic's demo_matterport.m: vx and vy of skybox 0 to 5
    f"0f37bd0737e349de9d536263a4bdd60d_skybox{i}_sami": camera(yaw, pitch)
    for i, (yaw, pitch) in enumerate(((-90, 90), (-90, 0), (0, 0), (90, 0), (180, 0), (-90, -90)))
}
UNITY = "sky_Front+Z sky_Right-X sky_Back-Z sky_Left+X sky_Up+Y sky_Down-Y"
LEFT_OF_FRONT_IS_RIGHT = "front left back right"  # Unity puts Left on +x, to the right of Front on +z
SIX_FILES = {
    "humus": (opengl("posx negx posy negy posz negz"), "axes"),
    "threejs": (opengl("PX NX PY NY PZ NZ"), "axes"),
    "prefixed": (opengl("pisa_px pisa_nx pisa_py pisa_ny pisa_pz pisa_nz"), "axes"),
    "matterport": (MATTERPORT, "matterport"),
    "words": (named_from_inside("front right back left up down"), "words"),
    "top": (named_from_inside("room-Front room-Right room-Back room-Left room-Top room-Bottom"), "words"),
    "letters": (named_from_inside("p_f p_r p_b p_l p_u p_d"), "words"),
    "unity": (named_from_inside(UNITY, order=LEFT_OF_FRONT_IS_RIGHT), "unity"),
    "quake": (quake(), "quake"),
    "quake_": (quake("space_{} RT BK LF FT UP DN"), "quake"),
}


def write(folder: Path, faces: dict[str, Face], name: str, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True)
    for file, face in faces.items():
        Image.fromarray(face(panorama(name))).save(folder / f"{file}{suffix}")
    return folder


def sheet(rows: list[list[Face | None]], name: str) -> Image.Image:
    size = panorama(name).shape[1] // 4
    blank = np.full((size, size, 3), 40, np.uint8)
    image = [[blank if f is None else f(panorama(name)) for f in row] for row in rows]
    return Image.fromarray(np.vstack([np.hstack(row) for row in image]))


def only_panorama(path: Path, kind: str | None = None, quality: int = 100) -> tuple[np.ndarray, dict]:
    source = open_source(path, kind=kind, captioned=False)
    entries, rejected = source.entries()
    assert rejected == []
    (entry,) = entries
    result = pickle.loads(pickle.dumps(source)).load(entry, quality=quality)
    assert result.original is None
    image = shown(result.jpeg)
    assert image.shape == (result.height, result.width, 3)
    return image, result.record


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("layout", SIX_FILES)
def test_six_files_of_every_scheme_are_converted_to_the_panorama(tmp_path: Path, layout: str, scene: str) -> None:
    faces, scheme = SIX_FILES[layout]
    image, record = only_panorama(write(tmp_path / "scene", faces, scene))
    original = panorama(scene)
    if scheme == "matterport":  # skybox 1 is in the middle, at PanoBasic's yaw of −90°
        original = np.roll(original, original.shape[1] // 4, axis=1)
    assert record == {"cubemap": scheme, "face_size": original.shape[1] // 4}
    assert psnr(image, original) > round_trip(scene) - 0.1


SHEETS = {
    "horizontal_cross": [
        [None, camera(0, 90), None, None],
        [camera(-90), camera(0), camera(90), camera(180)],
        [None, camera(0, -90), None, None],
    ],
    "vertical_cross": [  # looking down, and further down until the view is behind and upside down
        [None, camera(0, 90), None],
        [camera(-90), camera(0), camera(90)],
        [None, camera(0, -90), None],
        [None, camera(0, -180), None],
    ],
    "strip_opengl": [list(opengl("posx negx posy negy posz negz").values())],
    "strip_opengl_down": [[face] for face in opengl("posx negx posy negy posz negz").values()],
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("layout", SHEETS)
def test_one_image_of_every_layout_is_converted_to_the_panorama(tmp_path: Path, layout: str, scene: str) -> None:
    sheet(SHEETS[layout], scene).save(tmp_path / "cube.png")
    image, record = only_panorama(tmp_path)
    assert record["cubemap"] == layout.removesuffix("_down")
    assert psnr(image, panorama(scene)) > round_trip(scene) - 0.1


def test_a_strip_in_another_order_is_read_if_the_order_is_named(tmp_path: Path) -> None:
    order = [camera(0), camera(90), camera(180), camera(-90), camera(0, 90), camera(0, -90)]
    sheet([order], "st_fagans_interior").save(tmp_path / "cube.png")
    with pytest.raises(DataError, match=r"its faces meet as 'py360convert'.*pass --source py360convert"):
        only_panorama(tmp_path)
    image, record = only_panorama(tmp_path, "py360convert")
    assert record["cubemap"] == "strip_py360convert"
    assert psnr(image, panorama("st_fagans_interior")) > round_trip("st_fagans_interior") - 0.1


@pytest.mark.parametrize(
    ("faces", "default", "right"),
    [
        (named_from_inside("front right back left up down", order=LEFT_OF_FRONT_IS_RIGHT), "words", "unity"),
        (named_from_inside("ft rt bk lf up dn"), "quake", "short"),
    ],
)
def test_ambiguous_names_are_rejected_by_the_edges_of_the_faces(
    tmp_path: Path, faces: dict[str, Face], default: str, right: str
) -> None:
    folder = write(tmp_path / "scene", faces, "forest_slope")
    with pytest.raises(DataError, match=f"its faces meet as '{right}' .* not as '{default}' .*--source {right}"):
        only_panorama(folder)
    image, record = only_panorama(folder, right)
    assert record["cubemap"] == right
    assert psnr(image, panorama("forest_slope")) > round_trip("forest_slope") - 0.1
    wrong, _ = only_panorama(folder, default)  # an explicit scheme is not checked
    assert psnr(wrong, panorama("forest_slope")) < 20


def test_every_folder_and_every_name_prefix_is_a_scene(tmp_path: Path) -> None:
    faces, _ = SIX_FILES["humus"]
    write(tmp_path / "Yokohama", faces, "st_fagans_interior", ".jpg")
    write(tmp_path / "more", {f"{p}.{f}": face for p in ("a", "b") for f, face in faces.items()}, "forest_slope")
    sheet(SHEETS["vertical_cross"], "forest_slope").save(tmp_path / "more" / "cross.png")
    (tmp_path / "Yokohama.txt").write_text("a city")
    (tmp_path / "more" / "a.json").write_text(json.dumps({"caption": "a yard", "asset": "yard", "licence": "CC0"}))
    (tmp_path / "more" / "cross.txt").write_text("a cross")
    source = open_source(tmp_path)
    assert isinstance(source, Cubemaps)
    entries, rejected = source.entries()
    assert [(e.file, e.caption, e.scene) for e in entries] == [
        ("Yokohama", "a city", "Yokohama"),
        ("more/a", "a yard", "yard"),
        ("more/cross.png", "a cross", "more/cross.png"),
    ]
    assert [(r.file, r.reason) for r in rejected] == [
        ("more/b", "has no .json and no .txt next to it: expected b.json or b.txt")
    ]
    assert source.files(entries[0]) == [tmp_path / "Yokohama" / f"{f}.jpg" for f in sorted(faces)]
    assert source.files(entries[2]) == [tmp_path / "more" / "cross.png"]


def test_matterport_scenes_are_split_by_house(tmp_path: Path) -> None:
    for house in ("17DRP5sb8fy", "1LXtFkjw3qL"):
        write(tmp_path / "v1" / "scans" / house / "matterport_skybox_images", MATTERPORT, "st_fagans_interior", ".jpg")
    entries, _ = open_source(tmp_path, captioned=False).entries()
    assert [e.scene for e in entries] == ["v1/scans/17DRP5sb8fy", "v1/scans/1LXtFkjw3qL"]
    assert entries[0].file.endswith("/matterport_skybox_images/0f37bd0737e349de9d536263a4bdd60d")


def test_radiance_is_tone_mapped_after_the_conversion(tmp_path: Path) -> None:
    faces, _ = SIX_FILES["humus"]
    (tmp_path / "scene").mkdir()
    for name, face in faces.items():
        levels = face(panorama("forest_slope"))[..., ::-1].astype(np.float32) / 255
        assert cv2.imwrite(str(tmp_path / "scene" / f"{name}.hdr"), 40 * levels**2.2)
    image, record = only_panorama(tmp_path)
    assert set(record) == {"cubemap", "face_size", "tone_map"}
    expected, _ = tone_map((40 * (panorama("forest_slope") / 255) ** 2.2).astype(np.float32))
    assert psnr(image, expected) > round_trip("forest_slope") - 3  # the tone map brightens, and the loss with it


def test_faces_are_read_by_the_rules_of_panoramas(tmp_path: Path) -> None:
    """One face has a linear profile, one is stored upside down, and one has a damaged profile."""
    faces, _ = SIX_FILES["humus"]
    write(tmp_path / "scene", faces, "st_fagans_interior")
    expected, _ = only_panorama(tmp_path)
    posx, negx, posz = (tmp_path / "scene" / f"{name}.png" for name in ("posx", "negx", "posz"))
    levels = np.asarray(Image.open(posx)) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    png(posx, np.round(65535 * linear).astype(np.uint16), {b"iCCP": b"x\0\0" + zlib.compress(icc(gamma=1.0))})
    tags = Image.Exif()
    tags[0x0112] = 3
    Image.open(negx).rotate(180).save(negx, exif=tags)
    Image.open(posz).save(posz, icc_profile=bytes(200))
    image, record = only_panorama(tmp_path)
    np.testing.assert_allclose(image, expected, atol=2)
    assert record["notes"] == ["posz.png: its ICC profile is damaged: read as sRGB"]


def test_faces_that_do_not_form_a_cube_are_rejected(tmp_path: Path) -> None:
    faces, _ = SIX_FILES["humus"]
    for name in ("missing", "double", "oblong", "unequal", "mixed", "open", "cut", "tiny"):
        write(tmp_path / name, faces, "st_fagans_interior")
    (tmp_path / "missing" / "negz.png").unlink()
    (tmp_path / "missing" / "posx.png").unlink()
    Image.open(tmp_path / "double" / "posx.png").save(tmp_path / "double" / "posx.jpg")
    Image.new("RGB", (256, 128)).save(tmp_path / "oblong" / "posx.png")
    Image.open(tmp_path / "unequal" / "posy.png").resize((64, 64)).save(tmp_path / "unequal" / "posy.png")
    (tmp_path / "mixed" / "negz.png").unlink()
    assert cv2.imwrite(str(tmp_path / "mixed" / "negz.hdr"), np.ones((128, 128, 3), np.float32))
    Image.open(tmp_path / "open" / "posy.png").convert("RGBA").rotate(30).save(tmp_path / "open" / "posy.png")
    (tmp_path / "cut" / "negx.png").write_bytes((tmp_path / "cut" / "negx.png").read_bytes()[:4000])
    for file in (tmp_path / "tiny").iterdir():
        Image.new("RGB", (4, 4)).save(file)
    Image.open(SAMPLES / "st_fagans_interior.jpg").resize((800, 600)).save(tmp_path / "photo.png")
    Image.open(SAMPLES / "st_fagans_interior.jpg").save(tmp_path / "sphere.png")
    source = open_source(tmp_path, kind="cubemaps", captioned=False)
    entries, rejected = source.entries()
    reasons = {r.file: r.reason for r in rejected}
    for entry in entries:
        with pytest.raises(DataError) as error:
            source.load(entry)
        reasons[entry.file] = str(error.value)
    for name, words in {
        "missing": "no file for right, back",
        "double": "several files for right",
        "oblong": "posx.png: 256x128: a face of a cubemap is square",
        "unequal": "its faces differ in size or type",
        "mixed": "its faces differ in size or type",
        "open": "transparent",
        "cut": "negx.png: ",
        "tiny": "faces of 4 are too small: at least 8",
        "photo.png": "800x600 has the shape of a cubemap's cross, but its corners are not empty",
        "sphere.png": "512x256 is not a cubemap: a cross is 4:3 or 3:4, a strip 6:1 or 1:6",
    }.items():
        assert words in reasons.pop(name), name
    assert reasons == {}
    with pytest.raises(DataError, match="faces of 128 make a panorama 512 wide: shrink them, or raise --max-width 256"):
        open_source(write(tmp_path / "wide", faces, "st_fagans_interior"), captioned=False).load(
            open_source(tmp_path / "wide", captioned=False).entries()[0][0], max_width=256
        )


def test_corners_of_a_cross_may_be_transparent(tmp_path: Path) -> None:
    image = sheet(SHEETS["horizontal_cross"], "forest_slope").convert("RGBA")
    pixels = np.asarray(image).copy()
    for row, column in ((0, 0), (0, 2), (0, 3), (2, 0), (2, 2), (2, 3)):
        cell = pixels[128 * row : 128 * (row + 1), 128 * column : 128 * (column + 1)]
        cell[..., :3] = np.random.default_rng(0).integers(0, 256, (128, 128, 3))
        cell[..., 3] = 0
    Image.fromarray(pixels).save(tmp_path / "cube.png")
    image, _ = only_panorama(tmp_path)
    assert psnr(image, panorama("forest_slope")) > round_trip("forest_slope") - 0.1


@pytest.mark.slow
def test_edges_detect_wrong_readings_and_accept_right_ones(tmp_path: Path) -> None:
    """Named as a viewer inside names them, no sample is rejected; named as in Unity, 24 of 25 are detected (the walls
    of the other look alike); with the endings that mean other faces in Quake, all are."""
    found = dict.fromkeys(("words", "unity", "short"), 0)
    names = [file.stem for file in sorted(SAMPLES.glob("*.jpg"))]
    for name in names:
        for kind, faces in {
            "words": named_from_inside("front right back left up down"),
            "unity": named_from_inside("front right back left up down", order=LEFT_OF_FRONT_IS_RIGHT),
            "short": named_from_inside("ft rt bk lf up dn"),
        }.items():
            source = open_source(write(tmp_path / kind / name, faces, name, ".jpg"), captioned=False)
            try:
                source.load(source.entries()[0][0])
            except DataError as error:
                found[kind] += "its faces meet as" in str(error)
    assert len(names) == 25
    assert found == {"words": 0, "unity": 24, "short": 25}
