"""trainer.precision=16-mixed: loss scaling, clipping of unscaled gradients, skipped steps and the scaler's checkpoint.

On a CPU, where Lightning replaces 16-mixed by bf16-mixed, the precision plugin is given explicitly.
"""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from support.losses import PAPER
from support.processes import difference
from support.runs import QUICK, composed
from torch import Tensor

from cubediff.data import PanoramaDataModule
from cubediff.diffusion.objective import Objective
from cubediff.pipelines.loading import tiny_random
from cubediff.runs.fit import fit
from cubediff.training.callbacks import NonFiniteGuard
from cubediff.training.module import CubeDiffModule

LR, BETAS, EPS, DECAY, CLIP = 1e-2, (0.9, 0.99), 1e-8, 0.05, 0.2
# The first step overflows float16; the second one has a scale of 1024.
OVERFLOW = {"init_scale": 2.0**40, "backoff_factor": 2.0**-30}


class Recorder(L.Callback):
    """Gradients as the backward pass left them, scales, weights and activations of every step."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.scales: list[float] = []
        self.weights: list[dict[str, Tensor]] = []
        self.dtypes: set[torch.dtype] = set()
        self.skipped: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.weights.append(copies(pl_module))
        pl_module.unet.conv_in.register_forward_hook(lambda *call: self.dtypes.add(call[-1].dtype))

    def on_after_backward(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.gradients.append({n: p.grad.double().clone() for n, p in pl_module.trained_parameters.items()})
        self.scales.append(trainer.precision_plugin.scaler.get_scale())  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.weights.append(copies(pl_module))
        self.skipped.append(float(pl_module.found_inf))


def copies(module: Any) -> dict[str, Tensor]:
    return {name: p.detach().double().clone() for name, p in module.trained_parameters.items()}


def fitted(shards: Path, fused: bool, steps: int = 5, *extra: L.Callback) -> tuple[Recorder, L.Trainer]:
    optimizer = partial(torch.optim.AdamW, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=fused)
    module, recorder = CubeDiffModule(tiny_random(), PAPER, optimizer=optimizer), Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        gradient_clip_val=CLIP,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", **OVERFLOW))],
        callbacks=[recorder, *extra],
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    trainer.fit(module, datamodule=PanoramaDataModule(shards, batch_size=2, face_size=64))
    return recorder, trainer


def restated(recorder: Recorder) -> dict[str, Tensor]:
    """The weights that AdamW makes of the recorded gradients, in float64: unscaled, then clipped; the step whose
    gradients are not finite is skipped."""
    weights = {name: value.clone() for name, value in recorder.weights[0].items()}
    first = {name: torch.zeros_like(value) for name, value in weights.items()}
    second = {name: torch.zeros_like(value) for name, value in weights.items()}
    count = 0
    for scaled, scale in zip(recorder.gradients, recorder.scales, strict=True):
        gradients = {name: gradient / scale for name, gradient in scaled.items()}
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
        if not math.isfinite(norm):
            continue
        count += 1
        for name, gradient in gradients.items():
            clipped = gradient * min(1.0, CLIP / (norm + 1e-6))
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * clipped
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * clipped.square()
            mean, square = first[name] / (1 - BETAS[0] ** count), second[name] / (1 - BETAS[1] ** count)
            weights[name] = weights[name] * (1 - LR * DECAY) - LR * mean / (square.sqrt() + EPS)
    return weights


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # of a first step that is skipped
def test_steps_are_those_of_adamw_in_float64_on_unscaled_clipped_gradients(fused: bool, tiny_shards: Path) -> None:
    guard = NonFiniteGuard(limit=1, every_n_steps=1)
    recorder, trainer = fitted(tiny_shards, fused, 5, guard)
    assert recorder.dtypes == {torch.float16}
    assert recorder.scales == [2.0**40, *[2.0**10] * 4]
    assert recorder.skipped == [1, 0, 0, 0, 0]
    assert all(torch.equal(value, recorder.weights[1][name]) for name, value in recorder.weights[0].items())
    assert not any(torch.equal(value, recorder.weights[2][name]) for name, value in recorder.weights[0].items())
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {4}
    for name, expected in restated(recorder).items():
        torch.testing.assert_close(recorder.weights[-1][name], expected, rtol=1e-4, atol=1e-5)
    unclipped = [sum((g / s).square().sum() for g in each.values()) ** 0.5
                 for each, s in zip(recorder.gradients[1:], recorder.scales[1:], strict=True)]  # fmt: skip
    assert max(unclipped) > CLIP  # so clipping matters
    assert guard.skipped == 0  # a scaler's search for its scale is no failure


def test_a_loss_that_is_not_finite_counts_as_a_failure(tiny_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Objective.loss
    calls = iter(range(100))

    def spoiled(self: Objective, *arguments: Any, **options: Any) -> Any:
        losses, *rest = loss(self, *arguments, **options)
        return (losses * math.nan if next(calls) == 2 else losses, *rest)

    monkeypatch.setattr(Objective, "loss", spoiled)
    guard = NonFiniteGuard(limit=5, every_n_steps=2)
    recorder, _ = fitted(tiny_shards, True, 5, guard)
    assert recorder.skipped == [1, 0, 1, 0, 0]
    assert guard.skipped == 1


def test_a_scale_below_one_counts_as_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    trainer = Mock(
        spec=L.Trainer, precision_plugin=SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=0.5)),
        global_step=0, world_size=1, loggers=[],
    )  # fmt: skip
    module = CubeDiffModule(tiny_random(), PAPER, optimizer=torch.optim.AdamW)
    guard = NonFiniteGuard(limit=2, every_n_steps=1)
    guard.on_train_start(trainer, module)
    outputs, module.found_inf = {"losses": torch.ones(2)}, torch.tensor(1.0)
    trainer.global_step = 1
    guard.on_train_batch_end(trainer, module, outputs, {"key": ["a", "b"]}, 0)
    assert "gradients are not finite; the loss scale has fallen below 1" in caplog.text
    trainer.global_step = 2
    with pytest.raises(FloatingPointError, match="the loss scale has fallen below 1"):
        guard.on_train_batch_end(trainer, module, outputs, {"key": ["a", "b"]}, 0)


HALF = (
    "trainer.precision=null",
    "trainer.plugins=[{_target_: lightning.pytorch.plugins.MixedPrecision, precision: 16-mixed, device: cpu, "
    "scaler: {_target_: torch.amp.GradScaler, device: cpu, init_scale: 1024.0, growth_interval: 3}}]",
)
WORDS = (*QUICK, "callbacks.samples.count=0", "callbacks.samples.steps=1", "trainer.limit_val_batches=0")


def half(shards: Path, folder: Path, steps: int, *words: str) -> dict[str, Any]:
    """Trains until a step and returns the last checkpoint."""
    fit(composed(*WORDS, f"data.path={shards}", f"trainer.max_steps={steps}", *words, run_dir=folder), folder)
    content: dict[str, Any] = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return content


def test_a_resumed_run_has_the_scale_and_the_bits_of_an_uninterrupted_one(tiny_shards: Path, tmp_path: Path) -> None:
    """The scale doubles after the third step, so that its growth counter matters."""
    whole = half(tiny_shards, tmp_path / "whole", 4, *HALF)
    half(tiny_shards, tmp_path / "parts", 2, *HALF)
    resumed = half(tiny_shards, tmp_path / "parts", 4, *HALF)
    assert (whole["MixedPrecision"]["scale"], whole["MixedPrecision"]["_growth_tracker"]) == (2048.0, 1)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "MixedPrecision"):
        assert difference(whole[part], resumed[part], part) == []


def test_a_run_may_change_between_bf16_and_16_mixed(tiny_shards: Path, tmp_path: Path) -> None:
    half(tiny_shards, tmp_path, 1, "trainer.precision=bf16-mixed")
    assert half(tiny_shards, tmp_path, 2, *HALF)["MixedPrecision"]["scale"] == 1024.0
    assert half(tiny_shards, tmp_path, 3, "trainer.precision=bf16-mixed")["global_step"] == 3
