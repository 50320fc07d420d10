"""The training step: trainable weights, gradients, the schedule, and random draws per panorama."""

import copy
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import lightning as L
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.optimization import SchedulerType
from peft.utils import get_peft_model_state_dict
from support.losses import PAPER, SHARES, losses_of
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.data import PanoramaDataModule, RandomPhotos
from cubediff.diffusion.objective import Objective
from cubediff.models.stable_diffusion import StableDiffusion
from cubediff.models.trainable import select_trainable_
from cubediff.pipelines.loading import tiny_random
from cubediff.planning.cuda_rules import is_channels_last
from cubediff.runs.export import export_pipeline
from cubediff.training.module import CubeDiffModule, Schedule

Batch = dict[str, Any]
KEEP_ALL = {"drop_text": 0.0, "drop_image": 0.0, "drop_both": 0.0}


@pytest.fixture(scope="module")
def batch(tiny_shards: Path) -> Batch:
    """Four rotated panoramas with different captions, as many as two batches."""
    data = PanoramaDataModule(tiny_shards, batch_size=4, face_size=64)
    batch = next(iter(data.train_dataloader()))
    return dict(data.on_after_batch_transfer(batch, 0))


class Recorder(L.Callback):
    """Gradients and learning rate of every optimizer step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        parameters = pl_module.trained_parameters.items()
        self.gradients.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})


def module_of(**options: Any) -> CubeDiffModule:
    settings: dict[str, Any] = {"objective": PAPER, "optimizer": partial(torch.optim.AdamW, lr=1e-3)}
    return CubeDiffModule(tiny_random(), **settings | options)


def fitted(
    module: CubeDiffModule, batches: list[Batch], steps: int, extra: L.Callback | None = None, **options: Any
) -> Recorder:
    """Trains on the batches over and over; the module keeps the result."""
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        limit_val_batches=0,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder, *([extra] if extra else [])],
        **options,
    )
    loader = Again(batches)
    trainer.fit(module, loader, loader)
    return recorder


class Again:
    """Repeats the batches, each time at later positions of the stream."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.position = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            first, self.position = self.position, self.position + len(batch["key"])
            yield {**batch, "position": list(range(first, self.position))}


def part(batch: Batch, start: int, stop: int) -> Batch:
    return {name: values[start:stop] for name, values in batch.items()}


def weights(module: CubeDiffModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.unet.state_dict().items()}


# ---- trainable layers ----------------------------------------------------------------------------------------


def test_attention_training_changes_exactly_attention_layers_and_conv_in(
    batch: Batch,
) -> None:
    module = module_of(objective=Objective(**KEEP_ALL), optimizer=partial(torch.optim.AdamW, lr=1e-2))
    before, encoders = weights(module), [module.pipeline.vae, module.pipeline.text_encoder]
    frozen = [{k: v.clone() for k, v in encoder.state_dict().items()} for encoder in encoders]
    fitted(module, [batch], steps=3)
    changed = {name for name, value in weights(module).items() if not torch.equal(value, before[name])}
    attention_layers = {
        name for name in before if ".attn1." in name or ".attn2." in name or name.startswith("conv_in.")
    }
    assert changed == attention_layers
    assert {name.split(".")[0] for name in attention_layers} == {"conv_in", "down_blocks", "mid_block", "up_blocks"}
    for encoder, old in zip(encoders, frozen, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in encoder.state_dict().items())


def test_position_and_mask_channels_act_after_the_first_step(batch: Batch) -> None:
    module = module_of()
    assert not module.unet.conv_in.weight[:, 4:].any()
    fitted(module, [batch], steps=1)
    assert module.unet.conv_in.weight[:, 4:].flatten(2).any(2).all()


def test_full_training_changes_every_weight_of_the_unet(batch: Batch) -> None:
    module = module_of(trainable="full")
    before = weights(module)
    fitted(module, [batch], steps=2)
    still = {name for name, value in weights(module).items() if torch.equal(value, before[name])}
    assert not still


def test_value_output_training_changes_exactly_these_projections_and_conv_in(batch: Batch) -> None:
    module = module_of(trainable="value_output", optimizer=partial(torch.optim.AdamW, lr=1e-2))
    before = weights(module)
    fitted(module, [batch], steps=2)
    changed = {name for name, value in weights(module).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".to_v." in name or ".to_out." in name or name.startswith("conv_in.")}


