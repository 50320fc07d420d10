"""Writes a trained module as a pipeline folder that CubeDiffPipeline.from_pretrained loads."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path

from diffusers import UNet2DConditionModel
from torch.distributed.fsdp import FSDPModule

from cubediff.training.callbacks import UNetEMA
from cubediff.training.fsdp import whole
from cubediff.training.module import CubeDiffModule


def export_pipeline(module: CubeDiffModule, folder: Path, average: UNetEMA | None, steps: int) -> None:
    """The pipeline with the averaged weights where there is an average, and training.json saying which they are;
    written by rank 0, but called by all.

    Low-rank additions (trainable="lora") are added up into the weights they belong to, and written by themselves too,
    to unet_lora/.
    """
    pipeline, unet = module.pipeline, module.pipeline.unet
    sharded = isinstance(unet, FSDPModule)
    if module.global_rank != 0 and not sharded:
        return
    with average.averaged(module) if average else nullcontext():
        if getattr(unet, "peft_config", None):
            unet.save_lora_adapter(folder / "unet_lora")
            pipeline.unet = copy.deepcopy(unet)
            pipeline.unet.fuse_lora()
            pipeline.unet.unload_lora()
        if sharded:
            weights = {name: whole(value).cpu() for name, value in unet.state_dict().items()}
            pipeline.unet = UNet2DConditionModel.from_config(unet.config)
            pipeline.unet.load_state_dict(weights)
        if module.global_rank == 0:
            pipeline.save_pretrained(folder)
        pipeline.unet = unet
    if module.global_rank != 0:
        return
    record = {"weights": "ema" if average else "raw", "steps": steps, "seed": module.seed}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
