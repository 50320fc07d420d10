"""Every option of `cubediff generate`, on the command line and in a jobs file, has its effect on what is written."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import typer
from accelerate.hooks import CpuOffload
from diffusers import UNet2DConditionModel
from support.generating import SAMPLES, jobs_file, picture, pixels, record, refused, run, succeed
from support.promises import promised
from typer.testing import CliRunner

from cubediff import CubeDiffPipeline, Photo
from cubediff.diffusion.schedulers import SAMPLERS, use_sampler_
from cubediff.generate import app
from cubediff.generation import options
from cubediff.generation.devices import resolve_dtype
from cubediff.generation.jobs import JOB_KEYS
from cubediff.generation.options import FACE_KEYS, OPTION_KEYS, PRESET_KEYS, PRESETS, Options, parse_options
from cubediff.generation.outputs import write_panorama
from cubediff.images.gpano import full_sphere_xmp
from cubediff.planning.operations import OperationCounter

DOCS = Path(__file__).parents[2] / "docs/generation.md"
PARAMETERS = {parameter.name for parameter in typer.main.get_command(app).params}

# For an option: its value, and the arguments of the pipeline's call with the same result (none: that of its own name).
SAMPLING: dict[str, tuple[object, dict[str, object]]] = {
    "steps": (3, {"num_inference_steps": 3}),
    "guidance_scale": (2.0, {}),
    "image_guidance_scale": (1.5, {}),
    "guidance_rescale": (0.5, {}),
    "guidance_start": (0.5, {}),
    "guidance_stop": (0.5, {}),
    "negative_prompt": ("people", {}),
    "paste_image": (True, {}),
    "height": (60, {}),
    "face_size": (96, {}),
    "average_overlap": (True, {}),
    "gain_correction": (True, {}),
    "seed": (3, {}),
    "sampler": ("euler", {}),
}
CAMERA: dict[str, float] = {"fov": 60.0, "yaw": 50.0, "pitch": 20.0, "roll": 30.0}


def call(model: Path, photo: Path, **arguments: Any) -> np.ndarray:
    """The panorama of the pipeline itself, for the prompt and the photo of these tests."""
    pipeline = CubeDiffPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    if sampler := arguments.pop("sampler", None):
        use_sampler_(pipeline, sampler)
    camera = {key: arguments.pop(key) for key in CAMERA if key in arguments}
    arguments = {"num_inference_steps": 2, "seed": 0, **arguments}
    generator = torch.Generator().manual_seed(arguments.pop("seed"))
    image = Photo(PIL.Image.fromarray(picture(photo)), **camera)
    return np.asarray(pipeline("a hall", image=image, generator=generator, **arguments).panoramas[0])


def words(key: str, value: object) -> list[object]:
    """An option with its value as words of the command line."""
    option = f"--{key.replace('_', '-')}"
    return [option] if value is True else [option, value]


@pytest.fixture(scope="module")
def written(model: Path, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one panorama of a jobs file for each option that a line may have, and one without options."""
    folder = tmp_path_factory.mktemp("written")
    common = {"prompt": "a hall", "steps": 2}
    lines = [{**common, "image": str(photo), "name": "none"}]
    lines += [{**common, "image": str(photo), "name": key, key: value} for key, (value, _) in SAMPLING.items()]
    lines += [{**common, "image": {"file": str(photo), key: value}, "name": key} for key, value in CAMERA.items()]
    lines.append({**common, "image": str(photo), "name": "format", "format": "png"})
    lines.append({**common, "image": str(photo), "name": "save_faces", "save_faces": True})
    lines.append({**common, "image": str(photo), "name": "count", "count": 2, "seed": 7})
    succeed(model, folder / "out", "--jobs", jobs_file(folder, *lines))
    return folder / "out"