def test_lora_training_changes_exactly_lora_weights_and_conv_in(batch: Batch) -> None:
    module = module_of(trainable="lora", lora_rank=2, optimizer=partial(torch.optim.AdamW, lr=1e-2))
    before = weights(module)
    fitted(module, [batch], steps=2)
    changed = {name for name, value in weights(module).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".lora_" in name or name.startswith("conv_in.")}
    layers = {name.split(".lora_")[0] for name in changed if ".lora_" in name}
    assert {name.split(".attn")[1][2:] for name in layers} == {"to_q", "to_k", "to_v", "to_out.0"}
    assert all(2 in weight.shape for name, weight in before.items() if ".lora_" in name)


def test_lora_starts_as_the_base_model_and_exports_the_fused_model_in_stock_layout(
    batch: Batch, tmp_path: Path
) -> None:
    plain, module = module_of(), module_of(trainable="lora", optimizer=partial(torch.optim.AdamW, lr=1e-2))
    inputs = torch.randn(6, 7, 8, 8), torch.tensor(500), torch.randn(6, 5, 32)

    @torch.no_grad()
    def answer(unet: torch.nn.Module) -> Tensor:
        return unet(*inputs).sample

    assert torch.equal(answer(plain.unet), answer(module.unet))
    fitted(module, [batch], steps=3)
    trained = answer(module.unet)
    assert (trained - answer(plain.unet)).abs().max() > 1e-3
    export_pipeline(module, tmp_path, None, steps=3)
    loaded = CubeDiffPipeline.from_pretrained(tmp_path)
    assert loaded.unet.state_dict().keys() == plain.unet.state_dict().keys()
    torch.testing.assert_close(answer(loaded.unet), trained, rtol=1e-4, atol=1e-5)
    assert torch.equal(answer(module.unet), trained)  # the module itself is unchanged
    start = module_of().unet  # of stock diffusers: weights and biases of conv_in come as LoRA matrices of full rank
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lora_bias=True.* no bias")
        start.load_lora_adapter(tmp_path / "unet_lora", prefix=None, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(answer(start), trained, rtol=1e-4, atol=1e-5)


def test_the_pipeline_loads_scales_fuses_and_saves_the_adapter_of_a_lora_run(batch: Batch, tmp_path: Path) -> None:
    module = module_of(trainable="lora", lora_rank=3, optimizer=partial(torch.optim.AdamW, lr=1e-2))
    fitted(module, [batch], steps=3)
    export_pipeline(module, tmp_path / "export", None, steps=3)
    inputs = torch.randn(6, 7, 8, 8), torch.tensor(500), torch.randn(6, 5, 32)

    @torch.no_grad()
    def answer(pipeline: CubeDiffPipeline) -> Tensor:
        return pipeline.unet(*inputs).sample

    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    trained, untrained = answer(CubeDiffPipeline.from_pretrained(tmp_path / "export")), answer(tiny_random())
    for source in (tmp_path / "export", str(tmp_path / "export" / "unet_lora")):
        pipeline = tiny_random()
        pipeline.load_lora_weights(source, adapter_name="scenes")
        close(answer(pipeline), trained)
        pipeline.set_adapters("scenes", 0.0)
        close(answer(pipeline), untrained)
        pipeline.set_adapters("scenes", 1.0)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        close(answer(pipeline), trained)
        assert pipeline.unet.state_dict().keys() == tiny_random().unet.state_dict().keys()
    pipeline = tiny_random()
    pipeline.load_lora_weights(tmp_path / "export")
    pipeline.unload_lora_weights()
    close(answer(pipeline), untrained)
    module.unet.requires_grad_(False)
    CubeDiffPipeline.save_lora_weights(tmp_path / "saved", unet_lora_layers=get_peft_model_state_dict(module.unet))
    pipeline.load_lora_weights(tmp_path / "saved")  # of stock diffusers: with the prefix, without conv_in
    assert {name for name, layer in pipeline.unet.named_modules() if hasattr(layer, "lora_A")} >= {
        name.removesuffix(".lora_A.default.weight") for name in module.unet.state_dict() if "lora_A" in name
    }


def test_pickled_lora_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"unet.conv_in.lora_A.weight": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises((OSError, ValueError)):
        tiny_random().load_lora_weights(tmp_path)


@pytest.mark.parametrize(
    ("trainable", "of_block"),
    [
        ("attention", lambda c: 6 * c * c + (2 * 768 + 2) * c),
        ("value_output", lambda c: 3 * c * c + (768 + 2) * c),
        ("lora", lambda c: 16 * (14 * c + 2 * 768)),
    ],
)
def test_trainable_parameters_of_sd15_follow_from_its_widths(trainable: Any, of_block: Callable[[int], int]) -> None:
    """16 transformer blocks, of width 320 and 640 five each and of 1280 six, with text states of width 768; and conv_in
    of seven channels."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(in_channels=7, cross_attention_dim=768, attention_head_dim=8)
    parts = tiny_random()
    select_trainable_(StableDiffusion(parts.vae, parts.text_encoder, parts.tokenizer, unet), trainable)
    blocks = sum(n * of_block(width) for width, n in ((320, 5), (640, 5), (1280, 6)))
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == blocks + 320 * (7 * 9 + 1)


def test_an_unknown_trainable_raises() -> None:
    with pytest.raises(Exception, match=r"(?s)trainable.*'head'"):
        module_of(trainable="head")
    with pytest.raises(Exception, match=r"(?s)compile.*'all'"):
        module_of(compile="all")


def test_channels_last_changes_no_gradient_beyond_rounding(batch: Batch) -> None:
    plain, last = module_of(trainable="full"), module_of(trainable="full", channels_last=True)
    gradients = [fitted(module, [batch], steps=1).gradients[0] for module in (plain, last)]
    formats = [is_channels_last(module.unet.mid_block.resnets[0].conv1.weight) for module in (plain, last)]
    assert formats == [False, True]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "on_cpu", "on_gpu"), [(None, False, True), (True, True, True), (False, False, False)]
)
def test_channels_last_is_the_default_on_gpus(setting: bool | None, on_cpu: bool, on_gpu: bool) -> None:
    for device, expected in (("cpu", on_cpu), ("cuda", on_gpu)):
        module = module_of(channels_last=setting)
        module.adapt_to(device, "32-true", sharded=False)
        assert is_channels_last(module.unet.mid_block.resnets[0].conv1.weight) == expected


def test_frozen_weights_have_16_bits_while_a_run_in_mixed_precision_lasts(batch: Batch) -> None:
    class Dtypes(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            self.found = {name: p.dtype for name, p in module.unet.named_parameters()}
            self.frozen = {name: p.clone() for name, p in module.frozen.items()}
            self.encoders = {p.dtype for p in module.backbone.encoders.vae.encoder.conv_in.parameters()}

    module, dtypes = module_of(), Dtypes()
    before = {name: p.detach().clone() for name, p in module.frozen.items()}
    fitted(module, [batch], steps=2, extra=dtypes, precision="bf16-mixed")
    assert dtypes.encoders == {torch.bfloat16}
    assert module.backbone.encoders.vae.dtype is torch.float32
    assert dtypes.found["mid_block.resnets.0.conv1.weight"] is torch.bfloat16
    assert dtypes.found["mid_block.resnets.0.norm1.weight"] is torch.float32
    assert {dtypes.found[name] for name in module.trained_parameters} == {torch.float32}
    for frozen in (dtypes.frozen, module.frozen):
        assert frozen.keys() == before.keys()
        assert all(torch.equal(frozen[name], value) for name, value in before.items())


COMPILED = """
import torch
from functools import partial
from cubediff.diffusion.objective import Objective
from cubediff.pipelines.loading import tiny_random
from cubediff.training.module import CubeDiffModule, Schedule

graphs = []
original = torch.compile

def backend(graph, inputs):
    graphs.append("".join(part.code for part in graph.modules() if hasattr(part, "code")))  # a checkpoint is a part
    return graph.forward

torch.compile = lambda f, **options: original(f, backend=backend, **options)
faces = torch.rand(2, 6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
batch = {"faces": faces, "prompts": [["a hall"] * 6] * 2}
for image_drop in ("noise", "attention"):
    gradients = []
    for compile in (None, "regional"):
        module = CubeDiffModule(
            tiny_random(image_drop=image_drop),
            Objective(drop_text=0.0, drop_image=0.5, drop_both=0.0),
            partial(torch.optim.AdamW, lr=1e-3),
            gradient_checkpointing=True,
            compile=compile,
        )
        module.encode_null_text()
        if compile:
            module.compile_()
        for place in range(3):
            seeds = [(place, index) for index in range(2)]
            module.compute_losses(batch, seeds)["losses"].mean().backward()
        assert bool(graphs) == (compile is not None), (image_drop, compile)
        gradients.append({name: p.grad for name, p in module.trained_parameters.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
    assert any("scaled_dot_product_attention" in graph for graph in graphs)
    print(image_drop, len(graphs))
    graphs.clear()
"""


@pytest.mark.slow
def test_compiled_blocks_have_the_same_gradients_with_checkpointing_and_both_image_drops() -> None:
    """In a separate process, since jaxtyping cannot check shapes inside compiled code; with a compiler backend that
    runs the graph unchanged: the claim is that one graph serves all blocks."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["noise", "attention"]


def test_conditioning_photos_are_encoded_separately_and_masked(
    tiny_shards: Path,
) -> None:
    data = PanoramaDataModule(tiny_shards, batch_size=4, face_size=64, photos=RandomPhotos(share=0.7), seed=2)
    batch = dict(data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0))
    module = module_of(objective=Objective(**KEEP_ALL))
    fitted(module, [batch], steps=1)
    example = module.example(batch)
    assert example.clean is not None
    assert example.mask is not None
    assert torch.equal(example.clean, module.pipeline.backbone.encode(batch["known"]))
    for b in range(4):
        for f in range(6):
            for i in range(8):
                for j in range(8):
                    block = batch["covered"][b, f, 0, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
                    assert example.mask[b, f, 0, i, j] == block.all()
    assert 0 < example.mask.mean() < 0.5


def test_dropout_shares_are_stored_with_the_model() -> None:
    module = module_of(objective=Objective(drop_text=0.2, drop_image=0.3, drop_both=0.1))
    assert module.pipeline.config.drops == [0.2, 0.3, 0.1]


def test_the_module_contains_only_the_unet() -> None:
    module = module_of()
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"unet"}
    assert {name.split(".")[0] for name in module.state_dict()} == {"unet"}


OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "epsilon": ({}, {}),
    "v_prediction": ({"prediction_type": "v_prediction"}, {}),
    "zero_snr": ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {}),
    "min_snr": ({}, {"min_snr_gamma": 5.0}),
    "offset_noise": ({}, {"offset_noise": 0.05}),
}


@pytest.mark.parametrize(
    ("trainable", "objective", "rate", "goal"),
    [
        ("full", "epsilon", 3e-3, 0.6),
        ("lora", "epsilon", 1e-2, 0.8),
        pytest.param("attention", "epsilon", 1e-2, 0.8, marks=pytest.mark.slow),
        pytest.param("value_output", "epsilon", 1e-2, 0.8, marks=pytest.mark.slow),
        *(pytest.param("full", name, 3e-3, 0.6, marks=pytest.mark.slow) for name in OBJECTIVES if name != "epsilon"),
    ],
)
def test_the_loss_at_fixed_noise_falls(batch: Batch, trainable: Any, objective: str, rate: float, goal: float) -> None:
    """Over 24 fixed draws of noise and timestep on the panorama that is trained on with other draws."""
    one = part(batch, 0, 1)
    schedule, options = OBJECTIVES[objective]
    module = CubeDiffModule(
        tiny_random(scheduler=schedule),
        Objective(**SHARES | options),
        partial(torch.optim.AdamW, lr=rate),
        trainable=trainable,
    )
    module.encode_null_text()

    def fixed_loss() -> float:
        with torch.no_grad():
            return torch.stack([losses_of(module, one, (9, draw)) for draw in range(24)]).mean().item()

    before = fixed_loss()
    fitted(module, [one], steps=30)
    assert fixed_loss() < goal * before


# ---- draws ---------------------------------------------------------------------------------------------------


def test_draws_depend_on_the_seed_of_a_panorama_alone(batch: Batch) -> None:
    module = module_of()
    fitted(module, [batch], steps=1)
    seeds = [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1), (0, 1, 0, 0)]
    with torch.no_grad():
        losses = [losses_of(module, batch, seed) for seed in seeds]
        again = [losses_of(module, batch, seed) for seed in seeds]
    assert all(torch.equal(a, b) for a, b in zip(losses, again, strict=True))
    assert len({tuple(loss.tolist()) for loss in losses}) == len(seeds)


