"""What a training step takes, counted: it runs on tensors without storage (torch's fake tensors), and every allocation
and floating-point operation is added up. The numbers are those of the code, not of a formula; what they leave out is
the allocator's rounding and what CUDA keeps for itself (`CUDA_RESERVE`).
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cubediff.configs import build

GIB = 2**30
CUDA_RESERVE = 0.6 * GIB  # context, cuDNN and cuBLAS workspaces


@dataclass(frozen=True)
class Cost:
    """Of one micro-batch on one device: bytes by kind, and floating-point operations. Under trainer=fsdp weights,
    gradients, optimizer and average are the device's part."""

    batch: int
    parameters: int
    trained: int
    weights: int  # the UNet's
    gathered: int  # of them and their gradients what is whole at a time, under trainer=fsdp
    encoders: int  # VAE and text encoder
    gradients: int
    optimizer: int
    average: int
    encode_peak: int  # what encoding the faces takes on top of the weights
    step_peak: int  # what loss, gradients included, and backward take on top of them
    flops: float  # of the micro-batch, recomputation included
    encode_flops: float
    checkpoint: int  # bytes of the whole network's
    exported: int  # bytes of the whole UNet

    @property
    def resident(self) -> int:
        return self.weights + self.gathered + self.encoders + self.optimizer + self.average

    @property
    def peak(self) -> float:
        return CUDA_RESERVE + self.resident + max(self.encode_peak, self.step_peak)


def devices(config: DictConfig) -> int:
    """Of all machines together, as far as the config says how many."""
    each = config.trainer.devices
    return (each if isinstance(each, int) else len(each) if OmegaConf.is_list(each) else 1) * config.trainer.get(
        "num_nodes", 1
    )


def cost(config: DictConfig, batch: int, operations: bool = True) -> Cost:
    """What one training step of `batch` panoramas takes on one device; its operations only if asked for, as counting
    them takes as long as all else."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from cubediff.models.inputs import positions
    from cubediff.planning.counting import Memory, attention_flops, precision_as_on_cuda, take_fake_weights_

    module = _module(config)
    with ExitStack() as stack:
        stack.callback(positions.cache_clear)  # of fake tensors
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for network in (module.unet, module.encoders.vae, module.encoders.text_encoder):
            take_fake_weights_(network)
        trained = list(module.trained_parameters.values())
        module.empty_text = module.encoders.encode_text([""])
        size = config.face_size
        faces = torch.empty(batch, 6, 3, size, size)
        prompts = [[f"{panorama} {face}" for face in range(6)] for panorama in range(batch)]
        stack.enter_context(precision_as_on_cuda(config.trainer.precision))
        weights, encoders = _bytes(module.unet), _bytes(module.encoders.vae) + _bytes(module.encoders.text_encoder)

        given: dict[str, Any] = {"faces": faces, "prompts": prompts}
        if cached := config.data._target_.endswith("LatentDataModule"):
            latents, text, _ = module._encoded({"faces": faces[:1], "prompts": prompts[:1]})
            given = {"latents": latents.half().expand(batch, -1, -1, -1, -1).contiguous()}
            given |= {"text": text.half().expand(batch, -1, -1, -1).contiguous()}
            encoders = 0

        strategy = (config.trainer.get("strategy") or {}).get("_target_", "")
        in_parts = strategy.endswith("ShardedStrategy")
        parts = devices(config) if in_parts else 1
        # A later micro-batch, and in DDP's buckets every one, begins with gradients of all that is trained.
        stay = in_parts or strategy.endswith("DDPStrategy") or config.trainer.accumulate_grad_batches > 1
        if stay:
            for parameter in trained:
                parameter.register_post_accumulate_grad_hook(_forget)

        def encode() -> None:
            if not cached:
                module.encoders.encode_faces(faces)

        def step() -> None:
            module.zero_grad(set_to_none=True)
            module._losses(given, (0,)).mean().backward()

        peaks, flops = [], []
        for run in (encode, step):
            memory = Memory()
            with memory:
                run()
            peaks.append(memory.peak)
            counter = FlopCounterMode(display=False, custom_mapping=attention_flops())
            if operations:
                with counter:  # by itself, since it holds on to tensors
                    run()
            flops.append(float(counter.get_total_flops()))
        whole = sum(p.nbytes for p in trained)
        gradients = whole // parts
        optimizer = _optimizer_bytes(config, trained)
        average = whole if config.callbacks.get("ema") else 0
        return Cost(
            batch=batch,
            parameters=sum(p.numel() for p in module.unet.parameters()),
            trained=sum(p.numel() for p in trained),
            weights=weights // parts,
            gathered=_gathered_bytes(module.unet, config.trainer.precision) if in_parts else 0,
            encoders=encoders,
            gradients=gradients,
            optimizer=optimizer // parts,
            average=average // parts,
            encode_peak=peaks[0],
            step_peak=peaks[1] + gradients * stay,
            flops=flops[1],
            encode_flops=flops[0],
            checkpoint=whole + optimizer + average,
            exported=weights,
        )


def largest_batch(config: DictConfig, memory: float) -> tuple[int, float]:
    """The most panoramas whose step fits `memory` bytes, and its peak; 0 and 0.0 if not even one does.

    Up to 16 each candidate is counted; beyond, the peak is taken to grow as from 8 to 16.
    """
    peaks = {0: 0.0}

    def fits(batch: int) -> bool:
        peaks[batch] = cost(config, batch, operations=False).peak
        return peaks[batch] <= memory

    low, high = 0, 1
    while high <= 16 and fits(high):
        low, high = high, 2 * high
    if low == 16:
        each = (peaks[16] - peaks[8]) / 8
        more = int((memory - peaks[16]) / each)
        return 16 + more, peaks[16] + more * each
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, peaks[low]


def _module(config: DictConfig) -> Any:
    """The LightningModule of the config, on networks without storage."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from cubediff.diffusion.schedulers import rescheduled
    from cubediff.models.inputs import input_channels
    from cubediff.models.tiny import byte_tokenizer, sd_scheduler
    from cubediff.pipelines.cubediff import CubeDiffPipeline
    from cubediff.training.module import CubeDiffModule

    settings: Any = OmegaConf.to_container(config.model, resolve=True)
    options = {k: v for k, v in settings["pipeline"].items() if k not in ("_target_", "path", "seed", "scheduler")}
    networks = _networks(settings["pipeline"])
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(networks["vae"])
        channels = input_channels(vae.config.latent_channels, options["position_encoding"])
        unet = UNet2DConditionModel.from_config({**networks["unet"], "in_channels": channels})
        text_encoder = CLIPTextModel(CLIPTextConfig(**networks["text_encoder"]))
    pipeline = CubeDiffPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=byte_tokenizer(max_length=networks["text_encoder"]["max_position_embeddings"]),
        unet=unet,
        scheduler=rescheduled(sd_scheduler(), settings["pipeline"].get("scheduler") or {}),
        **options,
    )
    rest = {k: v for k, v in settings.items() if k not in ("_target_", "pipeline", "objective", "optimizer")}
    rest["compile"] = None  # changes what is kept between the passes, by less than it costs to find out
    return CubeDiffModule(pipeline, build(config.model.objective), torch.optim.AdamW, **rest)


