"""The training objective against float64 formulas written out here, with a UNet that answers what the test says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from support.awake import awaken_
from torch import Tensor, nn

from cubediff.diffusion.objective import ConditionDropout, Example, Losses, Objective
from cubediff.geometry import position_map
from cubediff.models.backbone import Conditioning
from cubediff.models.inputs import front_mask, input_channels, positions, unet_input
from cubediff.models.tiny import sd_scheduler
from cubediff.pipelines.loading import tiny_random

BACKBONE = tiny_random()  # only its UNet's input matters here
PREDICTIONS = ["epsilon", "v_prediction"]
KEEP = Objective(drop_text=0.0, drop_image=0.0, drop_both=0.0)
LATENTS = torch.randn(4, 6, 4, 8, 8, generator=torch.Generator().manual_seed(3))
TEXT = torch.randn(4, 6, 5, 16, generator=torch.Generator().manual_seed(4))
EMPTY = torch.full((1, 5, 16), 7.0)


@dataclass(eq=False)
class FakeUNet(nn.Module):
    """Predicts `answer(x, t)` and keeps its inputs in `asked`, as (B, 6, …)."""

    dtype = torch.float32

    answer: Callable[[Tensor, Tensor], Tensor] = lambda x, t: torch.zeros_like(x[:, :, :4])
    asked: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        encoder_hidden_states: Tensor,
        return_dict: bool,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor]:
        six = {"x": x, "t": t, "text": encoder_hidden_states}
        if attention_mask is not None:
            six["seen"] = attention_mask
        self.asked.update({name: value.unflatten(0, (-1, 6)) for name, value in six.items()})
        return (self.answer(self.asked["x"], self.asked["t"]).flatten(0, 1),)


def loss(
    unet: nn.Module,
    objective: Objective = KEEP,
    prediction: str = "epsilon",
    seed: int = 0,
    image_drop: str = "noise",
    **given: Any,
) -> Losses:
    """The objective's loss on Stable Diffusion's UNet input, with a UNet that the test chooses."""
    call = {"latents": LATENTS, "text": TEXT, "null": EMPTY} | given
    call.setdefault("positions", position_map(call["latents"].shape[-1]))
    conditioning, null = Conditioning({"text": call.pop("text")}), Conditioning({"text": call.pop("null")[:, None]})
    backbone = BACKBONE.backbone
    backbone.unet = unet
    example = Example(conditioning=conditioning, null=null, **call)
    generator = torch.Generator().manual_seed(seed)
    return objective.loss(backbone, objective.noising(sd_scheduler(prediction)), example, generator, image_drop)


def alpha_bar(t: Tensor) -> Tensor:
    """Stable Diffusion's schedule in float64, shaped to broadcast over (B, 6, C, h, w)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)[t[:, 0]].view(-1, 1, 1, 1, 1)


def noise_in(x: Tensor, t: Tensor, latents: Tensor) -> Tensor:
    """The noise that turned `latents` into the first four channels of x."""
    a = alpha_bar(t)
    return (x[:, :, :4].double() - a.sqrt() * latents.double()) / (1 - a).sqrt()


def true_target(x: Tensor, t: Tensor, latents: Tensor, prediction: str) -> Tensor:
    a, noise = alpha_bar(t), noise_in(x, t, latents)
    return noise if prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * latents.double()