def test_the_images_that_attention_drops_depend_on_the_seeds_of_their_panoramas_alone(batch: Batch) -> None:
    objective = Objective(drop_text=0.0, drop_image=0.5, drop_both=0.0)
    module = CubeDiffModule(tiny_random(image_drop="attention"), objective, partial(torch.optim.AdamW, lr=1e-3))
    module.encode_null_text()
    hidden: list[Tensor] = []
    predict = module.backbone.predict
    module.backbone.predict = lambda cube, *rest: hidden.append(cube.hidden) or predict(cube, *rest)
    seeds = [(7, 0, index) for index in range(4)]
    dropped = []
    for seed in seeds:
        state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        generator = torch.Generator("cpu").manual_seed(int(state >> 1))
        dropped.append(bool(torch.rand(1, generator=generator) < objective.drop_image))
    assert 0 < sum(dropped) < 4
    for order in ([0, 1, 2, 3], [2, 0], [3]):
        few = {"faces": batch["faces"][order], "prompts": [batch["prompts"][index] for index in order]}
        conditions = module.compute_losses(few, [seeds[index] for index in order])["conditions"]
        expected = torch.tensor([[dropped[index]] + [False] * 5 for index in order])
        assert torch.equal(hidden[-1], expected)
        assert torch.equal(conditions, expected[:, 0].long())


