"""A stock Stable Diffusion pipeline of diffusers, the reference for what a pipeline of this package computes."""

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from cubediff.models.tiny import sd_scheduler
from cubediff.pipelines.loading import tiny_random
from support.awake import awaken_


def stock_2d(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """A small 2D Stable Diffusion of stock parts, awake."""
    tiny = tiny_random()
    config = {key: value for key, value in tiny.unet.config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel(**config | {"in_channels": 4})
    vae = AutoencoderKL.from_config(tiny.vae.config)
    pipeline = StableDiffusionPipeline(
        vae=awaken_(vae.eval()),
        text_encoder=awaken_(tiny.text_encoder.eval()),
        tokenizer=tiny.tokenizer,
        unet=awaken_(unet.eval()),
        scheduler=sd_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
