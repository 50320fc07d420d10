"""Inflated attention, synchronized GroupNorm and the widened conv_in, against float64 references: on small UNets of
both Stable Diffusion kinds and on the SD 1.5 configuration itself."""

import copy
import gc
from collections.abc import Iterator
from itertools import combinations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from support.awake import awaken_
from support.small_unet import TEXT, small_unet
from torch import Tensor, nn

from cubediff.models.attention import PooledAttnProcessor
from cubediff.models.inflation import (
    CubeAttnProcessor,
    CubeGroupNorm,
    FaceAttnProcessor,
    inflate_,
    sync_group_norm_,
    widen_conv_in_,
)
from cubediff.models.stable_diffusion import StableDiffusion
from cubediff.models.trainable import select_trainable_
from cubediff.models.visible_faces import visible_faces
from cubediff.pipelines.loading import tiny_random

KINDS = {
    "sd1": {"attention_head_dim": 2},
    "sd2": {"attention_head_dim": [2, 4], "use_linear_projection": True},
}


@pytest.fixture(params=KINDS)
def stock(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    """A small awake UNet in float64, not inflated."""
    return small_unet(**KINDS[request.param])


@pytest.fixture
def unet(stock: UNet2DConditionModel) -> UNet2DConditionModel:
    return inflate_(stock)


def draws(*shapes: tuple[int, ...], seed: int = 1, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def predict(unet: nn.Module, latents: Tensor, text: Tensor, t: int = 500) -> Tensor:
    """The UNet's output, as (B, 6, C, h, w), for latents and text states (B, 6, …)."""
    with torch.no_grad():
        return unet(latents.flatten(0, 1), t, text.flatten(0, 1)).sample.unflatten(0, (-1, 6))


def reference_norm(norm: nn.GroupNorm, faces: Tensor) -> Tensor:
    """GroupNorm in float64 with the moments of each group of channels taken over all pixels of all six faces."""
    faces = faces.double()
    result = torch.empty_like(faces)
    per_group = faces.shape[1] // norm.num_groups
    for start in range(0, len(faces), 6):
        for group in range(norm.num_groups):
            channels = slice(group * per_group, (group + 1) * per_group)
            values = faces[start : start + 6, channels]
            centred = values - values.mean()
            result[start : start + 6, channels] = centred / (centred.square().mean() + norm.eps).sqrt()
    affine = (1, -1) + (1,) * (faces.ndim - 2)
    return result * norm.weight.double().view(affine) + norm.bias.double().view(affine)


def reference_attention(layer: nn.Module, faces: Tensor) -> Tensor:
    """Self-attention in float64 over all tokens of the six faces of a panorama."""
    result = torch.empty_like(faces, dtype=torch.float64)
    for start in range(0, len(faces), 6):
        tokens = torch.cat(list(faces[start : start + 6].double()))  # (6·N, C)
        heads = []
        queries, keys, values = (
            (tokens @ p.weight.double().T).chunk(layer.heads, dim=1) for p in (layer.to_q, layer.to_k, layer.to_v)
        )
        for q, k, v in zip(queries, keys, values, strict=True):
            heads.append(torch.softmax(q @ k.T / q.shape[1] ** 0.5, dim=1) @ v)
        out = torch.cat(heads, dim=1) @ layer.to_out[0].weight.double().T + layer.to_out[0].bias.double()
        result[start : start + 6] = torch.stack(out.chunk(6))
    return result


class Recorded:
    """Inputs and outputs of every layer of `kind` inside `model`, while the block runs."""

    def __init__(self, model: nn.Module, kind: type[nn.Module] | str) -> None:
        self.layers = {
            name: layer
            for name, layer in model.named_modules()
            if (name.endswith(kind) if isinstance(kind, str) else isinstance(layer, kind))
        }
        self.calls: list[tuple[str, Tensor, Tensor]] = []

    def __enter__(self) -> "Recorded":
        self.hooks = [
            layer.register_forward_hook(lambda _, args, out, name=name: self.calls.append((name, args[0], out)))
            for name, layer in self.layers.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def worst(self, reference) -> float:
        """The largest difference between any output and `reference(layer, input)`."""
        assert {name for name, _, _ in self.calls} == set(self.layers)  # every layer took part
        return max((reference(self.layers[name], x) - y).abs().max().item() for name, x, y in self.calls)


# ------------------------------------------------------------------------------------------- small UNets


@pytest.mark.parametrize("inflate", ["all", "below_top"])
@pytest.mark.parametrize("cross_attention", ["per_face", "joint"])
def test_six_equal_faces_match_the_stock_model_for_any_mask_and_positions(stock, cross_attention, inflate):
    latents, text, others = draws((1, 4, 8, 8), (1, 5, TEXT), (1, 6, 3, 8, 8))
    expected = stock(latents, 500, text).sample
    unet = widen_conv_in_(inflate_(stock, cross_attention=cross_attention, inflate=inflate), 7)
    faces = torch.cat([latents.expand(1, 6, -1, -1, -1), others], dim=2)
    got = predict(unet, faces, text.expand(1, 6, -1, -1))
    assert (got - expected).abs().max() < 1e-10 < 1e-2 < expected.std()


def test_changing_one_panorama_of_a_batch_changes_no_other(unet):
    latents, text, other = draws((3, 6, 4, 8, 8), (3, 6, 5, TEXT), (6, 4, 8, 8))
    before = predict(unet, latents, text)
    for changed in range(3):
        there = latents.clone()
        there[changed] = other
        moved = (predict(unet, there, text) - before).abs().amax((2, 3, 4))  # (B, 6)
        assert (moved[changed] > 1e-2).all()
        assert moved[[b for b in range(3) if b != changed]].max() < 1e-12


@pytest.mark.parametrize("face", range(6))
def test_every_face_sees_every_other_through_attention_alone(stock, face):
    unet = inflate_(stock, sync_group_norm=False)
    latents, text, other = draws((1, 6, 4, 8, 8), (1, 6, 5, TEXT), (4, 8, 8))
    there = latents.clone()
    there[0, face] = other
    moved = (predict(unet, there, text) - predict(unet, latents, text)).abs().amax((0, 2, 3, 4))
    assert (moved > 1e-3).all(), moved


def test_the_model_is_equivariant_to_face_permutations(unet):
    latents, text = draws((2, 6, 4, 8, 8), (2, 6, 5, TEXT))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = predict(unet, latents[:, order], text[:, order])
    assert (permuted - predict(unet, latents, text)[:, order]).abs().max() < 1e-10


def test_inflated_attention_and_norms_equal_the_references(unet):
    latents, text = draws((2, 6, 4, 8, 8), (2, 6, 5, TEXT))
    with Recorded(unet, nn.GroupNorm) as norms, Recorded(unet, "attn1") as attention:
        predict(unet, latents, text)
    assert len(norms.layers) == 21
    assert len(attention.layers) == 4
    assert norms.worst(reference_norm) < 1e-10
    assert attention.worst(reference_attention) < 1e-10


def test_joint_cross_attention_with_equal_captions_equals_per_face(stock):
    latents, text = draws((2, 6, 4, 8, 8), (2, 1, 5, TEXT))
    text = text.expand(-1, 6, -1, -1)
    per_face = predict(inflate_(stock, cross_attention="per_face"), latents, text)
    joint = predict(inflate_(stock, cross_attention="joint"), latents, text)
    assert (per_face - joint).abs().max() < 1e-10


@pytest.mark.parametrize(("cross_attention", "reads"), [("per_face", 1), ("joint", 6)])
def test_a_face_reads_its_own_caption_and_with_joint_cross_attention_all_of_them(stock, cross_attention, reads):
    layer = inflate_(stock, cross_attention=cross_attention).mid_block.attentions[0].transformer_blocks[0].attn2
    tokens, text, other = draws((12, 4, 32), (2, 6, 5, TEXT), (5, TEXT))
    for caption in range(6):
        there = text.clone()
        there[1, caption] = other
        moved = layer(tokens, text.flatten(0, 1)) - layer(tokens, there.flatten(0, 1))
        changed = moved.abs().amax((1, 2)).unflatten(0, (2, 6)) > 1e-6
        assert changed[1, caption]
        assert changed[1].sum() == reads
        assert not changed[0].any()


@pytest.mark.parametrize("inflate", ["all", "below_top", "pooled_top"])
@pytest.mark.parametrize("cross_attention", ["per_face", "joint"])
def test_a_hidden_face_affects_no_other_and_is_affected_by_all(stock, cross_attention, inflate):
    unet = inflate_(stock, sync_group_norm=False, cross_attention=cross_attention, inflate=inflate)
    latents, text, other = draws((2, 6, 4, 8, 8), (2, 6, 5, TEXT), (4, 8, 8))
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[1, 0] = True

    def with_hidden_face(latents: Tensor) -> Tensor:
        options = {"visible_faces": visible_faces(hidden, latents.device)}
        with torch.no_grad():
            output = unet(latents.flatten(0, 1), 500, text.flatten(0, 1), cross_attention_kwargs=options).sample
        return output.unflatten(0, (-1, 6))

    before = with_hidden_face(latents)
    for panorama, face in ((0, 0), (1, 0), (1, 3)):
        there = latents.clone()
        there[panorama, face] = other
        moved = (with_hidden_face(there) - before).abs().amax((2, 3, 4))
        assert (moved[1 - panorama] < 1e-12).all()
        if (panorama, face) == (1, 0):
            assert (moved[1, 1:] < 1e-12).all()
            assert moved[1, 0] > 1e-3
        else:
            assert (moved[panorama] > 1e-3).all()
    torch.testing.assert_close(before[0], predict(unet, latents, text)[0], rtol=0, atol=1e-12)


def test_pooled_attention_sees_its_own_keys_and_means_of_those_of_the_others(stock):
    unet = inflate_(stock, inflate="pooled_top")
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    (tokens,) = draws((12, 9, 16))  # 3 × 3: odd, so that the last means are of fewer keys
    squares = [(0, 1, 3, 4), (2, 5), (6, 7), (8,)]
    got = layer(tokens)
    for face in range(12):
        own = tokens[face]
        others = [tokens[6 * (face // 6) + k] for k in range(6) if k != face % 6]
        seen = torch.cat([own, *(torch.stack([other[list(each)].mean(0) for each in squares]) for other in others)])
        heads = []
        for q, k, v in zip(*((states @ p.weight.T).chunk(layer.heads, dim=1) for states, p in
                             ((own, layer.to_q), (seen, layer.to_k), (seen, layer.to_v))), strict=True):  # fmt: skip
            heads.append(torch.softmax(q @ k.T / q.shape[1] ** 0.5, dim=1) @ v)
        expected = torch.cat(heads, dim=1) @ layer.to_out[0].weight.T + layer.to_out[0].bias
        assert (got[face] - expected).abs().max() < 1e-10


def test_the_mode_changes_the_layers_at_full_resolution_only_and_can_be_changed_again(stock):
    latents, text = draws((1, 6, 4, 8, 8), (1, 6, 5, TEXT))
    outputs, kinds = {}, {}
    for inflate in ("all", "below_top", "pooled_top", "below_top", "all", "pooled_top", "all"):
        output = predict(inflate_(stock, inflate=inflate), latents, text)
        assert torch.equal(outputs.setdefault(inflate, output), output)
        found = {(n.split("_")[0], type(p)) for n, p in stock.attn_processors.items() if ".attn1." in n}
        assert kinds.setdefault(inflate, found) == found
    assert kinds["all"] == {(part, CubeAttnProcessor) for part in ("down", "mid", "up")}
    for inflate, kind in (("below_top", FaceAttnProcessor), ("pooled_top", PooledAttnProcessor)):
        assert kinds[inflate] == {("down", kind), ("mid", CubeAttnProcessor), ("up", kind)}
    different = [(a - b).abs().max() for a, b in combinations(outputs.values(), 2)]
    assert len(different) == 3
    assert min(different) > 1e-3


def test_pooled_attention_stays_with_sliced_attention_elsewhere(stock):
    latents, text = draws((1, 6, 4, 8, 8), (1, 6, 5, TEXT))
    expected = predict(inflate_(stock, inflate="pooled_top"), latents, text)
    stock.set_attention_slice("max")
    assert (predict(inflate_(stock, inflate="pooled_top"), latents, text) - expected).abs().max() < 1e-10
    found = {(n.split("_")[0], type(p)) for n, p in stock.attn_processors.items() if ".attn1." in n}
    assert found == {("down", PooledAttnProcessor), ("mid", CubeAttnProcessor), ("up", PooledAttnProcessor)}


def test_unknown_modes_and_processors_are_refused(stock):
    class Other:
        def __call__(self, attn: object, hidden_states: Tensor, **kwargs: object) -> Tensor:
            return hidden_states

    stock.set_attn_processor(Other())
    with pytest.raises(ValueError, match=r"pooled_top.*Other: call unet.set_default_attn_processor"):
        inflate_(stock, inflate="pooled_top")
    with pytest.raises(ValueError, match="inflate='top': use 'all', 'below_top' or 'pooled_top'"):
        inflate_(stock, inflate="top")


def test_attention_with_a_hidden_face_equals_the_reference_without_its_keys(unet):
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    (tokens,) = draws((6, 4, 32))
    visible = visible_faces(torch.arange(6)[None] == 0, tokens.device)
    flat = tokens.flatten(0, 1)
    heads = []
    parts = [(flat @ p.weight.T).chunk(layer.heads, dim=1) for p in (layer.to_q, layer.to_k, layer.to_v)]
    for q, k, v in zip(*parts, strict=True):
        heads.append(torch.softmax(q @ k[4:].T / q.shape[1] ** 0.5, dim=1) @ v[4:])
    expected = torch.cat(heads, dim=1) @ layer.to_out[0].weight.T + layer.to_out[0].bias
    assert (layer(tokens, visible_faces=visible).flatten(0, 1) - expected).abs().max() < 1e-10


def test_inflating_again_keeps_the_processors_that_compiled_code_is_bound_to(stock):
    before = dict(inflate_(stock).attn_processors)
    after = inflate_(stock).attn_processors
    assert all(after[name] is processor for name, processor in before.items())


@pytest.mark.parametrize("cross_attention", ["per_face", "joint"])
@pytest.mark.parametrize("hides_a_face", [False, True])
def test_gradient_checkpointing_changes_neither_output_nor_gradients(stock, cross_attention, hides_a_face):
    unet = inflate_(stock, cross_attention=cross_attention).train()
    latents, text = draws((12, 4, 8, 8), (12, 5, TEXT))
    hidden = torch.arange(12).view(2, 6) == 6
    options = {"visible_faces": visible_faces(hidden, latents.device)} if hides_a_face else None

    def outcome() -> list[Tensor]:
        unet.zero_grad()
        output = unet(latents, 500, text, cross_attention_kwargs=options).sample
        output.square().mean().backward()
        return [output.detach(), *(p.grad.clone() for p in unet.parameters())]

    plain = outcome()
    unet.enable_gradient_checkpointing()
    assert unet.is_gradient_checkpointing
    for a, b in zip(plain, outcome(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_inflating_keeps_class_keys_shapes_and_weights(stock):
    before = copy.deepcopy(stock.state_dict())
    unet = inflate_(stock)
    assert unet is stock
    assert type(unet) is UNet2DConditionModel
    assert unet.state_dict().keys() == before.keys()
    assert all(torch.equal(unet.state_dict()[key], before[key]) for key in before)
    widen_conv_in_(unet, 7)
    after = unet.state_dict()
    assert [key for key in before if after[key].shape != before[key].shape] == ["conv_in.weight"]


def test_inflating_is_idempotent_and_replaces_earlier_options(unet):
    latents, text = draws((1, 6, 4, 8, 8), (1, 6, 5, TEXT))
    once = predict(unet, latents, text)
    joint = predict(inflate_(unet, sync_group_norm=False, cross_attention="joint"), latents, text)
    assert (joint - once).abs().max() > 1e-3
    again = inflate_(inflate_(unet))
    assert torch.equal(predict(again, latents, text), once)
    inner = [p.inner for p in again.attn_processors.values() if isinstance(p, CubeAttnProcessor)]
    assert len(inner) == 4
    assert not any(isinstance(p, CubeAttnProcessor) for p in inner)


def test_plain_processors_and_norms_restore_the_stock_model(stock):
    latents, text = draws((6, 4, 8, 8), (6, 5, TEXT))
    expected = stock(latents, 500, text).sample
    inflate_(stock)
    assert (stock(latents, 500, text).sample - expected).abs().max() > 1e-3
    stock.set_attn_processor(AttnProcessor2_0())
    sync_group_norm_(stock, enabled=False)
    assert (stock(latents, 500, text).sample - expected).abs().max() < 1e-12


def test_existing_processors_are_wrapped_including_sliced_ones(stock):
    latents, text = draws((1, 6, 4, 8, 8), (1, 6, 5, TEXT))
    expected = predict(inflate_(stock), latents, text)
    stock.set_attention_slice("max")
    assert not any(isinstance(p, CubeAttnProcessor) for p in stock.attn_processors.values())
    assert (predict(inflate_(stock), latents, text) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("sync_group_norm", [True, False])
def test_a_batch_that_is_not_a_multiple_of_six_raises(stock, sync_group_norm):
    unet = inflate_(stock, sync_group_norm=sync_group_norm)
    latents, text = draws((8, 4, 8, 8), (8, 5, TEXT))
    with pytest.raises(ValueError, match="got 8, which is not a multiple of six"):
        unet(latents, 500, text)


def test_a_unet_that_cannot_be_inflated_raises_and_is_unchanged(stock):
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "mid_block_type": None}
    small = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2}
    bare = UNet2DConditionModel(**small, **blocks, cross_attention_dim=TEXT)
    with pytest.raises(ValueError, match="no attention layers"):
        inflate_(bare)
    only_cross = UNet2DConditionModel(**small, cross_attention_dim=TEXT, only_cross_attention=True,
                                      down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                      up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    with pytest.raises(ValueError, match="only_cross_attention=True"):
        inflate_(only_cross)
    with pytest.raises(ValueError, match="cross_attention='both': use 'per_face' or 'joint'"):
        inflate_(stock, cross_attention="both")
    for unet in (bare, only_cross, stock):
        assert not any(isinstance(m, CubeGroupNorm) for m in unet.modules())
        assert not any(isinstance(p, CubeAttnProcessor) for p in unet.attn_processors.values())


# ------------------------------------------------------------------------------------------------ conv_in


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_widening_copies_the_kernels_and_initialises_new_ones_to_zero(dtype):
    unet = UNet2DConditionModel.from_config(small_unet(attention_head_dim=2).config).to(dtype)
    unet.conv_in.requires_grad_(False)
    weight, bias = unet.conv_in.weight.clone(), unet.conv_in.bias.clone()
    assert widen_conv_in_(unet, 7) is unet
    assert torch.equal(unet.conv_in.weight[:, :4], weight)
    assert torch.equal(unet.conv_in.weight[:, 4:], torch.zeros_like(weight[:, :3]))
    assert torch.equal(unet.conv_in.bias, bias)
    assert unet.conv_in.weight.dtype == dtype
    assert not unet.conv_in.weight.requires_grad
    assert unet.config.in_channels == unet.conv_in.in_channels == 7
    kept = unet.conv_in
    assert widen_conv_in_(unet, 7).conv_in is kept


def test_narrowing_conv_in_raises(stock):
    with pytest.raises(ValueError, match="cannot narrow conv_in from 4 to 3"):
        widen_conv_in_(stock, 3)


# ---------------------------------------------------------------------------------------------- GroupNorm


@settings(deadline=None, max_examples=40)
@given(
    panoramas=st.integers(1, 3),
    groups=st.integers(1, 4),
    per_group=st.integers(1, 3),
    space=st.lists(st.integers(1, 5), max_size=3),
    offset=st.floats(-10, 10),
    seed=st.integers(0, 99),
)
def test_cube_group_norm_equals_the_reference_on_any_shape(panoramas, groups, per_group, space, offset, seed):
    norm = awaken_(CubeGroupNorm(groups, groups * per_group, eps=1e-5).double(), seed)
    (faces,) = draws((panoramas * 6, groups * per_group, *space), seed=seed)
    faces = faces * (1 + seed) + offset
    assert (norm(faces) - reference_norm(norm, faces)).abs().max() < 1e-9


@pytest.mark.parametrize("faces", [1, 5, 7])
def test_cube_group_norm_never_falls_back_to_single_faces(faces):
    with pytest.raises(ValueError, match=f"got {faces}, which is not a multiple of six"):
        CubeGroupNorm(2, 4)(torch.zeros(faces, 4, 3, 3))


def test_every_norm_of_the_vae_is_synchronized_over_six_faces():
    config = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = sync_group_norm_(awaken_(AutoencoderKL(**config, **blocks)).double().eval())
    faces, latents = draws((12, 3, 16, 16), (12, 4, 8, 8))
    with torch.no_grad(), Recorded(vae, nn.GroupNorm) as norms:
        vae.encode(faces)
        vae.decode(latents)
    assert all(type(layer) is CubeGroupNorm for layer in norms.layers.values())
    assert len(norms.layers) == 24
    assert norms.worst(reference_norm) < 1e-10


# ------------------------------------------------------------------------------------------------- SD 1.5


@pytest.fixture(scope="module")
def sd15() -> Iterator[tuple[UNet2DConditionModel, dict[str, torch.Size], Tensor]]:
    """Stable Diffusion 1.5's UNet with random weights, inflated and widened; the shapes of the stock UNet and its
    output for the inputs of seed 2."""
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    unet.requires_grad_(False).eval()
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            parameter.mul_(3**0.5)  # with torch's initialisation signals shrink from layer to layer
    shapes = {key: value.shape for key, value in unet.state_dict().items()}
    latents, text = draws((1, 4, 8, 8), (1, 7, 768), seed=2, dtype=torch.float32)
    expected = unet(latents, 500, text).sample
    yield widen_conv_in_(inflate_(unet), 7), shapes, expected
    gc.collect()


@pytest.mark.slow
def test_sd15_keeps_its_weights_and_only_conv_in_is_wider(sd15):
    unet, shapes, _ = sd15
    assert sum(shape.numel() for shape in shapes.values()) == 859_520_964
    after = {key: value.shape for key, value in unet.state_dict().items()}
    assert after.keys() == shapes.keys()
    assert {k: tuple(after[k]) for k in shapes if after[k] != shapes[k]} == {"conv_in.weight": (320, 7, 3, 3)}


def test_sd15_on_six_equal_faces_matches_one_face_for_any_mask_and_positions(sd15):
    unet, _, expected = sd15
    latents, text = draws((1, 4, 8, 8), (1, 7, 768), seed=2, dtype=torch.float32)
    (others,) = draws((1, 6, 3, 8, 8), seed=3, dtype=torch.float32)
    faces = torch.cat([latents.expand(1, 6, -1, -1, -1), others], dim=2)
    got = predict(unet, faces, text.expand(1, 6, -1, -1))
    assert (got - expected).abs().max() < 1e-5 < 1e-2 < expected.std()


@pytest.mark.slow
def test_sd15_keeps_panoramas_independent_and_its_layers_equal_the_references(sd15):
    unet, _, _ = sd15
    latents, text, other = draws((2, 6, 7, 8, 8), (2, 6, 7, 768), (7, 8, 8), seed=4, dtype=torch.float32)
    with Recorded(unet, nn.GroupNorm) as norms, Recorded(unet, "attn1") as attention:
        before = predict(unet, latents, text)
    assert (len(norms.layers), len(attention.layers)) == (61, 16)
    assert norms.worst(reference_norm) < 1e-4  # float32 against float64; outputs reach 5
    assert attention.worst(reference_attention) < 1e-4
    latents[1, 3] = other
    moved = (predict(unet, latents, text) - before).abs().amax((2, 3, 4))
    assert moved[0].max() < 1e-5
    assert moved[1].min() > 1e-2  # every face of the changed panorama saw its one changed face


@pytest.mark.slow
def test_sd15_has_gradients_in_attention_and_conv_in_only(sd15):
    unet, _, _ = sd15
    latents, text = draws((6, 7, 8, 8), (6, 7, 768), seed=5, dtype=torch.float32)
    parts = tiny_random()
    select_trainable_(StableDiffusion(parts.vae, parts.text_encoder, parts.tokenizer, unet), "attention")
    unet(latents, 500, text).sample.square().mean().backward()
    with_gradient = {name for name, p in unet.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient == {n for n, _ in unet.named_parameters() if ".attn" in n or n.startswith("conv_in.")}
    assert all(p.grad is None for name, p in unet.named_parameters() if name not in with_gradient)
    unet.zero_grad(set_to_none=True)
    unet.requires_grad_(False)
