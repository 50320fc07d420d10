"""examples/training_loop.py trains: losses fall, attention alone changes, and the saved model generates."""

import re
from pathlib import Path
from statistics import fmean

import pytest
import torch
from support.examples import run_documented

from cubediff import CubeDiffPipeline
from cubediff.pipelines.loading import tiny_random


@pytest.mark.slow
def test_training_loop_trains_attention_and_saves_a_model(checkout: Path) -> None:
    printed = run_documented("training_loop.py", checkout)
    losses = [float(loss) for loss in re.findall(r"^epoch \d step \d loss ([\d.]+)$", printed, re.MULTILINE)]
    assert len(losses) == 18
    assert fmean(losses[-6:]) < fmean(losses[:6]) - 0.03

    pipeline = CubeDiffPipeline.from_pretrained(checkout / "experiments/runs/loop")
    initial, trained = tiny_random().unet.state_dict(), pipeline.unet.state_dict()
    changed = {name for name in initial if not torch.equal(initial[name], trained[name])}
    assert changed - {"conv_in.weight", "conv_in.bias"} == {name for name in initial if ".attn" in name}
    assert pipeline("a hall", num_inference_steps=1).panoramas[0].size == (256, 128)
