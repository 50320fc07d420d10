"""The training objective against float64 formulas, with a UNet whose output the test defines."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from support.awake import awaken_
from torch import Tensor, nn

from cubediff.diffusion.objective import ConditionDropout, Example, Losses, Objective, overlap_error
from cubediff.diffusion.random import draw, host_generators
from cubediff.geometry import face_directions, position_map
from cubediff.models.backbone import Conditioning
from cubediff.models.inputs import front_mask, input_channels, positions, unet_input
from cubediff.models.tiny import sd_scheduler
from cubediff.models.visible_faces import VisibleFaces
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
    received: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        encoder_hidden_states: Tensor,
        return_dict: bool,
        cross_attention_kwargs: dict[str, VisibleFaces] | None = None,
    ) -> tuple[Tensor]:
        six = {"x": x, "t": t, "text": encoder_hidden_states}
        if cross_attention_kwargs is not None:
            six["seen"] = torch.zeros(len(x), dtype=torch.bool)
            for group in cross_attention_kwargs["visible_faces"].of_panoramas.groups:
                six["seen"][group.faces.flatten()] = True
        self.received.update({name: value.unflatten(0, (-1, 6)) for name, value in six.items()})
        return (self.answer(self.received["x"], self.received["t"]).flatten(0, 1),)


def loss(
    unet: nn.Module,
    objective: Objective = KEEP,
    prediction: str = "epsilon",
    seed: int = 0,
    image_drop: str = "noise",
    **replaced: Any,
) -> Losses:
    """The objective's loss with the input of Stable Diffusion's UNet and a UNet of the test."""
    call = {"latents": LATENTS, "text": TEXT, "null": EMPTY} | replaced
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
    """The noise that was added to `latents`, from the first four channels of x."""
    a = alpha_bar(t)
    return (x[:, :, :4].double() - a.sqrt() * latents.double()) / (1 - a).sqrt()


def true_target(x: Tensor, t: Tensor, latents: Tensor, prediction: str) -> Tensor:
    a, noise = alpha_bar(t), noise_in(x, t, latents)
    return noise if prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * latents.double()


# ------------------------------------------------------------------------------------------ targets, loss


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_a_zero_prediction_is_the_mean_square_of_the_target_over_five_faces(prediction):
    unet = FakeUNet()
    losses, timesteps, _ = loss(unet, prediction=prediction)
    target = true_target(unet.received["x"], unet.received["t"], LATENTS, prediction)
    assert torch.equal(unet.received["t"][:, 0], timesteps)
    assert losses.shape == (4,)
    torch.testing.assert_close(losses.double(), target[:, 1:].square().mean((1, 2, 3, 4)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_the_true_target_is_zero_and_the_noise_has_unit_variance(prediction):
    unet = FakeUNet(lambda x, t: true_target(x, t, LATENTS, prediction).float())
    losses, _, _ = loss(unet, prediction=prediction)
    assert losses.max() < 1e-8
    noise = noise_in(unet.received["x"], unet.received["t"], LATENTS)[:, 1:]
    assert noise.mean().abs() < 0.05  # 5120 draws: five standard errors are 0.07 and 0.05
    assert abs(noise.std() - 1) < 0.05


def test_the_loss_ignores_condition_pixels():
    def wild_front(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(x[:, :, -1:].bool(), 1e6, torch.zeros_like(x[:, :, :4]))

    assert torch.equal(loss(FakeUNet(wild_front))[0], loss(FakeUNet())[0])


def test_each_loss_is_the_mean_over_unconditioned_pixels_with_and_without_dropout():
    objective = Objective(drop_text=0.0, drop_image=0.5, drop_both=0.0)
    unet = FakeUNet()
    _, _, drops = loss(unet, objective, seed=1)
    assert 0 < drops.image.sum() < 4  # both kinds in this batch
    x, t = unet.received["x"], unet.received["t"]
    off = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(-1, 1, 1, 1, 1)
    unet.answer = lambda x, t: (true_target(x, t, LATENTS, "epsilon") + off).float()
    torch.testing.assert_close(loss(unet, objective, seed=1)[0], torch.tensor([1.0, 4.0, 9.0, 16.0]), rtol=1e-4, atol=0)
    assert torch.equal(unet.received["x"], x)
    assert torch.equal(unet.received["t"], t)


def test_timesteps_are_uniform_over_the_schedule_and_equal_for_the_faces_of_a_panorama():
    unet = FakeUNet()
    many = torch.zeros(2000, 6, 4, 1, 1)
    _, timesteps, _ = loss(unet, latents=many, text=TEXT[:1].expand(2000, -1, -1, -1))
    received = unet.received["t"]
    assert (received == received[:, :1]).all()
    counts = torch.bincount(timesteps // 100, minlength=10)  # 200 expected in each tenth, standard deviation 13.4
    assert counts.shape == (10,)
    assert (counts - 200).abs().max() < 5 * 13.4


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_each_panorama_by_the_clamped_snr(prediction, gamma):
    unet = FakeUNet()
    plain, timesteps, _ = loss(unet, prediction=prediction)
    weighed, _, _ = loss(unet, Objective(0.0, 0.0, 0.0, min_snr_gamma=gamma), prediction)
    a = alpha_bar(timesteps[:, None]).flatten()
    snr = a / (1 - a)
    expected = snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close((weighed / plain).double(), expected, rtol=1e-4, atol=0)


class AnyShape:
    """A loss weighting or timestep sampler with a fixed result."""

    def __init__(self, result: object) -> None:
        self.result = result

    def __call__(self, *arguments: object) -> object:
        return self.result


@pytest.mark.parametrize(
    ("result", "got"),
    [(torch.tensor(0.5), "the shape ()"), (torch.ones(4, 4), "the shape (4, 4)"), (0.5, "a float")],
    ids=["scalar", "matrix", "number"],
)
@pytest.mark.parametrize(("key", "value"), [("weighting", "loss"), ("timesteps", "timestep")])
def test_a_component_that_returns_another_shape_is_named(result: object, got: str, key: str, value: str) -> None:
    name = f"{AnyShape.__module__}.AnyShape"
    message = f"model.objective.{key}: {name} returned {got}, expected (4,): one {value} for each panorama"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        loss(FakeUNet(), replace(KEEP, **{key: AnyShape(result)}))


def test_a_function_as_weighting_is_named_as_itself() -> None:
    def halved(*arguments: object) -> object:
        return None

    message = rf"^model\.objective\.weighting: {__name__}\..*\.halved returned a NoneType"
    with pytest.raises(ValueError, match=message):
        loss(FakeUNet(), replace(KEEP, weighting=halved))


def test_offset_noise_is_constant_per_channel_and_part_of_the_target():
    many = torch.zeros(400, 6, 4, 2, 2)
    unet = FakeUNet(lambda x, t: true_target(x, t, many, "epsilon").float())
    call = {"latents": many, "text": TEXT[:1].expand(400, -1, -1, -1)}
    losses, _, _ = loss(unet, Objective(0.0, 0.0, 0.0, offset_noise=0.5), **call)
    assert losses.max() < 1e-6
    noise = noise_in(unet.received["x"], unet.received["t"], many)[:, 1:]
    mean = noise.mean((1, 3, 4))  # of 20 draws each: 0.5² + 1/20 is its variance
    assert abs(mean.var() - 0.3) < 5 * 0.3 * (2 / 1600) ** 0.5
    within = (noise - mean[:, None, :, None, None]).var()
    assert abs(within - 0.95) < 0.05


@pytest.mark.parametrize("options", [{"min_snr_gamma": 0.0}, {"min_snr_gamma": -1.0}, {"offset_noise": -0.1}])
def test_settings_out_of_range_raise(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}: expected"):
        Objective(0.1, 0.1, 0.1, **options)


# --------------------------------------------------------------------------- condition, condition dropout


def test_a_condition_may_cover_any_latent_pixels():
    clean = torch.randn(4, 6, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    mask = (torch.rand(4, 6, 1, 8, 8, generator=torch.Generator().manual_seed(9)) < 0.3).float()
    unet = FakeUNet()
    losses, _, drops = loss(unet, Objective(0.0, 0.5, 0.0), seed=1, clean=clean, mask=mask)
    assert 0 < drops.image.sum() < 4
    kept = mask * (~drops.image).view(-1, 1, 1, 1, 1)
    x = unet.received["x"]
    assert torch.equal(x[:, :, -1:], kept)
    assert torch.equal((x[:, :, :4] == clean).all(2, keepdim=True), kept.bool())
    noise = noise_in(x, unet.received["t"], LATENTS)
    weight = (1 - kept).expand_as(noise)
    # On the condition the noise cannot be recovered, and must not count.
    expected = (noise.square() * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=0)


def test_with_image_drop_attention_the_image_stays_and_is_hidden():
    unet = FakeUNet()
    _, _, drops = loss(unet, Objective(0.0, 0.5, 0.0), seed=1, image_drop="attention")
    assert 0 < drops.image.sum() < 4
    expected = torch.ones(4, 6, dtype=torch.bool)
    expected[drops.image, 0] = False
    assert torch.equal(unet.received["seen"], expected)
    assert torch.equal(unet.received["x"][:, :, -1:], front_mask(LATENTS))
    assert torch.equal(unet.received["x"][:, 0, :4], LATENTS[:, 0])


def test_with_image_drop_attention_the_hidden_faces_are_those_with_a_photo():
    mask = torch.zeros(4, 6, 1, 8, 8)
    mask[:, 1, :, 0, 0] = mask[:, 4] = 1
    unet = FakeUNet()
    _, _, drops = loss(unet, Objective(0.0, 0.5, 0.0), seed=1, image_drop="attention", clean=LATENTS, mask=mask)
    expected = torch.ones(4, 6, dtype=torch.bool)
    expected[drops.image.nonzero(), torch.tensor([1, 4])] = False
    assert torch.equal(unet.received["seen"], expected)


@pytest.mark.parametrize("image_drop", ["noise", "attention"])
def test_draws_are_the_same_with_both_image_drops(image_drop):
    objective, unet = Objective(0.2, 0.2, 0.2, offset_noise=0.1), FakeUNet()
    _, timesteps, drops = loss(unet, objective, seed=1, image_drop=image_drop)
    generator = torch.Generator().manual_seed(1)
    dropout = objective.sample_dropout(4, generator)
    assert torch.equal(drops.conditions, dropout.conditions)
    assert torch.equal(timesteps, torch.randint(0, 1000, (4,), generator=generator))
    noise = objective.noising(sd_scheduler()).sample_noise(LATENTS, generator)
    found = noise_in(unet.received["x"], unet.received["t"], LATENTS)
    torch.testing.assert_close(found[:, 1:], noise[:, 1:].double(), rtol=0, atol=1e-4)


class DeviceGenerator(torch.Generator):
    """Stands for the generator of a GPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


