"""Exports a trained module as a pipeline folder that `CubeDiffPipeline.from_pretrained` loads."""

import copy
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from safetensors import SafetensorError
from torch.distributed.fsdp import FSDPModule

from cubediff.models.lora import save_lora
from cubediff.training.fsdp import full_tensor
from cubediff.training.module import CubeDiffModule
from cubediff.training.protocols import ExportWeights
from cubediff.utils.errors import DataError, message_of
from cubediff.utils.files import atomic_folder, write_json


def export_pipeline(
    module: CubeDiffModule,
    folder: Path,
    weights: ExportWeights | None,
    steps: int,
    describe: Callable[[Path], None] | None = None,
) -> None:
    """Writes the pipeline and a training.json that names its weights; rank 0 writes, every rank must call it.

    An earlier export stays as it is until the new one is complete. LoRA weights are fused into the layers that they
    adapt, and saved separately in NETWORK_lora/, such as unet_lora/, see `save_lora`.

    Args:
        module: The trained module; its pipeline is unchanged afterwards.
        folder: The folder to write.
        weights: The callback whose weights are exported, such as the EMA; None exports the trained weights.
        steps: Number of optimizer steps, for training.json.
        describe: Writes further files, such as a model card, to the new export's folder.
    """
    pipeline, network, name = module.pipeline, module.network, module.backbone.network_name
    sharded = isinstance(network, FSDPModule)
    if module.global_rank != 0 and not sharded:
        return
    is_writer = module.global_rank == 0
    with (
        _storage_errors(folder),
        weights.averaged(module) if weights else nullcontext(),
        atomic_folder(folder) if is_writer else nullcontext(folder) as part,
    ):
        exported = network
        if getattr(network, "peft_config", None):
            save_lora(network, module.base_weights, part / f"{name}_lora")
            exported = copy.deepcopy(network)
            exported.fuse_lora()
            exported.unload_lora()
        if sharded:
            exported = module.backbone.fresh_network(
                {key: full_tensor(value).cpu() for key, value in network.state_dict().items()}
            )
        setattr(pipeline, name, exported)
        try:
            if is_writer:
                pipeline.save_pretrained(part)
                record = {"weights": weights.weights_name if weights else "raw", "steps": steps, "seed": module.seed}
                write_json(part / "training.json", record)
                if describe is not None:
                    describe(part)
                _follow_umask(part, part / "training.json")
        finally:
            setattr(pipeline, name, network)


def _follow_umask(folder: Path, example: Path) -> None:
    """Gives all files the permissions of a new one: safetensors writes files that only their owner can read."""
    mode = stat.S_IMODE(example.stat().st_mode)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"the export {folder} cannot be written ({message_of(error)}): the checkpoints are undamaged, and the "
            "same command exports again"
        ) from error
