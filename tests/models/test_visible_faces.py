"""Self-attention to visible faces alone, against attention in float64 with −inf on the keys of hidden faces."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import diffusers.models.attention_processor
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from support.small_unet import TEXT, small_unet
from torch import Tensor, nn

from cubediff.models.attention import fuse_projections_
from cubediff.models.inflation import inflate_
from cubediff.models.visible_faces import visible_faces
from cubediff.pipelines.loading import tiny_random

CPU = torch.device("cpu")
MODES = ["all", "below_top", "pooled_top"]
TOKENS = 5  # of a text
HIDDEN = torch.zeros(5, 6, dtype=torch.bool)  # the order of the groups is not its own inverse
HIDDEN[0, 0] = HIDDEN[3, 4] = HIDDEN[2, 0] = HIDDEN[2, 3] = True
# Of HIDDEN: how many panoramas see how many faces, and how many faces see how many of the other five.
PANORAMAS = {6: 2, 5: 2, 4: 1}
FACES = {5: 12 + 2, 4: 10 + 2, 3: 4}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def means(tokens: Tensor) -> Tensor:
    """Means of 2 × 2 tokens (…, P, C) of square faces of even size."""
    size = int(tokens.shape[-2] ** 0.5)
    return tokens.unflatten(-2, (size // 2, 2, size // 2, 2)).mean((-4, -2)).flatten(-3, -2)


class MaskedAttention:
    """Self-attention of a panorama after another, with −inf on the scores of hidden keys."""

    def __init__(self, mode: str, hidden: Tensor) -> None:
        self.mode, self.hidden = mode, hidden

    def __call__(self, attn: Any, hidden_states: Tensor, **_: object) -> Tensor:
        query, key, value = (layer(hidden_states).unflatten(0, (-1, 6)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        faces = []
        for panorama, hidden in enumerate(self.hidden.tolist()):
            for face in range(6):
                keys, values, scores = self.seen(key[panorama], value[panorama], hidden, face)
                heads = [x.unflatten(-1, (attn.heads, -1)).movedim(1, 0) for x in (query[panorama, face], keys, values)]
                weights = (heads[0] @ heads[1].mT / heads[0].shape[-1] ** 0.5 + scores).softmax(-1)
                faces.append(attn.to_out[0]((weights @ heads[2]).movedim(0, 1).flatten(1)))
        return torch.stack(faces)

    def seen(self, key: Tensor, value: Tensor, hidden: list[bool], face: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and what is added to their scores, for the queries of one face."""
        if self.mode == "below_top":
            return key[face], value[face], key.new_zeros(key.shape[1])
        if self.mode == "all":
            mask = torch.tensor(hidden).repeat_interleave(key.shape[1])
            return key.flatten(0, 1), value.flatten(0, 1), torch.where(mask, -torch.inf, 0.0).double()
        others = [other for other in range(6) if other != face]
        keys, values = (torch.cat([each[face], *means(each[others])]) for each in (key, value))
        pooled = torch.tensor(hidden)[others].repeat_interleave(key.shape[1] // 4)
        mask = torch.cat([torch.zeros(key.shape[1], dtype=torch.bool), pooled])
        return keys, values, torch.where(mask, -torch.inf, 0.0).double()


def masked(unet: UNet2DConditionModel, inflate: str, hidden: Tensor) -> UNet2DConditionModel:
    """A copy of an inflated UNet with `MaskedAttention`."""
    unet = copy.deepcopy(unet)
    processors = {}
    for name, processor in unet.attn_processors.items():
        is_top = not name.startswith("mid_block")
        reference = MaskedAttention(inflate if is_top else "all", hidden)
        processors[name] = reference if ".attn1." in name else processor
    unet.set_attn_processor(processors)
    return unet


def outcome(unet: nn.Module, hidden: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """The output for five panoramas, and the gradients of weights and latents."""
    latents, text = draw(30, 4, 8, 8).requires_grad_(), draw(30, TOKENS, TEXT, seed=1)
    visible = None if hidden is None else visible_faces(hidden, CPU)
    options = {} if visible is None else {"cross_attention_kwargs": {"visible_faces": visible}}
    output = unet(latents, 500, text, **options).sample
    unet.zero_grad()
    output.mul(draw(*output.shape, seed=2)).sum().backward()
    assert latents.grad is not None
    gradients = {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}
    return output.detach(), {"latents": latents.grad, **gradients}


def assert_close(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-10)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= 1e-10 * (1 + gradient.abs().max()), name


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, int, int]]:
    """How often self-attention ran with (batch, queries, keys); never with a mask."""
    counts: Counter[tuple[int, int, int]] = Counter()
    original = F.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        assert attn_mask is None
        if key.shape[2] != TOKENS:
            counts[len(query), query.shape[2], key.shape[2]] += 1
        return original(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    return counts


@pytest.mark.parametrize("inflate", MODES)
@pytest.mark.parametrize("cross_attention", ["per_face", "joint"])
def test_outputs_and_gradients_are_those_of_a_mask(inflate: str, cross_attention: str) -> None:
    unet = inflate_(small_unet(attention_head_dim=2), inflate=inflate, cross_attention=cross_attention)
    found, reference = outcome(unet, HIDDEN), outcome(masked(unet, inflate, HIDDEN), None)
    assert_close(found, reference)
    assert (found[0] - outcome(unet, None)[0]).unflatten(0, (5, 6))[0, 1:].abs().max() > 1e-3


@pytest.mark.parametrize("inflate", MODES)
def test_attention_runs_without_a_mask_on_the_keys_of_visible_faces(
    inflate: str, calls: Counter[tuple[int, int, int]]
) -> None:
    """Three layers have the full resolution of 8 × 8, and one has 4 × 4."""
    top = {
        "all": {(count, 6 * 64, seen * 64): 3 for seen, count in PANORAMAS.items()},
        "below_top": {(30, 64, 64): 3},
        "pooled_top": {(count, 64, 64 + seen * 16): 3 for seen, count in FACES.items()},
    }[inflate]
    outcome(inflate_(small_unet(attention_head_dim=2), inflate=inflate), HIDDEN)
    assert calls == top | {(count, 6 * 16, seen * 16): 1 for seen, count in PANORAMAS.items()}


@pytest.mark.parametrize("inflate", MODES)
def test_where_no_face_is_hidden_attention_is_not_grouped(inflate: str, calls: Counter[tuple[int, int, int]]) -> None:
    unet = inflate_(small_unet(attention_head_dim=2), inflate=inflate)
    none = torch.zeros_like(HIDDEN)
    assert visible_faces(none, CPU) is None
    found = outcome(unet, none)
    top = {"all": (5, 384, 384), "below_top": (30, 64, 64), "pooled_top": (30, 64, 64 + 5 * 16)}[inflate]
    assert calls == {top: 3, (5, 96, 96): 1}
    assert_close(found, outcome(masked(unet, inflate, none), None))


def test_a_panorama_without_a_visible_face_attends_to_nothing() -> None:
    hidden = HIDDEN.clone()
    hidden[1] = True
    unet = inflate_(small_unet(attention_head_dim=2))
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    tokens = draw(30, 16, 32)
    found = layer(tokens, visible_faces=visible_faces(hidden, CPU)).unflatten(0, (5, 6))
    assert torch.equal(found[1], layer.to_out[0].bias.expand(6, 16, 32))
    others = [0, 2, 3, 4]
    expected = layer(tokens, visible_faces=visible_faces(HIDDEN, CPU)).unflatten(0, (5, 6))
    torch.testing.assert_close(found[others], expected[others], rtol=0, atol=1e-12)
    assert all(gradient.isfinite().all() for gradient in outcome(unet, hidden)[1].values())


def sliced(unet: UNet2DConditionModel) -> None:
    unet.set_attention_slice("max")


def eager(unet: UNet2DConditionModel) -> None:
    unet.set_attn_processor(AttnProcessor())


def fused(unet: UNet2DConditionModel) -> None:
    fuse_projections_(inflate_(unet))


@pytest.mark.parametrize("replace", [sliced, eager, fused])
def test_other_processors_attend_to_visible_faces_too_and_diffusers_does_not_warn(
    replace: Callable[[UNet2DConditionModel], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = small_unet(attention_head_dim=2).requires_grad_(False)  # fused projections have weights of other names
    expected = outcome(masked(inflate_(unet), "all", HIDDEN), None)
    warnings: list[str] = []
    monkeypatch.setattr(diffusers.models.attention_processor.logger, "warning", warnings.append)
    replace(unet)
    assert_close(outcome(inflate_(unet).requires_grad_(False), HIDDEN), expected)
    assert warnings == []


def test_an_attention_mask_is_refused() -> None:
    latents, text = draw(6, 4, 8, 8), draw(6, TOKENS, TEXT)
    for inflate in ("all", "pooled_top"):
        unet = inflate_(small_unet(attention_head_dim=2), inflate=inflate)
        with pytest.raises(ValueError, match=r"no attention_mask.*hide faces by cross_attention_kwargs"):
            unet(latents, 500, text, attention_mask=torch.ones(6, 1))


def test_sampling_with_guidance_attends_to_six_faces_and_without_the_image_to_five(
    calls: Counter[tuple[int, int, int]],
) -> None:
    pipeline = tiny_random(image_drop="attention")
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a hall", image=torch.zeros(3, 64, 64), num_inference_steps=2, output_type="latent")
    layers = sum(".attn1." in name for name in pipeline.unet.attn_processors)
    own = {call: count for call, count in calls.items() if call[0] == 1}  # cross-attention has a batch of 12 faces
    for faces in (6, 5):
        assert sum(count for (_, queries, keys), count in own.items() if 6 * keys == faces * queries) == 2 * layers
    assert sum(own.values()) == 2 * 2 * layers