@pytest.mark.parametrize("key", [*SAMPLING, *CAMERA])
def test_an_option_is_the_pipelines_argument(model: Path, photo: Path, written: Path, tmp_path: Path, key: str) -> None:
    """On the command line and in a line of jobs, and other than without it."""
    value, arguments = SAMPLING.get(key) or (CAMERA[key], {})
    succeed(model, tmp_path, "--image", photo, "--format", "png", *words(key, value), prompt="a hall")
    expected = call(model, photo, **(arguments or {key: value}))
    np.testing.assert_array_equal(pixels(tmp_path), expected)
    assert pixels(written / key).shape == expected.shape
    assert np.abs(pixels(written / key).astype(int) - expected).mean() < 3  # JPEG
    without = pixels(written / "none")
    assert without.shape != expected.shape or np.abs(without.astype(int) - pixels(written / key)).mean() > 0.3


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_format(model: Path, tmp_path: Path, suffix: str) -> None:
    succeed(model, tmp_path, "--format", suffix, prompt="a hall")
    with PIL.Image.open(tmp_path / f"panorama.{suffix}") as image:
        assert image.format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix]
        assert image.size == (256, 128)
        xmp = image.info["xmp"]
    assert (xmp.decode() if isinstance(xmp, bytes) else xmp).strip("\0") == full_sphere_xmp(256, 128)
    assert record(tmp_path)["format"] == suffix


def test_png_keeps_every_pixel_and_webp_and_jpeg_are_near(tmp_path: Path) -> None:
    with PIL.Image.open(SAMPLES / "courtyard.jpg") as image:
        levels = np.asarray(image).astype(int)
        for suffix, low, high in (("png", 0.0, 0.0), ("webp", 0.1, 3.0), ("jpg", 0.1, 3.0)):
            written = picture(write_panorama(tmp_path / f"p.{suffix}", image))
            assert low <= np.abs(written - levels).mean() <= high


def test_a_format_and_faces_in_a_line_of_jobs(written: Path) -> None:
    assert (written / "format/panorama.png").is_file()
    assert not (written / "format/panorama.jpg").exists()
    assert len(list((written / "save_faces/faces").glob("*.png"))) == 6
    assert not (written / "none/faces").exists()


def test_save_faces(model: Path, tmp_path: Path) -> None:
    succeed(model, tmp_path, "--save-faces", prompt="a hall")
    assert len(list((tmp_path / "faces").glob("*.png"))) == 6


def test_count(model: Path, written: Path, tmp_path: Path) -> None:
    """One folder each, with the seeds that follow each other."""
    result = succeed(model, tmp_path, "--count", 3, "--seed", 5, prompt="a hall")
    names = ["001", "002", "003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "index.html"]
    assert [record(tmp_path / name)["seed"] for name in names] == [5, 6, 7]
    printed = [line for line in result.stderr.splitlines() if ": seed " in line]
    assert printed == [f"{tmp_path / name}: seed {seed}" for name, seed in zip(names, (5, 6, 7), strict=True)]
    succeed(model, tmp_path / "one", "--seed", 7, prompt="a hall")
    np.testing.assert_array_equal(pixels(tmp_path / "003"), pixels(tmp_path / "one"))
    assert [record(written / name)["seed"] for name in ("count-001", "count-002")] == [7, 8]


def test_prompt_and_image(model: Path, photo: Path, tmp_path: Path) -> None:
    expected = call(model, photo)
    succeed(model, tmp_path / "both", "--image", photo, "--format", "png", prompt="a hall")
    succeed(model, tmp_path / "image", "--image", photo, "--format", "png")
    succeed(model, tmp_path / "prompt", "--format", "png", prompt="a hall")
    np.testing.assert_array_equal(pixels(tmp_path / "both"), expected)
    assert (pixels(tmp_path / "image") != expected).any()
    assert (pixels(tmp_path / "prompt") != expected).any()


def test_batch(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = CubeDiffPipeline.__call__

    def recorded(self: CubeDiffPipeline, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(options["generator"]))
        return original(self, *arguments, **options)

    monkeypatch.setattr(CubeDiffPipeline, "__call__", recorded)
    succeed(model, tmp_path, "--count", 3, "--batch", 2, prompt="a hall")
    assert sizes == [2, 1]


def test_model_output_jobs_and_device_are_read_as_given(model: Path, tmp_path: Path) -> None:
    jobs = jobs_file(tmp_path, {"prompt": "a hall", "name": "hall"})
    succeed(model, tmp_path / "a/b", "--jobs", jobs, "--device", "cpu")
    assert record(tmp_path / "a/b/hall")["device"] == "cpu"
    assert record(tmp_path / "a/b/hall")["model"] == str(model)
    assert run(tmp_path / "nowhere", tmp_path / "c", prompt="a hall").exit_code == 1
    assert run(model, tmp_path / "c", "--device", "abacus", prompt="a hall").exit_code == 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "auto"])
