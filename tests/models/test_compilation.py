"""Compiled blocks: no graph is compiled after the first step, validation and sample; results equal those of eager ones.

Compiled code runs in processes of its own, since jaxtyping cannot check shapes inside it.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch._inductor import config as inductor

from cubediff.models.compilation import can_compile

RUN = """
import sys
import time
from functools import partial

import lightning as L
import torch
from torch.utils.data import DataLoader
from torch._dynamo.utils import counters

from cubediff.diffusion.objective import Objective
from cubediff.pipelines.loading import tiny_random
from cubediff.training.module import CubeDiffModule

backend, precision = sys.argv[1:]
if backend != "inductor":
    original = torch.compile
    torch.compile = partial(original, backend=backend)
pixels = torch.rand(7, 6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def batches(sizes):
    each = [{"faces": pixels[:n], "prompts": [["a hall"] * 6] * n, "position": list(range(n))} for n in sizes]
    return DataLoader(each, batch_size=None, collate_fn=lambda batch: batch)


class Strict(L.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 0:  # validation follows
            self.start = time.perf_counter() - started

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            self.graphs = counters["stats"]["unique_graphs"]
            torch.compiler.set_stance("fail_on_recompile")
        self.last = len(batch["position"])


class Sampling(L.Callback):
    def on_validation_epoch_end(self, trainer, module):
        for scale in (1.0, 3.5):
            with trainer.precision_plugin.forward_context():
                module.pipeline("a hall", guidance_scale=scale, num_inference_steps=2, output_type="pt")


losses = {}
for compile in ("regional", None):
    torch.manual_seed(0)
    module = CubeDiffModule(tiny_random(), Objective(drop_text=0.1, drop_image=0.1, drop_both=0.1),
                            partial(torch.optim.AdamW, lr=1e-3), compile=compile)
    strict, started = Strict(), time.perf_counter()
    trainer = L.Trainer(accelerator="cpu", devices=1, precision=precision, max_epochs=1, val_check_interval=1,
                        callbacks=[strict, Sampling()], logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
    trainer.fit(module, batches([2] * 21 + [1]), batches([2]))
    assert strict.last == 1
    losses[compile] = trainer.callback_metrics["val/loss"].item()
    if compile:
        assert counters["stats"]["unique_graphs"] == strict.graphs > 0
        print(f"{strict.graphs} graphs; {strict.start:.0f} s until the end of the first step")
    torch.compiler.set_stance("default")
assert abs(losses["regional"] - losses[None]) < 1e-3 * losses[None], losses
"""


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "precision"), [("inductor", "32-true"), ("aot_eager", "bf16-mixed")])
def test_nothing_is_compiled_after_the_first_step_validation_and_sample(
    tmp_path: Path, backend: str, precision: str
) -> None:
    command = [sys.executable, "-c", RUN, backend, precision]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)


def test_a_missing_compiler_is_named_in_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inductor.cpp, "cxx", (None, "no-such-compiler"))
    with caplog.at_level(logging.WARNING):
        assert not can_compile("cpu")
    assert "needs a C++ compiler (no-such-compiler; CXX names another), which is not installed" in caplog.text
