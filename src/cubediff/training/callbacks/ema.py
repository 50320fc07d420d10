"""The average of the trained weights, which is what a run is judged by and what it exports."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor

from cubediff.training.fsdp import full_tensor, shard_like
from cubediff.training.metrics import is_logging_step
from cubediff.training.module import CubeDiffModule


class UNetEMA(Callback):
    """Exponential moving average of the UNet's trained weights, in their own float32; used for validation, samples
    and export. The average warms up as (1 + step) / (10 + step) until it reaches `decay`.

    Logs optim/ema_distance, |average − weights| / |weights|: how far the two are apart.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        self.decay = decay
        self.average: EMAModel | None = None
        self._restored: dict[str, Any] | None = None
        self._seen_step = 0
        self._validation = ExitStack()

    def on_fit_start(self, trainer: L.Trainer, pl_module: CubeDiffModule) -> None:
        parameters = pl_module.trained_parameters
        low = {str(p.dtype) for p in parameters.values() if p.dtype != torch.float32}
        if low:
            raise ValueError(f"trained weights are {', '.join(low)}, in which an average at {self.decay} never moves: "
                             "use trainer.precision=bf16-mixed, which keeps float32 weights")  # fmt: skip
        in_parts = any(isinstance(p, DTensor) for p in parameters.values())  # which no foreach copies
        self.average = EMAModel(parameters.values(), decay=self.decay, foreach=not in_parts)
        if self._restored is not None:
            self._restore(self._restored)
            self._restored = None
        self.average.to(pl_module.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: CubeDiffModule) -> None:
        self._seen_step = trainer.global_step  # known only now where a run resumes

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: CubeDiffModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._seen_step and self.average is not None:
            self._seen_step = trainer.global_step
            self.average.step(pl_module.trained_parameters.values())
            if is_logging_step(trainer):
                pl_module.log("optim/ema_distance", self._distance(pl_module))

    @torch.no_grad()
    def _distance(self, module: CubeDiffModule) -> torch.Tensor:
        """By one weight after another, to hold no third copy of them all."""
        assert self.average is not None
        pairs = zip(self.average.shadow_params, module.trained_parameters.values(), strict=True)
        norms = [(torch.linalg.vector_norm(a - w), torch.linalg.vector_norm(w)) for a, w in pairs]
        apart, long = (torch.linalg.vector_norm(torch.stack(column)) for column in zip(*norms, strict=True))
        return full_tensor(apart) / full_tensor(long)

    @contextmanager
    def averaged(self, module: CubeDiffModule) -> Iterator[None]:
        """The module's UNet holds the averaged weights inside the block."""
        if self.average is None:
            raise RuntimeError("there is no average before training has started")
        self.average.store(module.trained_parameters.values())
        self.average.copy_to(module.trained_parameters.values())
        try:
            yield
        finally:
            self.average.restore(module.trained_parameters.values())

    def on_validation_start(self, trainer: L.Trainer, pl_module: CubeDiffModule) -> None:
        if self.average is not None:
            self._validation.enter_context(self.averaged(pl_module))

    def on_validation_end(self, trainer: L.Trainer, pl_module: CubeDiffModule) -> None:
        self._validation.close()

    def on_exception(self, trainer: L.Trainer, pl_module: CubeDiffModule, exception: BaseException) -> None:
        self._validation.close()  # a checkpoint written now must hold the trained weights

    def state_dict(self) -> dict[str, Any]:
        if self.average is None:
            return {}
        return {**self.average.state_dict(), "shadow_params": [full_tensor(p) for p in self.average.shadow_params]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Before the fit starts, or after, as with a network in parts."""
        if self.average is None:
            self._restored = state_dict
        else:
            self._restore(state_dict)

    def _restore(self, state: dict[str, Any]) -> None:
        assert self.average is not None
        own = self.average.shadow_params
        self.average.load_state_dict({**state, "shadow_params": shard_like(state["shadow_params"], own)})
