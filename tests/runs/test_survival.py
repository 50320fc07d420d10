"""Runs that are stopped by signals, killed or hung resume to the weights of an uninterrupted run."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from support.processes import ONE, TWO, Run, difference, gone, saved

pytestmark = pytest.mark.ddp

STEPS = "trainer.max_steps=10"


@pytest.fixture(scope="module")
def reference_runs(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Uninterrupted runs of one and of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    for name, words in (("one", ONE), ("two", TWO)):
        run = Run(tiny_shards, folder / name, *words, STEPS)
        assert run.ended() == 0, run.output
    return {"one": folder / "one", "two": folder / "two"}


TOLD = ["the one process", "rank 1", *(pytest.param(who, marks=pytest.mark.slow) for who in ("rank 0", "both"))]


@pytest.mark.parametrize("who", TOLD)
def test_sigterm_saves_a_checkpoint_exits_with_143_and_the_run_resumes_bit_by_bit(
    tiny_shards: Path, tmp_path: Path, reference_runs: dict[str, Path], who: str
) -> None:
    kind, words = ("one", ONE) if who == "the one process" else ("two", TWO)
    run = Run(tiny_shards, tmp_path / "run", *words, STEPS).after(3)
    pids = [run.process.pid, *run.children]
    assert len(pids) == (1 if kind == "one" else 2)
    for pid in {"rank 0": pids[:1], "rank 1": pids[1:]}.get(who, pids):
        os.kill(pid, signal.SIGTERM)
    assert run.ended() == 128 + signal.SIGTERM, run.output
    assert gone(*pids)
    step = saved(tmp_path / "run")["global_step"]
    assert 3 <= step < 10
    assert f"stopped by a signal: saved {tmp_path / 'run' / 'checkpoints'}/step{step:08d}.ckpt" in run.output
    again = Run(tiny_shards, tmp_path / "run", *words, STEPS)
    assert again.ended() == 0, again.output
    assert f"resuming from {tmp_path / 'run' / 'checkpoints'}/step{step:08d}.ckpt" in again.output
    assert difference(saved(reference_runs[kind]), saved(tmp_path / "run")) == []


def test_slurms_signal_requeues_the_job(tiny_shards: Path, tmp_path: Path) -> None:
    queue = tmp_path / "scontrol"
    queue.write_text(f"#!/bin/sh\necho $* > {tmp_path / 'queued'}\n")
    queue.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "bash"}
    run = Run(tiny_shards, tmp_path / "run", *ONE, STEPS, **environment).after(2)
    run.process.send_signal(signal.SIGUSR1)
    assert run.ended() == 128 + signal.SIGTERM, run.output
    assert (tmp_path / "queued").read_text() == "requeue 17\n"
    assert saved(tmp_path / "run")["global_step"] < 10


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_with_the_weights_of_an_uninterrupted_run(
    tiny_shards: Path, tmp_path: Path
) -> None:
    """A checkpoint is written at every step, so that many are killed while one is being written."""
    rng = random.Random(0)
    during = 0
    run = Run(tiny_shards, tmp_path / "run", *ONE, STEPS)
    for kill in range(20):
        before = {file.name for file in run.checkpoints.glob("step*.ckpt")}
        deadline = time.monotonic() + 120
        while {file.name for file in run.checkpoints.glob("step*.ckpt")} <= before and run.process.poll() is None:
            assert time.monotonic() < deadline, run.output  # else it is killed before it has begun
            time.sleep(0.001)
        moment = time.monotonic() + rng.uniform(0, 0.3)
        while time.monotonic() < moment and not (kill % 3 == 0 and list(run.checkpoints.glob(".*.part"))):
            pass
        if run.process.poll() is not None:
            break
        run.process.kill()
        run.process.wait()
        during += bool(list(run.checkpoints.glob(".*.part")))
        assert saved(tmp_path / "run")["global_step"] >= 1  # last.ckpt never links to a damaged file
        run = Run(tiny_shards, tmp_path / "run", *ONE, "trainer.max_steps=40")
    assert run.ended() == 0, run.output
    print(f"killed {kill + 1} times, {during} of them while a checkpoint was being written")
    assert during > 0
    reference = Run(tiny_shards, tmp_path / "reference", *ONE, "trainer.max_steps=40")
    assert reference.ended() == 0, reference.output
    assert difference(saved(tmp_path / "reference"), saved(tmp_path / "run")) == []


def test_a_stopped_rank_is_named_and_all_processes_end(tiny_shards: Path, tmp_path: Path) -> None:
    run = Run(tiny_shards, tmp_path / "run", *TWO, "trainer.max_steps=1000", "callbacks.watchdog.seconds=4").after(2)
    pids = [run.process.pid, *run.children]
    os.kill(pids[1], signal.SIGSTOP)
    assert run.ended() == 1, run.output
    assert gone(*pids)
    assert "error: rank 1 (" in run.output
    assert f"process {pids[1]}) has sent no heartbeat for 4 s; its last activity: " in run.output


@pytest.mark.slow
def test_a_stopped_rank_0_is_named_by_the_others(tiny_shards: Path, tmp_path: Path) -> None:
    run = Run(tiny_shards, tmp_path / "run", *TWO, "trainer.max_steps=1000", "callbacks.watchdog.seconds=4").after(2)
    (child,) = run.children
    run.process.send_signal(signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 60
        while "error: rank 0 has sent no heartbeat for 4 s" not in run.output:
            assert time.monotonic() < deadline, run.output
            time.sleep(0.1)
    finally:
        run.process.kill()
        run.process.wait()
    assert gone(child)
