"""The package outside its checkout: wheels, import time, command lines, pinned versions."""

import ast
import inspect
import json
import os
import re
import resource
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import cubediff

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/cubediff"
ENTRIES = sorted(
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    for file in PACKAGE.rglob("*.py")
    if 'if __name__ == "__main__":' in file.read_text()
)


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command without the checkout's environment variables; a failure shows its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    result = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{command} failed:\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    built = {}
    for name, options in {"from the checkout": ["--wheel"], "from the sdist": []}.items():
        folder = tmp_path_factory.mktemp("dist")
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, *options, ROOT)
        (built[name],) = folder.glob("*.whl")
    return built


@pytest.mark.parametrize("origin", ["from the checkout", "from the sdist"])
def test_wheel_holds_every_config_and_every_file_of_the_package(wheels: dict[str, Path], origin: str) -> None:
    files = {f"cubediff/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    files |= {
        f"cubediff/{path.relative_to(PACKAGE)}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    assert "cubediff/conf/train.yaml" in files
    assert "cubediff/py.typed" in files
    with zipfile.ZipFile(wheels[origin]) as wheel:
        inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == files


def test_sdist_holds_the_small_models_in_full(wheels: dict[str, Path]) -> None:
    """One of them links to folders of the other, which the archive holds as files of both."""
    models = [ROOT / "experiments" / name / "model" for name in ("tiny_sd", "cubediff_tiny")]
    (sdist,) = wheels["from the sdist"].parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {member.name.partition("/")[2]: member.size for member in archive if member.isfile()}
    for model, count in zip(models, (10, 11), strict=True):  # the second has a model card
        files = {Path(folder, name) for folder, _, names in os.walk(model, followlinks=True) for name in names}
        assert len(files) == count
        assert {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in files}.items() <= packed.items()


def test_version_is_the_same_in_the_package_the_wheels_and_the_changelog(wheels: dict[str, Path]) -> None:
    for wheel in wheels.values():
        assert wheel.name == f"cubediff-{cubediff.__version__}-py3-none-any.whl"
    assert f"## [{cubediff.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_wheel_installs_the_console_script(wheels: dict[str, Path]) -> None:
    for path in wheels.values():
        with zipfile.ZipFile(path) as wheel:
            entry_points = wheel.read(f"cubediff-{cubediff.__version__}.dist-info/entry_points.txt").decode()
        assert "[console_scripts]\ncubediff = cubediff.cli:main" in entry_points


def test_importing_cubediff_imports_no_third_party_library() -> None:
    code = "import sys; before = {*sys.modules}; import cubediff; print(*{*sys.modules} - before)"
    imported = {name.split(".")[0] for name in run(sys.executable, "-c", code).stdout.split()}
    assert imported - sys.stdlib_module_names == {"cubediff"}


@pytest.mark.parametrize("name", cubediff.__all__)
def test_public_names_are_typed_documented_and_imported_on_first_use(name: str) -> None:
    value = getattr(cubediff, name)
    assert name in dir(cubediff)
    if callable(value):
        assert value.__module__.startswith("cubediff.")
        assert inspect.getdoc(value)
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert name in typed | {"__version__"}


def test_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="CubeDifPipeline"):
        _ = cubediff.CubeDifPipeline


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_takes_under_two_seconds_of_cpu_and_imports_no_torch(entry: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run(sys.executable, "-X", "importtime", "-m", f"cubediff.{entry}", "--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert not imported & {"torch", "lightning", "diffusers", "transformers"}
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
    assert len(result.stdout) > 100
    assert list(tmp_path.iterdir()) == []


def test_constraints_pin_every_dependency_of_the_development_installation() -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line]
    assert all(str(pin.specifier).startswith("==") and pin.url is None for pin in pins)
    here = {canonicalize_name(pin.name): pin for pin in pins if pin.marker is None or pin.marker.evaluate()}
    queue = [("cubediff", frozenset({"test", "dev", "docs", ""}))]
    seen = set()
    while queue:
        name, extras = queue.pop()
        seen.add((name, extras))
        for line in distribution(name).requires or []:
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
                key = canonicalize_name(need.name)
                assert key in here, f"{name} needs {need}, which constraints.txt does not pin"
                assert need.specifier.contains(str(here[key].specifier)[2:], prereleases=True), f"{name}: {need}"
                if (item := (key, frozenset({*need.extras, ""}))) not in seen:
                    queue.append(item)


def test_the_lock_holds_the_versions_of_the_constraints_with_checksums() -> None:
    """All but torch, whose builds differ by index; packages that other systems need are not in the constraints."""
    text = (ROOT / "requirements.lock").read_text()
    blocks = [block for block in text.replace("\\\n", " ").splitlines() if not block.startswith("#")]
    locked = {canonicalize_name(Requirement(block.split("--hash")[0]).name): block for block in blocks}
    assert all(re.search(r"==\S+ .*--hash=sha256:[0-9a-f]{64}", block) for block in blocks)
    assert not {name for name in locked if name == "torch" or name.startswith(("nvidia", "cuda", "triton"))}
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, filter(None, lines))}
    for name, block in locked.items():
        if name in pins:
            assert f"=={str(pins[name].specifier)[2:]} " in block
    needed = {"cubediff"}
    queue = [("cubediff", frozenset({"test", "dev", "docs", ""}))]
    while queue:
        name, extras = queue.pop()
        for line in distribution(name).requires or []:
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
                if (key := canonicalize_name(need.name)) not in needed and key != "torch":
                    queue.append((key, frozenset({*need.extras, ""})))
                needed.add(key)
    assert needed - {"cubediff", "torch", "pip"} <= set(locked)