def test_captions_reach_their_face_and_panorama(batch: Batch) -> None:
    module = module_of(objective=Objective(**KEEP_ALL))
    fitted(module, [batch], steps=1)
    prompts = [[f"panorama {p} face {f}" for f in range(6)] for p in range(3, -1, -1)]
    example = module.example(batch | {"prompts": prompts})
    text = example.conditioning["text"]
    assert torch.equal(example.latents, module.pipeline.backbone.encode(batch["faces"]))
    for i, six in enumerate(prompts):
        for j, prompt in enumerate(six):
            expected = module.pipeline.backbone.encoders.encode_captions([prompt])[0]
            torch.testing.assert_close(text[i, j], expected, rtol=1e-5, atol=1e-5)


# ---- non-finite steps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_with_non_finite_gradients_is_skipped(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    """Weights and moments are unchanged, and the next step is as if the skipped one had not happened."""
    loss = Objective.loss
    calls = iter(range(100))

    def spoiled(self: Objective, *arguments: Any, **options: Any) -> Any:
        losses, *rest = loss(self, *arguments, **options)
        return (losses * math.nan if next(calls) == 1 else losses, *rest)

    kept = []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            moments = copy.deepcopy(trainer.optimizers[0].state_dict()["state"])
            kept.append((weights(pl_module), moments, float(pl_module.found_inf)))

    monkeypatch.setattr(Objective, "loss", spoiled)
    optimizer = partial(torch.optim.AdamW, lr=1e-3, fused=fused)
    fitted(module_of(optimizer=optimizer), [batch], steps=3, extra=Keep())
    assert [found for *_, found in kept] == [0, 1, 0]
    (before, moments, _), (left_out, same, _), (after, _, _) = kept
    assert all(torch.equal(before[name], left_out[name]) for name in before)
    for state, then in zip(moments.values(), same.values(), strict=True):
        assert all(torch.equal(state[name], then[name]) for name in state)
    assert not all(torch.equal(left_out[name], after[name]) for name in before)
    assert all(value.isfinite().all() for value in after.values())


