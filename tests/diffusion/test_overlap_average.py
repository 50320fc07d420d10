"""Averaging of clean latents: the arithmetic of every scheduler and prediction type, known latents, singular steps."""

import inspect
import math
from collections.abc import Iterator
from typing import NamedTuple

import diffusers
import pytest
import torch
from diffusers.schedulers import SchedulerMixin
from torch import Tensor

from cubediff.diffusion import overlap_average
from cubediff.diffusion.overlap_average import OverlapAverage
from cubediff.diffusion.schedulers import SCHEDULERS as SUPPORTED
from cubediff.diffusion.schedulers import noise_level
from cubediff.geometry.overlap import blend_overlaps, sample_overlaps

pytestmark = pytest.mark.filterwarnings(  # of diffusers, in DEIS and KDPM2, and about dpmsolver
    "ignore:__array_wrap__:DeprecationWarning", "ignore:.algorithm_types dpmsolver:FutureWarning"
)

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DPM = [{"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, {"algorithm_type": "sde-dpmsolver++"}]
# With other settings to test beside the defaults.
SCHEDULERS: dict[str, list[dict[str, object]]] = {
    "DDIMScheduler": [{"timestep_spacing": "trailing"}],
    "DDIMParallelScheduler": [],
    "DDPMScheduler": [],
    "DDPMParallelScheduler": [],
    "DEISMultistepScheduler": [],
    "DPMSolverMultistepScheduler": DPM,
    "DPMSolverSinglestepScheduler": [],
    "EulerAncestralDiscreteScheduler": [],
    "EulerDiscreteScheduler": [],
    "HeunDiscreteScheduler": [],
    "KDPM2AncestralDiscreteScheduler": [],
    "KDPM2DiscreteScheduler": [],
    "LCMScheduler": [],
    "LMSDiscreteScheduler": [],
    "PNDMScheduler": [],
    "SASolverScheduler": [],
    "TCDScheduler": [],
    "UniPCMultistepScheduler": [],
}
WITHOUT_SAMPLE_PREDICTION = {
    "PNDMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"
}  # fmt: skip
ALL_KNOWN = torch.ones(1, 6, 1, 8, 8, dtype=torch.bool)
NONE_KNOWN = ~ALL_KNOWN


class Case(NamedTuple):
    kind: type[SchedulerMixin]
    settings: dict[str, object]

    def make(self, **settings: object) -> SchedulerMixin:
        unclipped = {"clip_sample": False} if "clip_sample" in inspect.signature(self.kind).parameters else {}
        scheduler = self.kind(**SD, **unclipped, **self.settings, **settings)
        scheduler.set_timesteps(6)
        return scheduler


def cases() -> Iterator[object]:
    for name, settings in SCHEDULERS.items():
        kind = getattr(diffusers, name)
        karras = [{"use_karras_sigmas": True}] if "use_karras_sigmas" in inspect.signature(kind).parameters else []
        for each in [{}, *settings, *karras]:
            for prediction in ("epsilon", "v_prediction", "sample"):
                if prediction != "sample" or name not in WITHOUT_SAMPLE_PREDICTION:
                    yield pytest.param(
                        Case(kind, each), prediction, id="-".join(map(str, [name, *each.values(), prediction]))
                    )


def unit(seed: int, size: int = 8) -> Tensor:
    return torch.randn(1, 6, 4, size, size, generator=torch.Generator().manual_seed(seed))


def average(scheduler: SchedulerMixin, clean: Tensor | None = None, known: Tensor = NONE_KNOWN) -> OverlapAverage:
    return OverlapAverage(scheduler, 95.0, unit(9) if clean is None else clean, known)


def clean_latents(scheduler: SchedulerMixin, step: object, prediction: Tensor, sample: Tensor) -> Tensor | None:
    """The clean latents that a scheduler computes from a prediction; None if it does not say them."""
    for name in ("pred_original_sample", "denoised"):
        if getattr(step, name, None) is not None:
            return getattr(step, name)
    data = scheduler.config.get("algorithm_type", "") in ("dpmsolver++", "sde-dpmsolver++", "data_prediction")
    if data or getattr(scheduler, "predict_x0", False):
        scheduler._step_index -= 1  # `step` has counted
        latents = scheduler.convert_model_output(prediction, sample=sample)
        scheduler._step_index += 1
        return latents
    return None


@pytest.mark.parametrize(("case", "prediction"), list(cases()))
def test_every_scheduler_goes_on_from_the_averaged_clean_latents(
    case: Case, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An average that is the same latents at every step: the scheduler finds them in each prediction."""
    target = unit(1)
    monkeypatch.setattr(overlap_average, "blend_overlaps", lambda latents, fov: target * scale)
    scheduler = case.make(prediction_type=prediction)
    sample, found, generator = unit(2) * scheduler.init_noise_sigma, 0, torch.Generator().manual_seed(3)
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for i, t in enumerate(scheduler.timesteps):
        noisy = scheduler.scale_model_input(sample, t)
        # With epsilon the latents alpha·x0 are averaged, and the target is the average of x0.
        scale = noise_level(scheduler, t, i).alpha if prediction == "epsilon" else 1.0
        output = average(scheduler)(0.1 * unit(10 + i), noisy, t, i)
        step = scheduler.step(output, t, sample, **options)
        latents = clean_latents(scheduler, step, output, sample)
        if latents is not None and case.kind.__name__ != "LCMScheduler":  # whose output mixes in the sample
            torch.testing.assert_close(latents, target, rtol=0, atol=1e-5)
            found += 1
        sample = step.prev_sample
    assert found in (0, len(scheduler.timesteps))
    # Some schedulers end at the noise level of the first training timestep, sigma = 0.029.
    assert (sample - target).square().mean().sqrt() < 0.05


def test_these_are_all_supported_schedulers() -> None:
    assert set(SCHEDULERS) == set(SUPPORTED)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_noise_level_is_that_of_the_schedulers_own_noising(name: str) -> None:
    scheduler = Case(getattr(diffusers, name), {}).make()
    clean, noise, pairs = unit(1).double(), unit(2).double(), 0
    for i, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = i
        if name.startswith("KDPM2") and i % 2:
            continue  # the second evaluation of a step, between the noise levels of `add_noise`
        noisy = scheduler.scale_model_input(scheduler.add_noise(clean, noise, t[None]), t)
        alpha, sigma = noise_level(scheduler, t, i)
        torch.testing.assert_close((noisy - sigma * noise) / alpha, clean, rtol=0, atol=1e-5)
        pairs += 1
    assert pairs >= 6


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_clean_latents_of_the_result_are_the_average(prediction: str) -> None:
    scheduler = Case(diffusers.DDIMScheduler, {}).make(prediction_type=prediction)
    clean, noise, t = unit(1, 16).double(), unit(2, 16).double(), scheduler.timesteps[2]
    alpha = scheduler.alphas_cumprod[t].double().sqrt()
    sigma = (1 - scheduler.alphas_cumprod[t].double()).sqrt()
    noisy = alpha * clean + sigma * noise
    output = {"epsilon": noise, "v_prediction": alpha * noise - sigma * clean, "sample": clean}[prediction]
    known = torch.zeros(1, 6, 1, 16, 16, dtype=torch.bool)
    averaged = average(scheduler, clean, known)(output, noisy, t, 2)
    found = {
        "epsilon": (noisy - sigma * averaged) / alpha,
        "v_prediction": alpha * noisy - sigma * averaged,
        "sample": averaged,
    }[prediction]
    torch.testing.assert_close(found, blend_overlaps(clean), rtol=0, atol=1e-6)
    assert (found - clean).abs().max() > 1
    alone = torch.ones(6, 16, 16, dtype=torch.bool)
    alone.view(-1)[sample_overlaps(clean).indices] = False
    assert alone.sum() == 6 * 14 * 14
    assert torch.equal(averaged.movedim(2, -1)[0][alone], output.movedim(2, -1)[0][alone])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_known_latents_stay_and_their_neighbours_are_averaged_with_them(prediction: str) -> None:
    scheduler = Case(diffusers.DDIMScheduler, {}).make(prediction_type=prediction)
    known, clean, noisy, t = NONE_KNOWN.clone(), unit(1), unit(2), scheduler.timesteps[3]
    known[:, 0, :, :, 3:] = True
    call = average(scheduler, clean, known)
    output, garbage = unit(3), torch.where(known, unit(4), unit(3))
    averaged, from_garbage = call(output, noisy, t, 3), call(garbage, noisy, t, 3)
    where = known.expand_as(clean)
    assert torch.equal(averaged[where], output[where])
    assert torch.equal(averaged[~where], from_garbage[~where])  # the network's prediction of known latents is unused
    other = average(scheduler, unit(5), known)(output, noisy, t, 3)
    changed = (averaged != other).any(2)[0]
    assert changed[1, :, 0].all()  # the column of the right face that the known part of the front face sees too
    assert not changed[[0, 2, 3]].any()


def test_zero_terminal_snr_and_a_step_without_noise_change_nothing_to_infinity() -> None:
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for prediction in ("epsilon", "v_prediction"):
        scheduler = Case(diffusers.DDIMScheduler, settings).make(prediction_type=prediction)
        t = scheduler.timesteps[0]
        assert scheduler.alphas_cumprod[t] == 0
        averaged = average(scheduler)(unit(1), unit(2), t, 0)
        if prediction == "v_prediction":  # which is then −x0
            torch.testing.assert_close(averaged, blend_overlaps(unit(1)), rtol=0, atol=1e-6)
        assert averaged.isfinite().all()
    betas = [0.0, *torch.linspace(0.01, 0.2, 9).tolist()]  # the first training timestep is clean
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=10, trained_betas=betas, prediction_type="v_prediction")
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[-1]
    assert scheduler.alphas_cumprod[t] == 1
    assert torch.equal(average(scheduler)(unit(1), unit(2), t, 9), unit(1))


def test_the_average_depends_on_no_other_panorama() -> None:
    scheduler = Case(diffusers.DDIMScheduler, {}).make()
    outputs, noisy = torch.cat([unit(1), unit(2)]), torch.cat([unit(3), unit(4)])
    t = scheduler.timesteps[1]
    joint = OverlapAverage(scheduler, 95.0, torch.zeros_like(noisy), NONE_KNOWN.expand(2, -1, -1, -1, -1))(
        outputs, noisy, t, 1
    )
    for i in range(2):
        alone = average(scheduler)(outputs[i : i + 1], noisy[i : i + 1], t, 1)
        torch.testing.assert_close(joint[i : i + 1], alone, rtol=0, atol=1e-6)


def test_schedulers_and_predictions_without_such_a_noise_level_are_refused() -> None:
    scheduler = Case(diffusers.DPMSolverMultistepScheduler, {}).make(prediction_type="flow_prediction")
    with pytest.raises(ValueError, match=r"flow_prediction': expected 'epsilon'.*average_overlap=False"):
        average(scheduler)(unit(1), unit(2), scheduler.timesteps[0], 0)
    other = diffusers.IPNDMScheduler()
    other.set_timesteps(6)
    with pytest.raises(ValueError, match=r"IPNDMScheduler, which has no noise schedule.*use another scheduler"):
        noise_level(other, other.timesteps[0], 0)


def test_the_noise_level_of_ddim_is_the_square_root_of_its_cumulative_product() -> None:
    scheduler = Case(diffusers.DDIMScheduler, {}).make()
    betas = [(math.sqrt(0.00085) + i / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))) ** 2 for i in range(1000)]
    for i, t in enumerate(scheduler.timesteps):
        product = math.prod(1 - beta for beta in betas[: int(t) + 1])
        assert noise_level(scheduler, t, i).alpha.item() == pytest.approx(math.sqrt(product), abs=1e-6)
        assert noise_level(scheduler, t, i).sigma.item() == pytest.approx(math.sqrt(1 - product), abs=1e-6)