def run_every_step(python: Path, folder: Path) -> None:
    """Examples, shards, two training steps and a panorama with an installed wheel that cannot import the checkout."""
    paths = json.loads(
        run(python, "-c", "import cubediff, json, sys; print(json.dumps([cubediff.__file__, *sys.path]))").stdout
    )
    assert not any(Path(path).is_relative_to(ROOT / part) for path in paths for part in ("src", "conf", "tests"))
    assert str(ROOT) not in paths
    cubediff_command = (python, "-m", "cubediff")
    run(*cubediff_command, "example", 4, "panoramas", cwd=folder)
    run(*cubediff_command, "prepare", "panoramas", "shards", "--captions", "panoramas/captions.jsonl", cwd=folder)
    training = ("experiment=tiny_cpu", "model=tiny_random", "data.path=shards", "run_dir=run", "trainer.max_steps=2")
    run(*cubediff_command, "train", *training, cwd=folder)
    sampling = ("--model", "run/export", "--prompt", "a red room", "--steps", 2, "--seed", 1, "--save-faces")
    run(*cubediff_command, "generate", *sampling, "--output", "out", cwd=folder)
    with Image.open(folder / "out/panorama.jpg") as panorama:
        assert panorama.width == 2 * panorama.height
    faces = {path.stem for path in (folder / "out/faces").glob("*.png")}
    assert faces == {"front", "right", "back", "left", "up", "down"}
    assert "<html" in (folder / "out/viewer.html").read_text()
    assert json.loads((folder / "out/generation.json").read_text())["seed"] == 1


@pytest.fixture
def installed(wheels: dict[str, Path], tmp_path: Path) -> Path:
    """Python of an environment with the wheel. A .pth file adds this environment's libraries; the editable checkout's
    own .pth file is not followed."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    (site / "borrowed.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
    with zipfile.ZipFile(wheels["from the checkout"]) as wheel:
        wheel.extractall(site)
    return python


@pytest.mark.slow
def test_wheel_runs_every_step_with_this_environments_dependencies(installed: Path, tmp_path: Path) -> None:
    run_every_step(installed, tmp_path)


PROGRAM = """\
from typing import assert_type

import torch
from cubediff import CubeDiffPipeline, Objective, Panorama, Photo, equirect_to_cube
from PIL import Image

faces = equirect_to_cube(torch.rand(1, 3, 64, 128), 32, 95.0)
assert_type(faces, torch.Tensor)
pipeline = CubeDiffPipeline.from_pretrained("model", torch_dtype=torch.float16)
assert_type(pipeline, CubeDiffPipeline)
result = pipeline("a hall", image=Photo(Image.open("photo.jpg"), yaw=90.0), num_inference_steps=20)
result.panoramas[0].save("panorama.jpg")
panoramas, _ = pipeline(image=Panorama("panorama.jpg", "mask.png"), output_type="pt", return_dict=False)

equirect_to_cube("panorama.jpg", 32, 95.0)  # arg-type
pipeline("a hall", num_inference_step=20)  # call-arg
Photo(Image.open("photo.jpg"), heading=90.0)  # call-arg
Objective(drop_text="often", drop_image=0.1, drop_both=0.1)  # arg-type
"""


@pytest.mark.slow
def test_type_checker_finds_the_wrong_calls_of_a_program_alone(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    options = ("--strict", "--config-file=", "--no-error-summary", "--python-executable")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, installed, "program.py"], cwd=tmp_path, capture_output=True, text=True
    )
    found = set(re.findall(r"program.py:(\d+): error: .*\[(.*)\]", checked.stdout))
    lines = enumerate(PROGRAM.splitlines(), 1)
    assert found == {(str(number), line.partition("# ")[2]) for number, line in lines if "# " in line}, checked.stdout


@pytest.mark.slow
def test_wheel_of_the_sdist_runs_every_step_in_a_clean_environment(wheels: dict[str, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    pip = (
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--constraint",
        ROOT / "constraints.txt",
    )
    run(*pip, wheels["from the sdist"])
    run_every_step(python, tmp_path)
