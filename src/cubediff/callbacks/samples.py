"""Panoramas of the same captions and photos again and again, to see a model learn."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from cubediff.generation.outputs import write_panorama
from cubediff.generation.viewer import write_viewer
from cubediff.module import CubeDiffModule
from cubediff.pipeline import CubeDiffOutput, to_pil


class SampleLogger(Callback):
    """After each validation, panoramas of its first captions and front faces, from the same noise every time.

    `count` panoramas of text alone and of text and photo, with `steps` sampling steps each. In `folder` each is a
    panorama, its six faces side by side (in the order of `cubediff.geometry.FACES`) and a page to look around in; W&B
    is given all three, TensorBoard the images. Every rank samples, and those of rank 0 are kept: a rank that went
    ahead would wait in the next collective call of training for as long.
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
            self._write(trainer, kind, output, [six[0] for six in prompts], pipeline.config.fov)
        pipeline.set_progress_bar_config(disable=False)

    @rank_zero_only
    def _write(self, trainer: L.Trainer, kind: str, output: CubeDiffOutput, captions: list[str], fov: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        step = trainer.global_step
        panoramas = to_pil(output.panoramas)
        strips = to_pil(torch.cat(output.faces.unbind(1), dim=-1))  # (B, 3, S, 6·S)
        pages = []
        for i, (panorama, strip, faces) in enumerate(zip(panoramas, strips, output.faces, strict=True)):
            name = f"step{step:07d}_{kind}_{i}"
            write_panorama(self.folder / f"{name}.jpg", panorama)
            strip.save(self.folder / f"{name}_faces.jpg", quality=92)
            title = f"step {step}"
            pages.append(write_viewer(self.folder / f"{name}.html", faces, fov=fov, prompt=captions[i], title=title))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                media: dict[str, Any] = {
                    f"samples/{kind}": [wandb.Image(p, caption=c) for p, c in zip(panoramas, captions, strict=True)],
                    f"samples/{kind}_faces": [wandb.Image(s, caption=c) for s, c in zip(strips, captions, strict=True)],
                }
                for i, page in enumerate(pages):  # as it is: `inject` would link a style sheet that the page forbids
                    media[f"samples/{kind}_viewer_{i}"] = wandb.Html(str(page), inject=False)
                logger.log_metrics(media, step=step)
            elif isinstance(logger, TensorBoardLogger):
                for i, (panorama, strip) in enumerate(zip(panoramas, strips, strict=True)):
                    for tag, image in ((f"samples/{kind}_{i}", panorama), (f"samples/{kind}_faces_{i}", strip)):
                        logger.experiment.add_image(tag, np.asarray(image), step, dataformats="HWC")
