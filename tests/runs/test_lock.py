"""One run at a time uses a run's folder; the lock of a process that has ended does not lock a run out."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.processes import ONE, TINY, TWO, Run
from support.runs import QUICK

from cubediff import train
from cubediff.runs import lock
from cubediff.runs.lock import LOCK, RunLockedError, lock_run
from cubediff.runs.sweeps.results import Result

ELSEWHERE = {"host": "node7", "machine": "another boot", "pid": 4711, "run": "of another machine"}


@contextmanager
def process() -> Iterator[int]:
    """The id of a living process that is not this one."""
    child = subprocess.Popen(["sleep", "600"])
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


def forge(folder: Path, seconds_ago: float, **changed: Any) -> None:
    """Writes a lock as this process would, with some values changed, whose last heartbeat was some time ago."""
    (folder / LOCK).unlink(missing_ok=True)
    with lock_run(folder):
        content = holder_of(folder)
    (folder / LOCK).write_text(json.dumps(content | changed))
    beat = time.time() - seconds_ago
    os.utime(folder / LOCK, (beat, beat))


def holder_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / LOCK).read_text())
    return content


def test_the_lock_names_its_holder_and_is_removed_at_the_end(tmp_path: Path) -> None:
    with lock_run(tmp_path / "run"):
        holder = holder_of(tmp_path / "run")
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
    assert not (tmp_path / "run" / LOCK).exists()
    with pytest.raises(KeyboardInterrupt), lock_run(tmp_path / "run"):
        raise KeyboardInterrupt
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_second_run_is_refused_with_host_process_time_and_remedy(tmp_path: Path) -> None:
    with lock_run(tmp_path):
        since = holder_of(tmp_path)["since"]
        message = (
            f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()} since {since}: wait until it "
        )
        with pytest.raises(RunLockedError) as error, lock_run(tmp_path):
            pytest.fail("two runs have the lock")
        assert str(error.value).startswith(message)
        assert str(error.value).endswith("or choose another run_dir")
        assert holder_of(tmp_path)["since"] == since


def test_on_this_machine_a_lock_is_stale_as_soon_as_its_process_has_ended(tmp_path: Path) -> None:
    with process() as pid:
        start = lock._process_start(pid)
        forge(tmp_path, 100_000, pid=pid, process_start=start)  # no heartbeat: the machine was suspended
        with pytest.raises(RunLockedError, match=f"process {pid} on"), lock_run(tmp_path):
            pass
        forge(tmp_path, 0, pid=pid, process_start="17")  # a process of an earlier time with the same id
        with lock_run(tmp_path):
            assert holder_of(tmp_path)["pid"] == os.getpid()
    forge(tmp_path, 0, pid=pid, process_start=start)
    with lock_run(tmp_path):
        assert holder_of(tmp_path)["pid"] == os.getpid()


def test_a_killed_process_that_nobody_has_waited_for_has_ended(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "600"])
    start = lock._process_start(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    forge(tmp_path, 0, pid=child.pid, process_start=start)
    with lock_run(tmp_path):
        pass
    child.wait()


@pytest.mark.parametrize("changed", [{"host": "node7"}, {"machine": "another container"}, ELSEWHERE])
def test_a_lock_of_another_machine_is_stale_five_minutes_after_its_last_heartbeat(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    host = changed.get("host", socket.gethostname())
    forge(tmp_path, 240, **changed)
    remedy = rf"works (5\d|60) s from now, 300 s after its last heartbeat, or at once if you remove {tmp_path / LOCK}"
    with pytest.raises(RunLockedError, match=rf"on {host} since .*{remedy}"), lock_run(tmp_path):
        pass
    assert holder_of(tmp_path)["host"] == host
    forge(tmp_path, 301, **changed)
    with lock_run(tmp_path):
        assert holder_of(tmp_path)["pid"] == os.getpid()


def test_a_job_that_slurm_has_requeued_to_another_machine_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    forge(tmp_path, 10, **ELSEWHERE | {"run": "slurm 17.0"})
    with pytest.raises(RunLockedError), lock_run(tmp_path):  # the same job, started once
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with lock_run(tmp_path):
        assert holder_of(tmp_path)["restarts"] == 1


def test_a_slurm_task_without_a_step_id_knows_the_run_of_rank_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with lock_run(tmp_path):
        assert holder_of(tmp_path)["run"] == "slurm 17"
        run_id = os.environ.pop("CUBEDIFF_RUN_ID")  # other tasks do not inherit it
        monkeypatch.setenv("SLURM_PROCID", "1")
        with lock_run(tmp_path):
            pass
        monkeypatch.setenv("SLURM_JOB_ID", "18")
        with pytest.raises(RunLockedError), lock_run(tmp_path):
            pass
        os.environ["CUBEDIFF_RUN_ID"] = run_id


@pytest.mark.parametrize("content", [b"", b'{"host": "node', b"\0" * 200, b"[1]", b'{"host": 1}', b"\xff\xfe"])
def test_a_damaged_lock_counts_as_one_of_another_machine(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK).write_bytes(content)
    with pytest.raises(RunLockedError, match=r"whose name cannot be read.*remove .*run\.lock"), lock_run(tmp_path):
        pass
    os.utime(tmp_path / LOCK, (0, 0))
    with lock_run(tmp_path):
        assert holder_of(tmp_path)["pid"] == os.getpid()


def test_a_heartbeat_keeps_the_lock_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    with lock_run(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        deadline = time.monotonic() + 30
        while (tmp_path / LOCK).stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_run_whose_lock_was_taken_over_ends(tmp_path: Path) -> None:
    script = f"""
