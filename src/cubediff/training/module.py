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

from cubediff.diffusion.objective import Objective
from cubediff.models.encoders import sent
from cubediff.models.inputs import latent_mask
from cubediff.models.trainable import Trainable, select_trainable_
from cubediff.pipelines.cubediff import CubeDiffPipeline
from cubediff.training.fsdp import shard_, whole
from cubediff.training.metric_table import GRADIENT_NORMS
from cubediff.training.metrics import gradient_norms


class CubeDiffModule(L.LightningModule):
    """Trains `pipeline.unet` on batches of the DataModule: `faces` (B, 6, 3, S, S) in [−1, 1] and `prompts`, or
    `latents` (B, 6, C, h, w) and `text` (B, 6, L, D) that were encoded before; and `position`, of each in the stream.

    optimizer: called with the trained parameters. lr_schedule and warmup_steps: a name of
    diffusers.optimization.get_scheduler, stepped once per optimizer step. compile: the UNet's transformer blocks
    ("regional", compiled once for all of them) or none. seed: of noise, timesteps and drops, which depend on nothing
    but it and the panorama's position in the run's stream: not on the number of ranks, and a resumed run repeats none.
    """

    def __init__(
        self,
        pipeline: CubeDiffPipeline,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        lr_schedule: str = "constant_with_warmup",
        warmup_steps: int = 0,
        trainable: Trainable = "attention",
        lora_rank: int = 16,
        gradient_checkpointing: bool = False,
        compile: Literal["regional"] | None = None,
        channels_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.encoders = pipeline.encoders
        self.unet = select_trainable_(pipeline.unet, trainable, lora_rank).train()
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if compile not in (None, "regional"):
            raise ValueError(f"compile={compile!r}: use 'regional', or null for none")
        if compile == "regional":
            self.unet.compile_repeated_blocks()
        self.objective = objective
        pipeline.register_to_config(drops=[objective.drop_text, objective.drop_image, objective.drop_both])
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.warmup_steps = warmup_steps
        self.seed = seed
        self.strict_loading = False  # a checkpoint has what is trained
        # self.log's own mean over devices is wrong where they see unequal numbers
        self.val_loss = MeanMetric(nan_strategy="disable")  # by default it drops what is no number

    @property
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device
        encoded_by = getattr(getattr(self.trainer, "datamodule", None), "encoded_by", None)
        if encoded_by is None:
            self.encoders.to(device)
        elif encoded_by != self.encoders.fingerprint():
            raise ValueError("the latents of data.path were made by other encoders than those of model.pipeline.path: "
                             "train from the model that they were cached with, or cache them again")  # fmt: skip
        self.empty_text = self.encoders.encode_text([""]).to(device)  # (1, L, D)
        if encoded_by is not None:
            self.encoders.release()

    def configure_model(self) -> None:
        """Lightning's ModelParallelStrategy, which gives a mesh of devices, has the UNet in parts."""
        if self.device_mesh is not None:
            if getattr(self.unet, "peft_config", None):
                raise ValueError("trainer=fsdp with model.trainable=lora: what lora trains is small, use trainer=ddp")
            # Autocast would make the same of them after they were sent.
            gathered = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
            shard_(self.unet, self.device_mesh["data_parallel"], gathered)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.trained_parameters.values())
        schedule = get_scheduler(
            self.lr_schedule,
            optimizer,
            num_warmup_steps=self.warmup_steps,
            num_training_steps=int(self.trainer.estimated_stepping_batches),
        )
        # The name is what LearningRateMonitor logs it by.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "optim/lr"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Of the weights what is trained: the others are those of the model that the run began with, whose fingerprint
        `cubediff.training.checkpoint_io` compares."""
        weights = checkpoint["state_dict"]  # which a sharded network has on rank 0 alone
        checkpoint["state_dict"] = {key: weights[key] for key in self.checkpointed if key in weights}

    @property
    def checkpointed(self) -> dict[str, Tensor]:
        """What a checkpoint has of the weights, by its names."""
        return {f"unet.{name}": parameter for name, parameter in self.trained_parameters.items()}

    @property
    def frozen(self) -> dict[str, Tensor]:
        trained = self.trained_parameters.keys()
        return {name: value for name, value in self.unet.state_dict().items() if name not in trained}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By norm, always measured; Lightning's own clipping refuses fused optimizers under mixed precision. Where the
        norm is not finite the step is left out: a fused optimizer heeds `found_inf` on the device, as it does for a
        gradient scaler; for another the gradients are taken away, for which the device is waited for."""
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(f"trainer.gradient_clip_algorithm={gradient_clip_algorithm}: only 'norm' is known")
        limit = float("inf") if gradient_clip_val is None else gradient_clip_val
        others = gradient_norms(self.trained_parameters)  # before clipping
        norm = whole(nn.utils.clip_grad_norm_(self.trained_parameters.values(), limit))
        self.log_dict({GRADIENT_NORMS[0].name: norm, **others})
        self.found_inf = (~norm.isfinite()).float()
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]
        elif self.found_inf:
            optimizer.zero_grad(set_to_none=True)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """The loss and, for callbacks, what `_denoised` gives of each panorama."""
        each = self._denoised(batch, [(self.seed, 0, position) for position in batch["position"]])
        loss = each["losses"].mean()
        self.log("train/loss", loss.detach(), prog_bar=True)
        return {**each, "losses": each["losses"].detach(), "loss": loss}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """The loss at the same noise, timesteps and drops every time; returns what `_denoised` does, of what counts."""
        each = self._denoised(batch, [(self.seed, 1, position) for position in batch["position"]])
        if not batch.get("counted", True):
            each = {name: values[:0] for name, values in each.items()}
        self.val_loss.update(each["losses"])
        self.log("val/loss", self.val_loss, prog_bar=True)
        return each

    def _losses(self, batch: dict[str, Any], place: tuple[int, ...]) -> Tensor:
        """The loss (B,) of each panorama, with noise drawn from `place` and its number in the batch alone."""
        count = len(batch["latents" if "latents" in batch else "faces"])
        return self._denoised(batch, [(*place, i) for i in range(count)])["losses"]

    def _denoised(self, batch: dict[str, Any], places: list[tuple[int, ...]]) -> dict[str, Tensor]:
        """Of each panorama, with noise drawn from its place alone: `losses`, `timesteps`, and `conditions`, which of
        `cubediff.diffusion.objective.CONDITIONS` it was denoised from; each (B,)."""
        states = [np.random.SeedSequence(place).generate_state(1, np.uint64)[0] for place in places]
        generators = [torch.Generator(self.device).manual_seed(int(state >> 1)) for state in states]
        condition: dict[str, Tensor] = {}
        if "latents" in batch:
            latents, text = batch["latents"].float(), batch["text"].float()
        else:
            latents, text, condition = self._encoded(batch)
        losses, timesteps, drops = self.objective.loss(
            self.unet,
            self.noise_scheduler,
            latents,
            text,
            self.empty_text.float(),
            positions=self.pipeline.positions(latents.shape[-1], latents.device),
            image_drop=self.pipeline.config.image_drop,
            generator=generators,
            **condition,
        )
        return {"losses": losses, "timesteps": timesteps, "conditions": drops.conditions}

    def _encoded(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Latents (B, 6, C, h, w), text states (B, 6, L, D), and the condition where it is not the front face."""
        prompts = [prompt for faces in batch["prompts"] for prompt in faces]
        texts = sorted(set(prompts))
        states = self.encoders.encode_text(texts, truncate=True)
        order = sent(torch.tensor([texts.index(prompt) for prompt in prompts]), states.device)
        latents = self.encoders.encode_faces(batch["faces"])
        condition = {}
        if "known" in batch:  # photos that look anywhere; else the front face's own latent
            scale = batch["faces"].shape[-1] // latents.shape[-1]
            condition = {
                "known": self.encoders.encode_faces(batch["known"]),
                "mask": latent_mask(batch["covered"], scale),
            }
        return latents, states[order].unflatten(0, (-1, 6)).float(), condition