# ---- the gradient --------------------------------------------------------------------------------------------


def test_two_batches_of_one_accumulated_are_one_batch_of_two(batch: Batch) -> None:
    """The loss is divided by the accumulation once, and what a panorama draws depends on its position alone."""
    options: dict[str, Any] = {"objective": PAPER, "optimizer": partial(torch.optim.SGD, lr=1e-3)}
    whole = fitted(module_of(**options), [part(batch, 0, 2), part(batch, 2, 4)], steps=2)
    singles = [part(batch, i, i + 1) for i in range(4)]
    split = fitted(module_of(**options), singles, steps=2, accumulate_grad_batches=2)
    assert len(whole.gradients) == len(split.gradients) == 2
    for one, other in zip(whole.gradients, split.gradients, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_gives_the_same_gradients(batch: Batch) -> None:
    calls = []
    gradients = []
    for enabled in (False, True):
        module = module_of(gradient_checkpointing=enabled, trainable="full")
        block = module.unet.down_blocks[0].resnets[0]
        block.norm1.register_forward_pre_hook(lambda *_: calls.append(1))
        gradients.append(fitted(module, [batch], steps=1).gradients[0])
        calls.append(0)
    assert calls == [1, 0, 1, 1, 0]  # forward once more, when the gradient needs it
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_the_gradient_is_clipped_by_its_norm_which_is_logged_before(batch: Batch) -> None:
    free = fitted(module_of(), [batch], steps=1)
    norm = math.sqrt(sum(g.double().square().sum().item() for g in free.gradients[0].values()))
    module = module_of()
    clipped: list[Tensor] = []
    logged: dict[str, Tensor] = {}
    module.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign]
    for name, parameter in module.trained_parameters.items():
        parameter.grad = free.gradients[0][name].clone()
    module.configure_gradient_clipping(torch.optim.SGD(module.parameters()), norm / 4)
    clipped = [p.grad for p in module.trained_parameters.values() if p.grad is not None]
    assert math.sqrt(sum(g.double().square().sum().item() for g in clipped)) == pytest.approx(norm / 4, rel=1e-4)
    assert logged["optim/grad_norm"].item() == pytest.approx(norm, rel=1e-5)
    with pytest.raises(ValueError, match="only 'norm'"):
        module.configure_gradient_clipping(torch.optim.SGD(module.parameters()), 1.0, "value")


