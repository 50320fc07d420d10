"""The plan against real runs of the same step: parameters, bytes, operations, peak of allocations."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.losses import losses_of
from support.runs import composed
from support.step_memory import BATCH, TINY, module_and_batch
from torch import Tensor, nn

from cubediff.configs import build
from cubediff.models import chunked_vae
from cubediff.pipelines.loading import tiny_random
from cubediff.planning.cost import cost
from cubediff.planning.gpus import GIB
from cubediff.planning.operations import OperationCounter
from cubediff.planning.report import plan
from cubediff.training.module import CubeDiffModule

TINY_SD = Path(__file__).parents[2] / "experiments" / "tiny_sd" / "model"
FULL = (*TINY, "model.trainable=full")


@pytest.mark.parametrize("trainable", ["attention", "value_output", "lora", "full"])
def test_parameters_and_bytes_are_those_of_the_real_module(trainable: str) -> None:
    config = composed(*TINY, f"model.trainable={trainable}")
    module, batch = module_and_batch(config, 1)
    planned = cost(config, 1)
    trained = list(module.trained_parameters.values())
    assert planned.trained == sum(p.numel() for p in trained)
    assert planned.parameters == sum(p.numel() for p in module.unet.parameters())
    assert planned.weights == sum(t.nbytes for t in module.unet.state_dict().values())
    assert planned.ema == sum(p.nbytes for p in trained)
    losses_of(module, batch, (0,)).mean().backward()
    assert planned.gradients == sum(p.grad.nbytes for p in trained)
    optimizer = module.optimizer(trained)
    optimizer.step()
    kept = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if v.ndim)
    assert planned.optimizer == kept


def test_sd15_has_its_published_parameter_counts_without_weights() -> None:
    planned = cost(composed("experiment=sd15_l4x4", "data.path=SHARDS", "face_size=64"), 1)
    assert planned.parameters == 859_520_964 + 320 * 3 * 9  # three more input channels
    vae, text_encoder = 83_653_863, 123_060_480
    # bfloat16 but for norms and the text encoder's embeddings of 49 408 tokens and 77 positions
    embeddings = (49_408 + 77) * 768
    assert planned.encoders == pytest.approx(2 * (vae + text_encoder + embeddings), rel=2e-3)


def test_the_peak_includes_decoding_a_sample_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is replaced by a small one, so that decoding takes the most memory."""

    def small_loss(module: CubeDiffModule, *_: object) -> dict[str, Tensor]:
        return {"losses": module.network.conv_in.weight.sum()}

    monkeypatch.setattr(CubeDiffModule, "compute_losses", small_loss)
    config = composed("experiment=sd15_l4x4", "data.path=SHARDS")
    planned = cost(config, 1)
    assert planned.decode_peak < 2 * GIB
    assert planned.peak == planned.reserve + planned.resident + max(planned.encode_peak, planned.decode_peak)
    monkeypatch.setattr(chunked_vae, "MAX_ACTIVATION", 2**62)
    assert planned.decode_peak < 0.9 * cost(config, 1).decode_peak


def test_operations_equal_a_count_by_hand() -> None:
    """Convolutions, linear layers and attention of one forward pass, from the layers' own shapes. A backward pass takes
    twice as many, and two and a half times those of attention, whose products are recomputed."""
    config = composed(*FULL)
    module, batch = module_and_batch(config, 2)
    counted = {"unet": 0, "vae": 0, "text": 0, "unet attention": 0, "vae attention": 0}

    def count(part: str) -> Any:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            if isinstance(layer, nn.Conv2d):
                counted[part] += 2 * output.numel() * layer.weight[0].numel()
            elif isinstance(layer, nn.Linear):
                counted[part] += 2 * output.numel() * layer.in_features
            elif hasattr(layer, "to_q"):
                tokens, width = args[0].shape[1] if args[0].ndim == 3 else args[0][0, 0].numel(), layer.inner_dim
                whole = part == "unet" and not layer.is_cross_attention  # which sees six faces
                keys = 6 * tokens if whole else 128 if part == "unet" else tokens
                counted[f"{part} attention"] += 4 * len(args[0]) * tokens * keys * width

        return hook

    parts = {
        "unet": module.unet,
        "vae": module.backbone.encoders.vae.encoder,
        "text": module.backbone.encoders.text_encoder,
    }
    for part, network in parts.items():
        for layer in network.modules():
            layer.register_forward_hook(count(part))
    losses_of(module, batch, (0,))
    planned = cost(config, 2)
    encoders = counted["vae"] + counted["vae attention"] + counted["text"]
    assert planned.encode_flops == pytest.approx(encoders - counted["text"], rel=0.02)
    expected = 3 * counted["unet"] + 3.5 * counted["unet attention"] + encoders
    assert planned.flops == pytest.approx(expected, rel=0.02)


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("way", "words"),
    [
        pytest.param("cpu", [], marks=pytest.mark.slow),
        pytest.param("cpu", ["model.trainable=full", "trainer.accumulate_grad_batches=2"], marks=pytest.mark.slow),
        pytest.param("ddp", ["model.trainable=full", "model.gradient_checkpointing=true"], marks=pytest.mark.slow),
        pytest.param("fsdp", ["model.trainable=full", "model.gradient_checkpointing=true"], marks=pytest.mark.slow),
    ],
)
def test_the_peak_equals_the_memory_of_a_training_process(way: str, words: list[str], tmp_path: Path) -> None:
    """With an allocator that returns memory immediately, as torch reuses it on a GPU.

    FSDP's gathered parameters are largest where there are few activations, so they need not add to the peak in full.
    """
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    environment = {**os.environ, **allocator, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    world = 2 if way == "fsdp" else 1
    device = (f"trainer.devices={world}", "trainer.accelerator=cpu", "trainer.precision=32-true")
    overrides = ("experiment=tiny_cpu", "data.path=SHARDS", f"trainer={way}", *device, *words)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "support.step_memory", way, str(rank), str(world), tmp_path / "meet", *overrides],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    planned = cost(composed(*overrides), BATCH)
    assert (planned.unsharded > 0) == (way == "fsdp")
    steps = planned.resident - planned.ema + planned.step_peak
    for process in ranks:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert 0.9 * (steps - planned.unsharded) < int(out.splitlines()[-1]) < 1.1 * steps


