"""What data/README.md promises of `cubediff prepare`, as commands in processes of their own."""

import json
import unicodedata
from pathlib import Path

from support.builds import contents, panoramas
from support.prepare import prepare
from support.promises import promised


def test_no_file_of_the_user_is_lost(tmp_path: Path) -> None:
    promised("data/README.md", "other files in it are refused before anything is written, also with `--overwrite`.")
    source = panoramas(tmp_path / "in", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-000000.tar").write_text("of someone else")
    before = contents(tmp_path)
    done = prepare(source, tmp_path / "out", "--overwrite")
    assert done.returncode == 1
    assert "train-000000.tar" in done.stderr
    assert done.stderr.count("\n") == 1
    assert contents(tmp_path) == before


def test_everything_in_the_source_is_built_or_listed_with_a_reason(tmp_path: Path) -> None:
    promised("data/README.md", "Every panorama and every caption in SOURCE is either built or listed with a reason")
    promised("data/README.md", "Names in captions match those of files in any Unicode normal form")
    source, linked = tmp_path / "in", panoramas(tmp_path / "elsewhere", 2)
    source.mkdir()
    (source / "set").symlink_to(linked)
    (source / "lost.png").symlink_to(tmp_path / "nowhere")
    (linked / "pano 0.png").rename(linked / unicodedata.normalize("NFD", "é.png"))
    lines = [{"file": f"set/{name}", "caption": "c"} for name in ("é.png", "pano 1.png", "pano 2.png")]
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = prepare(source, tmp_path / "out")
    assert done.returncode == 0
    assert "1 training and 1 validation panoramas" in done.stdout
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [line["file"] for line in rejected] == ["lost.png", "set/pano 2.png"]
    assert "2 rejected, reasons in" in done.stdout


def test_a_hugging_face_folder_keeps_its_splits_and_globs_select_from_it(tmp_path: Path) -> None:
    promised("data/README.md", "folders and Parquet files named `train`, `validation` or `test` declare the split")
    source = tmp_path / "in"
    for folder, count in (("train", 3), ("validation", 2)):
        (panoramas(source / folder, count) / "captions.jsonl").unlink()
        rows = ["file_name,text", *(f"pano {i}.png,a hall" for i in range(count))]
        (source / folder / "metadata.csv").write_text("\n".join(rows))
    done = prepare(source, tmp_path / "out", "--exclude", "train/*2.png", "--val-fraction", "0")
    assert done.returncode == 0, done.stderr
    assert "2 training and 2 validation panoramas" in done.stdout
    assert "none rejected" in done.stdout
