"""Jobs under torchrun: every process generates its share, and the files are those of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.builds import contents
from support.generating import jobs_file
from support.processes import children
from support.promises import promised

from cubediff.generation.command import make_batches
from cubediff.generation.jobs import read_jobs

LINES = [
    {"prompt": "a hall", "count": 3, "name": "hall"},
    {"prompt": "a lake", "steps": 3},
    {"prompt": {face: face for face in ("front", "right", "back", "left", "up", "down")}, "format": "png"},
    {"image": "photo.png", "name": "photo", "save_faces": True},
    {"prompt": "a lane", "image": {"file": "photo.png", "fov": 70, "yaw": 90}, "seed": 5},
]


def start(ranks: int, *words: object) -> subprocess.Popen[str]:
    """Starts the command, under torchrun if there are several ranks."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone"] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "cubediff.generate", *map(str, words), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors[-3000:]
    return output, errors


@pytest.mark.slow
def test_two_processes_write_the_files_of_one_also_after_they_were_killed(
    model: Path, photo: Path, tmp_path: Path
) -> None:
    promised(
        "docs/generation.md",
        "Under torchrun, every process generates its share of the panoramas on its own GPU. The files are the same for "
        "any number of processes, also after an interruption.",
        "The same command resumes after an interruption",
    )
    (tmp_path / "photo.png").write_bytes(photo.read_bytes())
    words = ("--model", model, "--jobs", jobs_file(tmp_path, *LINES), "--batch", 2, "--steps", 40)
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start(1, *words, "--output", one))

    killed = start(2, *words, "--output", two)
    deadline = time.monotonic() + 300
    while not list(two.glob("*/generation.json")):
        assert killed.poll() is None, killed.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for pid in (*children(killed.pid), killed.pid):
        os.kill(pid, signal.SIGKILL)
    killed.communicate()
    done = len(list(two.glob("*/generation.json")))
    assert 0 < done < 7
    assert not (two / "index.html").exists()

    output, errors = finish(start(2, *words, "--output", two))
    assert f"{done} of 7 panoramas exist already" in errors
    assert str(two / "index.html") in output.splitlines()
    assert contents(two) == contents(one)
    assert (
        sorted(path.name for path in two.glob("*/generation.json") if json.loads(path.read_text()))
        == ["generation.json"] * 7
    )

    output, errors = finish(start(2, *words, "--output", two))
    assert "7 of 7 panoramas exist already" in errors
    assert output.split() == [str(two / "index.html")]


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_of_them(model: Path, tmp_path: Path) -> None:
    jobs = jobs_file(tmp_path, {"prompt": "a hall"}, {"prompt": "a lake", "face_size": 9})
    _, errors = finish(start(2, "--model", model, "--jobs", jobs, "--output", tmp_path / "out", "--steps", 2), code=1)
    assert "line 2: face_size must be a multiple of 8, got 9" in errors


@pytest.mark.slow
def test_the_second_process_of_a_single_panorama_has_nothing_to_do(model: Path, tmp_path: Path) -> None:
    output, _ = finish(start(2, "--model", model, "--prompt", "a hall", "--output", tmp_path / "out", "--steps", 1))
    assert sorted(output.split()) == sorted(str(path) for path in (tmp_path / "out").iterdir())


def test_batches_depend_on_all_jobs_and_hold_what_one_call_can_sample(tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    jobs = read_jobs(jobs_file(tmp_path, *LINES))
    names = [[job.name for job in batch] for batch in make_batches(jobs, 2)]
    assert names == [["hall-001", "hall-002"], ["hall-003"], ["000002"], ["000003"], ["photo"], ["000005"]]
    alike = jobs_file(tmp_path, *({"prompt": "a", "negative_prompt": text, "seed": i} for i, text in enumerate("bcd")))
    assert [len(batch) for batch in make_batches(read_jobs(alike), 2)] == [2, 1]
