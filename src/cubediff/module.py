"""CubeDiffModule: the LightningModule that trains a pipeline's UNet (CubeDiff, section 4.3).

It owns the UNet alone; VAE and text encoder stay in the pipeline, outside Lightning's sight, and are never
checkpointed.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cubediff.objective import Objective
from cubediff.pipeline import CubeDiffPipeline

Trainable = Literal["attention", "full"]


def select_trainable_(unet: nn.Module, trainable: Trainable) -> nn.Module:
    """Freezes all of `unet` but what is trained: "attention" is every attention layer and conv_in, "full" is all.

    Without conv_in the position and mask channels, whose kernels start at zero, could never act.
    """
    if trainable not in ("attention", "full"):
        raise ValueError(f"trainable={trainable!r}: use 'attention' or 'full'")
    for name, parameter in unet.named_parameters():
        layers = name.split(".")
        attention = "attn1" in layers or "attn2" in layers
        parameter.requires_grad_(trainable == "full" or attention or layers[0] == "conv_in")
    return unet


class CubeDiffModule(L.LightningModule):
    """Trains `pipeline.unet` on batches of the DataModule: `faces` (B, 6, 3, S, S) in [−1, 1] and `prompts`.

    optimizer: called with the trained parameters. lr_schedule and warmup_steps: a name of
    diffusers.optimization.get_scheduler, stepped once per optimizer step. seed: of noise, timesteps and drops, which
    depend on nothing but it, the rank and the step, so that a resumed run repeats none.
    """

    def __init__(
        self,
        pipeline: CubeDiffPipeline,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        lr_schedule: str = "constant_with_warmup",
        warmup_steps: int = 0,
        trainable: Trainable = "attention",
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.encoders = pipeline.encoders
        self.unet = select_trainable_(pipeline.unet, trainable).train()
        if gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        self.objective = objective
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.warmup_steps = warmup_steps
        self.seed = seed
        self.val_loss = MeanMetric()  # self.log's own mean over devices is wrong where they see unequal numbers

    @property
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    def setup(self, stage: str) -> None:
        self.encoders.to(self.trainer.strategy.root_device)
        self.empty_text = self.encoders.encode_text([""])  # (1, L, D)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.trained_parameters.values())
        schedule = get_scheduler(
            self.lr_schedule,
            optimizer,
            num_warmup_steps=self.warmup_steps,
            num_training_steps=int(self.trainer.estimated_stepping_batches),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By norm, always measured; Lightning's own clipping refuses fused optimizers under mixed precision."""
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(f"trainer.gradient_clip_algorithm={gradient_clip_algorithm}: only 'norm' is known")
        limit = float("inf") if gradient_clip_val is None else gradient_clip_val
        norm = nn.utils.clip_grad_norm_(self.trained_parameters.values(), limit)
        self.log("optim/grad_norm", norm)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self._losses(batch, (self.seed, 0, self.global_rank, self.global_step, batch_idx)).mean()
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The loss at the same noise, timesteps and drops every time."""
        self.val_loss.update(self._losses(batch, (self.seed, 1, self.global_rank, batch_idx)))
        self.log("val/loss", self.val_loss, prog_bar=True)

    def _losses(self, batch: dict[str, Any], place: tuple[int, ...]) -> Tensor:
        """The loss (B,) of each panorama, with noise drawn from `place` alone."""
        state = np.random.SeedSequence(place).generate_state(1, np.uint64)[0]
        generator = torch.Generator(self.device).manual_seed(int(state >> 1))
        prompts = [prompt for faces in batch["prompts"] for prompt in faces]
        texts = sorted(set(prompts))
        states = self.encoders.encode_text(texts, truncate=True)
        order = torch.tensor([texts.index(prompt) for prompt in prompts], device=states.device)
        losses, _, _ = self.objective.loss(
            self.unet,
            self.noise_scheduler,
            self.encoders.encode_faces(batch["faces"]),
            states[order].unflatten(0, (-1, 6)).float(),
            self.empty_text.float(),
            fov=self.pipeline.config.fov,
            encoding=self.pipeline.config.position_encoding,
            generator=generator,
        )
        return losses
