"""`cubediff generate --panorama FILE --mask FILE`: files of edited panoramas, jobs, and errors."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from click.testing import Result
from support.generating import record, run
from support.image_files import DISPLAY_P3, gpano, icc, png, tiff
from support.pictures import picture
from support.promises import promised

from cubediff.images.gpano import read_pose, sphere_area

ROWS, COLUMNS = 48, 96
NADIR = np.arange(ROWS)[:, None].repeat(COLUMNS, 1) >= 36
TAGS = {
    "FullPanoWidthPixels": COLUMNS,
    "FullPanoHeightPixels": ROWS,
    "CroppedAreaImageWidthPixels": 60,
    "CroppedAreaImageHeightPixels": 30,
    "CroppedAreaLeftPixels": 20,
    "CroppedAreaTopPixels": 9,
    "PoseHeadingDegrees": 123.5,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with panoramas of 8 and 16 bits, a cropped one, masks and a photo."""
    folder = tmp_path_factory.mktemp("files")
    scene().save(folder / "pano.jpg", quality=95)
    png(folder / "deep.png", levels_of_16_bits())
    PIL.Image.fromarray(NADIR).save(folder / "mask.png")
    picture(1, 60, 30).save(folder / "crop.jpg", xmp=gpano(TAGS))
    picture(2, 40, 30).save(folder / "photo.png")
    return folder


def scene() -> PIL.Image.Image:
    return picture(0, COLUMNS, ROWS)


def levels_of_16_bits() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (ROWS, COLUMNS, 3))
    return (np.asarray(scene()).astype(np.uint16) * 256 + noise).astype(np.uint16)


def levels(path: Path) -> np.ndarray:
    """RGB levels in their depth."""
    decoded = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    return decoded[..., ::-1]


def failure(result: Result) -> str:
    assert result.exit_code == 1, result.output
    return result.stderr.strip().splitlines()[-1]


# --------------------------------------------------------------------------------------------------- files


@pytest.mark.slow
def test_a_panorama_is_edited_by_the_whole_command(model: Path, files: Path, tmp_path: Path) -> None:
    promised("docs/generation.md", "The result has the panorama's size")
    promised("docs/generation.md", "is written as PNG")
    command = [sys.executable, "-m", "cubediff.generate", "--model", model, "--output", tmp_path, "--steps", "2"]
    command += ["--panorama", files / "deep.png", "--mask", files / "mask.png", "--prompt", "a lawn"]
    finished = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    names = ["panorama.png", "viewer.html", "generation.json"]
    assert finished.stdout.splitlines() == [str(tmp_path / name) for name in names]
    edited = levels(tmp_path / "panorama.png")
    assert edited.dtype == np.uint16
    np.testing.assert_array_equal(edited[~NADIR], levels_of_16_bits()[~NADIR])
    assert (edited[NADIR] != levels_of_16_bits()[NADIR]).any(-1).mean() > 0.99


def test_8_bit_panoramas_stay_8_bit(model: Path, files: Path, tmp_path: Path) -> None:
    result = run(model, tmp_path, "--panorama", files / "pano.jpg", "--mask", files / "mask.png")
    assert result.exit_code == 0, result.output
    edited = levels(tmp_path / "panorama.png")
    assert edited.dtype == np.uint8
    with PIL.Image.open(files / "pano.jpg") as image:
        np.testing.assert_array_equal(edited[~NADIR], np.asarray(image)[~NADIR])
    assert not list(tmp_path.glob("*.jpg"))
    assert record(tmp_path)["format"] == "png"


def test_the_missing_part_of_a_cropped_panorama_is_painted(model: Path, files: Path, tmp_path: Path) -> None:
    result = run(model, tmp_path, "--panorama", files / "crop.jpg")
    assert result.exit_code == 0, result.output
    with PIL.Image.open(files / "crop.jpg") as crop, PIL.Image.open(tmp_path / "panorama.png") as edited:
        assert edited.size == (COLUMNS, ROWS)
        np.testing.assert_array_equal(np.asarray(edited)[9:39, 20:80], np.asarray(crop))
        edited.load()
        assert sphere_area(edited.info["xmp"], COLUMNS, ROWS) == (ROWS, 0, 0)
        assert read_pose(edited.info["xmp"]) == (123.5, 0.0, 0.0)
        outside = np.ones((ROWS, COLUMNS), bool)
        outside[9:39, 20:80] = False
        assert np.asarray(edited)[outside].std() > 1


