"""`cubediff generate`: the files that it writes, reproduction from its record, jobs, and errors."""

import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import safetensors.torch
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from support.generating import SAMPLES, jobs_file, picture, pixels, record, refused, run
from support.image_files import chunk, exif_block, icc, png
from support.promises import promised

from cubediff import CubeDiffPipeline
from cubediff.generation.jobs import read_jobs
from cubediff.generation.outputs import write_panorama
from cubediff.geometry import FACES
from cubediff.geometry.cubes import cube_to_cube
from cubediff.geometry.photos import Photo
from cubediff.models.stable_diffusion import StableDiffusion

GPANO = "{http://ns.google.com/photos/1.0/panorama/}"
PROMPT = 'a hall with "arches" & <light>'


def saved_faces(folder: Path) -> np.ndarray:
    return np.stack([picture(folder / "faces" / f"{face}.png") for face in FACES])


def of_90_degrees(faces: list[PIL.Image.Image]) -> np.ndarray:
    """Faces of 95° as those of 90° that meet at their edges."""
    tensor = torch.from_numpy(np.stack([np.asarray(face) for face in faces])).permute(0, 3, 1, 2)[None]
    return cube_to_cube(tensor, tensor.shape[-1])[0].permute(0, 2, 3, 1).numpy()


# --------------------------------------------------------------------------------------------------- files


