"""CubeDiffModule: the LightningModule that trains a pipeline's network (CubeDiff, section 4.3).

It holds the network alone; autoencoder and text encoders stay in the pipeline, where Lightning neither moves nor
checkpoints them.

Legend: B panoramas, 6 faces, C latent channels, h w latent size, S face size.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isinf
from typing import Literal, NotRequired, Protocol, TypedDict, cast

import lightning as L
import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.optimization import get_scheduler
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric
from typing_extensions import Unpack

from cubediff.data.batches.types import CubeBatch, LatentBatch
from cubediff.diffusion.objective import Example, Objective
from cubediff.models.attention import set_attention_backend_
from cubediff.models.backbone import Conditioning, Trainable
from cubediff.models.checkpointing import Checkpointing, checkpoint_blocks_
from cubediff.models.compilation import can_compile, compile_blocks_
from cubediff.models.encoders import same_fingerprint
from cubediff.models.frozen import CastWeights
from cubediff.models.inputs import latent_mask
from cubediff.models.trainable import select_trainable_
from cubediff.pipelines.base import CubePipeline
from cubediff.training.fsdp import apply_fsdp, full_tensor
from cubediff.training.logged_metrics import GRADIENT_NORMS
from cubediff.training.metric_reduction import gradient_norms

Batch = CubeBatch | LatentBatch
# Determines a panorama's random draws: the run's seed, training or validation, and its sample index in the stream.
Seed = tuple[int, ...]
TRAINING, VALIDATION = 0, 1
_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# Names of diffusers' get_scheduler, less piecewise_constant, which needs rules.
Schedule = Literal["constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "linear", "polynomial"]
_SCHEDULES_WITHOUT_END = ("constant", "constant_with_warmup")


class StepOutput(TypedDict):
    """The per-panorama results of a step, for callbacks.

    Attributes:
        losses: (B,).
        timesteps: (B,).
        conditions: (B,), indices into `cubediff.diffusion.objective.CONDITIONS`.
        loss: Mean loss with its graph; of a training step only.
    """

    losses: Tensor
    timesteps: Tensor
    conditions: Tensor
    loss: NotRequired[Tensor]


class Options(TypedDict, total=False):
    """The optional settings of `CubeDiffModule`; see there."""

    lr_schedule: Schedule
    warmup_steps: int
    trainable: Trainable
    lora_rank: int
    gradient_checkpointing: Checkpointing
    compile: Literal["regional"] | None
    channels_last: bool | None
    attention_backend: str | None
    seed: int


@dataclass(frozen=True)
class _Settings:
    lr_schedule: Schedule = "constant_with_warmup"
    warmup_steps: int = 0
    trainable: Trainable = "attention"
    lora_rank: int = 16
    gradient_checkpointing: Checkpointing = False
    compile: Literal["regional"] | None = None
    channels_last: bool | None = None
    attention_backend: str | None = None
    seed: int = 0


class _SkippingOptimizer(Protocol):
    """A fused optimizer, which skips a step if this is not zero."""

    found_inf: Tensor


def gradient_scaler(trainer: L.Trainer) -> torch.amp.GradScaler | None:
    """The gradient scaler of a run in float16 mixed precision (arXiv 1710.03740); None for other precisions."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if isinstance(scaler, torch.amp.GradScaler) else None


