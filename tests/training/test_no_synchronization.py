"""A training step never synchronises with its device: it neither reads from it nor waits for a copy to it.

The device is "meta", whose tensors hold no data: reading one raises, and every copy to it is recorded. On a GPU torch
itself reports synchronisation.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from support.copies import Copies
from support.losses import SHARES

import cubediff.diffusion.objective
import cubediff.models.backbone
import cubediff.models.encoders
import cubediff.models.visible_faces
from cubediff.data import PanoramaDataModule, RandomPhotos
from cubediff.diffusion.objective import Objective
from cubediff.pipelines.loading import tiny_random
from cubediff.training.callbacks import StepMetrics
from cubediff.training.module import CubeDiffModule

OPTIONS: list[dict[str, Any]] = [{}, {"min_snr_gamma": 5.0, "offset_noise": 0.05}]


class Generator(torch.Generator):
    """Replaces torch.Generator, which the meta device lacks."""

    def __new__(cls, device: torch.device | str) -> Any:
        return super().__new__(cls.__base__ if device == "cpu" else cls)

    @property
    def device(self) -> torch.device:
        return torch.device("meta")


def endless(data: PanoramaDataModule) -> Iterator[Any]:
    loader = data.train_dataloader()
    while True:
        yield from loader


def step(module: CubeDiffModule, data: PanoramaDataModule, batch: Any, place: int, metrics: StepMetrics) -> None:
    """One training step with its callbacks, at a step that no logger logs."""
    trainer: Any = Mock(spec=L.Trainer, global_step=place, log_every_n_steps=10, loggers=[Mock()])
    cubes = data.on_after_batch_transfer({n: v.to(module.device) if isinstance(v, torch.Tensor) else v
                                          for n, v in batch.items()}, 0)  # fmt: skip
    each = module.compute_losses(cubes, [(place, i) for i in range(4)])
    each["losses"].mean().backward()
    metrics.on_train_batch_end(trainer, module, each, cubes, place)


@pytest.mark.parametrize(
    ("photos", "image_drop"), [(None, "noise"), (RandomPhotos(share=1.0), "noise"), (None, "attention")]
)
@pytest.mark.parametrize("objective", OPTIONS)
def test_a_step_neither_reads_from_its_device_nor_waits_for_a_copy_to_it(
    tiny_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    photos: RandomPhotos | None,
    image_drop: str,
    objective: dict[str, Any],
) -> None:
    data = PanoramaDataModule(tiny_shards, batch_size=4, face_size=64, photos=photos)
    batches = endless(data)
    shares = SHARES | {"drop_image": 0.5}  # so that these steps drop some
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    module = CubeDiffModule(tiny_random(image_drop=image_drop), Objective(**shares | objective), optimizer)
    module.encode_null_text()
    metrics = StepMetrics()
    step(module, data, next(batches), 0, metrics)  # creates cached tensors

    module.to("meta")
    module.backbone.to("meta")
    module.null_text = module.null_text.map(lambda t: t.to("meta"))
    monkeypatch.setattr(torch, "Generator", Generator)
    sent: list[torch.Tensor] = []
    grouped: list[torch.Tensor] = []

    def send(to: list[torch.Tensor], values: torch.Tensor, device: torch.device) -> torch.Tensor:
        to.append(values)
        return torch.empty_like(values, device=device)

    for module_ in (cubediff.models.backbone, cubediff.models.encoders, cubediff.diffusion.objective):
        monkeypatch.setattr(module_, "to_device_async", partial(send, sent))
    monkeypatch.setattr(cubediff.models.visible_faces, "to_device_async", partial(send, grouped))
    step(module, data, next(batches), 1, metrics)
    copies = Copies()
    with copies:
        batch = next(batches)
        arriving = sum(isinstance(value, torch.Tensor) for value in batch.values())
        step(module, data, batch, 2, metrics)
    assert len(copies.shapes) == arriving, copies.shapes
    assert sent
    assert bool(grouped) == (image_drop == "attention")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("photos", "image_drop"), [(None, "noise"), (RandomPhotos(share=1.0), "noise"), (None, "attention")]
)
def test_a_step_on_a_gpu_does_not_synchronize(tiny_shards: Path, photos: RandomPhotos | None, image_drop: str) -> None:
    data = PanoramaDataModule(tiny_shards, batch_size=4, face_size=64, photos=photos)
    batches = endless(data)
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    module = CubeDiffModule(
        tiny_random(image_drop=image_drop), Objective(**SHARES | {"drop_image": 0.5}), optimizer
    ).cuda()
    module.backbone.to("cuda")
    module.encode_null_text()
    metrics = StepMetrics()
    for place in range(3):
        batch = {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in next(batches).items()}
        torch.cuda.set_sync_debug_mode("error" if place == 2 else "default")
        try:
            step(module, data, batch, place, metrics)
        finally:
            torch.cuda.set_sync_debug_mode("default")
