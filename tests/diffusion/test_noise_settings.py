"""snr_factor: a noise schedule whose signal-to-noise ratios are multiples of another one's."""

from pathlib import Path

import pytest
import torch
from diffusers.schedulers import SchedulerMixin
from torch import Tensor

from cubediff.diffusion.schedulers import convert_scheduler, noise_settings, use_sampler_
from cubediff.models.tiny import sd_scheduler
from cubediff.pipelines.loading import load_pipeline, tiny_random


def snr(scheduler: SchedulerMixin) -> Tensor:
    signal = scheduler.alphas_cumprod.double()
    return signal / (1 - signal)


@pytest.mark.parametrize("factor", [0.25, 4])
def test_every_timestep_has_the_multiple_of_the_signal_to_noise_ratio(factor: float) -> None:
    shifted = convert_scheduler(sd_scheduler(), {"snr_factor": factor})
    torch.testing.assert_close(snr(shifted), factor * snr(sd_scheduler()), rtol=1e-3, atol=0)
    again = convert_scheduler(shifted, {"snr_factor": factor})
    assert (
        again.config.trained_betas == shifted.config.trained_betas
    )  # of the original schedule, not of the shifted one
    assert convert_scheduler(shifted, {"snr_factor": 1}).config.trained_betas is None


def test_with_zero_terminal_snr_the_last_ratio_stays_zero_and_samplers_keep_the_schedule() -> None:
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    pipeline = tiny_random(scheduler=zero | {"snr_factor": 0.25})
    assert pipeline.scheduler.alphas_cumprod[-1] == 0
    before = pipeline.scheduler.alphas_cumprod
    assert (before < convert_scheduler(sd_scheduler(), zero).alphas_cumprod)[100:-1].all()
    for name in ("dpm", "unipc"):
        torch.testing.assert_close(use_sampler_(pipeline, name).scheduler.alphas_cumprod[:-1], before[:-1])


def test_the_folder_stores_the_schedule_and_another_one_is_refused(tmp_path: Path) -> None:
    shifted = tiny_random(scheduler={"snr_factor": 4.0})
    shifted.save_pretrained(tmp_path / "model")
    loaded = load_pipeline(tmp_path / "model", scheduler={"snr_factor": 4.0})
    assert torch.equal(loaded.scheduler.alphas_cumprod, shifted.scheduler.alphas_cumprod)
    with pytest.raises(ValueError, match=r"was trained with trained_betas=\[.{,200}\.\.\.\], not \["):
        load_pipeline(tmp_path / "model", scheduler={"snr_factor": 2.0})
    with pytest.raises(ValueError, match=r"was trained with trained_betas=\[.{,200}\.\.\.\], not None"):
        load_pipeline(tmp_path / "model", scheduler={"snr_factor": 1.0})


@pytest.mark.parametrize("factor", [0, -1.0, float("inf"), float("nan"), "large"])
def test_a_factor_that_is_not_positive_is_refused(factor: object) -> None:
    with pytest.raises(ValueError, match="expected a positive number; 1 leaves the noise schedule as it is"):
        noise_settings(sd_scheduler(), {"snr_factor": factor})
