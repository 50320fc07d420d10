"""What happens around the training step: averaged weights, samples to look at, throughput, and guards."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from cubediff.module import CubeDiffModule
from cubediff.pipeline import to_pil


class UNetEMA(Callback):
    """Exponential moving average of the UNet's trained weights, in their own float32; used for validation, samples
    and export. The average warms up as (1 + step) / (10 + step) until it reaches `decay`."""

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
        self.average = EMAModel(parameters.values(), decay=self.decay, foreach=True)
        if self._restored is not None:
            self.average.load_state_dict(self._restored)
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
        return {} if self.average is None else self.average.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict


class SampleLogger(Callback):
    """After each validation, panoramas of its first captions and front faces: files in `folder`, and the logger's
    images where it takes any.

    `count` panoramas of text alone and of text and photo, with `steps` sampling steps each.
    """

    def __init__(self, folder: str, count: int = 2, steps: int = 20, guidance_scale: float = 3.5) -> None:
        self.folder = Path(folder)
        self.count = count
        self.steps = steps
        self.guidance_scale = guidance_scale
        self._batch: dict[str, Any] = {}

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: CubeDiffModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:
            self._batch = {name: values[: self.count] for name, values in batch.items()}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: CubeDiffModule) -> None:
        if trainer.sanity_checking or not self._batch:
            return
        pipeline, prompts, photos = pl_module.pipeline, self._batch["prompts"], self._batch["faces"][:, 0]
        pipeline.set_progress_bar_config(disable=True)
        for kind, photo in (("text", None), ("text_photo", photos)):
            generator = torch.Generator(pl_module.device).manual_seed(pl_module.seed + trainer.global_rank)
            output = pipeline(
                prompts,
                image=photo,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance_scale,
                generator=generator,
                output_type="pt",
                truncate_prompts=True,
            )
            self._write(trainer, kind, output.panoramas, [six[0] for six in prompts])
        pipeline.set_progress_bar_config(disable=False)

    @rank_zero_only
    def _write(self, trainer: L.Trainer, kind: str, panoramas: torch.Tensor, captions: list[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        images = to_pil(panoramas)
        for i, image in enumerate(images):
            image.save(self.folder / f"step{trainer.global_step:07d}_{kind}_{i}.jpg", quality=92)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"samples/{kind}", images, step=trainer.global_step, caption=captions)
            elif isinstance(logger, TensorBoardLogger):
                for i, panorama in enumerate(panoramas):
                    logger.experiment.add_image(f"samples/{kind}_{i}", (panorama + 1) / 2, trainer.global_step)


class StepProgress(ProgressBar):
    """One bar over the run's optimizer steps, where Lightning's own counts the batches of an epoch, of which a small
    set of panoramas has one."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar = tqdm(disable=True)

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps, done = trainer.estimated_stepping_batches, trainer.global_step
        self._bar = tqdm(desc="training", total=steps, initial=done, unit="step", disable=not self._enabled)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar.update(trainer.global_step - self._bar.n):  # it was drawn: metrics are read from the device then
            self._bar.set_postfix(trainer.progress_bar_metrics, refresh=False)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar.set_description("validating")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar.set_description("training")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar.set_postfix(trainer.progress_bar_metrics)
        self._bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._bar.close()


class Throughput(Callback):
    """Logs perf/panoramas_per_s over all ranks, of the last `window` batches, without waiting for the device."""

    def __init__(self, window: int = 20) -> None:
        self._ends: deque[tuple[float, int]] = deque(maxlen=window + 1)  # when a batch ended, its panoramas

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ends.append((time.monotonic(), len(batch["key"])))
        if len(self._ends) > 1:
            elapsed = self._ends[-1][0] - self._ends[0][0]
            seen = sum(count for _, count in self._ends) - self._ends[0][1]
            _log(pl_module, "perf/panoramas_per_s", seen * trainer.world_size / elapsed)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ends.clear()


class NonFiniteGuard(Callback):
    """Stops a run whose loss is no number any more, naming the samples; looks every `every_n_steps` batches, since
    a loss once spoiled stays so."""

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % self.every_n_steps == 0 and not torch.isfinite(outputs["loss"]):
            raise FloatingPointError(
                f"the loss is {outputs['loss'].item()} at step {trainer.global_step}, in or up to {self.every_n_steps} "
                f"batches before the one with {', '.join(batch['key'])}: lower model.optimizer.lr, or look at them"
            )


class SkipCounter(Callback):
    """Logs data/skipped: samples that this rank was to show and could not read so far."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        _log(pl_module, "data/skipped", float(trainer.datamodule.skipped))  # type: ignore[attr-defined]


def _log(module: L.LightningModule, name: str, value: float) -> None:
    """Made on the device, for Lightning's copy of a Python number would wait for the device at every step."""
    module.log(name, torch.full((), value, device=module.device))
