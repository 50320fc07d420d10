"""Runs that are stopped by signals, killed or hung resume to the weights of an uninterrupted run."""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from support.processes import ONE, PARTS, TINY, TWO, Run, difference, gone, saved
from support.promises import promised

pytestmark = pytest.mark.ddp

STEPS = "trainer.max_steps=10"
# PYTHONPATH for targets of `support`.
SUPPORT = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))


@pytest.fixture(scope="module")
def reference_run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Trains without interruption in one process or in two."""
    folder = tmp_path_factory.mktemp("whole")

    @cache
    def train(kind: str) -> Path:
        run = Run(tiny_shards, folder / kind, *{"one": ONE, "two": TWO}[kind], STEPS)
        assert run.ended() == 0, run.output
        return folder / kind

    return train


@pytest.mark.slow
@pytest.mark.parametrize("who", ["the one process", "rank 0", "rank 1", "both"])
def test_sigterm_saves_a_checkpoint_exits_with_143_and_the_run_resumes_bit_by_bit(
    tiny_shards: Path, tmp_path: Path, reference_run: Callable[[str], Path], who: str
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
    assert difference(saved(reference_run(kind)), saved(tmp_path / "run")) == []


@pytest.mark.slow
def test_a_signal_during_another_ranks_stalled_read_stops_all_ranks(
    tiny_shards: Path, tmp_path: Path, reference_run: Callable[[str], Path]
) -> None:
    """Rank 1 waits for a sample that never arrives, and rank 0, which receives the signal, for rank 1."""
    stall = "data.stages=[{_target_: support.moments.stall_rank_1}]"
    run = Run(tiny_shards, tmp_path / "run", *TWO, STEPS, stall, STALL_AT="7", PYTHONPATH=SUPPORT).after(3)
    time.sleep(1.0)
    sent = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.ended() == 128 + signal.SIGTERM, run.output
    assert time.monotonic() - sent < 10
    assert saved(tmp_path / "run")["global_step"] == 3
    assert '"status": "cut"' in (tmp_path / "run/result.json").read_text()
    again = Run(tiny_shards, tmp_path / "run", *TWO, STEPS, stall, PYTHONPATH=SUPPORT)
    assert again.ended() == 0, again.output
    assert difference(saved(reference_run("two"))["state_dict"], saved(tmp_path / "run")["state_dict"]) == []


@pytest.mark.slow
def test_a_killed_rank_is_named_and_rank_0_saves_its_last_step(tiny_shards: Path, tmp_path: Path) -> None:
    run = Run(tiny_shards, tmp_path / "run", *TWO, "trainer.max_steps=1000").after(2)
    (child,) = run.children
    os.kill(child, signal.SIGKILL)
    assert run.ended() == 1, run.output
    last = run.output.strip().splitlines()[-1]
    assert (
        last
        == f"error: rank 1 (process {child}) was killed by SIGKILL; the same command resumes from the last checkpoint"
    )
    assert '"status": "failed"' in (tmp_path / "run/result.json").read_text()


SPARSE = [word for word in TINY if not word.startswith("callbacks.checkpoint.")]  # no checkpoint but at the end
CALLBACK = "+callbacks.fails={{_target_: support.failures.Fails, rank: {rank}, place: {place}, step: 3}}"
LOGGER = "+logger.fails={{_target_: support.failures.FailingLogger, save_dir: {folder}, rank: {rank}, step: 3}}"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["forward", "step_end", "logger"])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_on_one_of_two_ranks_ends_both_with_its_cause_and_a_checkpoint(
    tiny_shards: Path, tmp_path: Path, rank: int, place: str
) -> None:
    promised(
        "docs/resume.md",
        "every rank ends within seconds, an error names the rank and the reason, and rank 0 saves its last finished "
        "step; a sharded network (`trainer=fsdp`) saves together with all ranks only, and resumes from its last "
        "checkpoint",
    )
    word = (LOGGER if place == "logger" else CALLBACK).format(rank=rank, place=place, folder=tmp_path / "log")
    words = (*TWO, "trainer.max_steps=1000", word)
    run = Run(tiny_shards, tmp_path / "run", *words, settings=SPARSE, PYTHONPATH=SUPPORT)
    failed_at = run.says("ZeroDivisionError: broken")
    assert run.ended() == 1, run.output
    assert time.monotonic() - failed_at < 20
    assert (
        len(
            re.findall(rf"rank {rank} \(.*, process \d+\) has failed: ZeroDivisionError: broken in {place}", run.output)
        )
        == 1
    )
    last = run.output.strip().splitlines()[-1]
    if rank == 1:
        assert last.startswith("error: rank 1 (")
        assert last.endswith(f"has failed: ZeroDivisionError: broken in {place}")
    assert saved(tmp_path / "run")["global_step"] >= 3
    assert '"status": "failed"' in (tmp_path / "run/result.json").read_text()


@pytest.mark.slow
def test_an_exception_on_one_rank_of_a_sharded_network_says_where_the_run_resumes(
    tiny_shards: Path, tmp_path: Path
) -> None:
    words = (*PARTS, "trainer.max_steps=1000", CALLBACK.format(rank=1, place="forward"))
    run = Run(tiny_shards, tmp_path / "run", *words, "callbacks.checkpoint.every_n_steps=2", settings=SPARSE,
              PYTHONPATH=SUPPORT)  # fmt: skip
    failed_at = run.says("ZeroDivisionError: broken")
    assert run.ended() == 1, run.output
    assert time.monotonic() - failed_at < 20
    assert "a sharded network needs all ranks to save a checkpoint, it resumes from step 2" in run.output
    assert run.output.strip().splitlines()[-1].endswith("has failed: ZeroDivisionError: broken in forward")
    assert saved(tmp_path / "run")["global_step"] == 2


@pytest.mark.slow
def test_slurms_signal_requeues_the_job(tiny_shards: Path, tmp_path: Path) -> None:
    queue = tmp_path / "scontrol"
    queue.write_text(f"#!/bin/sh\necho $* > {tmp_path / 'queued'}\n")
    queue.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "bash"}
    run = Run(tiny_shards, tmp_path / "run", *ONE, STEPS, **environment).after(2)
    run.process.send_signal(signal.SIGUSR1)
    assert run.ended() == 128 + signal.SIGTERM, run.output
    assert (tmp_path / "queued").read_text() == "requeue 17\n"
    assert f": run_dir={tmp_path / 'run'} resumes the run\n" in run.output
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


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_all_processes_end(tiny_shards: Path, tmp_path: Path) -> None:
    run = Run(tiny_shards, tmp_path / "run", *TWO, "trainer.max_steps=1000", "callbacks.watchdog.seconds=4").after(2)
    pids = [run.process.pid, *run.children]
    os.kill(pids[1], signal.SIGSTOP)
    assert run.ended() == 1, run.output
    assert gone(*pids)
    assert "error: rank 1 (" in run.output
    assert f"process {pids[1]}) has sent no heartbeat for 4 s; its last activity: " in run.output


@pytest.mark.slow
def test_a_removed_run_folder_ends_the_run_with_one_error_and_its_checkpoint(tiny_shards: Path, tmp_path: Path) -> None:
    run = Run(tiny_shards, tmp_path / "run", *ONE, "trainer.max_steps=1000").after(2)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert run.ended() == 1, run.output
    error = run.output.strip().splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'run'}/")
    assert error.endswith("check the name, and whether it was removed or renamed during the run")
    assert "Traceback" not in run.output
    assert saved(tmp_path / "run")["global_step"] >= 2


@pytest.mark.slow
def test_a_run_whose_processes_were_all_paused_goes_on(tiny_shards: Path, tmp_path: Path) -> None:
    run = Run(tiny_shards, tmp_path / "run", *TWO, "trainer.max_steps=400", "callbacks.watchdog.seconds=4").after(2)
    pids = [run.process.pid, *run.children]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            os.kill(pid, number)
        time.sleep(10.0)
    run.process.send_signal(signal.SIGTERM)
    assert run.ended() == 128 + signal.SIGTERM, run.output
    assert "no heartbeat" not in run.output


@pytest.mark.slow
def test_a_stopped_rank_0_is_named_by_the_others(tiny_shards: Path, tmp_path: Path) -> None:
    run = Run(tiny_shards, tmp_path / "run", *TWO, "trainer.max_steps=1000", "callbacks.watchdog.seconds=4").after(2)
    (child,) = run.children
    run.process.send_signal(signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 60
        while f"process {run.process.pid}) has sent no heartbeat for 4 s" not in run.output:
            assert time.monotonic() < deadline, run.output
            time.sleep(0.1)
    finally:
        run.process.kill()
        run.process.wait()
    assert gone(child)
