"""Memory and operations of loss and backward, counted without weights or GPU.

The step of the config runs on fake tensors, which hold no data, and every allocation and kernel is recorded. The
numbers come from the training code, not from a formula. They exclude the allocator's rounding.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cubediff.configs import build, check_model, to_plain
from cubediff.configs.targets import check_module, rename_targets_
from cubediff.configs.trainer import canonical_precision
from cubediff.data.batches.types import CubeBatch, LatentBatch
from cubediff.geometry.conventions import face_rays, rotation_matrix
from cubediff.geometry.overlap import sample_overlaps
from cubediff.geometry.padding import pad_faces
from cubediff.geometry.projections import equirect_to_cube
from cubediff.models.inputs import positions
from cubediff.pipelines.loading import meta_pipeline
from cubediff.planning.counting import AllocationCounter, to_fake_parameters_
from cubediff.planning.cuda_rules import CudaFormats, cuda_autocast
from cubediff.planning.operations import Operation, OperationCounter
from cubediff.training.module import TRAINING, Batch, CubeDiffModule, Options


@dataclass(frozen=True)
class Counted:
    """Bytes and kernels of one micro-batch, for any strategy.

    Attributes:
        batch: Panoramas.
        parameters: Number of the network's parameters.
        trained: Number of trained ones.
        weights: Bytes of the network; under FSDP, all of them are in float32.
        encoders: Bytes of the frozen components that training keeps.
        gradients: Bytes of the gradients, and of one copy of the trained weights.
        unsharded: Peak bytes of parameters and gradients that FSDP gathers.
        encode_peak: Peak bytes of encoding the faces, in addition to the weights.
        decode_peak: The same of decoding a sample; 0 if the run generates none.
        step_peak: The same of loss and backward; gradients that are kept between micro-batches are excluded.
        operations: The kernels of loss and backward, encoding included.
        encode_flops: Floating-point operations of encoding the faces.
        rendering: The kernels that render the faces, before the step; none if batches are encoded already.
    """

    batch: int
    parameters: int
    trained: int
    weights: int
    encoders: int
    gradients: int
    unsharded: int
    encode_peak: int
    decode_peak: int
    step_peak: int
    operations: tuple[Operation, ...]
    encode_flops: float
    rendering: tuple[Operation, ...]


def is_for_gpu(config: DictConfig) -> bool:
    """Whether the run is for GPUs; "auto" and any accelerator but the CPU count as one."""
    return str(config.trainer.get("accelerator")) != "cpu"


def count(config: DictConfig, batch: int, keeps_gradients: bool) -> Counted:
    """Counts loss and backward of `batch` panoramas.

    Args:
        config: The config of `cubediff train`.
        batch: Panoramas.
        keeps_gradients: Whether gradients are kept between micro-batches, so that they do not add to `step_peak`.

    Raises:
        ValueError: If the model is unknown, or the precision cannot be counted.
    """
    rename_targets_(config)
    module, precision = _meta_module(config), canonical_precision(config.trainer)
    counted_in = "bf16-mixed" if precision == "16-mixed" else precision  # see cuda_autocast
    backbone, on_gpu = module.backbone, is_for_gpu(config)
    module.adapt_to("cuda" if on_gpu else "cpu", counted_in, sharded=False)
    _compute_constants(module, config.face_size // backbone.latent_scale)
    with ExitStack() as stack:
        _clear_caches()
        stack.callback(_clear_caches)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        rendering = _rendering(config, batch, on_gpu)
        for component in backbone.components().values():
            to_fake_parameters_(component)
        stack.enter_context(cuda_autocast(precision))
        module.encode_null_text()
        step_batch, faces = _batch(config, module, batch)
        trained = list(module.trained_parameters.values())
        if keeps_gradients:  # each micro-batch begins with the gradients of the one before
            for parameter in trained:
                parameter.register_post_accumulate_grad_hook(_free_gradient)

        def encode() -> None:
            if faces is not None:
                backbone.encode(faces)

        def decode() -> None:
            size = config.face_size // backbone.latent_scale
            if faces is not None and OmegaConf.select(config, "callbacks.samples._target_"):
                backbone.decode(torch.empty(1, 6, backbone.latent_channels, size, size))

        def step(counter: OperationCounter) -> None:
            module.zero_grad(set_to_none=True)
            seeds = [(0, TRAINING, index) for index in range(batch)]
            loss = module.compute_losses(step_batch, seeds)["losses"].mean()
            counter.in_backward = True
            loss.backward()

        encode_peak, encoding = _run(lambda _: encode(), on_gpu)
        decode_peak, _ = _run(lambda _: decode(), on_gpu)
        step_peak, operations = _run(step, on_gpu)
        frozen = backbone.frozen_components().values()
        return Counted(
            batch=batch,
            parameters=sum(p.numel() for p in module.network.parameters()),
            trained=sum(p.numel() for p in trained),
            weights=_bytes([module.network]),
            encoders=0 if faces is None else _bytes(frozen),
            gradients=sum(p.nbytes for p in trained),
            unsharded=_unsharded_bytes(module.network, backbone.blocks(), precision),
            encode_peak=encode_peak,
            decode_peak=decode_peak,
            step_peak=step_peak,
            operations=tuple(operations),
            encode_flops=sum(one.flops for one in encoding),
            rendering=tuple(rendering),
        )


def _meta_module(config: DictConfig) -> CubeDiffModule:
    """The config's LightningModule on the meta device."""
    check_model(config.model)
    settings = to_plain(config.model, resolve=True)
    pipeline_settings = cast(dict[str, object], settings.pop("pipeline"))
    options = cast(Options, {k: v for k, v in settings.items() if k not in ("_target_", "objective", "optimizer")})
    options["compile"] = None  # its small effect on saved activations is not worth compiling
    options["attention_backend"] = None  # that of the GPU, which this device may lack
    target = str(pipeline_settings.pop("_target_"))
    check_module(target, "model.pipeline._target_")
    pipeline = meta_pipeline(target, pipeline_settings)
    # "attention" hides faces by draws, which fake tensors do not hold; a step that hides none computes the most.
    pipeline.register_to_config(image_drop="noise")
    return CubeDiffModule(pipeline, build(config.model.objective), torch.optim.AdamW, **options)


