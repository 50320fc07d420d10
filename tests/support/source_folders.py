"""A small folder of each type that `cubediff prepare` detects, with files in several folders."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from support.pictures import picture


def _save(path: Path, seed: int, size: tuple[int, int] = (64, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, *size).save(path)


def _sidecars(folder: Path) -> None:
    for seed, name in enumerate(("a", "more/b", "more/deep/c")):
        _save(folder / f"{name}.jpg", seed)
        (folder / f"{name}.txt").write_text(f"caption {seed}")


def _captions_file(folder: Path) -> None:
    names = [f"{room}/{i}.png" for room in ("hall", "attic") for i in range(2)]
    for seed, name in enumerate(names):
        _save(folder / name, seed)
    (folder / "captions.jsonl").write_text("".join(json.dumps({"file": n, "caption": n}) + "\n" for n in names))


def _radiance(folder: Path) -> None:
    for seed, name in enumerate(("day", "night/sky")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{name}.hdr"), np.asarray(picture(seed), np.float32) / 99)
        (folder / f"{name}.txt").write_text(f"caption {seed}")


def _cubemaps(folder: Path) -> None:
    for scene in range(3):
        for face, name in enumerate(("px", "nx", "py", "ny", "pz", "nz")):
            _save(folder / f"scene {scene}/{name}.png", 6 * scene + face, (16, 16))
        (folder / f"scene {scene}.txt").write_text(f"caption {scene}")


def _image_folder(folder: Path) -> None:
    for side in ("train", "validation"):
        for i in range(2):
            _save(folder / side / f"{i}.jpg", i + 2 * (side == "train"))
        lines = [json.dumps({"file_name": f"{i}.jpg", "text": f"{side} {i}"}) + "\n" for i in range(2)]
        (folder / side / "metadata.jsonl").write_text("".join(lines))


def _parquet(folder: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (folder / "data").mkdir(parents=True)
    for number, side in enumerate(("train", "validation")):
        rows = [{"image": _jpeg(3 * number + i), "text": f"{side} {i}"} for i in range(3)]
        parquet.write_table(arrow.Table.from_pylist(rows), folder / f"data/{side}-00000.parquet")


def _tars(folder: Path) -> None:
    for number in range(2):
        (folder / f"part {number}").mkdir(parents=True)
        with tarfile.open(folder / f"part {number}/shard.tar", "w") as tar:
            for i in range(2):
                for name, data in ((f"{i}.jpg", _jpeg(2 * number + i)), (f"{i}.txt", b"a caption")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _structured3d(folder: Path) -> None:
    for scene in range(2):
        room = folder / f"scene_{scene:05d}/2D_rendering/485142/panorama"
        for furniture in ("empty", "full"):
            _save(room / furniture / "rgb_rawlight.png", scene)
        (room / "full/rgb_rawlight.txt").write_text(f"caption {scene}")


def _matterport3d(folder: Path) -> None:
    for number, scan in enumerate(("17DRP5sb8fy", "1LXtFkjw3qL")):
        images = folder / scan / "matterport_skybox_images"
        for face in range(6):
            _save(images / f"af9_skybox{face}_sami.jpg", 6 * number + face, (16, 16))
        (images / "af9.txt").write_text(f"caption {number}")
        _save(folder / scan / "matterport_color_images/af9_i0_0.jpg", 1, (80, 64))


def _jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "JPEG")
    return buffer.getvalue()


SOURCE_FOLDERS: dict[str, tuple[Callable[[Path], None], int]] = {  # writes the folder; number of its panoramas
    "sidecars": (_sidecars, 3),
    "captions.jsonl": (_captions_file, 4),
    "radiance": (_radiance, 2),
    "cubemaps": (_cubemaps, 3),
    "imagefolder": (_image_folder, 4),
    "parquet": (_parquet, 6),
    "tars": (_tars, 4),
    "structured3d": (_structured3d, 2),
    "matterport3d": (_matterport3d, 2),
}


def write_source_folder(folder: Path, kind: str) -> int:
    """Writes a folder of one of the types of `SOURCE_FOLDERS`; returns the number of its panoramas."""
    write, count = SOURCE_FOLDERS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    write(folder)
    return count
