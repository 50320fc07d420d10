"""SampleLogger: panoramas generated from the same captions and photos after every validation."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from cubediff.data.batches.types import CubeBatch
from cubediff.evaluation.consistency import METRICS, value_of
from cubediff.generation.outputs import write_panorama
from cubediff.geometry.atlas import needs_border
from cubediff.images.writing import to_pil
from cubediff.pages.viewer import write_viewer
from cubediff.pipelines.base import CubePipeline
from cubediff.training.callbacks.hooks import cube_module
from cubediff.training.callbacks.signals import find_stop
from cubediff.training.logged_metrics import CONSISTENCY
from cubediff.training.metric_reduction import gather_ranks
from cubediff.training.module import CubeDiffModule
from cubediff.training.protocols import TrainerAttributes


class _ExampleData(Protocol):
    """The data module of panoramas."""

    def examples(self, count: int) -> object: ...

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object: ...

    def on_after_batch_transfer(self, batch: object, dataloader_idx: int) -> CubeBatch: ...


class SampleLogger(Callback):
    """Generates panoramas after each validation, from its first captions and front faces and from fixed noise.

    Every sample is generated from text alone and from text and photo. `folder` receives the panorama, its six
    faces side by side (in the order of `cubediff.geometry.FACES`) and a viewer page of each; W&B receives all three,
    TensorBoard the images. The ranks share the samples, which do not depend on the number of ranks.

    How well the faces of all samples agree is logged as val/NAME, see `logged_metrics.CONSISTENCY`; faces that overlap
    by less than a pixel have no such metrics.

    Args:
        folder: The folder to write to, on rank 0.
        count: Number of samples; 0 for none.
        steps: Number of sampling steps.
        guidance_scale: Scale of classifier-free guidance.

    Raises:
        ValueError: If `count` is below 0 or `steps` below 1.
    """

    def __init__(self, folder: str, count: int = 2, steps: int = 20, guidance_scale: float = 3.5) -> None:
        if count < 0 or steps < 1:
            raise ValueError(f"count must be at least 0 and steps at least 1, got {count} and {steps}")
        self.folder = Path(folder)
        self.count = count
        self.steps = steps
        self.guidance_scale = guidance_scale
        self._examples: tuple[list[list[str]], Tensor] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.count:
            rank_zero_info("callbacks.samples.count=0: no samples are generated, and val/overlap_rms is not logged")

    def left_out_without_encoders(self) -> str:
        """The line that a run on latents prints."""
        return "no samples are generated"

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not self.count:
            return
        try:
            self._generate(trainer, cube_module(pl_module))
        except torch.OutOfMemoryError as error:
            each = math.ceil(self.count / trainer.world_size)
            fewer = [f"callbacks.samples.count={self.count // 2}"] if each > 1 else []
            remedies = ", or ".join([*fewer, "callbacks.samples.count=0, which generates none"])
            raise ValueError(
                f"generating samples ran out of memory, {each} at a time; training itself did not: set {remedies}"
            ) from error

    def _generate(self, trainer: L.Trainer, module: CubeDiffModule) -> None:
        if self._examples is None:
            stop = find_stop(trainer)
            with stop.reading() if stop else nullcontext():
                self._examples = _read_examples(trainer, module, self.count)
        prompts, photos = self._examples
        world, count = trainer.world_size, len(prompts)
        own = [i % count for i in range(trainer.global_rank, math.ceil(count / world) * world, world)]
        pipeline = module.pipeline
        pipeline.set_progress_bar_config(disable=True)
        cubes = []
        for kind, photo in (("text", None), ("text_photo", photos[own])):
            with trainer.precision_plugin.forward_context():  # as in training: frozen weights have 16 bits
                output = pipeline(
                    [prompts[i] for i in own],
                    image=photo,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    generator=[torch.Generator(module.device).manual_seed(module.seed + i) for i in own],
                    output_type="pt",
                    truncate_prompts=True,
                    callback_on_step_end=_StopVote(trainer),
                )
            gathered = (gather_ranks(trainer, each) for each in (output.faces, output.panoramas))
            # Rank r generated the samples r, r + world, …
            faces, panoramas = (each.transpose(0, 1).flatten(0, 1)[:count] for each in gathered)
            cubes.append(faces)
            if getattr(trainer, "fast_dev_run", False):
                continue  # it leaves no files
            self._write(trainer, kind, faces, panoramas, [six[0] for six in prompts], pipeline.config.fov)
        pipeline.set_progress_bar_config(disable=False)
        self._log_consistency(module, torch.cat(cubes), pipeline.config.fov)

    def _log_consistency(self, module: CubeDiffModule, faces: Float[Tensor, "b 6 3 s s"], fov: float) -> None:
        """Logs the metrics of all samples, which every rank has."""
        if needs_border(faces.shape[-1], fov):  # without it, faces overlap by less than a pixel
            return
        pixels = faces.float().clamp(-1, 1) / 2 + 0.5
        for name in CONSISTENCY:
            value = value_of(METRICS[name], METRICS[name].terms(pixels, fov))
            if math.isfinite(value):
                module.log(f"val/{name}", value)

    @rank_zero_only
    def _write(
        self,
        trainer: L.Trainer,
        kind: str,
        cubes: Float[Tensor, "b 6 3 s s"],
        equirects: Float[Tensor, "b 3 h w"],
        captions: list[str],
        fov: float,
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        step = trainer.global_step
        panoramas = to_pil(equirects)
        strips = to_pil(torch.cat(cubes.unbind(1), dim=-1))  # (B, 3, S, 6·S)
        pages = []
        for i, (panorama, strip, faces) in enumerate(zip(panoramas, strips, cubes, strict=True)):
            name = f"step{step:07d}_{kind}_{i}"
            write_panorama(self.folder / f"{name}.jpg", panorama)
            strip.save(self.folder / f"{name}_faces.jpg", quality=92)
            title = f"step {step}"
            pages.append(write_viewer(self.folder / f"{name}.html", faces, fov=fov, prompt=captions[i], title=title))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_metrics(_wandb_media(kind, panoramas, strips, pages, captions), step=step)
            elif isinstance(logger, TensorBoardLogger):
                _log_images(logger, kind, panoramas, strips, step)


class _StopVote:
    """The pipeline's callback after a denoising step, at which a signal may stop the run."""

    def __init__(self, trainer: L.Trainer) -> None:
        self.stop = find_stop(trainer)

    def __call__(
        self, pipeline: CubePipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if self.stop is not None:
            self.stop.vote()
        return tensors


def _wandb_media(
    kind: str,
    panoramas: list[PIL.Image.Image],
    strips: list[PIL.Image.Image],
    pages: list[Path],
    captions: list[str],
) -> dict[str, Any]:
    """W&B's media by name, for `log_metrics`, which declares its values as floats."""
    import wandb  # start-up time

    # `inject` would link a style sheet, which the page's content security policy forbids.
    viewers = {f"samples/{kind}_viewer_{i}": wandb.Html(str(page), inject=False) for i, page in enumerate(pages)}
    return {
        f"samples/{kind}": [wandb.Image(p, caption=c) for p, c in zip(panoramas, captions, strict=True)],
        f"samples/{kind}_faces": [wandb.Image(s, caption=c) for s, c in zip(strips, captions, strict=True)],
        **viewers,
    }


def _log_images(
    logger: TensorBoardLogger, kind: str, panoramas: list[PIL.Image.Image], strips: list[PIL.Image.Image], step: int
) -> None:
    for i, (panorama, strip) in enumerate(zip(panoramas, strips, strict=True)):
        for tag, image in ((f"samples/{kind}_{i}", panorama), (f"samples/{kind}_faces_{i}", strip)):
            logger.experiment.add_image(tag, np.asarray(image), step, dataformats="HWC")


def _read_examples(trainer: L.Trainer, module: CubeDiffModule, count: int) -> tuple[list[list[str]], Tensor]:
    """The six captions and the front face, on the module's device, of the first validation panoramas."""
    data = cast(_ExampleData, cast(TrainerAttributes, trainer).datamodule)
    batch = data.transfer_batch_to_device(data.examples(count), module.device, 0)
    cubes = data.on_after_batch_transfer(batch, 0)
    return cubes["prompts"], cubes["faces"][:, 0].clone()