def test_a_panorama_carries_the_tags_of_a_photo_sphere(tmp_path) -> None:
    image = PIL.Image.open(SAMPLES / "courtyard.jpg").resize((200, 100))
    path = write_panorama(tmp_path / "p.jpg", image)
    back = PIL.Image.open(path)
    assert (back.format, back.mode, back.size) == ("JPEG", "RGB", (200, 100))
    assert np.abs(np.array(back).astype(int) - np.array(image)).mean() < 3
    (description,) = ET.fromstring(back.info["xmp"].strip(b"\x00")).iter(
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    tags = {name.removeprefix(GPANO): value for name, value in description.attrib.items() if name.startswith(GPANO)}
    assert tags == {
        "ProjectionType": "equirectangular",
        "UsePanoramaViewer": "True",
        "FullPanoWidthPixels": "200",
        "FullPanoHeightPixels": "100",
        "CroppedAreaImageWidthPixels": "200",
        "CroppedAreaImageHeightPixels": "100",
        "CroppedAreaLeftPixels": "0",
        "CroppedAreaTopPixels": "0",
        "PoseHeadingDegrees": "0",
        "PosePitchDegrees": "0",
        "PoseRollDegrees": "0",
    }
    assert b"http://ns.adobe.com/xap/1.0/\x00" in path.read_bytes()[:4096]  # the segment that viewers look for


def test_all_files_are_written_and_listed_in_the_right_size(model, photo, tmp_path) -> None:
    result = run(model, tmp_path / "new" / "out", "--image", photo, "--save-faces", prompt=PROMPT)
    assert result.exit_code == 0, result.output
    out = tmp_path / "new" / "out"
    assert result.stdout.split("\n")[:-1] == [
        str(out / name) for name in ("panorama.jpg", "faces", "viewer.html", "generation.json")
    ]
    assert sorted(path.name for path in out.iterdir()) == ["faces", "generation.json", "panorama.jpg", "viewer.html"]
    assert pixels(out).shape == (128, 256, 3)
    assert {path.name for path in (out / "faces").iterdir()} == {"faces.json", *(f"{face}.png" for face in FACES)}
    assert {picture(out / "faces" / f"{face}.png").shape for face in FACES} == {(64, 64, 3)}
    page = (out / "viewer.html").read_text(encoding="utf-8")
    assert "a hall with" in page
    assert "<light>" not in page
    kept = record(out)
    assert kept["prompt"] == PROMPT
    digest = hashlib.sha256(photo.read_bytes()).hexdigest()
    assert kept["exif_fov"] == {}
    assert kept["images"] == [{"file": str(photo), "fov": None, "yaw": 0, "pitch": 0, "roll": 0, "sha256": digest}]
    assert kept["scheduler"]["class"] == "DDIMScheduler"
    assert kept["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("prompts", "with_photo"),
    [([], True), ([PROMPT], False), ([PROMPT], True), ([f"the {face}, größer" for face in FACES], False)],
)
def test_the_record_suffices_to_reproduce_the_panorama(model, photo, tmp_path, prompts, with_photo) -> None:
    first = [argument for prompt in prompts for argument in ("--prompt", prompt)]
    first += ["--image", photo] if with_photo else []
    first += ["--fov", 70, "--yaw", -30] if with_photo and prompts else []
    options = ("--seed", 7, "--guidance-scale", 2.5, "--guidance-rescale", 0.5, "--height", 60)
    options += ("--negative-prompt", "people")
    result = run(model, tmp_path / "first", *first, *options)
    assert result.exit_code == 0, result.output
    kept = record(tmp_path / "first")
    assert pixels(tmp_path / "first").shape == (60, 120, 3)

    texts = [] if kept["prompt"] is None else [kept["prompt"]] if isinstance(kept["prompt"], str) else kept["prompt"]
    assert texts == prompts
    again = [argument for text in texts for argument in ("--prompt", text)]
    for image in kept["images"]:
        again += ["--image", image["file"], *(["--fov", image["fov"], "--yaw", image["yaw"]] if image["fov"] else [])]
    again += ["--steps", kept["num_inference_steps"], "--seed", kept["seed"], "--height", kept["panorama_height"]]
    again += ["--guidance-scale", kept["guidance_scale"], "--guidance-rescale", kept["guidance_rescale"]]
    again += ["--negative-prompt", kept["negative_prompt"]]
    result = run(kept["model"], tmp_path / "second", *again, "--device", kept["device"])
    assert result.exit_code == 0, result.output
    for name in ("panorama.jpg", "viewer.html", "generation.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    for name, change in {"seed": ("--seed", 8), "negative": ("--negative-prompt", "cars")}.items():
        run(model, tmp_path / name, *first, *options, *change)
        assert not np.array_equal(pixels(tmp_path / name), pixels(tmp_path / "first"))


def test_average_overlap_is_on_or_off_as_the_command_says_or_else_the_folder(model, tmp_path) -> None:
    averaging = tmp_path / "averaging"
    shutil.copytree(model, averaging)
    index = json.loads((averaging / "model_index.json").read_text())
    (averaging / "model_index.json").write_text(json.dumps({**index, "average_overlap": True}))
    made = {}
    for folder in (model, averaging):
        for option in ([], ["--average-overlap"], ["--no-average-overlap"]):
            out = tmp_path / f"{folder.name}{''.join(option)}"
            result = run(folder, out, *option, prompt=PROMPT)
            assert result.exit_code == 0, result.output
            made[folder == averaging, *option] = pixels(out)
            assert record(out)["average_overlap"] == {"": None, "--av": True, "--no": False}["".join(option)[:4]]
    on, off = made[False, "--average-overlap"], made[False, "--no-average-overlap"]
    assert not np.array_equal(on, off)
    assert np.array_equal(made[False,], off)
    assert np.array_equal(made[True,], on)
    assert np.array_equal(made[True, "--average-overlap"], on)
    assert np.array_equal(made[True, "--no-average-overlap"], off)


def test_prompt_and_photo_generate_the_images_of_the_pipeline(model, photo, tmp_path) -> None:
    pipeline = CubeDiffPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    seen = []
    for number, (prompt, image) in enumerate([(PROMPT, None), (None, photo), (PROMPT, photo)]):
        out = tmp_path / str(number)
        result = run(model, out, *(["--image", image] if image else []), "--save-faces", "--seed", 3, prompt=prompt)
        assert result.exit_code == 0, result.output
        expected = pipeline(
            prompt,
            image=PIL.Image.fromarray(picture(image)) if image else None,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(3),
        )
        assert np.array_equal(saved_faces(out), of_90_degrees(expected.faces[0]))
        seen.append(pixels(out).astype(int))
    assert all(np.abs(seen[a] - seen[b]).mean() > 1 for a, b in [(0, 1), (0, 2), (1, 2)])


def test_a_photo_with_an_exif_orientation_is_upright(model, photo, tmp_path) -> None:
    upright = PIL.Image.fromarray(picture(photo))
    rotated = upright.transpose(PIL.Image.Transpose.ROTATE_90)  # as a camera held upright stores it,
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # with the tag "rotate by 90° clockwise to display"
    rotated.save(tmp_path / "rotated.png", exif=exif)
    for name in (photo, tmp_path / "rotated.png"):
        result = run(model, tmp_path / name.stem, "--image", name)
        assert result.exit_code == 0, result.output
    assert np.array_equal(pixels(tmp_path / "rotated"), pixels(tmp_path / "photo"))


@pytest.mark.slow
def test_the_module_runs_as_a_script(model, tmp_path) -> None:
    command = [sys.executable, "-W", "error::UserWarning", "-m", "cubediff.generate", "--model", model, "--steps", "1"]
    result = subprocess.run(
        [*command, "--prompt", PROMPT, "--output", tmp_path / "out"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "out" / n) for n in
                                     ("panorama.jpg", "viewer.html", "generation.json")]  # fmt: skip
    again = run(model, tmp_path / "again", "--steps", 1, prompt=PROMPT)
    assert again.exit_code == 0
    assert np.array_equal(pixels(tmp_path / "out"), pixels(tmp_path / "again"))


# --------------------------------------------------------------------------------------------- photos, jobs


def test_every_photo_has_its_camera(model, photo, tmp_path) -> None:
    pipeline = CubeDiffPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    result = run(model, tmp_path / "out", "--image", photo, "--fov", 70, "--yaw", 40, "--pitch", -10, "--roll", 5,
                 "--image", photo, "--fov", 50, "--yaw", 180, "--pitch", 0, "--roll", 0, "--save-faces")  # fmt: skip
    assert result.exit_code == 0, result.output
    picture_of = PIL.Image.fromarray(picture(photo))
    expected = pipeline(
        image=[Photo(picture_of, 70.0, 40.0, -10.0, 5.0), Photo(picture_of, 50.0, 180.0)],
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
    )
    assert np.array_equal(saved_faces(tmp_path / "out"), of_90_degrees(expected.faces[0]))


def test_faces_of_an_earlier_run_do_not_stay_beside_a_new_panorama(model, tmp_path) -> None:
    assert run(model, tmp_path, "--save-faces", prompt=PROMPT).exit_code == 0
    (tmp_path / "faces/notes.txt").write_text("mine")
    assert run(model, tmp_path, "--seed", 1, prompt=PROMPT).exit_code == 0
    assert [path.name for path in (tmp_path / "faces").iterdir()] == ["notes.txt"]
    (tmp_path / "faces/notes.txt").unlink()
    assert run(model, tmp_path, "--seed", 2, prompt=PROMPT).exit_code == 0
    assert not (tmp_path / "faces").exists()


def test_faces_are_written_in_a_layout_and_a_convention(model, tmp_path) -> None:
    assert run(model, tmp_path / "wide", "--save-faces", "--face-fov", 95, prompt=PROMPT).exit_code == 0
    assert run(model, tmp_path / "plain", "--save-faces", prompt=PROMPT).exit_code == 0
    pipeline = CubeDiffPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    generated = pipeline(PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).faces[0]
    assert np.array_equal(saved_faces(tmp_path / "wide"), np.stack([np.asarray(face) for face in generated]))
    assert json.loads((tmp_path / "wide/faces/faces.json").read_text())["field_of_view"] == 95
    cube = dict(zip(FACES, saved_faces(tmp_path / "plain"), strict=True))

    words = ("--save-faces", "--convention", "unreal")
    assert run(model, tmp_path / "unreal", *words, prompt=PROMPT).exit_code == 0
    assert np.array_equal(picture(tmp_path / "unreal/faces/px.png"), np.rot90(cube["front"]))
    assert record(tmp_path / "unreal")["convention"] == "unreal"

    result = run(model, tmp_path / "unreal", *words, "--layout", "dice", prompt=PROMPT)
    assert str(tmp_path / "unreal/cubemap.png") in result.stdout.split("\n")
    assert not (tmp_path / "unreal/faces").exists()
    row = np.concatenate([cube[face] for face in ("left", "front", "right", "back")], 1)
    assert np.array_equal(picture(tmp_path / "unreal/cubemap.png")[64:128], row)
    assert json.loads((tmp_path / "unreal/cubemap.faces.json").read_text())["layout"] == "cross"

    lines = jobs_file(tmp_path, {"prompt": PROMPT, "save_faces": True, "layout": "strip", "convention": "three"})
    assert run(model, tmp_path / "jobs", "--jobs", lines, prompt=None).exit_code == 0
    strip = [
        cube["left"],
        cube["right"],
        np.rot90(cube["up"], 2),
        np.rot90(cube["down"], 2),
        cube["back"],
        cube["front"],
    ]
    assert np.array_equal(picture(tmp_path / "jobs/000001/cubemap.png"), np.concatenate(strip, 1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--layout", "cross"), "--layout says how faces are written: add --save-faces"),
        (("--face-fov", 95), "--face-fov says how faces are written: add --save-faces"),
        (("--save-faces", "--layout", "net"), "--layout must be one of faces, cross, cross-vertical, strip, dice"),
        (("--save-faces", "--convention", "godot"), "--convention must be one of cubediff, three, opengl, unity"),
        (("--save-faces", "--face-fov", 80), "--face-fov must be a number from 90 to 150, got 80"),
    ],
)
def test_options_of_faces_are_checked_before_the_model_is_loaded(tmp_path, words, message) -> None:
    result = run(tmp_path / "none", tmp_path / "out", *words, prompt=PROMPT)
    assert result.exit_code == 1
    assert message in result.stderr


def test_jobs_equal_single_calls_and_resume_after_an_interruption(model, photo, tmp_path, monkeypatch) -> None:
    shutil.copy(photo, tmp_path / "p.png")
    six = {face: f"the {face}" for face in FACES}
    jobs = jobs_file(
        tmp_path,
        {"prompt": PROMPT, "seed": 4},
        {"prompt": six, "name": "six"},
        {"prompt": "a hall"},
        "",
        {"image": {"file": "p.png", "fov": 60, "yaw": 90}, "name": "photo.1"},
    )
    calls = []
    original = CubeDiffPipeline.__call__

    def counted(self: CubeDiffPipeline, *arguments: Any, **options: Any) -> Any:
        calls.append(len(options["generator"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(CubeDiffPipeline, "__call__", counted)
        assert run(model, tmp_path / "out", "--jobs", jobs, "--batch", 2).exit_code != 0
        assert calls == [2, 1]
    names = ["000001", "000003", "photo.1", "six"]
    finished = [name for name in names if (tmp_path / "out" / name / "generation.json").is_file()]
    assert finished == ["000001", "six"]
    stamps = {name: (tmp_path / "out" / name / "panorama.jpg").stat().st_mtime_ns for name in finished}

    result = run(model, tmp_path / "out", "--jobs", jobs, "--batch", 2)
    assert result.exit_code == 0, result.output
    assert "2 of 4 panoramas exist already" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*names, "index.html"])
    assert {name: (tmp_path / "out" / name / "panorama.jpg").stat().st_mtime_ns for name in finished} == stamps
    alone = {
        "000001": ["--prompt", PROMPT, "--seed", 4],
        "six": [argument for face in FACES for argument in ("--prompt", f"the {face}")],
        "photo.1": ["--image", tmp_path / "p.png", "--fov", 60, "--yaw", 90],
    }
    for name, arguments in alone.items():
        assert run(model, tmp_path / "alone" / name, *arguments).exit_code == 0
        got, expected = (pixels(tmp_path / where / name).astype(int) for where in ("out", "alone"))
        assert np.abs(got - expected).mean() < 0.1 < 10 < expected.std()  # a batch rounds differently

    again = run(model, tmp_path / "out", "--jobs", jobs)
    assert again.exit_code == 0
    assert again.stdout == f"{tmp_path / 'out/index.html'}\n"
    refused(run(model, tmp_path / "out", "--jobs", jobs, "--guidance-scale", 2),
            "000001 holds a panorama with another guidance_scale: choose another --output")  # fmt: skip
    jobs_file(tmp_path, {"prompt": "another", "seed": 4})
    refused(run(model, tmp_path / "out", "--jobs", jobs), "000001 holds a panorama with another prompt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: expected an object"),
        ({}, "line 2: neither prompt nor image"),
        ({"prompt": "a", "promt": "b"}, "line 2: unknown keys promt: did you mean prompt?"),
        ({"prompt": 7}, "line 2: a prompt is of type int: pass a text"),
        ({"prompt": ["a", "b"]}, "line 2: 2 prompts for one panorama: pass one, or six"),
        ({"prompt": [7] * 6}, "line 2: a prompt is of type int"),
        ({"prompt": {"front": "a"}}, "line 2: prompts for the faces ['front']: pass one for each of front, right"),
        ({"prompt": " "}, "line 2: a prompt is empty: describe the panorama, or omit prompt for no text"),
        ({"prompt": "a", "name": "../up"}, "line 2: name '../up' is not a folder name"),
        ({"prompt": "a", "name": ".hidden"}, "line 2: name '.hidden' is not a folder name"),
        ({"prompt": "a", "name": "000001"}, "line 2: name '000001' is that of line 1 too"),
        ({"prompt": "a", "seed": -1}, "line 2: seed must be an integer from 0 to 9223372036854775807, got -1"),
        (
            {"prompt": "a", "seed": 2**63},
            "line 2: seed must be an integer from 0 to 9223372036854775807, got 9223372036854775808",
        ),
        ({"prompt": "a", "seed": True}, "line 2: seed must be an integer from 0 to 9223372036854775807, got True"),
        ({"image": {"fov": 60}}, "line 2: image must be a file name or an object with a file, got {'fov': 60}"),
        ({"image": {"file": "p.png", "zoom": 2}}, "line 2: image with zoom 2: use fov, yaw, pitch, roll"),
        ({"image": {"file": "p.png", "yaw": "left"}}, "line 2: image with yaw must be a finite number, got 'left'"),
    ],
)
def test_an_invalid_job_is_refused_with_its_line(model, tmp_path, line, message) -> None:
    jobs = jobs_file(tmp_path, {"prompt": "a hall"}, line)
    refused(run(model, tmp_path / "out", "--jobs", jobs), message)
    assert not (tmp_path / "out").exists()


def test_jobs_are_utf8_with_or_without_a_byte_order_mark(tmp_path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "caf\xc3\xa9"}\r\n')
    assert [job.prompt for job in read_jobs(path, 0)] == ["café"]
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"jobs\.jsonl, line 2: not UTF-8 text .*: save the file as UTF-8"):
        read_jobs(path, 0)