def test_draws_on_the_host_are_those_of_cpu_generators_of_the_same_seeds():
    seeds = [3, 5, 2**63 - 1]
    for kind in (torch.Generator, DeviceGenerator):
        generators = [kind().manual_seed(seed) for seed in seeds]
        found = draw(torch.rand, (3,), host_generators(generators))
        assert torch.equal(found, torch.cat([torch.rand(1, generator=torch.Generator().manual_seed(s)) for s in seeds]))
        (alone,) = draw(torch.rand, (1,), host_generators(kind().manual_seed(5)))
        assert alone == found[1]


def test_input_channels_are_latents_positions_mask_and_clean_where_the_mask_is_one():
    objective = Objective(drop_text=0.0, drop_image=0.5, drop_both=0.0)
    for encoding, channels in (("uv", 7), ("uv_pi", 7), ("xyz", 8)):
        unet = FakeUNet()
        _, _, drops = loss(unet, objective, seed=1, positions=position_map(8, 95.0, encoding))
        x, positions, mask = unet.received["x"].tensor_split([4, channels - 1], dim=2)
        assert input_channels(4, encoding) == channels == unet.received["x"].shape[2]
        assert torch.equal(positions, position_map(8, 95.0, encoding).expand(4, -1, -1, -1, -1))
        expected = torch.zeros(4, 6, 1, 8, 8)
        expected[~drops.image, 0] = 1
        assert torch.equal(mask, expected)
        clean = (x == LATENTS).all(2, keepdim=True)
        assert torch.equal(clean, mask.bool())


