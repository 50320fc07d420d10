"""Sources of other packages: found by `module:Class` and by entry point, resumed by their identity, and refused before
anything is written if they do not fulfil the protocol."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.builds import contents, panoramas
from typer.testing import CliRunner

from cubediff.data import DataError, build_shards, sources
from cubediff.data.building.captioning import Captioned
from cubediff.data.building.check import check_shards
from cubediff.data.format.folders import LOCK
from cubediff.data.sources import Entry, Rejection, Source, check_source, open_source
from cubediff.data.sources.cubemaps import Cubemaps
from cubediff.data.sources.equirect import EquirectFolder
from cubediff.data.sources.imagefolder import ImageFolder
from cubediff.data.sources.webdataset import Shards
from cubediff.geometry import FACES
from cubediff.prepare import app

# A plain class: its repr() is another one in every process.
MODULE = """
import os
import signal
from pathlib import Path

from cubediff.data import sources
from cubediff.data.sources import Entry, load_panorama


class Shots:
    def __init__(self, path, captions, captioned):
        self.path, self.captions, self.captioned = path, captions, captioned

    @property
    def identity(self):
        return f"shots at {self.path}"

    def entries(self):
        names = sorted(path.name for path in self.path.glob("*.png"))
        return [Entry(name, f"shot {name}", None, name) for name in names], []

    def files(self, entry):
        return [self.path / entry.file]

    def load(self, entry, max_width=16384, quality=95):
        with Path("loaded.txt").open("a") as log:
            log.write(entry.file + "\\n")
        if entry.file == os.environ.get("KILLED_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        return load_panorama(self.path / entry.file, max_width, quality)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with six panoramas in `in` and the module custom_shots."""
    panoramas(tmp_path / "in", 6)
    (tmp_path / "custom_shots.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "custom_shots", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def prepare(*arguments: str, **environment: str) -> int:
    command = [sys.executable, "-m", "cubediff.prepare", "in", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True).returncode


@pytest.mark.slow
def test_an_interrupted_build_of_a_custom_source_resumes(folder: Path) -> None:
    options = ("--source", "custom_shots:Shots", "--shard-size", "2", "--workers", "1")
    assert prepare("out", *options, KILLED_AT="pano 3.png") == -signal.SIGKILL
    assert {path.name for path in (folder / "out").iterdir()} == {".building", LOCK}
    (folder / "loaded.txt").unlink()
    assert prepare("out", *options) == 0
    assert (folder / "loaded.txt").read_text().split("\n")[:-1] == [f"pano {i}.png" for i in (3, 4, 5)]
    build_shards(open_source(Path("in"), kind="custom_shots:Shots"), folder / "uninterrupted", shard_size=2)
    assert contents(folder / "out") == contents(folder / "uninterrupted")


@pytest.mark.slow
def test_worker_processes_load_a_custom_source(folder: Path) -> None:
    assert prepare("out", "--source", "custom_shots:Shots", "--workers", "2") == 0
    assert json.loads((folder / "out" / "manifest.json").read_text())["samples"] == 6


def test_an_installed_package_registers_a_source_by_entry_point(folder: Path) -> None:
    info = folder / "shots-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shots\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cubediff.sources]\nshots = custom_shots:Shots\n")
    result = CliRunner().invoke(app, ["in", "out", "--source", "shots", "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "out" / "manifest.json").read_text())["samples"] == 6
    with pytest.raises(DataError, match=r"--source other is unknown: use one of equirect, .*shots; or module:Class"):
        open_source(Path("in"), kind="other")


def test_folder_captions_file_and_captioned_reach_the_class(folder: Path) -> None:
    source = open_source(Path("in"), Path("captions.txt"), "custom_shots:Shots", captioned=False)
    assert isinstance(source, Source)
    assert (source.path, source.captions, source.captioned) == (Path("in"), Path("captions.txt"), False)
    assert Captioned(source, Path("c.jsonl")).identity == "Captioned(source=shots at in, file=PosixPath('c.jsonl'))"


def test_an_entry_of_a_custom_source_has_a_caption_for_each_face_or_none(folder: Path) -> None:
    class Described(EquirectFolder):
        def entries(self) -> tuple[list[Entry], list[Rejection]]:
            entries, rejected = super().entries()
            complete = dict.fromkeys(FACES, "a desk")
            faces = [
                {"front": "a desk"},
                {**complete, "top": "a lamp"},
                {**complete, "back": " "},
                complete,
                None,
                None,
            ]
            return [replace(entry, faces=each) for entry, each in zip(entries, faces, strict=True)], rejected

    build_shards(Described(Path("in"), captioned=False), folder / "out")
    lines = [json.loads(line) for line in (folder / "out" / "rejected.jsonl").read_text().splitlines()]
    incomplete = "faces must be a caption for each of front, right, back, left, up, down, or omitted"
    assert [line["reason"] for line in lines] == [incomplete, incomplete, "empty caption of face back"]
    checked = check_shards(folder / "out")
    assert checked.faults == []
    assert json.loads((folder / "out" / "manifest.json").read_text())["with_face_captions"] == 1


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (("def identity", "def name"), "custom_shots:Shots", "has no identity (a property of type str)"),
        (("def load", "def read"), "custom_shots:Shots", "has no load (a method)"),
        (("def files", "files = 3\n\n    def _files"), "custom_shots:Shots", "files is not a method"),
        (('return f"shots at {self.path}"', "return 7"), "custom_shots:Shots", "identity is 7, expected a non-empty"),
        (("captions, captioned):", "captions):"), "custom_shots:Shots", "too many positional arguments"),
        (("", ""), "custom_shots:Shoes", "custom_shots:Shoes cannot be imported"),
        (
            ("", ""),
            "no_module:Shots",
            "error: --source no_module:Shots: there is no module no_module in the "
            "working directory or on the Python path: start the command with PYTHONPATH=FOLDER, the folder that holds",
        ),
        (
            ("import signal", "import no_module"),
            "custom_shots:Shots",
            "cannot be imported (No module named 'no_module')",
        ),
        (("class Shots", "Other = 3\n\n\nclass Shots"), "custom_shots:Other", "custom_shots:Other is not a class"),
    ],
)
def test_error_of_a_class_that_is_not_a_source_names_it_before_anything_is_written(
    folder: Path, change: tuple[str, str], name: str, message: str
) -> None:
    (folder / "custom_shots.py").write_text(MODULE.replace(*change))
    result = CliRunner().invoke(app, ["in", "out", "--source", name])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert name in result.stderr
    assert message in result.stderr
    assert not (folder / "out").exists()


def test_error_of_an_incomplete_source_lists_the_missing_members() -> None:
    with pytest.raises(DataError, match=re.escape("builtins:object has no identity (a property of type str), no entr")):
        check_source(object())


def test_the_built_in_identities_are_those_that_unfinished_builds_are_stored_under() -> None:
    path, captions = Path("in"), Path("c.txt")
    for source, identity in {
        EquirectFolder(path): "EquirectFolder(path=PosixPath('in'), captions=None, captioned=True)",
        EquirectFolder(path, captions, False): "EquirectFolder(path=PosixPath('in'), captions=PosixPath('c.txt'), "
        "captioned=False)",
        ImageFolder(path): "ImageFolder(path=PosixPath('in'), captioned=True)",
        Shards(path, False): "Shards(path=PosixPath('in'), captioned=False)",
        Cubemaps(path): "Cubemaps(path=PosixPath('in'), captions=None, captioned=True, scheme=None)",
        Cubemaps(path, scheme="unity"): "Cubemaps(path=PosixPath('in'), captions=None, captioned=True, scheme='unity')",
        Captioned(Shards(path), captions): "Captioned(source=Shards(path=PosixPath('in'), captioned=True), "
        "file=PosixPath('c.txt'))",
    }.items():
        assert source.identity == identity


def test_a_source_that_was_written_for_the_former_name_of_its_panoramas_loads() -> None:
    assert sources.Panorama is sources.PanoramaJpeg
