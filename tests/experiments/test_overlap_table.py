"""experiments/cubediff_tiny/overlap.py at a small scale."""

import json
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

from cubediff.pipelines.loading import tiny_random

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_table_has_two_rows_for_each_scheduler(tmp_path: Path) -> None:
    tiny_random().save_pretrained(tmp_path / "model")
    names = ("courtyard", "hotel_room")
    records = [{"file": str(ROOT / f"data/samples/{name}.jpg"), "caption": name} for name in names]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, records)))
    words = (
        "experiments/cubediff_tiny/overlap.py",
        tmp_path / "model",
        tmp_path,
        tmp_path / "out",
        "--evaluations",
        "2",
    )
    schedulers = ("DDIMScheduler", "HeunDiscreteScheduler")
    done = subprocess.run(
        [sys.executable, *map(str, words), "--schedulers", *schedulers],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert rows == ["real", "DDIMScheduler", "with", "HeunDiscreteScheduler", "with"]
    results = json.loads((tmp_path / "out" / "overlap.json").read_text())
    for name in schedulers:
        assert results[name]["with"]["colour_step"] != results[name]["without"]["colour_step"]
    with PIL.Image.open(tmp_path / "out" / "overlap.jpg") as picture:
        assert picture.size == (2 * (256 + 4), 2 * (128 + 4))