class CubeDiffModule(L.LightningModule):
    """Trains a pipeline's network on the batches of a data module.

    Args:
        pipeline: The pipeline; its network is trained in place.
        objective: The training objective.
        optimizer: Called with the trained parameters.
        lr_schedule: Its name for `diffusers.optimization.get_scheduler`, stepped once per optimizer step.
        warmup_steps: Optimizer steps of linear warm-up.
        trainable, lora_rank: See `select_trainable_`.
        gradient_checkpointing: Recompute activations in the backward pass, see `checkpoint_blocks_`.
        compile: "regional" compiles the blocks of the network and of the encoders, see `compile_blocks_`, where a
            compiler is installed; None compiles nothing.
        channels_last: Store the network's weights in the channels_last memory format; None does so on a GPU.
        attention_backend: One of `cubediff.models.attention.BACKENDS`; None for torch's choice.
        seed: Seed of noise, timesteps and condition dropout. They depend only on the seed and the panorama's sample
            index in the stream, not on the number of ranks, and a resumed run repeats none of them.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        pipeline: CubePipeline,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        settings = _Settings(**options)
        self.pipeline = pipeline
        self.backbone = pipeline.backbone
        network = self.backbone.network
        select_trainable_(self.backbone, settings.trainable, settings.lora_rank)
        self.base_weights = {
            name: p.detach().clone()
            for name, p in network.named_parameters()
            if settings.trainable == "lora" and p.requires_grad and ".lora_" not in name
        }
        setattr(self, self.backbone.network_name, network.train())  # its name starts the keys of checkpoints
        self.channels_last = settings.channels_last
        self.attention_backend = settings.attention_backend
        self.cast_weights: dict[str, CastWeights] = {}
        checkpoint_blocks_(self.backbone.blocks(), settings.gradient_checkpointing)
        if settings.compile not in (None, "regional"):
            raise ValueError(f"compile={settings.compile!r}: use 'regional', or null for none")
        self.compiles = settings.compile == "regional"
        if settings.warmup_steps < 0:
            raise ValueError(f"warmup_steps={settings.warmup_steps}: expected 0 or more")
        self.objective = objective
        pipeline.register_to_config(drops=[objective.drop_text, objective.drop_image, objective.drop_both])
        self.process = objective.noising(pipeline.scheduler)
        self.optimizer = optimizer
        self.lr_schedule = settings.lr_schedule
        self.warmup_steps = settings.warmup_steps
        self.seed = settings.seed
        self.strict_loading = False  # a checkpoint holds trained weights only
        # self.log averages over devices without weights, which is wrong if they have unequal numbers of panoramas.
        self.val_loss = MeanMetric(nan_strategy="disable")  # by default it ignores NaN

    @property
    def network(self) -> ModelMixin:
        """The network that is trained."""
        return getattr(self, self.backbone.network_name)

    @property
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by their names in the network."""
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    # ------------------------------------------------------------------------------------------------ setup

    def setup(self, stage: str) -> None:
        """Adapts the network to the device, and moves the encoders there, or frees them if batches are encoded."""
        device = self.trainer.strategy.root_device
        encoded_by = getattr(getattr(self.trainer, "datamodule", None), "encoded_by", None)
        if encoded_by is None:
            self.backbone.to(device)
        elif not same_fingerprint(encoded_by, self.backbone.fingerprint()):
            raise ValueError("the latents of data.path come from other encoders than those of model.pipeline.path "
                             "(weights, scaling or tokenizer): train from the model that they were cached with, or "
                             "cache them again")  # fmt: skip
        self.encode_null_text(device)
        if encoded_by is not None:
            self.backbone.release()
        self.adapt_to(device.type, str(self.trainer.precision), self.device_mesh is not None)
        if self.compiles and can_compile(device.type):
            self.compile_()

    def compile_(self) -> None:
        """Compiles the blocks of the network and of the encoders."""
        self.compiles = False  # once
        blocks = [*self.backbone.blocks(), *self.backbone.frozen_blocks()]
        compile_blocks_(blocks, fullgraph=self.device_mesh is None)

    def adapt_to(self, device_type: str, precision: str, sharded: bool) -> None:
        """Stores the network as the device computes fastest, until `teardown`.

        Args:
            device_type: Such as "cuda", on which weights are stored in channels_last by default.
            precision: The Trainer's; in 16 bits frozen weights are cast once, see `CastWeights`.
            sharded: Whether FSDP casts the network's weights, which it needs in one dtype.
        """
        if self.attention_backend is not None:
            set_attention_backend_(self.network, self.attention_backend, device_type)
        if self.channels_last or (self.channels_last is None and device_type == "cuda"):
            self.network.to(memory_format=torch.channels_last)
        if precision in _DTYPES and not self.cast_weights:
            components = self.backbone.frozen_components() if sharded else self.backbone.components()
            self.cast_weights = {name: CastWeights.cast_(one, _DTYPES[precision]) for name, one in components.items()}

    def teardown(self, stage: str) -> None:
        """Gives frozen weights their precision of before."""
        for cast_weights in self.cast_weights.values():
            cast_weights.restore_()
        self.cast_weights = {}

    def encode_null_text(self, device: torch.device | None = None) -> None:
        """Encodes the empty prompt, which condition dropout puts in place of a text; before the first step."""
        self.null_text = self.backbone.null_text().map(lambda t: t.to(device or t.device))

    def configure_model(self) -> None:
        """Shards the network if the strategy is Lightning's ModelParallelStrategy, which provides a device mesh."""
        if self.device_mesh is not None:
            if getattr(self.network, "peft_config", None):
                raise ValueError("trainer=fsdp does not support model.trainable=lora, which trains few parameters: use "
                                 "trainer=ddp")  # fmt: skip
            # All-gather in bf16: autocast would cast the weights anyway.
            param_dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
            apply_fsdp(self.network, self.backbone.blocks(), self.device_mesh["data_parallel"], param_dtype)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer of the trained parameters, and the learning-rate schedule.

        Raises:
            ValueError: If the optimizer refuses an argument, or the schedule depends on the number of steps, and the
                run has no limit of steps or epochs.
        """
        try:
            optimizer = self.optimizer(self.trained_parameters.values())
        except ValueError as error:
            raise ValueError(f"model.optimizer: {error}") from error
        steps = self.trainer.estimated_stepping_batches
        if isinf(steps) and self.lr_schedule not in _SCHEDULES_WITHOUT_END:
            raise ValueError(
                f"model.lr_schedule={self.lr_schedule} needs the number of steps, which this run does not limit: set "
                f"trainer.max_steps or trainer.max_epochs, or one of {', '.join(_SCHEDULES_WITHOUT_END)}"
            )
        schedule = get_scheduler(
            self.lr_schedule,
            optimizer,
            num_warmup_steps=self.warmup_steps,
            num_training_steps=None if isinf(steps) else int(steps),
        )
        # LearningRateMonitor logs it under this name.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "optim/lr"}}

    # ------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Saves trained weights only; frozen ones come from the base model, whose fingerprint a resume compares."""
        weights = cast(dict[str, Tensor], checkpoint["state_dict"])  # a sharded network's are on rank 0 alone
        checkpoint["state_dict"] = {key: weights[key] for key in self.checkpointed if key in weights}

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Starts with the scaler's initial scale if the checkpoint's run had mixed precision without a scaler."""
        if not checkpoint.get(MixedPrecision.__qualname__, True):
            del checkpoint[MixedPrecision.__qualname__]

    @property
    def checkpointed(self) -> dict[str, Tensor]:
        """The weights that a checkpoint holds, by their keys there."""
        return {f"{self.backbone.network_name}.{name}": p for name, p in self.trained_parameters.items()}

    @property
    def frozen(self) -> dict[str, Tensor]:
        """The network's weights that are not trained, in the precision of the base model."""
        cast_weights = self.cast_weights.get(self.backbone.network_name)
        weights = {**self.network.state_dict(), **(cast_weights.originals if cast_weights else {})}
        trained = self.trained_parameters.keys()
        return {name: value for name, value in weights.items() if name not in trained}

    # ----------------------------------------------------------------------------------------------- steps

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | int | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the norm, which is always logged, and skips the step if the norm is not finite.

        As in Lightning, a value of 0 turns clipping off.

        Lightning's own clipping refuses fused optimizers under mixed precision. A fused optimizer skips a step by
        `found_inf` on the device, as it does for a gradient scaler; for another one the gradients are removed, which
        synchronizes with the device. Under a gradient scaler (trainer.precision=16-mixed) the gradients are unscaled
        before they are clipped, and the scaler skips the step.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(f"trainer.gradient_clip_algorithm={gradient_clip_algorithm}: only 'norm' is supported")
        limit = gradient_clip_val or inf
        is_fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        scaler = None if self._trainer is None else gradient_scaler(self._trainer)
        if scaler is not None and is_fused:  # Lightning unscales those of other optimizers
            scaler.unscale_(optimizer)
        others = gradient_norms(self.trained_parameters)  # before clipping
        norm = full_tensor(nn.utils.clip_grad_norm_(self.trained_parameters.values(), limit))
        self.log_dict({GRADIENT_NORMS[0].name: norm, **others})
        self.found_inf = (~norm.isfinite()).float()
        if scaler is not None:
            return
        if is_fused:
            cast(_SkippingOptimizer, optimizer).found_inf = self.found_inf
        elif self.found_inf:
            optimizer.zero_grad(set_to_none=True)

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """The loss, with the per-panorama results for callbacks."""
        output = self.compute_losses(batch, [(self.seed, TRAINING, index) for index in batch["position"]])
        loss = output["losses"].mean()
        self.log("train/loss", loss.detach(), prog_bar=True)
        return {**output, "losses": output["losses"].detach(), "loss": loss}

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """The loss with the same noise, timesteps and condition dropout every time; padding batches do not count."""
        output = self.compute_losses(batch, [(self.seed, VALIDATION, index) for index in batch["position"]])
        if not batch.get("counted", True):
            output = StepOutput(losses=output["losses"][:0], timesteps=output["timesteps"][:0],
                                conditions=output["conditions"][:0])  # fmt: skip
        self.val_loss.update(output["losses"])
        self.log("val/loss", self.val_loss, prog_bar=True)
        return output

    def compute_losses(self, batch: Batch, seeds: Sequence[Seed]) -> StepOutput:
        """The losses of B panoramas.

        Args:
            batch: The panoramas.
            seeds: One seed for each panorama, which alone determines its random draws.
        """
        states = [np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] for seed in seeds]
        generators = [torch.Generator(self.device).manual_seed(int(state >> 1)) for state in states]
        losses, timesteps, dropout = self.objective.loss(
            self.backbone, self.process, self.example(batch), generators, self.pipeline.config.image_drop
        )
        return StepOutput(losses=losses, timesteps=timesteps, conditions=dropout.conditions)

    def example(self, batch: Batch) -> Example:
        """Encodes a batch, unless it is encoded already."""
        if "latents" in batch:
            encoded = cast(LatentBatch, batch)
            latents, conditioning = encoded["latents"].float(), Conditioning(encoded["text"])
            condition: dict[str, Tensor] = {}
        else:
            conditioning = self.backbone.encode_text(batch["prompts"], truncate=True)
            latents = self.backbone.encode(batch["faces"])
            condition = self._photo_condition(batch)
        return Example(
            latents=latents,
            conditioning=conditioning.map(Tensor.float),
            null=self.null_text.map(Tensor.float),
            positions=self.pipeline.positions(latents.shape[-1], latents.device),
            fov=self.pipeline.config.fov,
            **condition,
        )

    def _photo_condition(self, batch: CubeBatch) -> dict[str, Tensor]:
        """The condition of a batch with conditioning photos; empty if the condition is the front face."""
        if "known" not in batch:
            return {}
        mask = latent_mask(batch["covered"], self.backbone.latent_scale)
        return {"clean": self.backbone.encode(batch["known"]), "mask": mask}