def test_without_a_limit_the_gradient_is_not_clipped(batch: Batch) -> None:
    free, limited = (fitted(module_of(), [batch], 1, gradient_clip_val=v).gradients[0] for v in (None, 1e9))
    assert all(torch.equal(free[name], limited[name]) for name in free)


# ---- the schedule --------------------------------------------------------------------------------------------


def warmed_up(step: int, warmup: int, steps: int) -> float:
    return min(1.0, step / warmup)


def cosine(step: int, warmup: int, steps: int) -> float:
    return step / warmup if step < warmup else (1 + np.cos(np.pi * (step - warmup) / (steps - warmup))) / 2


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("name", "share"), [("constant_with_warmup", warmed_up), ("cosine", cosine)])
def test_the_learning_rate_is_stepped_per_optimizer_step(
    batch: Batch, name: str, share: Callable[[int, int, int], float], accumulate: int
) -> None:
    steps, warmup, rate = 6, 3, 1e-3
    module = module_of(lr_schedule=name, warmup_steps=warmup, optimizer=partial(torch.optim.SGD, lr=rate))
    one = part(batch, 0, 1)
    rates = fitted(module, [one, one], steps, accumulate_grad_batches=accumulate).rates
    assert rates == pytest.approx([rate * share(step, warmup, steps) for step in range(steps)])
    assert all(a < b for a, b in pairwise(rates[: warmup + 1]))


def test_the_schedules_are_those_of_diffusers_that_need_no_rules() -> None:
    assert {*get_args(Schedule)} == {kind.value for kind in SchedulerType} - {"piecewise_constant"}


@pytest.mark.parametrize(
    ("option", "message"),
    [({"lr": -1}, "Invalid learning rate: -1"), ({"betas": (0.9, 2)}, "Invalid beta parameter at index 1: 2")],
)
def test_an_argument_that_the_optimizer_refuses_is_named_with_its_key(
    batch: Batch, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^model.optimizer: {message}$"):
        fitted(module_of(optimizer=partial(torch.optim.AdamW, **option)), [batch], steps=1)


# ---- precision -----------------------------------------------------------------------------------------------


def test_bf16_mixed_keeps_float32_weights_and_gradients_near_those_of_float32(batch: Batch) -> None:
    exact, mixed = module_of(), module_of()
    reference = fitted(exact, [batch], steps=1).gradients[0]
    gradients = fitted(mixed, [batch], steps=1, precision="bf16-mixed").gradients[0]
    assert {p.dtype for p in mixed.unet.parameters()} == {g.dtype for g in gradients.values()} == {torch.float32}
    stacked = [torch.cat([g[name].flatten() for name in reference]) for g in (reference, gradients)]
    assert torch.nn.functional.cosine_similarity(*stacked, dim=0) > 0.99
    assert not torch.equal(*stacked)