import json, time
from pathlib import Path
from cubediff.runs import lock
lock.HEARTBEAT = 0.05
with lock.lock_run(Path({str(tmp_path)!r})):
    file = Path({str(tmp_path / LOCK)!r})
    file.write_text(json.dumps({{**json.loads(file.read_text()), "host": "node7"}}))
    time.sleep(60)
    print("still there")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert run.returncode == 1
    assert "was taken over by process" in run.stderr
    assert "on node7 since" in run.stderr
    assert run.stdout == ""


# ---- ranks -----------------------------------------------------------------------------------------------------

RANK_0 = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_only_rank_0_takes_the_lock_and_the_other_ranks_of_its_run_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in RANK_0.items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:
        stack.enter_context(lock_run(tmp_path))
        monkeypatch.setenv("RANK", "1")
        run_id = os.environ.pop("CUBEDIFF_RUN_ID")  # torchrun starts the ranks, not rank 0
        with lock_run(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
        monkeypatch.setenv("MASTER_PORT", "29501")
        with pytest.raises(RunLockedError), lock_run(tmp_path):
            pass
        os.environ["CUBEDIFF_RUN_ID"] = run_id
    monkeypatch.setenv("RANK", "1")
    with lock_run(tmp_path):  # rank 0 has not come so far
        assert not (tmp_path / LOCK).exists()


def test_ranks_that_lightnings_launcher_starts_inherit_the_run_id(tmp_path: Path) -> None:
    with lock_run(tmp_path):
        assert os.environ["CUBEDIFF_RUN_ID"] == holder_of(tmp_path)["run"]
    assert "CUBEDIFF_RUN_ID" not in os.environ


# ---- the command -----------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """Runs `cubediff train` in this process; returns its exit code or message."""
    monkeypatch.setattr(sys, "argv", ["train", *words, *QUICK])
    with pytest.raises(SystemExit) as end:
        train.main()
    return end.value.code


def test_a_refused_command_writes_nothing_and_ends_with_one_sentence(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"data.path={tiny_shards}", f"run_dir={tmp_path}", "hydra.output_subdir=null")
    (tmp_path / "result.json").write_text("of the other run")
    with process() as pid:
        forge(tmp_path, 0, pid=pid, process_start=lock._process_start(pid))
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        assert str(command(monkeypatch, *words)).startswith(f"error: {tmp_path} is in use by process {pid} on ")
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_a_dry_run_takes_no_lock(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"data.path={tiny_shards}", f"run_dir={tmp_path}", "dry_run=true", "plan.memory_gb=22.0")
    monkeypatch.setattr(sys, "argv", ["train", *QUICK, *words])
    with lock_run(tmp_path):
        train.main()
    assert f"output folder: {tmp_path}" in capsys.readouterr().out


def test_a_sweep_skips_a_job_that_another_process_runs(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("-m", f"data.path={tiny_shards}", f"run_dir={tmp_path}", "callbacks=none", "trainer.limit_val_batches=0")
    (tmp_path / "0").mkdir()
    Result("running", "train", 0, ["seed=0"], 1.0).write(tmp_path / "0")
    with process() as pid:
        forge(tmp_path / "0", 0, pid=pid, process_start=lock._process_start(pid))
        assert command(monkeypatch, *words, "seed=0,1") == 1  # job 0 is not done
        assert f"job 0 is skipped: {tmp_path / '0'} is in use by process {pid} on " in capsys.readouterr().err
        assert json.loads((tmp_path / "0/result.json").read_text())["started"] == 1.0
        assert json.loads((tmp_path / "1/result.json").read_text())["status"] == "done"


# ---- races -----------------------------------------------------------------------------------------------------

_CONTENDER = """
import sys, time
from pathlib import Path
from cubediff.runs.lock import RunLockedError, lock_run
folder, start = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0, start - time.time()))
try:
    with lock_run(folder):
        print("won", flush=True)
        sys.stdin.read()
except RunLockedError:
    print("refused", flush=True)
"""


@pytest.mark.parametrize("stale", [False, True])
def test_of_processes_that_start_together_one_gets_the_lock(tmp_path: Path, stale: bool) -> None:
    if stale:
        forge(tmp_path, 301, **ELSEWHERE)
    command = [sys.executable, "-c", _CONTENDER, str(tmp_path), str(time.time() + 3)]
    runs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    results = [run.stdout.readline().strip() for run in runs if run.stdout]
    for run in runs:
        run.communicate("")
    assert sorted(results) == ["refused"] * 5 + ["won"]


@pytest.mark.slow
def test_two_runs_together_and_one_after_the_other_ten_times(tiny_shards: Path, tmp_path: Path) -> None:
    """One trains, the other names the holder, changes nothing and ends with an error."""
    words = (*ONE, "trainer.max_steps=10000", "callbacks.ema=null", "callbacks.checkpoint.keep=10000")
    for number in range(10):
        run_dir = tmp_path / str(number)
        runs = [Run(tiny_shards, run_dir, *words, log=tmp_path / f"{number}_first.txt")]
        if number % 2:
            runs[0].after(1)
        runs.append(Run(tiny_shards, run_dir, *words, log=tmp_path / f"{number}_second.txt"))
        while all(run.process.poll() is None for run in runs):
            time.sleep(0.05)
        winner, loser = sorted(runs, key=lambda run: run.process.poll() is not None)
        assert loser.ended() == 1, loser.output
        assert f"{run_dir} is in use by process {winner.process.pid} on " in loser.output
        assert "Traceback" not in loser.output
        winner.after(2).process.send_signal(signal.SIGTERM)
        assert winner.ended() == 128 + signal.SIGTERM, winner.output
        assert json.loads((run_dir / "result.json").read_text())["status"] == "cut"
        assert not (run_dir / LOCK).exists()


def torchrun(shards: Path, run_dir: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cubediff.train")
    command = [sys.executable, "-m", *launcher, *TINY, *TWO, f"data.path={shards}", f"run_dir={run_dir}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


@pytest.mark.slow
def test_ranks_of_torchrun_share_a_lock_and_agree_on_the_checkpoint(tiny_shards: Path, tmp_path: Path) -> None:
    """One of two launches is refused as a whole. After a killed one, the next skips a damaged checkpoint."""
    run_dir, logs = tmp_path / "run", [tmp_path / f"{number}.txt" for number in range(3)]
    first, second = (torchrun(tiny_shards, run_dir, log, "trainer.max_steps=400") for log in logs[:2])
    while first.poll() is None and second.poll() is None:
        time.sleep(0.1)
    refused, running = (0, second) if first.poll() is not None else (1, first)
    assert "is in use by process" in logs[refused].read_text(), logs[refused].read_text()
    checkpoints = run_dir / "checkpoints"
    while len(list(checkpoints.glob("step*.ckpt"))) < 2:
        assert running.poll() is None, logs[1 - refused].read_text()
        time.sleep(0.1)
    for pid in (holder_of(run_dir)["pid"], running.pid):
        os.kill(pid, signal.SIGKILL)
    running.wait()
    time.sleep(2)  # the other rank ends
    newest = max(checkpoints.glob("step*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    steps = int(newest.stem.removeprefix("step")) + 1
    third = torchrun(tiny_shards, run_dir, logs[2], f"trainer.max_steps={steps}")
    assert third.wait(300) == 0, logs[2].read_text()
    assert newest.with_name(f"{newest.name}.damaged").is_file()
    assert (checkpoints / f"step{steps:08d}.ckpt").is_file()
    assert not (run_dir / LOCK).exists()
