"""`cubediff convert` and `cubediff view`: forms, formats, depths, and what is refused."""

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import typer
from click.testing import Result
from PIL import Image
from support.image_files import DISPLAY_P3, PARTIAL_SPHERE, exr, gpano, icc, tiff
from support.pictures import SAMPLES, picture, psnr, shown
from typer.testing import CliRunner

from cubediff import convert, view
from cubediff.cubemaps.conventions import CONVENTIONS
from cubediff.geometry import equirect_to_cube
from cubediff.geometry.conventions import sphere_directions
from cubediff.images.hdr import read_radiance, tone_map
from cubediff.images.panorama_jpeg import load_panorama

ROOT = Path(__file__).parents[3]
HEIGHT = 128


@pytest.fixture(scope="module")
def panorama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample panorama as PNG."""
    path = tmp_path_factory.mktemp("panorama") / "room.png"
    with Image.open(SAMPLES / "st_fagans_interior.jpg") as image:
        image.resize((2 * HEIGHT, HEIGHT), Image.Resampling.LANCZOS).save(path)
    return path


def run(*words: object, app: typer.Typer = convert.app) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def ran(*words: object) -> Path:
    """Converts, and returns the printed path."""
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    return Path(result.stdout.rstrip("\n"))


def refused(*words: object, app: typer.Typer = convert.app) -> str:
    result = run(*words, app=app)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    return result.stderr


def levels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("layout", ["faces", "cross", "dice", "cross-vertical", "strip"])
def test_every_convention_and_layout_is_converted_back(
    panorama: Path, tmp_path: Path, convention: str, layout: str
) -> None:
    middle = tmp_path / ("sky" if layout == "faces" else "sky.png")
    assert ran(panorama, middle, "--layout", layout, "--convention", convention) == middle
    back = levels(ran(middle, tmp_path / "back.png"))
    assert back.shape == (HEIGHT, 2 * HEIGHT, 3)
    assert psnr(back, levels(panorama)) > 27  # 11 with two faces exchanged
    other = ran(middle, tmp_path / "upright", "--layout", "faces")  # the pixels of all faces are kept
    expected = ran(panorama, tmp_path / "expected")
    for face in ("front", "up", "left"):
        np.testing.assert_array_equal(levels(other / f"{face}.png"), levels(expected / f"{face}.png"))


def test_faces_without_a_record_are_read_by_their_names_and_options(panorama: Path, tmp_path: Path) -> None:
    folder = ran(panorama, tmp_path / "sky", "--convention", "unreal", "--face-fov", 95)
    assert json.loads((folder / "faces.json").read_text())["field_of_view"] == 95
    (folder / "faces.json").unlink()
    message = refused(folder, tmp_path / "back.png", "--from-convention", "unreal")
    assert "neighbours agree as faces of 95°" in message
    assert "pass --from-fov 95" in message
    back = ran(folder, tmp_path / "back.png", "--from-convention", "unreal", "--from-fov", 95)
    with Image.open(back) as image:
        scaled = np.asarray(image.resize((2 * HEIGHT, HEIGHT), Image.Resampling.BOX))
    assert psnr(scaled, levels(panorama)) > 25


def test_a_scheme_whose_edges_fit_better_is_named(panorama: Path, tmp_path: Path) -> None:
    folder = ran(panorama, tmp_path / "sky", "--convention", "blender")
    (folder / "faces.json").unlink()
    assert "pass --from-convention blender" in refused(folder, tmp_path / "back.png")
    ran(folder, tmp_path / "back.png", "--from-convention", "blender")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_stay_16_bits(tmp_path: Path, suffix: str) -> None:
    coded = ((sphere_directions(HEIGHT).numpy() + 1) / 2 * 65535).round().astype(np.uint16)
    source = tmp_path / f"sphere{suffix}"
    cv2.imwrite(str(source), coded[..., ::-1])
    folder = ran(source, tmp_path / "faces", "--convention", "three", "--face-size", 96)
    back = cv2.imread(str(ran(folder, tmp_path / "back.png", "--height", HEIGHT)), cv2.IMREAD_UNCHANGED)
    assert back.dtype == np.uint16
    error = np.abs(back[..., ::-1].astype(float) - coded)[16:-16]
    assert error.mean() < 40  # 8 bits would be off by 64 on average
    exact = ran(source, tmp_path / "copy.tif", "--layout", "panorama")
    np.testing.assert_array_equal(cv2.imread(str(exact), cv2.IMREAD_UNCHANGED)[..., ::-1], coded)
    assert levels(ran(folder, tmp_path / "back.jpg")).dtype == np.uint8


@pytest.mark.parametrize("suffix", [".exr", ".hdr", ".tif"])
def test_radiance_stays_radiance(tmp_path: Path, suffix: str) -> None:
    if suffix == ".exr":
        pytest.importorskip("OpenEXR")
    brightness = np.exp(4 * sphere_directions(HEIGHT).numpy()[..., :1]) * 3
    radiance = (brightness * [1, 0.8, 0.6]).astype(np.float32)  # Radiance has one exponent for the three
    cv2.imwrite(str(tmp_path / "sky.hdr"), radiance[..., ::-1])
    source = ran(tmp_path / "sky.hdr", tmp_path / f"copy{suffix}", "--layout", "panorama")
    cross = ran(source, tmp_path / f"cross{suffix}", "--layout", "cross")
    back = ran(cross, tmp_path / "back.hdr")
    found = cv2.imread(str(back), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert found.max() > 100
    assert np.abs(found / radiance - 1)[8:-8].mean() < 0.03
    message = refused(source, tmp_path / "x.png", "--fov", 90)
    assert (
        "x.png: .png holds levels, and the input is radiance: write .exr, .hdr or .tif, or pass --tone-map" in message
    )
    faces = ran(source, tmp_path / "faces", "--format", suffix[1:])
    assert (faces / f"front{suffix}").is_file()


def test_levels_become_linear_radiance(panorama: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 32), (188, 0, 255)).save(tmp_path / "flat.png")
    ran(tmp_path / "flat.png", tmp_path / "flat.hdr", "--layout", "panorama")
    blue, green, red = cv2.imread(str(tmp_path / "flat.hdr"), cv2.IMREAD_UNCHANGED)[16, 16]
    assert red == pytest.approx(0.503, abs=0.005)  # 188 is half of white in sRGB
    assert (green, blue) == (0, pytest.approx(1, abs=0.01))


def test_radiance_below_0_is_0_in_a_format_without_sign(tmp_path: Path) -> None:
    radiance = np.ones((32, 64, 3), np.float32)
    radiance[..., 0] = -0.1
    tiff(tmp_path / "sky.tif", radiance)
    for name, red in (("copy.tif", -0.1), ("copy.hdr", 0)):
        copy = ran(tmp_path / "sky.tif", tmp_path / name, "--layout", "panorama")
        pixel = cv2.imread(str(copy), cv2.IMREAD_UNCHANGED)[9, 9]
        np.testing.assert_allclose(pixel, [1, 1, red], atol=0.01)


def sky(path: Path) -> np.ndarray:
    """Writes a panorama of radiance over three decades; returns it."""
    radiance = np.exp(3 * sphere_directions(64).numpy()).astype(np.float32)
    if path.suffix == ".tif":
        tiff(path, radiance)  # OpenCV's are lossy
    else:
        cv2.imwrite(str(path), radiance[..., ::-1])
    return radiance


@pytest.mark.parametrize("page", ["docs/faces.md", "data/README.md"])
def test_the_documented_command_writes_radiance_as_prepare_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    (command,) = [line for line in (ROOT / page).read_text().splitlines() if re.match("cubediff .* --tone-map", line)]
    monkeypatch.chdir(tmp_path)
    sky(tmp_path / "sky.hdr")
    written = ran(*shlex.split(command, comments=True)[2:])
    expected, _ = tone_map(read_radiance(tmp_path / "sky.hdr"))
    np.testing.assert_array_equal(levels(written), expected)
    assert psnr(levels(written), shown(load_panorama(tmp_path / "sky.hdr").jpeg)) > 35  # prepare's JPEG


def test_all_forms_of_radiance_are_tone_mapped_alike(tmp_path: Path) -> None:
    radiance = sky(tmp_path / "sky.tif")
    faces = ran(tmp_path / "sky.tif", tmp_path / "faces", "--tone-map")
    tensor = torch.from_numpy(tone_map(radiance)[0]).permute(2, 0, 1)[None]
    expected = equirect_to_cube(tensor, 32, 90.0, mode="bicubic")[0, 0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(levels(faces / "front.png"), expected)
    strip = ran(tmp_path / "sky.tif", tmp_path / "strip.tif", "--layout", "strip")
    back = levels(ran(strip, tmp_path / "back.jpg", "--tone-map"))
    assert psnr(back, tone_map(radiance)[0]) > 30
    assert levels(ran(tmp_path / "sky.tif", tmp_path / "view.png", "--fov", 60, "--tone-map")).dtype == np.uint8


def test_a_tone_map_needs_the_whole_sphere(tmp_path: Path) -> None:
    alpha = np.ones((64, 128), np.float32)
    alpha[:16] = 0
    tiff(tmp_path / "part.tif", np.dstack([sky(tmp_path / "sky.tif"), alpha]))
    message = refused(tmp_path / "part.tif", tmp_path / "x.png", "--layout", "panorama", "--tone-map")
    assert "part.tif: 25.00% of its pixels are transparent: not the whole sphere" in message
    photo = ran(tmp_path / "sky.tif", tmp_path / "photo.tif", "--fov", 60)
    message = refused(photo, tmp_path / "x.png", "--fov", 60, "--tone-map")
    assert "photo.tif: 9" in message
    assert "% of its pixels are transparent: not the whole sphere" in message


def test_views_are_cut_and_placed(panorama: Path, tmp_path: Path) -> None:
    camera = ("--fov", 70, "--yaw", 30, "--pitch", 10, "--roll", 5)
    cut = ran(panorama, tmp_path / "cut.png", *camera, "--width", 160, "--height", 120)
    assert levels(cut).shape == (120, 160, 3)
    placed = levels(ran(cut, tmp_path / "placed.png", *camera, "--height", HEIGHT))
    assert placed.shape == (HEIGHT, 2 * HEIGHT, 4)
    shown = placed[..., 3] == 255
    assert 0.05 < shown.mean() < 0.2
    assert psnr(placed[shown][:, :3], levels(panorama)[shown]) > 26
    faces = ran(cut, tmp_path / "faces", *camera)
    assert levels(faces / "back.png")[..., 3].max() == 0
    black = levels(ran(cut, tmp_path / "placed.jpg", *camera))
    assert black.shape[2] == 3
    assert black[0, 0].max() < 4
    ran(faces, tmp_path / "again.png", "--layout", "view", *camera)


def test_a_photo_with_the_shape_of_a_cross_is_told_from_one(panorama: Path, tmp_path: Path) -> None:
    photo = ran(panorama, tmp_path / "photo.png", "--fov", 60, "--width", 80, "--height", 60)
    assert "its corners are not empty" in refused(photo, tmp_path / "x.png")
    assert levels(ran(photo, tmp_path / "x.png", "--fov", 60)).shape[2] == 4
    cross = ran(panorama, tmp_path / "cross.png", "--layout", "cross")
    (tmp_path / "cross.faces.json").unlink()
    assert levels(ran(cross, tmp_path / "y.png", "--fov", 60)).shape[2] == 3  # a view of the cubemap


def test_a_cross_with_transparent_corners_is_opaque(panorama: Path, tmp_path: Path) -> None:
    cross = levels(ran(panorama, tmp_path / "cross.png", "--layout", "cross"))
    alpha = np.where(cross.any(2), 255, 0).astype(np.uint8)
    alpha[32:, :][:64] = 255
    noise = np.random.default_rng(0).integers(0, 255, cross.shape, np.uint8)
    alpha[:64, 64:128] = alpha[128:, 64:128] = alpha[64:128] = 255
    alpha[:64, :64] = alpha[:64, 128:] = alpha[128:, :64] = alpha[128:, 128:] = 0
    pixels = np.dstack([np.where(alpha[..., None] > 0, cross, noise), alpha])
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    np.testing.assert_array_equal(
        levels(ran(tmp_path / "clear.png", tmp_path / "a.png")), levels(ran(tmp_path / "cross.png", tmp_path / "b.png"))
    )


def test_profiles_are_kept_and_panoramas_are_tagged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)
    profile = icc(DISPLAY_P3)
    Image.fromarray(pixels).save(tmp_path / "p3.png", icc_profile=profile)
    folder = ran(tmp_path / "p3.png", tmp_path / "faces")
    with Image.open(folder / "up.png") as image:
        assert image.info["icc_profile"] == profile
    for name in ("back.png", "back.jpg", "back.webp"):
        with Image.open(ran(folder, tmp_path / name)) as image:
            assert image.info["icc_profile"] == profile
            xmp = image.info["xmp"]
            assert "equirectangular" in (xmp if isinstance(xmp, str) else xmp.decode())
    assert "is written without an ICC profile" in refused(folder, tmp_path / "back.hdr")


def test_photos_are_read_upright(panorama: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it
    with Image.open(panorama) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", quality=100, exif=exif)
    upright = levels(ran(tmp_path / "turned.jpg", tmp_path / "upright.png", "--layout", "panorama"))
    assert psnr(upright, levels(panorama)) > 30


def test_the_same_command_again_replaces_its_faces(panorama: Path, tmp_path: Path) -> None:
    ran(panorama, tmp_path / "sky", "--convention", "three")
    ran(panorama, tmp_path / "sky", "--convention", "unity")
    assert not (tmp_path / "sky/px.png").exists()
    assert (tmp_path / "sky/Left+X.png").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/front.png").write_bytes(b"mine")
    assert "holds other images: choose a new folder" in refused(panorama, tmp_path / "mine")
    assert (tmp_path / "mine/front.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("IN", "out.png"),
            "room.png is a panorama: say what out.png is with --layout panorama, cross, cross-vertical, strip, view",
        ),
        (("IN", "out.png", "--layout", "faces"), "out.png is the name of an image, and six faces are a folder"),
        (("IN", "out.bmp", "--layout", "cross"), "out.bmp: .bmp cannot be written: use .png, .jpg"),
        (("IN", "out", "--layout", "cross"), "a file without suffix cannot be written"),
        (("IN", "out", "--layout", "net"), "unknown layout 'net'"),
        (("IN", "out", "--convention", "godot"), "unknown convention 'godot'"),
        (("IN", "out", "--face-fov", 80), "a field of view of 80°"),
        (("IN", "out", "--height", 64), "--height has no effect on the layout faces"),
        (
            ("IN", "out.png", "--layout", "view", "--convention", "three"),
            "--convention has no effect on the layout view",
        ),
        (("IN", "out", "--format", "gif"), "--format gif: use one of png, jpg"),
        (("IN", "out.png", "--fov", 180), "field of view of 180°"),
        (("IN", "out.png", "--layout", "panorama", "--height", 9), "is not scaled to 9"),
        (("IN", "out.png", "--layout", "cross", "--from-layout", "strip"), "is no strip"),
        (("IN", "out.png", "--from-layout", "faces"), "an image: six faces are a folder"),
        (("IN", "out", "--from-fov", 45), "faces with a field of view of 45°"),
        (("IN", "out", "--from-convention", "godot"), "unknown convention 'godot'"),
        (("IN", "out.png", "--layout", "panorama", "--tone-map"), "room.png: --tone-map has no effect on levels"),
        (("IN", "IN"), "is the input itself"),
        (("none.png", "out"), "none.png does not exist"),
    ],
)
def test_invalid_input_is_refused_in_one_line(
    panorama: Path, tmp_path: Path, words: tuple, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = refused(*(panorama if word == "IN" else word for word in words))
    assert message in text
    assert len(text.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_incomplete_input_is_refused(panorama: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(panorama.read_bytes()[:2000])
    assert "bad.png: truncated" in refused(tmp_path / "bad.png", tmp_path / "out")
    folder = ran(panorama, tmp_path / "sky")
    (folder / "up.png").unlink()
    assert "there is no file of this name" in refused(folder, tmp_path / "out.png")
    (folder / "faces.json").unlink()
    assert "no file for up" in refused(folder, tmp_path / "out.png")
    (tmp_path / "empty").mkdir()
    message = refused(tmp_path / "empty", tmp_path / "out.png")
    assert "empty: expected the six faces of a cubemap, found 0 cubemaps; pass an image, or a folder" in message
    Image.new("RGB", (50, 40)).save(tmp_path / "photo.png")
    message = refused(tmp_path / "photo.png", tmp_path / "out.png", "--from-layout", "panorama")
    assert "photo.png: 50x40 is not 2:1: expected the panorama of a full sphere; pad or crop it" in message


def refused_by_both(source: Path, *words: object) -> str:
    """The line with which both commands refuse a file, after its name."""
    messages = {
        refused(source, source.parent / "out", *words),
        refused(source, "--output", source.parent / "out.html", app=view.app),
    }
    (message,) = messages
    assert len(message.splitlines()) == 1
    assert not (source.parent / "out").exists()
    name = str(source).replace("\n", "\\x0a")
    assert message.startswith(f"error: {name}: ")
    return message


def test_only_options_that_a_command_has_are_advised(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "photo.png")
    message = refused_by_both(tmp_path / "photo.png")
    assert "50x40: expected a panorama (2:1)" in message
    assert "for a photo, pass its field of view: cubediff convert PHOTO OUT --fov DEGREES" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("suffix", [".exr", ".tif"])
def test_radiance_that_is_not_finite_is_refused(tmp_path: Path, value: float, suffix: str) -> None:
    radiance = sky(tmp_path / "sky.hdr")
    radiance[3, 5:9, 1] = value
    if suffix == ".exr":
        exr(tmp_path / "bad.exr", dict(zip("RGB", np.moveaxis(radiance, -1, 0), strict=True)))
    else:
        tiff(tmp_path / "bad.tif", radiance)
    message = refused_by_both(tmp_path / f"bad{suffix}")
    assert "4 pixels are NaN or infinite: give them the radiance of their neighbours" in message
    refused(tmp_path / f"bad{suffix}", tmp_path / "out.hdr", "--layout", "panorama")
    faces = ran(tmp_path / "sky.hdr", tmp_path / "faces", "--format", "tif")
    tiff(faces / "left.tif", np.full((32, 32, 3), value, np.float32))
    assert "left.tif: 1024 pixels are NaN" in refused(faces, tmp_path / "out.hdr")


def test_a_black_panorama_of_radiance_has_no_exposure(tmp_path: Path) -> None:
    tiff(tmp_path / "black.tif", np.full((32, 64, 3), -1, np.float32))
    for words, app in (
        ((tmp_path / "out.png", "--layout", "panorama", "--tone-map"), convert.app),
        (("--output", tmp_path / "out.html"), view.app),
    ):
        message = refused(tmp_path / "black.tif", *words, app=app)
        assert "black.tif: all one colour (0, 0, 0): not a photograph; no pixel has radiance above 0" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.png", b"", "unreadable: the file is empty: copy or save it again"),
        ("empty.exr", b"", "unreadable: the file is empty: copy or save it again"),
        ("junk.exr", b"junk" * 99, "unreadable: not an OpenEXR file: save it as one, or give it the suffix of its own"),
        ("junk.hdr", b"junk" * 99, "unreadable: not a Radiance file: save it as one, or give it the suffix of its own"),
        ("junk.png", b"junk" * 99, "unreadable: not an image of a known kind: save it as JPEG or PNG"),
        ("cut.exr", 0.5, "truncated or unreadable as OpenEXR: copy or save it again"),
        ("cut.hdr", 0.5, "truncated or unreadable: OpenCV cannot decode it: copy or save it again"),
        ("cut.jpg", 0.5, "truncated: image file is truncated"),
        ("two\nlines.jpg", 0.5, "truncated: image file is truncated"),
        ("flipped.exr", None, "truncated or unreadable as OpenEXR: copy or save it again"),
    ],
)
def test_damaged_files_are_refused_by_name_without_lines_of_libraries(
    panorama: Path, tmp_path: Path, name: str, content: bytes | float | None, message: str, capfd: pytest.CaptureFixture
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        whole = ran(panorama, tmp_path / f"whole{path.suffix}", "--layout", "panorama").read_bytes()
        middle = len(whole) // 2
        damaged = whole[:middle] + (bytes(b ^ 90 for b in whole[middle:]) if content is None else b"")
        path.write_bytes(damaged)
    assert message in refused_by_both(path)
    if path.suffix in (".exr", ".hdr"):  # a camera may be that of a photo, whose size is read first
        assert refused(path, tmp_path / "out.png", "--fov", 70).startswith(f"error: {path}: ")
    assert capfd.readouterr() == ("", "")  # the runner captures what the commands write themselves


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif"])
def test_animations_and_pages_are_refused(tmp_path: Path, name: str) -> None:
    picture(0).save(tmp_path / name, save_all=True, append_images=[picture(1)])
    assert "2 frames: animations and pages are not supported, save one frame" in refused_by_both(tmp_path / name)


def test_names_with_brackets_and_line_breaks_are_read(panorama: Path, tmp_path: Path) -> None:
    for name in ("a[1]{b}*", "two\nlines"):
        (tmp_path / f"{name}.png").write_bytes(panorama.read_bytes())
        assert (ran(tmp_path / f"{name}.png", tmp_path / f"faces {name}") / "front.png").is_file()
        assert viewed(tmp_path / f"{name}.png") == tmp_path / f"{name}.html"


def test_a_part_of_a_panorama_is_not_taken_for_the_sphere(panorama: Path, tmp_path: Path) -> None:
    with Image.open(panorama) as image:
        image.resize((64, 32)).save(tmp_path / "part.jpg", xmp=gpano(PARTIAL_SPHERE))
        image.resize((90, 32)).save(tmp_path / "wide.jpg", xmp=gpano(PARTIAL_SPHERE))
        image.resize((64, 48)).save(tmp_path / "cross.jpg", xmp=gpano(PARTIAL_SPHERE))
    for name in ("part.jpg", "wide.jpg", "cross.jpg"):
        message = refused_by_both(tmp_path / name)
        assert "a part of a panorama: its GPano tags say" in message
        assert "pad it to the full sphere" in message
        assert "--fov" not in message
    assert "its GPano tags say" in refused(tmp_path / "wide.jpg", tmp_path / "out", "--from-layout", "panorama")


# ---------------------------------------------------------------------------------------------------- cubediff view


def viewed(*words: object) -> Path:
    result = CliRunner().invoke(view.app, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return Path(result.stdout.rstrip("\n"))


def test_view_writes_a_page_beside_its_input(panorama: Path, tmp_path: Path) -> None:
    source = tmp_path / "a & <b>.png"
    source.write_bytes(panorama.read_bytes())
    page = viewed(source)
    assert page == tmp_path / "a & <b>.html"
    text = page.read_text(encoding="utf-8")
    assert "<title>a &amp; &lt;b&gt;.png</title>" in text
    assert text.count("data:image/png") == 6
    assert viewed(source, "--output", tmp_path / "pages/x.html").is_file()


def test_view_shows_the_faces_of_a_cubemap(panorama: Path, tmp_path: Path) -> None:
    folder = ran(panorama, tmp_path / "sky", "--convention", "unreal", "--face-fov", 95)
    page = viewed(folder)
    assert page == folder / "viewer.html"
    assert "95.0" in page.read_text(encoding="utf-8")
    cross = ran(panorama, tmp_path / "cross.png", "--layout", "cross")
    assert viewed(cross).read_text(encoding="utf-8").count("data:image/png") == 6


def test_view_tone_maps_radiance_and_limits_the_size_of_its_page(
    panorama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    radiance = np.exp(4 * sphere_directions(32).numpy()).astype(np.float32)
    cv2.imwrite(str(tmp_path / "sky.hdr"), radiance)
    assert viewed(tmp_path / "sky.hdr").is_file()
    large = len(viewed(panorama, "--output", tmp_path / "large.html").read_bytes())
    monkeypatch.setattr("cubediff.data.converting.converting._VIEWER_SIZE", 16)
    assert len(viewed(panorama, "--output", tmp_path / "small.html").read_bytes()) < large - 20_000


def test_view_does_not_replace_its_input(panorama: Path) -> None:
    before = panorama.read_bytes()
    assert "room.png is the input itself" in refused(panorama, "--output", panorama, app=view.app)
    assert panorama.read_bytes() == before


def test_the_faces_are_those_of_the_projection(panorama: Path, tmp_path: Path) -> None:
    folder = ran(panorama, tmp_path / "sky", "--face-size", 40)
    tensor = torch.from_numpy(levels(panorama).copy()).permute(2, 0, 1)[None]
    expected = equirect_to_cube(tensor, 40, 90.0, mode="bicubic")[0, 1].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(levels(folder / "right.png"), expected)