# ------------------------------------------------------------------------------------------ targets, loss


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_a_silent_unet_is_the_mean_square_of_the_target_over_the_five_other_faces(prediction):
    unet = FakeUNet()
    losses, timesteps, _ = loss(unet, prediction=prediction)
    target = true_target(unet.asked["x"], unet.asked["t"], LATENTS, prediction)
    assert torch.equal(unet.asked["t"][:, 0], timesteps)
    assert losses.shape == (4,)
    torch.testing.assert_close(losses.double(), target[:, 1:].square().mean((1, 2, 3, 4)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_the_true_answer_is_zero_and_the_noise_is_unit_noise(prediction):
    unet = FakeUNet(lambda x, t: true_target(x, t, LATENTS, prediction).float())
    losses, _, _ = loss(unet, prediction=prediction)
    assert losses.max() < 1e-8
    noise = noise_in(unet.asked["x"], unet.asked["t"], LATENTS)[:, 1:]
    assert noise.mean().abs() < 0.05  # 5120 draws: five standard errors are 0.07 and 0.05
    assert abs(noise.std() - 1) < 0.05


def test_the_loss_ignores_condition_pixels():
    def wild_front(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(x[:, :, -1:].bool(), 1e6, torch.zeros_like(x[:, :, :4]))

    assert torch.equal(loss(FakeUNet(wild_front))[0], loss(FakeUNet())[0])


def test_each_panorama_is_averaged_over_its_own_pixels_whether_the_front_is_known_or_not():
    objective = Objective(drop_text=0.0, drop_image=0.5, drop_both=0.0)
    unet = FakeUNet()
    _, _, drops = loss(unet, objective, seed=1)
    assert 0 < drops.image.sum() < 4  # both kinds in this batch
    x, t = unet.asked["x"], unet.asked["t"]
    off = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(-1, 1, 1, 1, 1)
    unet.answer = lambda x, t: (true_target(x, t, LATENTS, "epsilon") + off).float()
    torch.testing.assert_close(loss(unet, objective, seed=1)[0], torch.tensor([1.0, 4.0, 9.0, 16.0]), rtol=1e-4, atol=0)
    assert torch.equal(unet.asked["x"], x)
    assert torch.equal(unet.asked["t"], t)


def test_one_timestep_for_the_six_faces_drawn_for_each_panorama_over_the_whole_schedule():
    unet = FakeUNet()
    many = torch.zeros(2000, 6, 4, 1, 1)
    _, timesteps, _ = loss(unet, latents=many, text=TEXT[:1].expand(2000, -1, -1, -1))
    asked = unet.asked["t"]
    assert (asked == asked[:, :1]).all()
    counts = torch.bincount(timesteps // 100, minlength=10)  # 200 expected in each tenth, standard deviation 13.4
    assert counts.shape == (10,)
    assert (counts - 200).abs().max() < 5 * 13.4


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_each_panorama_by_the_clamped_signal_to_noise_ratio(prediction, gamma):
    unet = FakeUNet()
    plain, timesteps, _ = loss(unet, prediction=prediction)
    weighed, _, _ = loss(unet, Objective(0.0, 0.0, 0.0, min_snr_gamma=gamma), prediction)
    a = alpha_bar(timesteps[:, None]).flatten()
    snr = a / (1 - a)
    expected = snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close((weighed / plain).double(), expected, rtol=1e-4, atol=0)


def test_offset_noise_is_one_number_a_channel_of_a_panorama_and_part_of_the_target():
    many = torch.zeros(400, 6, 4, 2, 2)
    unet = FakeUNet(lambda x, t: true_target(x, t, many, "epsilon").float())
    call = {"latents": many, "text": TEXT[:1].expand(400, -1, -1, -1)}
    losses, _, _ = loss(unet, Objective(0.0, 0.0, 0.0, offset_noise=0.5), **call)
    assert losses.max() < 1e-6
    noise = noise_in(unet.asked["x"], unet.asked["t"], many)[:, 1:]
    mean = noise.mean((1, 3, 4))  # of 20 draws each: 0.5² + 1/20 is its variance
    assert abs(mean.var() - 0.3) < 5 * 0.3 * (2 / 1600) ** 0.5
    within = (noise - mean[:, None, :, None, None]).var()
    assert abs(within - 0.95) < 0.05


@pytest.mark.parametrize("options", [{"min_snr_gamma": 0.0}, {"min_snr_gamma": -1.0}, {"offset_noise": -0.1}])
def test_strengths_that_make_no_sense_raise(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}: expected"):
        Objective(0.1, 0.1, 0.1, **options)


# --------------------------------------------------------------------------------------- condition, drops


def test_a_condition_may_be_any_latents_at_any_latent_pixels():
    known = torch.randn(4, 6, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    mask = (torch.rand(4, 6, 1, 8, 8, generator=torch.Generator().manual_seed(9)) < 0.3).float()
    unet = FakeUNet()
    losses, _, drops = loss(unet, Objective(0.0, 0.5, 0.0), seed=1, clean=known, mask=mask)
    assert 0 < drops.image.sum() < 4
    kept = mask * (~drops.image).view(-1, 1, 1, 1, 1)
    x = unet.asked["x"]
    assert torch.equal(x[:, :, -1:], kept)
    assert torch.equal((x[:, :, :4] == known).all(2, keepdim=True), kept.bool())
    noise = noise_in(x, unet.asked["t"], LATENTS)
    weight = (1 - kept).expand_as(noise)
    # Where the condition is, the noise cannot be read off, and must not count.
    expected = (noise.square() * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=0)


def test_dropped_by_attention_the_image_stays_and_no_query_sees_its_face():
    unet = FakeUNet()
    _, _, drops = loss(unet, Objective(0.0, 0.5, 0.0), seed=1, image_drop="attention")
    assert 0 < drops.image.sum() < 4
    expected = torch.ones(4, 6, dtype=torch.bool)
    expected[drops.image, 0] = False
    assert torch.equal(unet.asked["seen"][..., 0], expected)
    assert torch.equal(unet.asked["x"][:, :, -1:], front_mask(LATENTS))
    assert torch.equal(unet.asked["x"][:, 0, :4], LATENTS[:, 0])


def test_the_input_is_latents_then_positions_then_mask_and_clean_exactly_where_the_mask_is_one():
    objective = Objective(drop_text=0.0, drop_image=0.5, drop_both=0.0)
    for encoding, channels in (("uv", 7), ("uv_pi", 7), ("xyz", 8)):
        unet = FakeUNet()
        _, _, drops = loss(unet, objective, seed=1, positions=position_map(8, 95.0, encoding))
        x, positions, mask = unet.asked["x"].tensor_split([4, channels - 1], dim=2)
        assert input_channels(4, encoding) == channels == unet.asked["x"].shape[2]
        assert torch.equal(positions, position_map(8, 95.0, encoding).expand(4, -1, -1, -1, -1))
        expected = torch.zeros(4, 6, 1, 8, 8)
        expected[~drops.image, 0] = 1
        assert torch.equal(mask, expected)
        clean = (x == LATENTS).all(2, keepdim=True)
        assert torch.equal(clean, mask.bool())


def test_text_is_replaced_by_the_empty_text_on_all_six_faces_of_dropped_panoramas_alone():
    unet = FakeUNet()
    _, _, drops = loss(unet, Objective(drop_text=0.5, drop_image=0.0, drop_both=0.0), seed=1)
    assert 0 < drops.text.sum() < 4
    assert not drops.image.any()
    assert torch.equal(unet.asked["text"][drops.text], EMPTY.expand(int(drops.text.sum()), 6, -1, -1))
    assert torch.equal(unet.asked["text"][~drops.text], TEXT[~drops.text])


def test_drops_fall_on_single_panoramas_with_the_shares_asked_for():
    count = 40_000
    drops = Objective(drop_text=0.1, drop_image=0.2, drop_both=0.05).sample_dropout(
        count, torch.Generator().manual_seed(0)
    )
    shares = {
        0.1: drops.text & ~drops.image,
        0.2: drops.image & ~drops.text,
        0.05: drops.text & drops.image,
        0.65: ~drops.text & ~drops.image,
    }
    for share, hit in shares.items():
        bound = 5 * (share * (1 - share) / count) ** 0.5  # five standard deviations: fails once in two million draws
        assert abs(hit.double().mean() - share) < bound
        neighbours = (hit[1:] & hit[:-1]).double().mean()  # no batch shares a draw
        assert abs(neighbours - share**2) < 5 * (share**2 / count) ** 0.5


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("name", ["drop_text", "drop_image", "drop_both"])
def test_a_share_of_nothing_drops_none_and_a_share_of_one_drops_all(name, share):
    shares = {"drop_text": 0.0, "drop_image": 0.0, "drop_both": 0.0, name: share}
    drops = Objective(**shares).sample_dropout(1000, torch.Generator().manual_seed(0))
    assert drops.text.all() == (share == 1 and name != "drop_image")
    assert drops.image.all() == (share == 1 and name != "drop_text")
    assert drops.text.any() == drops.text.all()
    assert drops.image.any() == drops.image.all()


@pytest.mark.parametrize("shares", [(-0.1, 0.0, 0.0), (0.5, 0.5, 0.1), (0.0, 0.0, 1.1)])
def test_shares_that_are_none_raise(shares):
    with pytest.raises(ValueError, match="must each be at least 0 and add up to at most 1"):
        Objective(*shares)


# ------------------------------------------------------------------------------------------- on a real UNet


def test_position_and_mask_channels_act_after_one_optimizer_step_on_conv_in_and_not_before():
    unet = tiny_random().unet
    with torch.no_grad():
        kernels = unet.conv_in.weight[:, 4:].clone()
        awaken_(unet).conv_in.weight[:, 4:] = kernels  # zeros, as widening leaves them
    unet.requires_grad_(False).conv_in.requires_grad_(True)
    text = torch.randn(4, 6, 5, 32, generator=torch.Generator().manual_seed(0))

    def effect(channel: int) -> float:
        x = unet_input(LATENTS, front_mask(LATENTS), position_map(8))
        other = x.clone()
        other[:, channel] = 1 - other[:, channel]
        with torch.no_grad():
            outputs = [unet(one, 500, text.flatten(0, 1)).sample for one in (x, other)]
        return (outputs[0] - outputs[1]).abs().max().item()

    assert [effect(channel) for channel in (4, 5, 6)] == [0, 0, 0]
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-3)
    loss(unet, text=text, null=torch.zeros(1, 5, 32))[0].mean().backward()
    optimizer.step()
    assert min(effect(channel) for channel in (4, 5, 6)) > 1e-4


def test_positions_first_asked_for_in_inference_mode_serve_training_too():
    unet = tiny_random().unet
    call = {"text": torch.zeros(4, 6, 5, 32), "null": torch.zeros(1, 5, 32)}
    with torch.inference_mode():
        positions(8, 97.0, "uv")
    loss(unet, **call, positions=positions(8, 97.0, "uv"))[0].mean().backward()
    assert unet.conv_in.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_the_generator_decides_everything(seed):
    objective = Objective(0.2, 0.2, 0.2)
    first, second = FakeUNet(), FakeUNet()
    losses, _, drops = loss(first, objective, seed=seed)
    torch.manual_seed(12345)  # the global state has no say
    again, _, same = loss(second, objective, seed=seed)
    assert torch.equal(losses, again)
    assert isinstance(drops, ConditionDropout)
    assert torch.equal(drops.text, same.text)
    assert torch.equal(drops.image, same.image)
    for name in ("x", "t", "text"):
        assert torch.equal(first.asked[name], second.asked[name])
    other = FakeUNet()
    loss(other, objective, seed=seed + 100)
    assert not torch.equal(other.asked["x"], first.asked["x"])
    assert not torch.equal(other.asked["t"], first.asked["t"])


def test_a_model_that_predicts_something_else_raises():
    with pytest.raises(ValueError, match="prediction_type='sample' in the model's scheduler: train from a model that"):
        loss(FakeUNet(), prediction="sample")


def test_an_unknown_position_encoding_raises():
    with pytest.raises(ValueError, match="position_encoding='polar': use one of uv, uv_pi, xyz"):
        input_channels(4, "polar")
