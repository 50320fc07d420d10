"""Calls of `cubediff generate`: checks before anything is loaded, resuming, the gallery, photos, lack of memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from playwright.sync_api import Browser
from support.generating import jobs_file, pixels, record, refused, run, succeed
from support.promises import promised

from cubediff import CubeDiffPipeline
from cubediff.generation import outputs
from cubediff.generation.devices import FaceSizes, memory_errors
from cubediff.generation.options import Execution
from cubediff.models.stable_diffusion import StableDiffusion

DOCS = "docs/generation.md"


def imports_of(*words: object, code: int) -> tuple[set[str], str]:
    """The packages that a whole command imports, and its errors."""
    command = [sys.executable, "-X", "importtime", "-m", "cubediff", "generate", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == code, done.stderr[-2000:]
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
    return imported, "\n".join(line for line in lines if not line.startswith("import time:"))


def test_invalid_input_is_reported_before_torch_is_imported(model: Path, photo: Path, tmp_path: Path) -> None:
    promised(DOCS, "Invalid options, jobs and photos are reported before torch is imported.")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photo.read_bytes()[:200])
    bad_jobs = jobs_file(tmp_path, {"prompt": "a hall"}, {"prompt": ["a"] * 5}, {"image": "broken.jpg", "steps": 0})
    common = ("--model", model, "--output", tmp_path / "out")
    for words, message in [
        (("--prompt", "a hall", "--guidance-scale", "inf"), "--guidance-scale must be a finite number"),
        (("--prompt", "a hall", "--image", broken), "broken.jpg: not a readable image"),
        (("--jobs", bad_jobs), "jobs.jsonl, line 3: steps must be an integer from 1 to 1000, got 0"),
    ]:
        imported, errors = imports_of(*common, *words, code=1)
        assert "typer" in imported
        assert "torch" not in imported
        assert message in errors
    imported, errors = imports_of("--model", tmp_path, "--output", tmp_path / "out", "--prompt", "a hall", code=1)
    assert "torch" not in imported
    assert "no model_index.json" in errors


@pytest.mark.slow
def test_finished_jobs_load_nothing(model: Path, tmp_path: Path) -> None:
    promised(DOCS, "panoramas that exist already are skipped, and if all of them do, the model is not loaded")
    jobs = jobs_file(tmp_path, {"prompt": "a hall", "name": "hall"}, {"prompt": "a lake", "count": 2})
    words = ("--model", model, "--output", tmp_path / "out", "--jobs", jobs, "--steps", 2)
    imported, _ = imports_of(*words, code=0)
    assert "torch" in imported
    assert len(list((tmp_path / "out").glob("*/panorama.jpg"))) == 3
    imported, errors = imports_of(*words, code=0)
    assert "torch" not in imported
    assert "3 of 3 panoramas exist already" in errors


def test_all_invalid_lines_are_listed_before_anything_is_sampled(model: Path, tmp_path: Path) -> None:
    promised(DOCS, "every invalid line is listed with its number")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    lines = [{"prompt": "a hall"}, "{", {"prompt": " "}, {"prompt": "a", "sampler": "magic"}, {"prompt": "a"}]
    result = run(model, tmp_path / "out", "--jobs", jobs_file(tmp_path, *lines))
    refused(result, "line 2: not JSON")
    assert [line.partition("jobs.jsonl, ")[2].partition(":")[0] for line in result.stderr.splitlines()] == [
        f"line {number}" for number in (2, 3, 4)
    ]
    lines = [{"prompt": "a hall"}, {"image": "broken.png"}, {"image": ["missing.png"]}, {"prompt": "a"}]
    result = run(model, tmp_path / "out", "--jobs", jobs_file(tmp_path, *lines))
    refused(result, f"line 2: image {tmp_path / 'broken.png'}: not a readable image")
    missing = f"line 3: image {tmp_path / 'missing.png'}: not a readable image (No such file or directory)\n"
    assert missing in result.stderr
    result = run(model, tmp_path / "out", "--jobs", jobs_file(tmp_path, *lines, "{"))
    refused(result, "line 5: not JSON")
    assert missing in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"face_size": 100}, "line 2: face_size must be a multiple of 8, got 100"),
        ({"image": {"file": "photo.png", "fov": 0.5}}, "line 2: image covers no 8 × 8 pixels of a face"),
        ({"image": "clear.png"}, "line 2: image "),
    ],
)
def test_what_only_the_model_tells_is_checked_before_sampling(
    model: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: dict[str, object], message: str
) -> None:
    (tmp_path / "photo.png").write_bytes(photo.read_bytes())
    PIL.Image.new("RGBA", (64, 64)).save(tmp_path / "clear.png")
    monkeypatch.setattr(CubeDiffPipeline, "__call__", lambda *_, **__: pytest.fail("sampled for nothing"))
    jobs = jobs_file(tmp_path, {"prompt": "a hall"}, {"prompt": "a", **line})
    refused(run(model, tmp_path / "out", "--jobs", jobs), message)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"name": "a", "count": 2}, {"name": "A-001"}], "line 2: name 'A-001' is that of line 1 too"),
        ([{"name": "caf\u00e9"}, {"name": "cafe\u0301"}], "is not a folder name"),
        ([{"name": "Index.HTML"}], "neither a device name of Windows nor index.html"),
        ([{"seed": 2**63 - 1, "count": 2}], "line 1: seed is 9223372036854775807, too large for 2 panoramas"),
        ([{"count": 0}], "line 1: count must be an integer from 1"),
        ([{"steps": 20.0}], "line 1: steps must be an integer from 1 to 1000, got 20.0"),
        ([{"steps": 1001}], "line 1: steps must be an integer from 1 to 1000, got 1001"),
        ([{"steps": None}], "line 1: steps must be an integer from 1 to 1000, got None"),
        ([{"guidance_scale": "high"}], "line 1: guidance_scale must be a finite number of at least 0, got 'high'"),
        ([{"guidance_scale": -3}], "line 1: guidance_scale must be a finite number of at least 0, got -3"),
        (['{"prompt": "a", "guidance_scale": NaN}'], "line 1: not JSON (line 1: NaN is not a finite number)"),
        (['{"prompt": "a", "guidance_scale": 1e999}'], "line 1: not JSON (line 1: 1e999 is not a finite number)"),
        ([{"guidance-scale": 2}], "line 1: unknown keys guidance-scale: did you mean guidance_scale?"),
        ([{"paste_image": 1}], "line 1: paste_image must be true or false, got 1"),
        ([{"format": "gif"}], "line 1: format must be one of jpg, png, webp, got 'gif'"),
        ([{"format": "webp", "height": 8192}], "line 1: height is 8192, and a webp file has at most 8191 rows"),
        ([{"negative_prompt": 3}], "line 1: negative_prompt must be a text in Unicode, got 3"),
        ([{"image": []}], "line 1: image is an empty list"),
        ([{"image": {"file": "p.png", "fov": 180}}], "line 1: image with fov must be between 0 and 180 degrees"),
        ([{"image": {"file": "p.png", "pitch": True}}], "line 1: image with pitch must be a finite number, got True"),
    ],
)
def test_invalid_lines(model: Path, tmp_path: Path, lines: list[Any], message: str) -> None:
    lines = [line if isinstance(line, str) else {"prompt": "a hall", **line} for line in lines]
    refused(run(model, tmp_path / "out", "--jobs", jobs_file(tmp_path, *lines)), message)


def test_a_line_replaces_an_option_of_the_command_or_unsets_it(model: Path, tmp_path: Path) -> None:
    lines = [{"name": "own"}, {"name": "line", "negative_prompt": "cars"}, {"name": "none", "negative_prompt": None}]
    jobs = jobs_file(tmp_path, *({"prompt": "a hall", **line} for line in lines))
    succeed(model, tmp_path / "out", "--jobs", jobs, "--negative-prompt", "people")
    kept = {name: record(tmp_path / "out" / name)["negative_prompt"] for name in ("own", "line", "none")}
    assert kept == {"own": "people", "line": "cars", "none": None}


# -------------------------------------------------------------------------------------------- resuming, files


def test_a_folder_of_an_earlier_version_is_complete(model: Path, tmp_path: Path) -> None:
    """Its record has none of the newer keys, which means their defaults."""
    jobs = jobs_file(tmp_path, {"prompt": "a hall", "name": "hall"})
    succeed(model, tmp_path / "out", "--jobs", jobs)
    file = tmp_path / "out/hall/generation.json"
    newer = ("format", "save_faces", "face_size", "average_overlap", "dtype", "exif_fov", "layout", "convention")
    newer = (*newer, "face_fov", "gain_correction")
    content = {key: value for key, value in record(tmp_path / "out/hall").items() if key not in newer}
    assert len(record(tmp_path / "out/hall")) - len(content) == len(newer)
    file.write_text(json.dumps(content))
    assert "1 of 1 panoramas exist already" in succeed(model, tmp_path / "out", "--jobs", jobs).stderr
    assert json.loads(file.read_text()) == content
    for words, key in ((("--format", "png"), "format"), (("--dtype", "bf16"), "dtype"), (("--steps", 3), "num_inf")):
        refused(run(model, tmp_path / "out", "--jobs", jobs, *words), f"holds a panorama with another {key}")


def test_faces_that_are_asked_for_later_are_added(model: Path, tmp_path: Path) -> None:
    jobs = jobs_file(tmp_path, {"prompt": "a hall", "name": "hall"})
    succeed(model, tmp_path / "out", "--jobs", jobs)
    before = (tmp_path / "out/hall/panorama.jpg").read_bytes()
    succeed(model, tmp_path / "out", "--jobs", jobs, "--save-faces")
    assert (tmp_path / "out/hall/faces/front.png").is_file()
    assert (tmp_path / "out/hall/panorama.jpg").read_bytes() == before


def test_a_new_panorama_leaves_no_files_of_the_former(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed(model, tmp_path, "--save-faces", prompt="a hall")
    (tmp_path / "notes.txt").write_text("mine")
    succeed(model, tmp_path, "--format", "png", prompt="a lake")
    names = ["generation.json", "notes.txt", "panorama.png", "viewer.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    monkeypatch.setattr(outputs, "write_viewer", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    refused(run(model, tmp_path, prompt="a hall"), "disk full")
    assert not (tmp_path / "generation.json").exists()  # where it exists, the other files are complete


def test_a_record_of_a_photo_that_is_gone_is_named(model: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(photo.read_bytes())
    jobs = jobs_file(tmp_path, {"image": "photo.png"})
    succeed(model, tmp_path / "out", "--jobs", jobs)
    (tmp_path / "photo.png").unlink()
    refused(run(model, tmp_path / "out", "--jobs", jobs), "line 1: image ")


def test_values_that_overflow_are_an_error_of_the_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StableDiffusion, "decode", lambda self, latents: torch.full((1, 6, 3, 64, 64), torch.nan))
    jobs = jobs_file(tmp_path, {"prompt": "a hall"})
    refused(run(model, tmp_path / "out", "--jobs", jobs), "jobs.jsonl, line 1: pixels of the decoded faces are NaN")
    assert not list((tmp_path / "out").glob("*/*"))


# --------------------------------------------------------------------------------------------------- gallery


def test_the_gallery_shows_every_panorama(model: Path, photo: Path, tmp_path: Path, browser: Browser) -> None:
    promised(DOCS, "`index.html` in the output folder shows all panoramas of the call, with links to their viewers.")
    lines = [
        {"prompt": '<script>alert("x")</script> & \x1b[31mred', "name": "größe.1", "format": "png"},
        {"prompt": ["sky", "a", "b", "c", "d", "e"], "count": 2, "seed": 4, "format": "webp"},
        {"image": str(photo)},
    ]
    result = succeed(model, tmp_path / "out", "--jobs", jobs_file(tmp_path, *lines))
    assert result.stdout.splitlines()[-1] == str(tmp_path / "out/index.html")
    page = browser.new_page()
    page.goto((tmp_path / "out/index.html").as_uri())
    page.evaluate("() => document.querySelectorAll('img').forEach(image => { image.loading = 'eager' })")
    page.wait_for_function("() => [...document.images].every(image => image.complete)")
    assert page.evaluate("() => [...document.images].map(image => image.naturalWidth)") == [256] * 4
    names = ["größe.1", "000002-001", "000002-002", "000003"]
    assert page.locator("figcaption b").all_inner_texts() == names
    assert page.locator("figcaption small").all_inner_texts() == ["seed 0", "seed 4", "seed 5", "seed 0"]
    texts = page.locator("figcaption p").all_inner_texts()
    assert texts == ['<script>alert("x")</script> & ␛[31mred', *["sky · a · b · c · d · e"] * 2]
    page.locator("figure a").first.click()
    page.wait_for_url("**/viewer.html")
    page.close()


# ---------------------------------------------------------------------------------------------------- photos


def with_focal_length(photo: Path, path: Path, focal: object) -> Path:
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = focal
    with PIL.Image.open(photo) as image:
        image.save(path, exif=exif, lossless=True)
    return path


def test_the_field_of_view_by_exif_is_printed_and_stored(model: Path, photo: Path, tmp_path: Path) -> None:
    """26 mm in 35 mm film: a square image has 43.27/√2 mm of film across, so 2·atan(43.27/√2/2/26) = 60.94°."""
    promised(DOCS, "the field of view comes from the photo's EXIF data, which the command prints")
    tagged = with_focal_length(photo, tmp_path / "tagged.webp", 26)
    result = succeed(model, tmp_path / "exif", "--image", tagged)
    assert f"{tagged}: field of view 60.9° by its EXIF data" in result.stderr
    fov = record(tmp_path / "exif")["exif_fov"][str(tagged)]
    assert fov == pytest.approx(60.94, abs=0.01)
    succeed(model, tmp_path / "given", "--image", photo, "--fov", fov)
    np.testing.assert_array_equal(pixels(tmp_path / "exif"), pixels(tmp_path / "given"))
    result = succeed(model, tmp_path / "other", "--image", tagged, "--fov", 80)
    assert "EXIF" not in result.stderr
    assert record(tmp_path / "other")["exif_fov"] == {}


@pytest.mark.parametrize("focal", [1, 4, 3001, 65535])
def test_a_focal_length_that_no_lens_has_is_ignored_with_a_warning(
    model: Path, photo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, focal: int
) -> None:
    promised(DOCS, "A focal length that no lens has is ignored with a warning.")
    tagged = with_focal_length(photo, tmp_path / "tagged.webp", focal)
    result = succeed(model, tmp_path / "odd", "--image", tagged)
    (message,) = (entry.getMessage() for entry in caplog.records)
    assert message == (
        f"{tagged}: its EXIF focal length in 35 mm film is {focal}, expected 5 to 3000 mm: ignored; set the photo's "
        "fov if it is known"
    )
    assert "field of view" not in result.stderr
    succeed(model, tmp_path / "without", "--image", photo)
    np.testing.assert_array_equal(pixels(tmp_path / "odd"), pixels(tmp_path / "without"))


def test_an_unknown_focal_length_is_no_reason_to_warn(
    model: Path, photo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    succeed(model, tmp_path / "out", "--image", with_focal_length(photo, tmp_path / "tagged.webp", 0))
    assert not caplog.records


@pytest.mark.slow
def test_a_photo_of_200_megapixels_works(model: Path, photo: Path, tmp_path: Path) -> None:
    promised(DOCS, "A photo has at most 268 million pixels; one of 200 megapixels works.")
    with PIL.Image.open(photo) as image:
        image.resize((16320, 12240), PIL.Image.Resampling.BOX).save(tmp_path / "large.jpg", quality=90)
        image.resize((1632, 1224), PIL.Image.Resampling.BOX).save(tmp_path / "small.png")
    for name in ("large.jpg", "small.png"):
        words = ("--model", model, "--output", tmp_path / name[:5], "--image", tmp_path / name, "--steps", 2)
        imports_of(*words, "--fov", 60, code=0)
    assert np.abs(pixels(tmp_path / "large").astype(int) - pixels(tmp_path / "small")).mean() < 1.5


# ---------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError(
    "[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
)])  # fmt: skip
def test_a_lack_of_memory_is_one_message(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(CubeDiffPipeline, "__call__", fail)
    message = "out of memory on cpu with --dtype fp32, --batch {}, faces of {} pixels: use {}a machine with more memory"
    for words, expected in [
        (("--guidance-scale", 1), message.format(1, 64, "--face-size 32, or ")),
        ((), message.format(1, 64, "--sequential-guidance, or --face-size 32, or ")),
        (("--batch", 4), message.format(4, 64, "--batch 1, or --sequential-guidance, or --face-size 32, or ")),
        (
            ("--face-size", 128),
            message.format(1, 128, "--sequential-guidance, or --vae-tiling, or --face-size 64, or "),
        ),
        (("--face-size", 32), message.format(1, 32, "--sequential-guidance, or ")),
    ]:
        result = run(model, tmp_path, "--device", "cpu", *words, prompt="a hall")
        refused(result, f"error: {expected}\n")


def test_other_errors_of_the_runtime_are_no_lack_of_memory(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("expected scalar type")

    monkeypatch.setattr(CubeDiffPipeline, "__call__", fail)
    assert isinstance(run(model, tmp_path, prompt="a hall").exception, RuntimeError)


def test_the_remedies_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 24 * 2**30))
    for has_bf16, dtype, expected in [
        (True, "fp32", "--batch 1, or --face-size 256, or --dtype bf16, or --offload, or a GPU with more memory"),
        (False, "fp32", "--batch 1, or --face-size 256, or --dtype fp16, or --offload, or a GPU with more memory"),
        (True, "bf16", "--batch 1, or --face-size 256, or --offload, or a GPU with more memory"),
    ]:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bf16: has)
        sizes = FaceSizes(512, 512, guided=False)
        with (
            pytest.raises(ValueError, match=r"out of memory on cuda:1 \(24\.0 GiB\) with") as error,
            memory_errors(Execution(batch=2), "cuda:1", dtype, sizes),
        ):
            raise torch.OutOfMemoryError
        assert str(error.value).endswith(f"use {expected}")
    execution = Execution(offload=True, vae_tiling=True, sequential_guidance=True)
    with (
        pytest.raises(
            ValueError,
            match="--offload, --vae-tiling, --sequential-guidance, --batch 1, faces of 256 pixels: use a GPU with more",
        ),
        memory_errors(execution, "cuda:1", "bf16", FaceSizes(256, 512)),
    ):
        raise torch.OutOfMemoryError
    with (
        pytest.raises(ValueError, match=r"with --dtype bf16: use --offload, or a GPU with more memory$"),
        memory_errors(Execution(), "cuda", "bf16"),  # the model alone does not fit
    ):
        raise torch.OutOfMemoryError
