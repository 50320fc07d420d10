"""Writes a trained module as a pipeline folder that CubeDiffPipeline.from_pretrained loads."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path

from torch.distributed.fsdp import FSDPModule

from cubediff.training.callbacks import UNetEMA
from cubediff.training.fsdp import full_tensor
from cubediff.training.module import CubeDiffModule


def export_pipeline(module: CubeDiffModule, folder: Path, average: UNetEMA | None, steps: int) -> None:
    """The pipeline with the averaged weights where there is an average, and training.json saying which they are;
    written by rank 0, but called by all.

    Low-rank additions (trainable="lora") are added up into the weights they belong to, and written by themselves too,
    to unet_lora/.
    """
    pipeline, network, name = module.pipeline, module.network, module.backbone.network_name
    sharded = isinstance(network, FSDPModule)
    if module.global_rank != 0 and not sharded:
        return
    with average.averaged(module) if average else nullcontext():
        exported = network
        if getattr(network, "peft_config", None):
            network.save_lora_adapter(folder / f"{name}_lora")
            exported = copy.deepcopy(network)
            exported.fuse_lora()
            exported.unload_lora()
        if sharded:
            exported = module.backbone.fresh_network(
                {key: full_tensor(value).cpu() for key, value in network.state_dict().items()}
            )
        setattr(pipeline, name, exported)
        if module.global_rank == 0:
            pipeline.save_pretrained(folder)
        setattr(pipeline, name, network)
    if module.global_rank != 0:
        return
    record = {"weights": "ema" if average else "raw", "steps": steps, "seed": module.seed}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