@pytest.mark.parametrize("prompt", ["caf\udce9", "\ud83d"])
def test_a_prompt_that_is_no_valid_text_is_refused(model, tmp_path, prompt) -> None:
    refused(run(model, tmp_path / "out", "--prompt", prompt), "is no valid Unicode text: type it in UTF-8")


def test_an_output_that_is_a_file_is_refused_before_the_model_loads(tmp_path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file/below"):
        refused(run(tmp_path / "no model", output, "--prompt", "a"), "file is a file: choose a folder")


def test_a_file_without_jobs_is_refused(model, tmp_path) -> None:
    refused(run(model, tmp_path / "out", "--jobs", jobs_file(tmp_path)), "no jobs: write one JSON object")


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "pass --prompt TEXT, --image PHOTO, or both"),
        (("--prompt", "a", "--prompt", "b"), "2 prompts: pass one, or six"),
        (("--prompt", "a", "--steps", "0"), "--steps"),
        (("--prompt", "a", "--steps", "1001"), "--steps"),
        (("--prompt", "a", "--guidance-rescale", "1.5"), "--guidance-rescale"),
        (("--prompt", "a", "--seed", "-1"), "--seed"),
        (("--prompt", "a", "--jobs", "jobs.jsonl"), "pass --jobs, or --prompt, --image and --panorama, not both"),
        (("--prompt", "a", "--fov", "60"), "--fov is given 1 times and --image 0 times"),
    ],
)
def test_wrong_usage_exits_with_2(model, tmp_path, arguments, message) -> None:
    result = run(model, tmp_path / "out", *arguments)
    refused(result, message, code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "  "), "--prompt: a prompt is empty: describe the panorama, or omit --prompt for no text"),
        (("--prompt", "a", "--device", "abacus"), "--device abacus: not available on this machine"),
        (("--prompt", "a", "--device", "cuda:77"), "--device cuda:77: not available on this machine"),
        (
            ("--prompt", "a", "--guidance-scale", "nan"),
            "--guidance-scale must be a finite number of at least 0, got nan",
        ),
        (
            ("--prompt", "a", "--guidance-scale", "-3"),
            "--guidance-scale must be a finite number of at least 0, got -3.0",
        ),
        (
            ("--prompt", "a", "--image-guidance-scale", "-1"),
            "--image-guidance-scale must be a finite number of at least 0",
        ),
        (("--prompt", "a", "--image", str(SAMPLES / "courtyard.jpg"), "--image-guidance-scale", "inf"), "inf"),
        (("--prompt", "a", "--sampler", "magic"), "--sampler must be one of ddim, dpm, unipc, euler, got 'magic'"),
        (("--image", str(SAMPLES / "courtyard.jpg"), "--fov", "180"), "--fov must be between 0 and 180 degrees"),
        (("--image", str(SAMPLES / "courtyard.jpg"), "--fov", "0.5"), "use a photo with a larger fov"),
        (("--jobs", "nowhere.jsonl"), "error: --jobs nowhere.jsonl: No such file or directory: check the name"),
        (("--jobs", "nowhere/generation.json"), "error: --jobs nowhere/generation.json: No such file or directory"),
        (("--jobs", str(SAMPLES)), f"error: --jobs {SAMPLES}: Is a directory"),
    ],
)
def test_an_error_of_the_pipeline_is_printed_in_one_line(model, tmp_path, arguments, message) -> None:
    refused(run(model, tmp_path / "out", *arguments), message)


