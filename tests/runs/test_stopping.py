"""Signals and exceptions at any moment of a run leave a checkpoint of the last finished step, from which it resumes."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support import moments
from support.processes import difference, saved
from support.runs import QUICK, composed, validations

from cubediff.data.streaming.batching import TrainBatches
from cubediff.diffusion.guidance import Guidance
from cubediff.runs.fit import fit
from cubediff.training.callbacks import RunCheckpoint
from cubediff.utils.signals import Stopped

# Four steps of two micro-batches of one panorama, validated after the second and the fourth.
WORDS = (
    *QUICK, "trainer.max_steps=4", "data.batch_size=1", "trainer.accumulate_grad_batches=2",
    "trainer.val_check_interval=4", "face_size=64", "callbacks.samples.count=1", "callbacks.samples.steps=2",
)  # fmt: skip
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def uninterrupted(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    fit(composed(*WORDS, f"data.path={tiny_shards}", run_dir=run_dir), run_dir)
    return run_dir


@pytest.fixture
def run(tiny_shards: Path, tmp_path: Path) -> Run:
    """Trains in, or resumes, the same folder."""

    def start(*words: str) -> Path:
        fit(composed(*WORDS, f"data.path={tiny_shards}", *words, run_dir=tmp_path / "run"), tmp_path / "run")
        return tmp_path / "run"

    return start


def at(hook: str, count: int, action: str = "SIGTERM") -> str:
    """The override that adds a callback which acts at the `count`-th call of a hook."""
    return f"+callbacks.at={{_target_:support.moments.At,hook:{hook},count:{count},action:{action}}}"


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(file.name for file in (run_dir / "checkpoints").glob("step*.ckpt"))


def same_state(one: Path, other: Path) -> None:
    """Two runs have the same weights, EMA, optimizer and position in the stream; not the same identity."""
    keys = ("state_dict", "callbacks", "optimizer_states", "lr_schedulers", "PanoramaDataModule")
    a, b = ({key: saved(run_dir)[key] for key in keys} for run_dir in (one, other))
    assert difference(a, b) == []


MOMENTS = {
    # after its first micro-batch, step 3 is not finished
    "between the micro-batches of a step": (at("on_train_batch_end", 5), 2),
    "within a step": (at("on_before_optimizer_step", 3), 3),
    "at the start of validation": (at("on_validation_start", 1), 2),
    "between validation batches": (at("on_validation_batch_end", 1), 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_saves_the_last_finished_step_and_the_run_resumes_bit_by_bit(
    run: Run, tmp_path: Path, uninterrupted: Path, moment: str
) -> None:
    word, step = MOMENTS[moment]
    with pytest.raises(Stopped) as stopped:
        run(word)
    assert stopped.value.code == 143
    assert checkpoints(tmp_path / "run") == [f"step{step:08d}.ckpt"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert difference(saved(uninterrupted), saved(run())) == []
    assert validations(tmp_path / "run") == validations(uninterrupted)


def test_a_signal_in_the_last_validation_leaves_the_trained_run(run: Run, tmp_path: Path, uninterrupted: Path) -> None:
    with pytest.raises(Stopped):
        run(at("on_validation_batch_end", 5))
    assert checkpoints(tmp_path / "run") == ["step00000004.ckpt"]
    assert len(validations(tmp_path / "run")) == 1
    same_state(uninterrupted, run())
    assert len(validations(uninterrupted)) == 2
    assert validations(tmp_path / "run") == validations(uninterrupted)
    assert (tmp_path / "run/export/training.json").is_file()


@pytest.mark.parametrize("moment", [at("on_validation_end", 1), at("on_train_batch_end", 5)])
def test_a_validation_that_was_not_interrupted_is_not_repeated(
    run: Run, tmp_path: Path, uninterrupted: Path, moment: str
) -> None:
    with pytest.raises(Stopped):
        run(moment)
    samples = {file: file.stat().st_mtime_ns for file in (tmp_path / "run/samples").iterdir()}
    assert samples
    run()
    assert {file: file.stat().st_mtime_ns for file in samples} == samples
    assert validations(tmp_path / "run") == validations(uninterrupted)


def test_a_signal_between_denoising_steps_saves_the_trained_weights(
    run: Run, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples are generated with the EMA weights, which a checkpoint must not hold."""
    calls: list[int] = []
    combine = Guidance.combine

    def combine_and_signal(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        return combine(*arguments)

    monkeypatch.setattr(Guidance, "combine", combine_and_signal)
    with pytest.raises(Stopped):
        run()
    assert len(calls) == 1
    assert checkpoints(tmp_path / "run") == ["step00000002.ckpt"]
    assert difference(saved(uninterrupted), saved(run())) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_during_a_stalled_read_stops_the_run_at_once(
    run: Run, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The read of the fourth micro-batch never returns; the signal comes after the first step."""
    load, never = TrainBatches.load, threading.Event()
    end_batch = RunCheckpoint.on_train_batch_end
    stalled, stepped = threading.Event(), threading.Event()
    sent: list[float] = []

    def stall(batches: Any, start: int) -> Any:
        if start >= 3:  # by position: threads may read in another order
            stalled.set()
            never.wait()
        return load(batches, start)

    def step(saver: RunCheckpoint, trainer: L.Trainer, *arguments: Any) -> None:
        end_batch(saver, trainer, *arguments)
        if trainer.global_step == 1:
            stepped.set()

    def send() -> None:
        if stalled.wait(60) and stepped.wait(60):
            time.sleep(0.5)  # until the run waits for the read
            sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainBatches, "load", stall)
    monkeypatch.setattr(RunCheckpoint, "on_train_batch_end", step)
    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(Stopped):
        run(f"data.num_workers={workers}")
    assert sent
    assert time.monotonic() - sent[0] < 5
    assert checkpoints(tmp_path / "run") == ["step00000001.ckpt"]
    monkeypatch.undo()
    never.set()
    assert difference(saved(uninterrupted), saved(run())) == []


@pytest.mark.parametrize(("action", "code"), [("SIGINT", 130), ("SIGHUP", 143)])
def test_ctrl_c_and_hangup_stop_a_run_too(run: Run, tmp_path: Path, action: str, code: int) -> None:
    with pytest.raises(Stopped) as stopped:
        run(at("on_train_batch_end", 3, action))
    assert stopped.value.code == code
    assert checkpoints(tmp_path / "run") == ["step00000001.ckpt"]


@pytest.mark.slow
def test_epochs_are_counted_when_each_is_interrupted_after_its_last_batch(
    run: Run, tiny_shards: Path, tmp_path: Path
) -> None:
    epochs = ("trainer.max_steps=-1", "trainer.max_epochs=4", "trainer.limit_train_batches=2")
    words = (*epochs, "trainer.val_check_interval=2")
    whole = tmp_path / "whole"
    fit(composed(*WORDS, f"data.path={tiny_shards}", *words, run_dir=whole), whole)
    for _ in range(4):
        with pytest.raises(Stopped):
            run(*words, at("on_validation_start", 1))
    assert difference(saved(whole), saved(run(*words))) == []
    assert saved(whole)["global_step"] == 4
    assert validations(tmp_path / "run") == validations(whole)


EXCEPTIONS = {
    "a callback after a step": (at("on_train_batch_end", 6, "ZeroDivisionError"), 3),
    "a callback between micro-batches": (at("on_train_batch_start", 6, "ZeroDivisionError"), 2),
    "validation with the EMA weights": (at("on_validation_batch_end", 2, "ZeroDivisionError"), 2),
}


@pytest.mark.parametrize("place", EXCEPTIONS)
def test_an_exception_saves_the_last_finished_step_too(
    run: Run, tmp_path: Path, uninterrupted: Path, place: str
) -> None:
    word, step = EXCEPTIONS[place]
    with pytest.raises(ZeroDivisionError):
        run(word)
    assert checkpoints(tmp_path / "run") == [f"step{step:08d}.ckpt"]
    assert difference(saved(uninterrupted), saved(run())) == []


def test_an_exception_saves_a_step_again_whose_checkpoint_was_removed(
    run: Run, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove_and_fail() -> None:
        assert checkpoints(tmp_path / "run") == ["step00000002.ckpt"]
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        raise ZeroDivisionError

    monkeypatch.setitem(moments.ACTIONS, "ZeroDivisionError", remove_and_fail)
    every = "callbacks.checkpoint.every_n_steps=2"
    with pytest.raises(ZeroDivisionError):
        run(every, at("on_train_batch_start", 5, "ZeroDivisionError"))
    assert checkpoints(tmp_path / "run") == ["step00000002.ckpt"]
    same_state(uninterrupted, run(every))


def test_an_exception_before_the_ema_has_followed_a_step_saves_the_ema_of_that_step(
    run: Run, uninterrupted: Path
) -> None:
    """In this config the EMA comes after the callback that fails."""
    ema = "+callbacks.last={_target_:cubediff.training.callbacks.UNetEMA,decay:0.9999}"
    with pytest.raises(ZeroDivisionError):
        run("~callbacks.ema", at("on_train_batch_end", 6, "ZeroDivisionError"), ema)
    same_state(uninterrupted, run("~callbacks.ema", ema))


def test_an_exception_within_the_optimizer_saves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = torch.optim.AdamW.step, []

    def fail(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        result = step(*arguments, **options)
        if len(calls) == 3:
            raise ZeroDivisionError
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    with pytest.raises(ZeroDivisionError):
        run()
    assert checkpoints(tmp_path / "run") == []


def test_signals_stop_a_run_without_callbacks(tiny_shards: Path, tmp_path: Path) -> None:
    words = (*QUICK, "face_size=64", f"data.path={tiny_shards}", "callbacks=none", at("on_train_batch_end", 1))
    with pytest.raises(Stopped) as stopped:
        fit(composed(*words, run_dir=tmp_path / "run"), tmp_path / "run")
    assert stopped.value.code == 143
    assert not (tmp_path / "run" / "export").exists()