def test_an_icc_profile_is_written_with_its_levels(model: Path, files: Path, tmp_path: Path) -> None:
    tiff(tmp_path / "wide.tif", levels_of_16_bits(), tags={34675: icc(DISPLAY_P3)})
    result = run(model, tmp_path / "out", "--panorama", tmp_path / "wide.tif", "--mask", files / "mask.png")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(levels(tmp_path / "out/panorama.png")[~NADIR], levels_of_16_bits()[~NADIR])
    with PIL.Image.open(tmp_path / "out/panorama.png") as image:
        assert image.info["icc_profile"] == icc(DISPLAY_P3)


def test_faces_and_viewer_show_the_edited_panorama_in_its_detail(model: Path, files: Path, tmp_path: Path) -> None:
    big = picture(0, 512, 256)
    big.save(tmp_path / "big.png")
    PIL.Image.fromarray(NADIR).resize((512, 256)).save(tmp_path / "mask.png")
    result = run(model, tmp_path, "--panorama", tmp_path / "big.png", "--mask", tmp_path / "mask.png", "--save-faces")
    assert result.exit_code == 0, result.output
    with PIL.Image.open(tmp_path / "faces/front.png") as front:
        assert front.width > 128  # as fine as the panorama at its centre, where the model's faces have 64 pixels
        middle = np.asarray(front)[front.width // 2, front.width // 2].astype(int)
    assert np.abs(middle - np.asarray(big)[128, 256]).max() <= 6


def test_prompt_photo_and_seed_change_the_repainted_part_alone(model: Path, files: Path, tmp_path: Path) -> None:
    edit = ["--panorama", files / "pano.jpg", "--mask", files / "mask.png"]
    photo = ["--image", files / "photo.png", "--fov", 60, "--pitch", -80]
    variants = [[], ["--prompt", "a lawn"], ["--seed", 3], photo, [*photo, "--paste-image"]]
    results = []
    for number, variant in enumerate(variants):
        assert run(model, tmp_path / str(number), *edit, *variant).exit_code == 0
        results.append(levels(tmp_path / str(number) / "panorama.png").astype(int))
    for i, one in enumerate(results):
        np.testing.assert_array_equal(one[~NADIR], results[0][~NADIR])
        assert all(np.abs(one - other)[NADIR].mean() > 0.2 for other in results[:i])


# ---------------------------------------------------------------------------------------------------- jobs


def test_jobs_edit_panoramas_and_resume(model: Path, files: Path, tmp_path: Path) -> None:
    small = picture(5, 64, 32)
    small.save(tmp_path / "small.png")
    PIL.Image.fromarray(NADIR[10:42, :64]).save(tmp_path / "small_mask.png")
    lines = [
        {"name": "a", "panorama": str(files / "deep.png"), "mask": str(files / "mask.png"), "prompt": "a lawn"},
        {"name": "b", "panorama": "small.png", "mask": "small_mask.png", "image": str(files / "photo.png")},
        {"name": "c", "prompt": "a lawn"},
        {"name": "d", "panorama": str(files / "crop.jpg"), "count": 2},
    ]
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    output = tmp_path / "out"
    result = run(model, output, "--jobs", jobs, "--batch", 4)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(levels(output / "a/panorama.png")[~NADIR], levels_of_16_bits()[~NADIR])
    kept = ~NADIR[10:42, :64]
    np.testing.assert_array_equal(levels(output / "b/panorama.png")[kept], np.asarray(small)[kept])
    assert (output / "c/panorama.jpg").exists()
    assert (levels(output / "d-001/panorama.png") != levels(output / "d-002/panorama.png")).any()
    page = (output / "index.html").read_text(encoding="utf-8")
    assert "a/panorama.png" in page
    assert "c/panorama.jpg" in page

    again = run(model, output, "--jobs", jobs, "--batch", 4)
    assert again.exit_code == 0
    assert "5 of 5 panoramas exist already" in again.stderr
    alone = run(model, tmp_path / "alone", *("--panorama", files / "deep.png", "--mask", files / "mask.png"),
                "--prompt", "a lawn")  # fmt: skip
    assert alone.exit_code == 0
    np.testing.assert_array_equal(levels(tmp_path / "alone/panorama.png"), levels(output / "a/panorama.png"))
    PIL.Image.fromarray(~NADIR[10:42, :64]).save(tmp_path / "small_mask.png")
    changed = failure(run(model, output, "--jobs", jobs, "--batch", 4))
    assert "holds a panorama with another panorama: choose another --output" in changed


# -------------------------------------------------------------------------------------------------- errors


def test_options_that_do_not_fit_together_are_refused(model: Path, files: Path, tmp_path: Path) -> None:
    edit = ("--panorama", files / "pano.jpg", "--mask", files / "mask.png")
    for arguments, words in (
        (("--mask", files / "mask.png", "--prompt", "a"), "--mask needs --panorama FILE"),
        (("--jobs", tmp_path / "jobs.jsonl", *edit), "pass --jobs, or --prompt, --image and --panorama, not both"),
    ):
        result = run(model, tmp_path, *arguments)
        assert result.exit_code == 2
        assert words in " ".join(result.stderr.split())
    for options, words in (
        (("--format", "jpg"), "--format is jpg: an edited panorama is written as png"),
        (("--format", "webp"), "--format is webp: an edited panorama is written as png"),
        (("--height", 64), "--height is 64: an edited panorama has the size of its input"),
    ):
        assert words in failure(run(model, tmp_path, *edit, *options))
    assert run(model, tmp_path / "png", *edit, "--format", "png").exit_code == 0


def test_unusable_files_are_refused_before_the_model_is_loaded(files: Path, tmp_path: Path) -> None:
    PIL.Image.new("L", (COLUMNS, ROWS)).save(tmp_path / "black.png")
    PIL.Image.new("L", (COLUMNS, ROWS), 255).save(tmp_path / "white.png")
    PIL.Image.new("L", (COLUMNS, ROWS - 1), 255).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    picture(0, COLUMNS, ROWS - 1).save(tmp_path / "odd.png")
    picture(0, COLUMNS, ROWS).save(tmp_path / "colours.png")
    PIL.Image.new("LA", (COLUMNS, ROWS)).save(tmp_path / "clear.png")
    no_model = tmp_path / "model"
    no_model.mkdir()
    (no_model / "model_index.json").write_text("{}", encoding="utf-8")
    pano, mask = files / "pano.jpg", files / "mask.png"
    for panorama, given, words in (
        (pano, tmp_path / "small.png", f"small.png: the mask has {COLUMNS}x{ROWS - 1} pixels and the panorama"),
        (pano, tmp_path / "black.png", "black.png: nothing to repaint: the mask is black everywhere"),
        (pano, tmp_path / "white.png", "white.png: nothing to keep: the mask is white everywhere"),
        (pano, tmp_path / "colours.png", "colours.png: the mask has colours: paint it white"),
        (pano, tmp_path / "clear.png", "clear.png: the mask has transparent pixels: paint it white"),
        (
            pano,
            tmp_path / "text.png",
            "text.png: the mask is not a readable image (unreadable: not an image of a known",
        ),
        (pano, tmp_path / "gone.png", "gone.png: the mask is not a readable image (unreadable: No such file"),
        (tmp_path / "odd.png", tmp_path / "small.png", f"not a usable panorama ({COLUMNS}x{ROWS - 1} is not 2:1"),
        (tmp_path / "gone.png", mask, "gone.png: not a usable panorama (unreadable: No such file"),
        (pano, None, "--panorama: nothing to repaint: no mask is given"),
    ):
        masked = [] if given is None else ["--mask", given]
        message = failure(run(no_model, tmp_path / "out", "--panorama", panorama, *masked))
        assert words in message
        assert (f"--mask {given}: " in message) == ("the mask " in words)
    assert not (tmp_path / "out").exists()


def test_errors_of_jobs_name_their_lines(files: Path, tmp_path: Path) -> None:
    no_model = tmp_path / "model"
    no_model.mkdir()
    (no_model / "model_index.json").write_text("{}", encoding="utf-8")
    PIL.Image.new("L", (COLUMNS, ROWS)).save(tmp_path / "black.png")
    jobs = tmp_path / "jobs.jsonl"
    for line, words in (
        ({"mask": "black.png", "prompt": "a"}, "line 1: a mask without a panorama"),
        ({"panorama": 3}, "line 1: panorama must be a file name, got 3"),
        ({"panorama": "p.png", "mask": ["m.png"]}, "line 1: mask must be a file name"),
        ({"panorama": "p.png", "format": "webp"}, "line 1: format is webp: an edited panorama is written as png"),
        ({"panorama": "p.png", "height": 64}, "line 1: height is 64: an edited panorama has the size of its input"),
        ({"panorama": str(files / "pano.jpg"), "mask": "black.png"}, f"line 1: mask {tmp_path}/black.png: nothing"),
        ({"seed": 1}, "line 1: neither prompt nor image nor panorama"),
    ):
        jobs.write_text(json.dumps(line), encoding="utf-8")
        assert words in failure(run(no_model, tmp_path / "out", "--jobs", jobs))
