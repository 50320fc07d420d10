"""What data/README.md promises of `cubediff prepare`, as commands in processes of their own."""

import subprocess
import sys
from pathlib import Path

from support.builds import contents, panoramas

README = (Path(__file__).parents[3] / "data" / "README.md").read_text(encoding="utf-8")


def prepare(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cubediff", "prepare", *map(str, words), "--workers", "1"]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def promised(sentence: str) -> None:
    assert sentence in " ".join(README.split()), "update the test together with the sentence"


def test_no_file_of_the_user_is_lost(tmp_path: Path) -> None:
    promised("other files in it are refused before anything is written, also with `--overwrite`.")
    source = panoramas(tmp_path / "in", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-000000.tar").write_text("of someone else")
    before = contents(tmp_path)
    done = prepare(source, tmp_path / "out", "--overwrite")
    assert done.returncode == 1
    assert "train-000000.tar" in done.stderr
    assert done.stderr.count("\n") == 1
    assert contents(tmp_path) == before
