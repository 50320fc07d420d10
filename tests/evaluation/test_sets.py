"""Sets of panoramas: folders, shards, and what `cubediff generate` wrote."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.generating import SAMPLES, save_model, succeed

from cubediff.data.building.write import build_shards
from cubediff.data.sources import open_source
from cubediff.evaluation.opened_sets import open_set
from cubediff.evaluation.sets import Mapped, Sized, in_order_of
from cubediff.geometry import FACES
from cubediff.utils.errors import DataError

NAMES = ["courtyard", "dancing_hall", "hotel_room"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three of the samples with their captions."""
    found = tmp_path / "panoramas"
    found.mkdir()
    lines = (SAMPLES / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = [line for line in lines if Path(json.loads(line)["file"]).stem in NAMES]
    (found / "captions.jsonl").write_text("\n".join(chosen))
    for name in NAMES:
        shutil.copy(SAMPLES / f"{name}.jpg", found)
    return found


def test_a_folder_and_its_shards_are_the_same_set(folder: Path, tmp_path: Path) -> None:
    build_shards(open_source(folder), tmp_path / "shards", shard_size=2, val_fraction=0.0)
    plain, shards = open_set(folder), open_set(tmp_path / "shards")
    assert plain.names == sorted(shards.names) == NAMES
    for index, name in enumerate(NAMES):
        other = shards.names.index(name)
        assert plain.prompts[index] == shards.prompts[other]
        assert torch.equal(plain.panorama(index), shards.panorama(other))
        assert plain.faces(index) is None
        assert plain.photos(index) == []
    record = json.loads((folder / "captions.jsonl").read_text().splitlines()[0])
    assert plain.prompts[0].caption == record["caption"]
    assert plain.prompts[0].faces == tuple(record["faces"][face] for face in FACES)


def test_panoramas_are_read_as_opencv_reads_them(folder: Path) -> None:
    expected = cv2.imread(str(folder / "courtyard.jpg"))[..., ::-1] / 255
    found = open_set(folder).panorama(0).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() < 2.5 / 255  # decoders of JPEG may round differently


def test_png_files_keep_their_pixels(folder: Path) -> None:
    pixels = cv2.imread(str(folder / "courtyard.jpg"))
    (folder / "courtyard.jpg").unlink()
    cv2.imwrite(str(folder / "courtyard.png"), pixels)
    captions = (folder / "captions.jsonl").read_text()
    (folder / "captions.jsonl").write_text(captions.replace("courtyard.jpg", "courtyard.png"))
    assert np.array_equal((open_set(folder).panorama(0) * 255).round().permute(1, 2, 0).numpy(), pixels[..., ::-1])


def test_the_digest_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    digest = open_set(folder).digest()
    shutil.copytree(folder, tmp_path / "copy")
    assert open_set(tmp_path / "copy").digest() == digest
    others = {open_set(folder, 2).digest(), Sized(open_set(folder), 64, "resize").digest()}
    shutil.copy(folder / "hotel_room.jpg", folder / "courtyard.jpg")
    assert len({digest, open_set(folder).digest(), *others}) == 4


def test_a_count_takes_the_first(folder: Path) -> None:
    assert open_set(folder, 2).names == NAMES[:2]
    with pytest.raises(DataError, match="holds 3 panoramas, and count=4"):
        open_set(folder, 4)


def test_the_order_of_other_names(folder: Path) -> None:
    panoramas = open_set(folder)
    turned = in_order_of(panoramas, NAMES[::-1][:2])
    assert turned.names == NAMES[::-1][:2]
    assert torch.equal(turned.panorama(0), panoramas.panorama(2))
    assert turned.prompts[1] == panoramas.prompts[1]
    assert turned.digest() != panoramas.digest()
    assert in_order_of(panoramas, ["attic"]) is panoramas


def test_sizes(folder: Path) -> None:
    panoramas = open_set(folder)
    height = panoramas.panorama(0).shape[1]
    assert Sized(panoramas, height // 2, "shrink").panorama(0).shape == (3, height // 2, height)
    assert Sized(panoramas, 2 * height, "resize").panorama(0).shape == (3, 2 * height, 4 * height)
    for others in ("refuse", "shrink"):
        with pytest.raises(DataError, match=f"courtyard of .* has {height} rows, expected {2 * height}"):
            Sized(panoramas, 2 * height, others).panorama(0)
    with pytest.raises(DataError, match="pass height=ROWS"):
        Sized(panoramas, height // 2, "refuse").panorama(0)


def test_changed_copies_have_no_faces(folder: Path) -> None:
    panoramas = open_set(folder)
    copies = Mapped(panoramas, lambda panorama: panorama.flip(-1))
    assert torch.equal(copies.panorama(1), panoramas.panorama(1).flip(-1))
    assert copies.faces(1) is None
    assert copies.names == panoramas.names


def test_lines_and_files_that_do_not_match_are_refused(folder: Path) -> None:
    with (folder / "captions.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"file": "gone.jpg", "caption": "a hall"}))
    with pytest.raises(DataError, match=r"1 panoramas or lines cannot be used: gone\.jpg"):
        open_set(folder)


def test_a_damaged_panorama_is_named(folder: Path) -> None:
    content = (folder / "dancing_hall.jpg").read_bytes()
    (folder / "dancing_hall.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"dancing_hall\.jpg"):
        open_set(folder).panorama(1)


def test_what_generate_wrote_with_one_prompt_or_six(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    words = ("--save-faces", "--face-fov", 95, "--format", "png")
    succeed(model, tmp_path / "one", *words, prompt="a hall")
    one = open_set(tmp_path / "one")
    assert one.names == ["one"]
    assert (one.prompts[0].caption, one.prompts[0].faces) == ("a hall", None)
    saved = one.faces(0)
    assert saved is not None
    assert (saved.pixels.shape, saved.fov) == ((6, 3, 64, 64), 95.0)
    assert one.panorama(0).shape == (3, 128, 256)
    assert one.page(0) == tmp_path / "one/viewer.html"
    record = json.loads((tmp_path / "one/generation.json").read_text())
    (tmp_path / "one/generation.json").write_text(json.dumps({**record, "prompt": list(FACES)}))
    assert open_set(tmp_path / "one").prompts[0].faces == tuple(FACES)
    (tmp_path / "one/generation.json").write_text("{")
    with pytest.raises(DataError, match=r"generation\.json is damaged"):
        open_set(tmp_path / "one")