def _networks(pipeline: dict[str, Any]) -> dict[str, Any]:
    """The three networks' configurations: of the folder, or of a model known by its Hub id."""
    from cubediff.models.presets import KNOWN
    from cubediff.pipelines.folders import find_model

    if pipeline["_target_"].endswith("tiny_random"):
        from cubediff.pipelines.loading import tiny_random

        made = tiny_random()
        return {"unet": made.unet.config, "vae": made.vae.config, "text_encoder": made.text_encoder.config.to_dict()}
    path = pipeline["path"]
    if str(path).lower() in KNOWN:
        return KNOWN[str(path).lower()]
    files = {part: Path(find_model(path)) / part / "config.json" for part in ("unet", "vae", "text_encoder")}
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing:
        raise ValueError(
            f"model.pipeline.path={path} is no local model folder ({missing[0]} is not there), nor one of "
            f"{', '.join(KNOWN)}: give one of these"
        )
    return {part: json.loads(file.read_text(encoding="utf-8")) for part, file in files.items()}


def _bytes(module: Any) -> int:
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])


def _forget(parameter: Any) -> None:
    parameter.grad = None


def _gathered_bytes(unet: Any, precision: str) -> int:
    """What `shard_` has whole at most: what is in no block, and of two blocks (the next one is fetched while one runs)
    weights, and gradients to be sent."""
    from cubediff.training.fsdp import blocks

    each_weight = 2 if precision == "bf16-mixed" else 4

    def size(parameters: Any) -> int:
        return sum(p.numel() * (each_weight + 4 * p.requires_grad) for p in parameters)

    each = [size(block.parameters()) for block in blocks(unet)]
    return size(unet.parameters()) - sum(each) + sum(sorted(each)[-2:])


def _optimizer_bytes(config: DictConfig, trained: list[Any]) -> int:
    """What the optimizer keeps: two moments as large as what it trains, or of a byte a number."""
    count = sum(p.numel() for p in trained)
    if config.model.optimizer["_target_"] == "bitsandbytes.optim.AdamW8bit":
        return 2 * count
    if config.model.optimizer["_target_"] in ("torch.optim.AdamW", "torch.optim.Adam"):
        return 2 * sum(p.nbytes for p in trained)
    raise ValueError(f"model.optimizer._target_={config.model.optimizer['_target_']}: the plan knows AdamW, Adam and "
                     "AdamW8bit")  # fmt: skip