def test_condition_dropout_replaces_the_text_of_all_six_faces():
    unet = FakeUNet()
    _, _, drops = loss(unet, Objective(drop_text=0.5, drop_image=0.0, drop_both=0.0), seed=1)
    assert 0 < drops.text.sum() < 4
    assert not drops.image.any()
    assert torch.equal(unet.received["text"][drops.text], EMPTY.expand(int(drops.text.sum()), 6, -1, -1))
    assert torch.equal(unet.received["text"][~drops.text], TEXT[~drops.text])


def test_condition_dropout_has_the_configured_shares_and_differs_between_panoramas():
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
def test_dropout_of_zero_drops_none_and_of_one_drops_all(name, share):
    shares = {"drop_text": 0.0, "drop_image": 0.0, "drop_both": 0.0, name: share}
    drops = Objective(**shares).sample_dropout(1000, torch.Generator().manual_seed(0))
    assert drops.text.all() == (share == 1 and name != "drop_image")
    assert drops.image.all() == (share == 1 and name != "drop_text")
    assert drops.text.any() == drops.text.all()
    assert drops.image.any() == drops.image.all()


@pytest.mark.parametrize("shares", [(-0.1, 0.0, 0.0), (0.5, 0.5, 0.1), (0.0, 0.0, 1.1)])
def test_invalid_dropout_shares_raise(shares):
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