@pytest.mark.slow
def test_checkpointing_takes_less_memory_and_more_operations_and_a_batch_takes_its_multiple() -> None:
    plain, checkpointed = (cost(composed(*FULL, f"model.gradient_checkpointing={on}"), 2) for on in (False, True))
    assert checkpointed.step_peak < plain.step_peak
    assert checkpointed.flops > 1.1 * plain.flops
    assert checkpointed.model_flops == plain.model_flops == plain.flops
    more = cost(composed(*FULL), 4)
    assert more.flops == pytest.approx(2 * plain.flops, rel=0.01)
    assert 1.5 < more.step_peak / plain.step_peak < 2.05


def test_training_on_latents_excludes_the_encoders_memory_and_operations() -> None:
    whole, cached = (cost(composed(*TINY, *words), 2) for words in ((), ("data=latents",)))
    assert (cached.encoders, cached.encode_peak, cached.encode_flops) == (0, 0, 0)
    captions = whole.flops - whole.encode_flops - cached.flops
    assert 0 < captions < 0.2 * whole.flops
    assert cached.weights == whole.weights
    assert cached.rendering == ()
    assert 0 < cached.step_peak < whole.step_peak


def test_rendering_is_counted_as_the_data_module_renders() -> None:
    config = composed(*TINY)
    data = build(config.data)
    panorama = torch.randint(0, 256, (1, 3, data.panorama_height, 2 * data.panorama_height), dtype=torch.uint8)
    batch = {"panorama": panorama, "yaw": torch.zeros(1), "prompts": [("",) * 6], "key": ["a"], "cameras": [None]}
    data.on_after_batch_transfer(batch, 0)
    with OperationCounter() as counter:
        data.on_after_batch_transfer(batch, 0)
    planned = [(one.name, one.bytes) for one in cost(config, 1).rendering]
    real = [(one.name, one.bytes) for one in counter.operations]
    assert real[3 : 3 + len(planned)] == planned  # the three before make floats in [−1, 1]
    assert len(real) - len(planned) == 4  # the one after clamps


@pytest.mark.parametrize("words", [("variant=face_padding",), ("model.objective.overlap_weight=1.0",)])
def test_options_whose_constants_need_data_are_counted(words: tuple[str, ...]) -> None:
    plain, option = (cost(composed(*TINY, "face_size=256", *more), 1) for more in ((), words))
    assert option.flops == plain.flops
    assert sum(one.bytes for one in option.operations) > sum(one.bytes for one in plain.operations)


def test_padding_that_a_folder_says_is_counted(tmp_path: Path) -> None:
    tiny_random(conv_padding="faces").save_pretrained(tmp_path / "model")
    words = ("model=tiny", f"model.pipeline.path={tmp_path / 'model'}", *TINY[1:], "face_size=256")
    folder, stated = (cost(composed(*words, *more), 1) for more in ((), ("variant=face_padding",)))
    plain = cost(composed(*TINY, "face_size=256"), 1)
    assert sum(one.bytes for one in folder.operations) > sum(one.bytes for one in plain.operations)
    assert folder.operations == stated.operations