def test_an_unreadable_photo_is_named(model, photo, tmp_path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no photo")
    cut = tmp_path / "cut.jpg"
    whole = (SAMPLES / "courtyard.jpg").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    broken = tmp_path / "broken.png"
    data = photo.read_bytes()
    broken.write_bytes(data[:60] + b"\x00" * 40 + data[100:])
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for path in (text, cut, broken, empty, tmp_path / "missing.jpg", tmp_path):
        refused(run(model, tmp_path / "out", "--image", path), f"error: --image {path}: not a readable image (")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def read_as_srgb(model, photo, tmp_path_factory) -> np.ndarray:
    """The panorama of the photo without profile or metadata."""
    output = tmp_path_factory.mktemp("plain")
    assert run(model, output, "--image", photo).exit_code == 0
    return pixels(output)


@pytest.mark.parametrize("kind", ["16 bits and linear", "upside down", "damaged metadata"])
def test_photos_are_read_upright_and_converted_to_srgb(
    model, photo, read_as_srgb, tmp_path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    promised(
        "docs/generation.md",
        "read upright and converted to sRGB by their ICC profile. A damaged EXIF block or profile is ignored",
    )
    image, path = PIL.Image.open(photo), tmp_path / "photo.png"
    levels = np.asarray(image) / 255
    if kind == "16 bits and linear":
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        chunk = {b"iCCP": b"x\0\0" + zlib.compress(icc(gamma=1.0, name="sRGB in name only"))}
        png(path, np.round(65535 * linear).astype(np.uint16), chunk)
    elif kind == "upside down":
        image.rotate(180).save(path, exif=exif_block(0x0112, 3, struct.pack("<H", 3)))
    else:
        image.save(path, icc_profile=bytes(200), exif=b"Exif\0\0nothing")
    assert run(model, tmp_path / "out", "--image", path).exit_code == 0
    assert np.abs(pixels(tmp_path / "out").astype(int) - read_as_srgb).mean() < 1
    assert len(caplog.records) == (2 if kind == "damaged metadata" else 0)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP", "JPEG", "AVIF", "GIF"])
def test_photos_of_every_format_are_read_by_any_name(model, photo, read_as_srgb, tmp_path, kind: str) -> None:
    promised(
        "docs/generation.md",
        "Photos are JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF files (of several frames, the first counts)",
    )
    image, path = PIL.Image.open(photo), tmp_path / "photo"
    lossless = {"WEBP": {"lossless": True}, "GIF": {"save_all": True, "append_images": [PIL.ImageOps.invert(image)]}}
    image.save(path, kind, **lossless.get(kind, {"quality": 95} if kind in ("JPEG", "AVIF") else {}))
    assert run(model, tmp_path / "out", "--image", path).exit_code == 0
    difference = np.abs(pixels(tmp_path / "out").astype(int) - read_as_srgb).mean()
    assert difference < (8 if kind in ("JPEG", "AVIF", "GIF") else 0.1)


def test_transparent_pixels_of_a_photo_are_generated(model, photo, tmp_path) -> None:
    """Which colour is hidden below them does not matter, and that they are transparent does."""
    promised(
        "docs/generation.md",
        "Transparent pixels are no part of the photo: they are generated. Semi-transparent pixels are, too.",
    )
    levels = np.asarray(PIL.Image.open(photo))
    results = {}
    for name, hidden, alpha in (("a", 0, 0), ("b", 255, 0), ("c", 255, 128), ("opaque", 255, 255)):
        rgba = np.dstack([levels, np.full(levels.shape[:2], 255, np.uint8)])
        rgba[:, :32] = hidden, hidden, hidden, alpha
        PIL.Image.fromarray(rgba).save(tmp_path / f"{name}.png")
        assert run(model, tmp_path / name, "--image", tmp_path / f"{name}.png").exit_code == 0
        results[name] = pixels(tmp_path / name)
    np.testing.assert_array_equal(results["a"], results["b"])
    np.testing.assert_array_equal(results["a"], results["c"])
    assert (results["a"] != results["opaque"]).any()


def test_a_fifo_as_photo_is_refused_without_waiting(model, photo, tmp_path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    refused(
        run(model, tmp_path / "out", "--image", tmp_path / "fifo.jpg"), "is a FIFO (named pipe): expected a regular"
    )
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(json.dumps({"image": str(photo)}) + "\n" + json.dumps({"image": "fifo.jpg"}))
    refused(run(model, tmp_path / "out", "--jobs", jobs), "is a FIFO (named pipe): expected a regular file")


def test_a_photo_of_too_many_pixels_is_refused_by_its_header(model, tmp_path) -> None:
    chunks = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    refused(run(model, tmp_path / "out", "--image", tmp_path / "bomb.png"), "20000x20000 is more than 268435456 pixels")


def test_a_folder_without_a_cubediff_model_is_named(model, tmp_path) -> None:
    refused(run(tmp_path / "nowhere", tmp_path / "out", prompt="a"), "nowhere: no such model folder")
    refused(run(SAMPLES, tmp_path / "out", prompt="a"), f"{SAMPLES}: no model_index.json in it")

    other = tmp_path / "other"
    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(other)
    refused(run(other, tmp_path / "out", prompt="a"), "other holds a DDPMPipeline, which generates no panoramas")

    for damage in ("cut", "missing", "index"):
        folder = tmp_path / damage
        shutil.copytree(model, folder)
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        if damage == "cut":
            weights.write_bytes(weights.read_bytes()[:10_000])
        elif damage == "missing":
            shutil.rmtree(folder / "unet")
        else:
            (folder / "model_index.json").write_text("{")
        refused(run(folder, tmp_path / "out", prompt="a"), str(folder))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_model_with_weights_that_are_not_finite_is_refused(model, tmp_path, part) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    file = next((folder / part).glob("*.safetensors"))
    weights = safetensors.torch.load_file(file)
    name = sorted(weights)[1]
    weights[name].view(-1)[0] = math.inf
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    result = run(folder, tmp_path / "out", prompt="a")
    refused(result, f"{folder}/{part}: 1 of {weights[name].numel()} values of ")
    assert "are NaN or infinite" in result.stderr


def test_values_that_overflow_in_sampling_are_an_error(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(StableDiffusion, "decode", lambda self, latents: torch.full((1, 6, 3, 64, 64), torch.nan))
    refused(run(model, tmp_path / "out", prompt="a"), "NaN or infinite")


def test_an_unwritable_output_is_refused_before_sampling(model, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(CubeDiffPipeline, "__call__", lambda *_, **__: pytest.fail("sampled for nothing"))
    refused(run(model, tmp_path / "file", prompt="a"), str(tmp_path / "file"))
