"""The panoramas in data/samples match data/README.md: 2:1, captioned, free to share."""

import json
from pathlib import Path

from PIL import Image

DATA = Path(__file__).parents[2] / "data"
RECORDS = [json.loads(line) for line in (DATA / "samples/captions.jsonl").read_text().splitlines()]


def test_every_sample_has_one_record_and_every_record_a_sample() -> None:
    files = [record["file"] for record in RECORDS]
    assert files == sorted({path.name for path in (DATA / "samples").glob("*.jpg")})
    assert len(files) == 25
    assert len({record["asset"] for record in RECORDS}) == 25


def test_every_sample_is_a_full_panorama_of_its_listed_size_and_source() -> None:
    page = (DATA / "README.md").read_text()
    for record in RECORDS:
        with Image.open(DATA / "samples" / record["file"]) as image:
            image.load()
        assert image.mode == "RGB"
        assert image.width == 2 * image.height
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{record['file']}` |")]
        assert f"| {image.width}×{image.height} |" in row
        assert Path(record["source"]).name in row
        assert record["licence"] == "CC0-1.0"


def test_captions_are_not_empty_and_every_face_has_a_different_one() -> None:
    for record in RECORDS:
        assert list(record["faces"]) == ["front", "right", "back", "left", "up", "down"]
        texts = [record["caption"], *record["faces"].values()]
        assert len(set(texts)) == 7
        assert all(len(text) > 15 and text == text.strip() for text in texts)
