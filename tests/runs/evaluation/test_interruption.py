"""Evaluations that are killed in the middle, by one process and by two under torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.generating import SAMPLES, save_model
from support.processes import children
from support.promises import promised


def command(ranks: int, model: Path, output: Path, cache: Path) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone"] if ranks > 1 else []
    words = [
        f"pipeline={model}", f"reference={SAMPLES}", f"output={output}", f"cache={cache}", "count=6", "height=128",
        "generate.steps=20", "intervals.halves=3", "device=cpu",
        "metrics=[overlap_*,sharpness,fd_*,kd_*,retrieval_*]",
    ]  # fmt: skip
    return [sys.executable, *launcher, "-m", "cubediff.evaluate", *words]


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    return output


def results(output: Path) -> str:
    """The content of metrics.json, but for the path of the samples."""
    return (output / "metrics.json").read_text(encoding="utf-8").replace(str(output), "OUTPUT")


@pytest.mark.slow
def test_killed_evaluations_go_on_and_end_with_the_results_of_an_undisturbed_one(tmp_path: Path) -> None:
    promised(
        "docs/evaluation.md",
        "The same command resumes after an interruption, and under torchrun the processes share the generation. "
        "`metrics.json` is the same in any case.",
    )
    model = save_model(tmp_path / "model")
    undisturbed = tmp_path / "undisturbed"
    printed = finish(start(*command(1, model, undisturbed, tmp_path / "cache")))
    assert printed.strip().endswith("report.html")
    for ranks in (1, 2):
        output = tmp_path / f"killed_{ranks}"
        process = start(*command(ranks, model, output, tmp_path / f"cache_{ranks}"))
        deadline = time.monotonic() + 300
        while not list(output.glob("samples/*/generation.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for pid in (*children(process.pid), process.pid):  # torchrun's processes are in sessions of their own
            os.kill(pid, signal.SIGKILL)
        process.communicate()
        assert not (output / "metrics.json").exists()
        assert 0 < len(list(output.glob("samples/*/generation.json"))) < 6
        printed = finish(start(*command(ranks, model, output, tmp_path / f"cache_{ranks}")))
        assert printed.count("report.html") == 1
        assert results(output) == results(undisturbed)