def _clear_caches() -> None:
    """Empties the caches where fake tensors must neither stay nor meet real ones."""
    for function in (positions, face_rays):
        function.cache_clear()


def _compute_constants(module: CubeDiffModule, size: int) -> None:
    """Fills the caches of geometry on latents of `size` pixels and less, whose indices fake tensors cannot compute."""
    settings = module.pipeline.config
    if settings.get("conv_padding") == "faces":
        for level in range(size.bit_length()):
            pad_faces(torch.zeros(6, 1, size >> level, size >> level), settings.fov)
    if module.objective.overlap_weight:
        sample_overlaps(torch.zeros(1, 6, 1, size, size), settings.fov)


def _is_cached(config: DictConfig) -> bool:
    """Whether the config's data module reads latents."""
    return getattr(get_class(config.data._target_), "content", "panoramas") == "latents"


def _rendering(config: DictConfig, batch: int, on_gpu: bool) -> list[Operation]:
    """The kernels that render the faces of a batch's panoramas; conditioning photos are not counted."""
    if _is_cached(config):
        return []
    height = OmegaConf.select(config, "data.panorama_height") or 2 * config.face_size
    panorama, yaw = torch.empty(batch, 3, height, 2 * height), torch.empty(batch)

    def render() -> None:
        equirect_to_cube(panorama, config.face_size, config.fov, rotation=rotation_matrix(yaw), mode="bicubic")

    render()  # the first batch of a run also computes `face_rays`
    return _run(lambda _: render(), on_gpu)[1]


def _batch(config: DictConfig, module: CubeDiffModule, batch: int) -> tuple[Batch, Tensor | None]:
    """A batch of the config's data module, and its faces; none if its batches are encoded already."""
    faces, prompts = module.backbone.example(batch, config.face_size)
    keys = [str(index) for index in range(batch)]
    cubes = CubeBatch(faces=faces, yaw=torch.zeros(batch), prompts=prompts, key=keys)
    if not _is_cached(config):
        return cubes, faces
    first = CubeBatch(faces=faces[:1], yaw=torch.zeros(1), prompts=prompts[:1], key=keys[:1])
    example = module.example(first)

    def cached(tensor: Tensor) -> Tensor:
        return tensor.half().expand(batch, *tensor.shape[1:]).contiguous()

    text = {name: cached(tensor) for name, tensor in example.conditioning.state().items()}
    return LatentBatch(latents=cached(example.latents), text=text, yaw=torch.zeros(batch), key=keys), None


def _run(call: Callable[[OperationCounter], None], on_gpu: bool) -> tuple[int, list[Operation]]:
    """Peak bytes and kernels of a call, on a GPU in its memory formats."""
    allocations, counter = AllocationCounter(), OperationCounter()
    with ExitStack() as stack:
        stack.enter_context(allocations)
        stack.enter_context(counter)
        if on_gpu:  # the mode that is entered last sees a kernel first
            stack.enter_context(CudaFormats())
        call(counter)
    return allocations.peak, counter.operations


def _bytes(modules: Iterable[nn.Module]) -> int:
    return sum(tensor.nbytes for module in modules for tensor in [*module.parameters(), *module.buffers()])


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _unsharded_bytes(network: nn.Module, blocks: list[nn.Module], precision: str) -> int:
    """Peak bytes that FSDP gathers: weights outside the blocks, and weights and gradients of two blocks (the next one
    is prefetched while one runs)."""
    weight_bytes = 2 if precision == "bf16-mixed" else 4

    def size(parameters: Iterable[nn.Parameter]) -> int:
        return sum(p.numel() * (weight_bytes + 4 * p.requires_grad) for p in parameters)

    each = [size(block.parameters()) for block in blocks]
    return size(network.parameters()) - sum(each) + sum(sorted(each)[-2:])