def test_dtype(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    dtypes = []
    original = CubeDiffPipeline.__call__

    def recorded(self: CubeDiffPipeline, *arguments: Any, **options: Any) -> Any:
        dtypes.append({part.dtype for part in (self.unet, self.vae, self.text_encoder)})
        return original(self, *arguments, **options)

    monkeypatch.setattr(CubeDiffPipeline, "__call__", recorded)
    succeed(model, tmp_path / "default", "--device", "cpu", prompt="a hall")
    succeed(model, tmp_path / dtype, "--device", "cpu", "--dtype", dtype, prompt="a hall")
    assert dtypes == [{torch.float32}, {torch.bfloat16 if dtype == "bf16" else torch.float32}]
    assert record(tmp_path / dtype)["dtype"] == ("bf16" if dtype == "bf16" else "fp32")
    difference = np.abs(pixels(tmp_path / dtype).astype(int) - pixels(tmp_path / "default")).mean()
    assert (0 < difference < 8) if dtype == "bf16" else difference == 0


def test_offload(model: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is fetched when it computes, and put back; on a CPU the option is said to save nothing."""
    fetched = []
    before = CpuOffload.pre_forward

    def recorded(hook: CpuOffload, module: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        fetched.append(type(module).__name__)
        return before(hook, module, *arguments, **options)

    monkeypatch.setattr(CpuOffload, "pre_forward", recorded)
    words = ("--device", "cpu", "--image", photo, "--format", "png")
    succeed(model, tmp_path / "without", *words, prompt="a hall")
    assert not fetched
    result = succeed(model, tmp_path / "with", *words, "--offload", prompt="a hall")
    assert set(fetched) == {"CLIPTextModel", "AutoencoderKL", "UNet2DConditionModel"}
    np.testing.assert_array_equal(pixels(tmp_path / "with"), pixels(tmp_path / "without"))
    assert "--offload saves no memory on a CPU" in result.stderr


def test_vae_tiling(model: Path, photo: Path, tmp_path: Path) -> None:
    """Photo and faces pass through the autoencoder in strips of 42 rows and few more, with the same result."""

    def tallest(name: str, *words: object) -> int:
        with OperationCounter() as counter:
            succeed(model, tmp_path / name, "--device", "cpu", "--image", photo, "--format", "png", *words, prompt="a")
        return max(one.shapes[0][2] for one in counter.operations if one.kind == "convolution")

    assert tallest("without", "--face-size", 96) >= 96
    assert tallest("with", "--face-size", 96, "--vae-tiling") < 50
    assert np.abs(pixels(tmp_path / "with").astype(int) - pixels(tmp_path / "without")).max() <= 1


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_on_gpus_that_have_it(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    assert resolve_dtype("auto", "cuda:1") == expected
    assert resolve_dtype("auto", "cpu") == resolve_dtype("auto", "mps") == "fp32"
    assert resolve_dtype("fp16", "cuda") == "fp16"


@pytest.mark.parametrize(
    ("device", "capabilities", "fitting"),
    [
        ("cuda:1", {"cuda": True}, "bf16, fp16, fp32"),
        ("cuda", {}, "fp16, fp32"),
        ("mps", {}, "fp16, fp32"),
        ("cpu", {}, "fp32"),
        ("cpu", {"avx512_bf16": True, "avx512_fp16": False}, "bf16, fp32"),
        ("cpu", {"amx_bf16": True, "amx_fp16": True}, "bf16, fp16, fp32"),
    ],
)
def test_a_dtype_that_the_device_only_emulates_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, capabilities: dict[str, bool], fitting: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: "cuda" in capabilities)
    for dtype in ("bf16", "fp16", "fp32"):
        if dtype in fitting:
            assert resolve_dtype(dtype, device) == dtype
        else:
            message = f"--dtype {dtype}: {device} does not compute in it without emulation: use one of auto, {fitting}"
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                resolve_dtype(dtype, device)


def test_an_emulated_dtype_ends_the_command_before_the_model_is_loaded(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(CubeDiffPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded for nothing"))
    result = run(model, tmp_path, "--device", "cpu", "--dtype", "fp16", prompt="a hall")
    refused(result, "error: --dtype fp16: cpu does not compute in it without emulation: use one of auto, fp32")


def test_sequential_guidance(model: Path, photo: Path, tmp_path: Path) -> None:
    """Half as many panoramas in each call of the network, twice as many calls, and the same panorama."""
    rows: dict[str, list[int]] = {"without": [], "with": []}
    for name, words in (("without", ()), ("with", ("--sequential-guidance",))):
        with torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, inputs, name=name: (
                rows[name].append(len(inputs[0])) if isinstance(module, UNet2DConditionModel) else None
            )
        ):
            succeed(model, tmp_path / name, "--image", photo, "--format", "png", *words, prompt="a hall")
    assert rows == {"without": [12, 12], "with": [6, 6, 6, 6]}
    difference = np.abs(pixels(tmp_path / "with").astype(int) - pixels(tmp_path / "without"))
    assert difference.max() <= 1


# ------------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_the_options_that_it_names(model: Path, tmp_path: Path, preset: str) -> None:
    words = [word for key, value in PRESETS[preset].items() for word in words_of(key, value)]
    promised("docs/generation.md", "and `generation.json` holds the values that were used.")
    command = ("--format", "png", "--steps", 3)  # the last, so that the test is quick
    succeed(model, tmp_path / "preset", "--preset", preset, *command, prompt="a hall")
    succeed(model, tmp_path / "options", *words, *command, prompt="a hall")
    np.testing.assert_array_equal(pixels(tmp_path / "preset"), pixels(tmp_path / "options"))
    assert record(tmp_path / "preset") == record(tmp_path / "options")
    used = {key: record(tmp_path / "preset")[key] for key in ("sampler", *PRESET_KEYS[2:])}
    assert used == {key: PRESETS[preset][key] for key in used}


def test_the_documentation_has_the_values_of_the_presets() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    stated = {name: [cell.strip(" `") for cell in cells.split("|")] for name, cells in rows if name in PRESETS}
    written = {
        name: [f"{v:g}" if isinstance(v, int | float) else v for v in values.values()]
        for name, values in PRESETS.items()
    }
    assert stated == written


def words_of(key: str, value: object) -> tuple[str, object]:
    return f"--{key.replace('_', '-')}", value


def test_values_come_from_options_then_from_the_preset_then_from_the_defaults() -> None:
    assert {name: set(values) for name, values in PRESETS.items()} == {name: {*PRESET_KEYS} for name in PRESETS}

    def parsed(values: dict[str, object], defaults: Options) -> Options:
        return parse_options(values, str, defaults)

    command = parsed({"preset": "fast", "guidance_scale": 2.0}, Options())
    assert (command.num_inference_steps, command.sampler, command.guidance_scale) == (8, "dpm", 2.0)
    line = parsed({"steps": 12}, command)
    assert (line.num_inference_steps, line.sampler, line.guidance_scale) == (12, "dpm", 2.0)
    other = parsed({"preset": "best"}, command)
    assert (other.num_inference_steps, other.sampler, other.guidance_scale, other.guidance_stop) == (50, "ddim", 3.5, 1)
    assert parsed({"preset": None}, command) == replace(command, preset=None)


def test_a_preset_in_a_line_of_jobs(model: Path, tmp_path: Path) -> None:
    common = {"prompt": "a hall", "steps": 2}
    lines = [{**common, "name": "fast", "preset": "fast"}, {**common, "name": "none"}]
    succeed(model, tmp_path / "out", "--jobs", jobs_file(tmp_path, *lines))
    samplers = {name: record(tmp_path / "out" / name)["sampler"] for name in ("fast", "none")}
    assert samplers == {"fast": "dpm", "none": None}


def test_an_unknown_preset_is_refused_with_the_choices(model: Path, tmp_path: Path) -> None:
    result = run(model, tmp_path / "out", "--preset", "magic", prompt="a hall")
    refused(result, "error: --preset must be one of fast, balanced, best, got 'magic'\n")


@pytest.mark.parametrize(
    ("timesteps", "choices"), [(40, "use fast or balanced, or set the steps"), (5, "omit it, and set the steps")]
)
def test_a_preset_that_has_more_steps_than_the_model_is_refused(
    model: Path, tmp_path: Path, timesteps: int, choices: str
) -> None:
    short = tmp_path / "model"
    shutil.copytree(model, short)
    path = short / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_train_timesteps": timesteps}))
    words = ["--model", short, "--output", tmp_path / "out", "--prompt", "a hall", "--preset", "best"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    refused(result, f"error: --preset best takes 50 steps and the model has {timesteps} timesteps: {choices}\n")


@pytest.mark.parametrize(("start", "stop"), [(0.6, 0.5), (1, 1)])
def test_an_empty_guidance_interval_is_refused(model: Path, tmp_path: Path, start: float, stop: float) -> None:
    words = ("--guidance-start", start, "--guidance-stop", stop)
    refused(run(model, tmp_path / "out", *words, prompt="a hall"), f"--guidance-start is {start} and --guidance-stop")


# ------------------------------------------------------------------------------------------- completeness

CALL_ONLY = {
    *("model", "output", "jobs", "batch"),
    *("device", "dtype", "offload", "vae_tiling", "sequential_guidance"),
}  # in no line of jobs
ELSEWHERE = {
    *CALL_ONLY,
    *("prompt", "image", "count", "format", "save_faces", "preset"),
    *("panorama", "mask"),  # in tests/generation/test_edited_files.py
    *FACE_KEYS,  # in tests/generation/test_generate.py
}


def test_no_option_is_left_out() -> None:
    assert {*SAMPLING, *CAMERA, *ELSEWHERE} == PARAMETERS
    assert PARAMETERS - CALL_ONLY - set(CAMERA) | {"name"} == set(JOB_KEYS)
    assert set(OPTION_KEYS) == set(JOB_KEYS) - {"prompt", "image", "panorama", "mask", "name", "seed", "count"}


def test_the_defaults_of_the_command_are_those_of_options() -> None:
    defaults = {parameter.name: parameter.default for parameter in typer.main.get_command(app).params}
    own = dict(zip(OPTION_KEYS, vars(Options()).values(), strict=True))
    # Whether these are given matters.
    given = {key: None if key in (*FACE_KEYS, *PRESET_KEYS) else own[key] for key in own}
    assert {key: defaults[key] for key in OPTION_KEYS} == given
    assert tuple(SAMPLERS) == options.SAMPLERS


def test_the_table_of_the_documentation_has_every_key_of_a_line() -> None:
    text = DOCS.read_text(encoding="utf-8")
    table = text[text.index("| key |") :].split("\n\n")[0]
    keys = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    assert [key for cell in keys for key in re.findall(r"`(\w+)`", cell)] == sorted(JOB_KEYS, key=list(JOB_KEYS).index)
    example = next(block for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL) if '"prompt"' in block)
    assert {key for line in example.splitlines() for key in json.loads(line)} <= set(JOB_KEYS)


def test_every_sampler_is_recorded_with_the_spacing_that_it_used(model: Path, tmp_path: Path) -> None:
    """With two leading steps a sampler would start at timestep 501 of 1000."""
    lines = [{"prompt": "a hall", "name": name, "sampler": name} for name in SAMPLERS]
    lines += [{"prompt": "a hall", "name": f"{name}_20", "sampler": name, "steps": 20} for name in ("ddim", "euler")]
    succeed(model, tmp_path / "out", "--jobs", jobs_file(tmp_path, *lines))
    recorded = {line["name"]: record(tmp_path / "out" / line["name"])["scheduler"] for line in lines}
    assert {name: scheduler["class"] for name, scheduler in recorded.items()} == {
        name: SAMPLERS[name.removesuffix("_20")][0].__name__ for name in recorded
    }
    assert {name: scheduler["timestep_spacing"] for name, scheduler in recorded.items()} == {
        "ddim": "trailing", "dpm": "trailing", "unipc": "trailing", "euler": "trailing",
        "ddim_20": "leading", "euler_20": "leading",
    }  # fmt: skip
    assert recorded["dpm"]["lambda_min_clipped"] == "-inf"
