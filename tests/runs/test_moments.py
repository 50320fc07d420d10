"""Commands that are terminated or killed at many moments, and end as if they had not been."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.builds import contents
from support.processes import ONE, TINY, Run, difference, gone, saved
from support.runs import validations

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

STEPS = 40
# Validated and sampled after every third step.
SETTINGS = tuple(word for word in TINY if not word.startswith(("trainer.limit_val", "callbacks.samples")))
WORDS = (*ONE, f"trainer.max_steps={STEPS}", "trainer.val_check_interval=3", "callbacks.samples.count=2")
PHASES = {  # seconds after the beginning of a step, a validation or an export
    "training": (0.0, 0.3),
    "validating": (0.0, 0.1),
    "sampling": (0.2, 0.8),
    "exporting": (0.0, 0.0),
}


def reach(run: Run, phase: str, seconds: float) -> bool:
    """Waits until the run has been in a phase for some seconds; False if it has ended before."""
    before, printed = set(run.checkpoints.glob("step*.ckpt")), len(run.output)
    begun: dict[str, Callable[[], object]] = {
        "training": lambda: set(run.checkpoints.glob("step*.ckpt")) - before,
        "exporting": lambda: list(run.checkpoints.parent.glob(".export.part/*")),
    }
    deadline = time.monotonic() + 120
    while not begun.get(phase, lambda: "validating" in run.output[printed:])() and run.process.poll() is None:
        assert time.monotonic() < deadline, run.output
        time.sleep(0.002)
    time.sleep(seconds)
    return run.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_ended_at_twenty_moments_equals_an_uninterrupted_one(
    tiny_shards: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Weights, optimizer, EMA, stream, validation losses, samples and export; SIGTERM ends it within 5 s on an idle
    machine, and the longest time is printed."""
    rng, longest = random.Random(0), 0.0
    reference = Run(tiny_shards, tmp_path / "reference", *WORDS, settings=SETTINGS)
    assert reference.ended() == 0, reference.output
    ended = dict.fromkeys(PHASES, 0)
    moments = [*(phase for phase in ("training", "validating", "sampling") for _ in range(6)), *["exporting"] * 2]
    for phase in moments:
        run = Run(tiny_shards, tmp_path / "run", *WORDS, settings=SETTINGS)
        if not reach(run, phase, rng.uniform(*PHASES[phase])):
            assert run.ended() == 0, run.output
            continue
        children = run.children
        began = time.monotonic()
        run.process.send_signal(number)
        code = run.ended()
        longest = max(longest, time.monotonic() - began)
        assert gone(run.process.pid, *children)
        if code == 0:  # it has ended by itself in this moment
            continue
        assert code == (128 + number if number == signal.SIGTERM else -number), run.output
        ended[phase] += 1
    run = Run(tiny_shards, tmp_path / "run", *WORDS, settings=SETTINGS)
    assert run.ended() == 0, run.output
    print(f"{number.name}: {ended}, ended after at most {longest:.1f} s")
    assert min(ended.values()) > 0
    assert difference(saved(tmp_path / "reference"), saved(tmp_path / "run")) == []
    assert dict(validations(tmp_path / "run")) == dict(validations(tmp_path / "reference"))
    for folder in ("samples", "export"):
        whole, again = (contents(tmp_path / name / folder) for name in ("reference", "run"))
        assert whole
        assert again == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_caching_ended_at_twenty_moments_writes_the_same_files(
    tiny_shards: Path, tmp_path: Path, number: signal.Signals
) -> None:
    rng = random.Random(0)

    def command(output: str) -> list[str]:
        words = ["model=tiny_random", "trainer=cpu", "face_size=64", "data.num_workers=1", "cache.turns=40"]
        return [sys.executable, "-m", "cubediff.cache", *words, f"data.path={tiny_shards}", f"cache.output={output}"]

    def start(output: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command(output), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    assert start("whole").wait() == 0
    whole = contents(tmp_path / "whole")
    stopped, outputs = 0, ["out0"]
    for _ in range(20):
        folder = tmp_path / outputs[-1]
        process, before = start(outputs[-1]), set(folder.rglob("*"))
        deadline = time.monotonic() + 120
        while process.poll() is None and before.issuperset(folder.rglob("*")):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(number)
        stopped += process.wait(120) in (-number, 128 + number)
        if (folder / "manifest.json").exists():
            found = contents(folder)
            for name in ("settings.json", ".cubediff.lock"):  # killed after the last file, before it removed these
                found.pop(name, None)
            assert found == whole
            outputs.append(f"out{len(outputs)}")
    assert start(outputs[-1]).wait() == 0
    print(f"{number.name}: stopped {stopped} times, {len(outputs)} times until the end")
    assert stopped > 10
    assert contents(tmp_path / outputs[-1]) == whole