def test_under_autocast_products_are_in_bf16_and_norms_in_float32_as_on_a_gpu() -> None:
    exact, mixed = (cost(composed(*FULL, f"trainer.precision={p}"), 2) for p in ("32-true", "bf16-mixed"))
    assert exact.gradients == mixed.gradients
    assert exact.flops == mixed.flops
    assert 0.6 * exact.step_peak < mixed.step_peak < exact.step_peak


def test_a_model_that_hides_dropped_images_is_counted_as_if_it_hid_none() -> None:
    hides, noises = (cost(composed(*TINY, f"model.pipeline.image_drop={way}"), 2) for way in ("attention", "noise"))
    assert (hides.flops, hides.peak) == (noises.flops, noises.peak)


def test_eight_bit_moments_take_a_byte_per_value() -> None:
    planned = cost(composed(*FULL, "optimizer=adamw_8bit"), 1)
    assert planned.optimizer == 2 * planned.trained


@pytest.mark.slow
def test_the_command_needs_no_weights_no_gpu_and_no_data(tmp_path: Path) -> None:
    """It exits with 1 if no batch fits."""
    command = [sys.executable, "-m", "cubediff.plan", "experiment=tiny_cpu", f"model.pipeline.path={TINY_SD}"]
    command += ["trainer=ddp", "plan.memory_gb=0.5", "plan.price=0.7"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "does NOT fit 0.5 GiB\n" in done.stdout
    assert "that fit: none; train from cached latents" in done.stdout
    assert re.search(r"4 × L4 +[0-9.]+ s a step.* in all at plan.price=0.7\n", done.stdout)
    assert "4 × T4" not in done.stdout  # no bfloat16
    assert not list(tmp_path.iterdir())


def test_a_plan_for_a_cpu_states_memory_and_operations_and_no_time() -> None:
    planned = plan(composed(*TINY))
    assert planned.fits
    assert "  peak   " in planned.text
    assert re.search(r"compute: [0-9.]+ TFLOP a step, [0-9]+% of it encoding, 0% recomputation\n", planned.text)
    assert " s a step" not in planned.text


@pytest.mark.slow
def test_float16_costs_what_bfloat16_does() -> None:
    half = cost(composed(*TINY, "trainer=gpu", "trainer.precision=16-mixed"), 1)
    assert half == cost(composed(*TINY, "trainer=gpu"), 1)
    assert half.step_peak < cost(composed(*TINY), 1).step_peak


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.pipeline.path=somebody/something", "nor one of stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("trainer.precision=16-true", "the plan supports 32-true, bf16-mixed and 16-mixed"),
        ("model.optimizer._target_=torch.optim.SGD", "the plan supports AdamW, Adam and AdamW8bit"),
    ],
)
def test_errors_of_unsupported_configs_name_the_key(override: str, message: str) -> None:
    config = composed("model=tiny", "trainer=cpu", "data.path=SHARDS", f"model.pipeline.path={TINY_SD}", override)
    with pytest.raises(ValueError, match=message):
        cost(config, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "plan.gpu=H300",
            r"plan\.gpu=H300: use one of L4, T4, .*; for another, state plan\.memory_gb, plan\.tflops and",
        ),
        ("plan.gpu=V100-16", r"trainer\.precision=bf16-mixed: a V100-16 has no bfloat16, use 16-mixed"),
        ("plan.tflops=many", r"plan\.tflops=many: expected a number above 0, or null"),
        ("plan.bandwidth_gb=0", r"plan\.bandwidth_gb=0: expected a number above 0, or null"),
        ("plan.memory_gb=-1", r"plan\.memory_gb=-1: expected a number above 0, or null"),
        ("plan.price=true", r"plan\.price=True: expected a number above 0, or null"),
    ],
)
def test_errors_of_unknown_gpus_name_the_key(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(composed("model=tiny_random", "trainer=gpu", "data.path=SHARDS", override))


def test_another_gpu_is_described_by_its_figures() -> None:
    words = ("model=tiny_random", "trainer=gpu", "data.path=null", "plan.memory_gb=40")
    slow, fast = (plan(composed(*words, f"plan.tflops={rate}", "plan.bandwidth_gb=100"), search=False).text
                  for rate in (0.01, 0.02))  # fmt: skip
    assert "fits 40.0 GiB\n" in slow
    seconds = [float(re.findall(r"1 × GPU +([0-9.]+) s a step", text)[0]) for text in (slow, fast)]
    assert 1.5 < seconds[0] / seconds[1] <= 2.01


def test_a_plan_refuses_what_training_refuses() -> None:
    config = composed(*TINY, "trainer.precision=16-mixed")
    with pytest.raises(ValueError, match=r"^trainer\.precision=16-mixed needs a GPU, but trainer\.accelerator=cpu"):
        plan(config)