def test_positions_cached_in_inference_mode_work_in_training():
    unet = tiny_random().unet
    call = {"text": torch.zeros(4, 6, 5, 32), "null": torch.zeros(1, 5, 32)}
    with torch.inference_mode():
        positions(8, 97.0, "uv")
    loss(unet, **call, positions=positions(8, 97.0, "uv"))[0].mean().backward()
    assert unet.conv_in.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_the_generator_determines_every_draw(seed):
    objective = Objective(0.2, 0.2, 0.2)
    first, second = FakeUNet(), FakeUNet()
    losses, _, drops = loss(first, objective, seed=seed)
    torch.manual_seed(12345)  # the global state has no effect
    again, _, same = loss(second, objective, seed=seed)
    assert torch.equal(losses, again)
    assert isinstance(drops, ConditionDropout)
    assert torch.equal(drops.text, same.text)
    assert torch.equal(drops.image, same.image)
    for name in ("x", "t", "text"):
        assert torch.equal(first.received[name], second.received[name])
    other = FakeUNet()
    loss(other, objective, seed=seed + 100)
    assert not torch.equal(other.received["x"], first.received["x"])
    assert not torch.equal(other.received["t"], first.received["t"])


def test_an_unsupported_prediction_type_raises():
    with pytest.raises(ValueError, match="prediction_type='sample' in the model's scheduler: train from a model that"):
        loss(FakeUNet(), prediction="sample")


def test_an_unknown_position_encoding_raises():
    with pytest.raises(ValueError, match="position_encoding='polar': use one of uv, uv_pi, xyz"):
        input_channels(4, "polar")


# ------------------------------------------------------------------------------------------------ overlaps


def test_the_overlap_term_is_the_mean_square_of_the_difference_between_the_errors_of_neighbouring_faces() -> None:
    latents = torch.randn(2, 6, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    offsets = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0, -1.0])  # of the errors; that of the front is masked
    shifted = offsets.view(1, 6, 1, 1, 1)
    unet = FakeUNet(lambda x, t: (true_target(x, t, latents, "epsilon") + shifted).float())
    plain, weighted = (
        loss(unet, replace(KEEP, overlap_weight=weight), latents=latents, text=TEXT[:2]).losses for weight in (0.0, 0.1)
    )
    opposite = {0: 2, 2: 0, 1: 3, 3: 1, 4: 5, 5: 4}  # front and back, right and left, up and down
    pairs = [(a, b) for a in range(6) for b in range(6) if b not in (a, opposite[a])]
    expected = sum(float(offsets[a] - offsets[b]) ** 2 for a, b in pairs) / len(pairs)  # all edges are equally long
    torch.testing.assert_close(plain, offsets[1:].square().mean().expand(2), rtol=1e-4, atol=0)
    torch.testing.assert_close(weighted - plain, torch.tensor(0.1 * expected).expand(2), rtol=1e-3, atol=0)


def test_errors_that_are_a_function_of_the_direction_agree() -> None:
    errors = face_directions(32, 100.0).movedim(-1, 1)[None]
    assert overlap_error(errors, 100.0).item() < 1e-6
    assert overlap_error(errors.roll(1, 1), 100.0).item() > 0.1


def test_an_overlap_term_without_an_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap by a pixel or more; those of 8 latent pixels and 95° do not"):
        loss(FakeUNet(), replace(KEEP, overlap_weight=0.1))
    with pytest.raises(ValueError, match="overlap_weight=-1"):
        replace(KEEP, overlap_weight=-1.0)
