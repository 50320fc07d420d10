"""Every file that is read back, cut at many places, filled with zeros or with values of other types.

Reading raises an error of one sentence, or gives a correct result; it never ends in a traceback.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import PIL.Image
import pytest
import torch
from support.damage import cuts, other_types

from cubediff.data import DataError
from cubediff.data.building.journal import Accepted, _load_record
from cubediff.data.sources import Entry, Rejection
from cubediff.generation.existing import panorama_exists
from cubediff.pipelines.folders import read_index
from cubediff.runs import lock
from cubediff.runs.resume import read_saved_run
from cubediff.runs.sweeps.results import RESULT, Result, read_result
from cubediff.training.checkpoint_io import find_damage
from cubediff.training.loaded_checkpoint import LoadedCheckpoint
from cubediff.utils.errors import check_version
from cubediff.utils.files import write_json


def outcomes(file: Path, contents: Iterable[bytes], read: Callable[[], object]) -> list[object]:
    """What reading the file gives for each content; errors must be one sentence that names it."""
    results: list[object] = []
    for content in contents:
        file.write_bytes(content)
        try:
            results.append(read())
        except ValueError as error:
            message = str(error)
            assert file.name in message, message
            assert "\n" not in message.strip(), message
    return results


def test_result_json(tmp_path: Path) -> None:
    whole = Result("done", "a", 1, ["seed=1"], 1.5, 2.5, "c0ffee", None, 0.25, {"val/loss": [(0, 1.0), (1, None)]})
    whole.write(tmp_path)
    file = tmp_path / RESULT
    content = file.read_bytes()
    assert read_result(file) == whole
    assert outcomes(file, cuts(content[:-1]), lambda: read_result(file)) == [whole]  # cut at no place
    for result in outcomes(file, other_types(content), lambda: read_result(file)):
        assert isinstance(result, Result)
        result.write(tmp_path)  # what is accepted can be used
        assert sum(step for curve in result.curves.values() for step, _ in curve) <= 1
    for constant in (b"NaN", b"-Infinity"):
        assert outcomes(file, [content.replace(b"0.25", constant)], lambda: read_result(file)) == []
    newer = {**json.loads(content), "of a newer version": [1]}
    assert outcomes(file, [json.dumps(newer).encode()], lambda: read_result(file)) == [whole]


def test_generation_json_and_panorama(tmp_path: Path) -> None:
    request = {"model": "m", "seed": 1, "sampling": {"steps": 2}}
    write_json(tmp_path / "generation.json", {**request, "device": "cpu"})
    panorama, file = tmp_path / "panorama.jpg", tmp_path / "generation.json"
    PIL.Image.effect_noise((64, 32), 50).save(panorama)
    content, pixels = file.read_bytes(), panorama.read_bytes()
    assert panorama_exists(tmp_path, request)
    for damaged in [*cuts(content[:-1]), *other_types(content)]:
        file.write_bytes(damaged)
        try:
            assert panorama_exists(tmp_path, request)
        except ValueError as error:
            assert re.search(r" holds a panorama with another|generation\.json is damaged", str(error))  # noqa: PT017
    file.write_bytes(content)
    for damaged in [*(pixels[:place] for place in range(0, len(pixels) - 2, 60)), b"", b"\0" * len(pixels)]:
        panorama.write_bytes(damaged)
        assert panorama_exists(tmp_path, request) is False  # it is generated again


def test_model_index(tmp_path: Path) -> None:
    file = tmp_path / "model_index.json"
    write_json(file, {"_class_name": "CubeDiffPipeline", "_cubediff_format": 1, "unet": ["diffusers", "UNet"]})
    content = file.read_bytes()
    for index in outcomes(file, [*cuts(content[:-1]), *other_types(content)], lambda: read_index(tmp_path)):
        assert isinstance(index, dict)
    write_json(file, {"_cubediff_format": 2})
    with pytest.raises(DataError, match=r"model_index\.json was written by a newer version of cubediff \(format 2"):
        read_index(tmp_path)


def test_run_lock(tmp_path: Path) -> None:
    file = tmp_path / lock.LOCK
    with lock.lock_run(tmp_path):
        content = file.read_bytes()
    for damaged in (*cuts(content[:-1]), *other_types(content)):
        file.write_bytes(damaged)
        try:
            assert isinstance(lock._read(tmp_path), lock.Holder)
        except ValueError:
            continue


def test_the_record_of_an_interrupted_build(tmp_path: Path) -> None:
    """A damaged record is as none: the panorama is read again."""
    file, entry = tmp_path / "a.json", Entry("a.jpg", "caption", None, "scene")
    record = {
        "stamp": "s",
        "jpeg": "a.jpg",
        "crc32": 1,
        "bytes": 2,
        "width": 4,
        "height": 2,
        "hash": "00",
        "record": {},
    }
    write_json(file, record)
    content = file.read_bytes()
    for damaged in (*cuts(content[:-1]), *other_types(content)):
        file.write_bytes(damaged)
        assert isinstance(_load_record(file, tmp_path / "a.jpg", "s", entry), Accepted | Rejection | None)


def test_checkpoints(tmp_path: Path) -> None:
    """A checkpoint that is cut or filled with zeros is damaged, and never taken for one with other content."""
    file = tmp_path / "step00000001.ckpt"
    content = {"state_dict": {"weight": torch.arange(3000.0)}, "global_step": 1, "cubediff": {"name": "a"}}
    torch.save(content, file)
    whole = file.read_bytes()
    for damaged in cuts(whole):
        file.write_bytes(damaged)
        assert (find_damage(file) is None) == (damaged == whole)
        assert (LoadedCheckpoint().verify(file) is None) == (damaged == whole)
        if damaged != whole:
            with pytest.raises(ValueError, match=r"step00000001\.ckpt is not a checkpoint"):
                read_saved_run(file)


@pytest.mark.parametrize("version", [None, 1, 3])
def test_an_absent_version_is_the_first(version: int | None) -> None:
    check_version(version, 3, "file")


@pytest.mark.parametrize("version", [0, -1, "1", True, 1.0, [1]])
def test_a_version_that_is_no_positive_integer_is_damage(version: object) -> None:
    with pytest.raises(DataError, match=r"^file is damaged: expected a positive integer as its format's version, got "):
        check_version(version, 3, "file")
