"""Measures the memory that a process takes for training steps on random faces.

`python -m support.step_memory STRATEGY RANK WORLD FILE OVERRIDE …` is one of WORLD ranks, which meet by FILE.
It prints the bytes of the model, the optimizer and the steps at their peak, without those of the libraries.
"""

import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from cubediff.configs import build
from cubediff.training.fsdp import apply_fsdp
from cubediff.training.module import CubeDiffModule
from support.losses import losses_of
from support.runs import composed

TINY = ("model=tiny_random", "trainer=cpu", "data.path=SHARDS")
BATCH = 2  # panoramas


def module_and_batch(config: DictConfig, count: int) -> tuple[CubeDiffModule, dict[str, Any]]:
    """Builds the module of a config, and a batch of `count` panoramas of noise."""
    module: CubeDiffModule = build(config.model)
    module.encode_null_text()
    faces = torch.rand(count, 6, 3, config.face_size, config.face_size) * 2 - 1
    return module, {"faces": faces, "prompts": [[f"{b} {f}" for f in range(6)] for b in range(count)]}


class Losses(nn.Module):
    """The losses of a module as the forward pass that DDP wraps."""

    def __init__(self, module: CubeDiffModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: dict[str, Any], seed: tuple[int, ...]) -> Tensor:
        return losses_of(self.module, batch, seed)


def resident(kind: str) -> int:
    """Bytes of VmRSS or VmHWM (its peak), which unlike getrusage's maximum do not include the parent process."""
    (kilobytes,) = re.findall(kind + r":\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return 1024 * int(kilobytes)


def main(strategy: str, rank: str, world: str, file: str, *overrides: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=int(rank), world_size=int(world))

    def distributed(module: CubeDiffModule) -> Callable[[dict[str, Any], tuple[int, ...]], Tensor]:
        if strategy == "fsdp":
            apply_fsdp(module.network, module.backbone.blocks(), init_device_mesh("cpu", (int(world),)))
        losses = Losses(module)
        return DistributedDataParallel(losses, gradient_as_bucket_view=True) if strategy == "ddp" else losses

    # The first step of a process loads what later steps do not.
    small, batch = module_and_batch(composed(*TINY, "model.trainable=full"), 1)
    distributed(small)(batch, (0,)).mean().backward()
    del small, batch
    gc.collect()
    before = resident("VmRSS")
    config = composed(*overrides)
    module, batch = module_and_batch(config, BATCH)
    losses = distributed(module)
    gc.collect()
    optimizer = module.optimizer(list(module.trained_parameters.values()))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
    for step in range(2):  # the first step creates the optimizer's moments and DDP's final buckets
        optimizer.zero_grad(set_to_none=True)
        for _ in range(config.trainer.accumulate_grad_batches):
            losses(batch, (step,)).mean().backward()
        optimizer.step()
    print(resident("VmHWM") - before, flush=True)
    dist.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
