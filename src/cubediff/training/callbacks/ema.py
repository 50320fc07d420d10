"""UNetEMA: the exponential moving average of the trainable weights, which validation, samples and export use."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import lightning as L
import torch
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from cubediff.training.callbacks.hooks import cube_module
from cubediff.training.fsdp import full_tensor, gather_to_rank_zero, shard_like
from cubediff.training.metric_reduction import is_logging_step
from cubediff.training.module import CubeDiffModule


class UNetEMA(Callback):
    """Exponential moving average (EMA) of the UNet's trainable weights, in float32.

    Validation, samples and the export use the EMA weights. Logs `optim/ema_distance`, `|EMA − weights| / |weights|`.

    Args:
        decay: Decay per optimizer step, in [0, 1]; it warms up as (1 + step) / (10 + step) until it reaches this value.

    Raises:
        ValueError: If `decay` is out of range.
    """

    weights_name = "ema"

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay={decay}: expected a number from 0 to 1")
        self.decay = decay
        self.average: EMAModel | None = None
        self._restored: dict[str, object] | None = None
        self._last_step = 0
        self._validation = ExitStack()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = cube_module(pl_module)
        parameters = module.trained_parameters
        low = {str(p.dtype) for p in parameters.values() if p.dtype != torch.float32}
        if low:
            raise ValueError(
                f"expected float32 trainable weights, got {', '.join(low)}, in which an EMA with decay {self.decay} "
                "does not change: set trainer.precision=bf16-mixed, which keeps float32 weights"
            )
        sharded = any(isinstance(p, DTensor) for p in parameters.values())  # foreach kernels do not copy DTensors
        self.average = EMAModel(parameters.values(), decay=self.decay, foreach=not sharded)
        if self._restored is not None:
            self._restore(self._restored)
            self._restored = None
        self.average.to(module.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step  # the step that a run resumes at is set after on_fit_start

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        module = cube_module(pl_module)
        if self._step(trainer, module) and is_logging_step(trainer):
            module.log("optim/ema_distance", self._distance(module))

    def _step(self, trainer: L.Trainer, module: CubeDiffModule) -> bool:
        """Updates the EMA after an optimizer step; returns whether there was one."""
        if self.average is None or trainer.global_step == self._last_step:
            return False
        self._last_step = trainer.global_step
        self.average.step(module.trained_parameters.values())
        return True

    @torch.no_grad()
    def _distance(self, module: CubeDiffModule) -> Float[Tensor, ""]:
        """Parameter by parameter, to avoid a third copy of the model."""
        assert self.average is not None
        pairs = zip(self.average.shadow_params, module.trained_parameters.values(), strict=True)
        norms = [(torch.linalg.vector_norm(a - w), torch.linalg.vector_norm(w)) for a, w in pairs]
        distance, length = (torch.linalg.vector_norm(torch.stack(column)) for column in zip(*norms, strict=True))
        return full_tensor(distance) / full_tensor(length)

    @contextmanager
    def averaged(self, module: CubeDiffModule) -> Iterator[None]:
        """The module has the EMA weights inside the block.

        Raises:
            RuntimeError: Before training has started.
        """
        if self.average is None:
            raise RuntimeError("there is no EMA before training has started: call trainer.fit first")
        self.average.store(module.trained_parameters.values())
        self.average.copy_to(module.trained_parameters.values())
        try:
            yield
        finally:
            self.average.restore(module.trained_parameters.values())

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.average is not None:
            self._validation.enter_context(self.averaged(cube_module(pl_module)))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._validation.close()  # a checkpoint saved now must hold the trained weights
        self._step(trainer, cube_module(pl_module))  # if another callback has failed after the optimizer's step

    def state_dict(self) -> dict[str, object]:
        if self.average is None:
            return {}
        return {**self.average.state_dict(), "shadow_params": gather_to_rank_zero(self.average.shadow_params)}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Lightning calls it before the fit starts, with FSDP after."""
        if self.average is None:
            self._restored = state_dict
        else:
            self._restore(state_dict)

    def _restore(self, state: dict[str, object]) -> None:
        assert self.average is not None
        own = self.average.shadow_params
        tensors = cast(list[Tensor], state["shadow_params"])
        self.average.load_state_dict({**state, "shadow_params": shard_like(tensors, own)})
