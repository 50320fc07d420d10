"""Training, validation, samples and generation need no float64 on their device: MPS has none.

A stand-in for such a device on the CPU: parameters and batches are on it, and so is every result that is computed from
a tensor on it.
"""

import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from support.runs import train
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cubediff import CubeDiffPipeline
from cubediff.data import PanoramaDataModule


class DeviceWithoutFloat64(TorchDispatchMode):
    """Raises RuntimeError for operators of the device that read or write float64."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()
        self.operators = 0

    def place(self, tensors: Iterable[object]) -> None:
        """Puts tensors onto the device."""
        for tensor in tensors:
            if isinstance(tensor, Tensor) and not self.holds(tensor):
                storage = tensor.untyped_storage()
                self.storages.add(id(storage))
                weakref.finalize(storage, self.storages.discard, id(storage))

    def holds(self, tensor: Tensor) -> bool:
        return isinstance(tensor, nn.Parameter) or id(tensor.untyped_storage()) in self.storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = func(*args, **(kwargs or {}))
        if any(self.holds(tensor) for tensor in inputs):
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            if any(tensor.dtype == torch.float64 for tensor in (*inputs, *outputs)):
                raise RuntimeError(f"{func} with float64, which the device does not have")
            self.place(outputs)
            self.operators += 1
        return result


def test_the_stand_in_refuses_float64_of_its_own_tensors_alone() -> None:
    with DeviceWithoutFloat64() as device:
        host = torch.ones(2, dtype=torch.float64) * 2
        weight = nn.Parameter(torch.ones(2))
        result = (weight * host.float()).exp()
        for refused in (lambda: result.double(), lambda: result * host, lambda: result.sum(dtype=torch.float64)):
            with pytest.raises(RuntimeError, match="does not have"):
                refused()
        assert device.operators == 3


def test_a_run_with_validation_and_samples_uses_no_float64(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = DeviceWithoutFloat64()
    projected = PanoramaDataModule.on_after_batch_transfer

    def arrive(self: PanoramaDataModule, batch: Any, dataloader_idx: int) -> Any:
        device.place(tree_leaves(batch))
        return projected(self, batch, dataloader_idx)

    monkeypatch.setattr(PanoramaDataModule, "on_after_batch_transfer", arrive)
    with device:
        train(tiny_shards, tmp_path / "run", "trainer.val_check_interval=2", "callbacks.ema.decay=0.5")
    assert list((tmp_path / "run/samples").glob("*.jpg"))
    assert device.operators > 1000


@pytest.mark.parametrize("sampler", ["ddim", "dpm", "euler"])
def test_generation_from_text_and_photo_uses_no_float64(sampler: str) -> None:
    from cubediff.pipelines.loading import tiny_random
    from cubediff.samplers import use_sampler_

    pipeline: CubeDiffPipeline = tiny_random()
    use_sampler_(pipeline, sampler)
    with DeviceWithoutFloat64() as device:
        pipeline("a hall", image=PIL.Image.new("RGB", (32, 24)), num_inference_steps=2, average_overlap=True)
    assert device.operators > 1000
