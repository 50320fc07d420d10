"""Encodes panoramas and captions once, for training without encoders: python -m cubediff.cache experiment=NAME
data.path=SHARDS cache.output=LATENTS; then cubediff.train with data=latents data.path=LATENTS."""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cubediff.configs import build, check, check_devices
from cubediff.configs.overrides import command

DTYPES = ("float16", "bfloat16", "float32")


def cache(config: DictConfig) -> dict[str, Any]:
    """Writes the latents to `cache.output` and returns its manifest; goes on where an earlier call was cut."""
    check(config)
    check_devices(config)
    if config.cache.dtype not in DTYPES:
        raise ValueError(f"cache.dtype={config.cache.dtype}: use one of {', '.join(DTYPES)}")
    import torch

    from cubediff.data.latent_cache.writing import Encoder, ShardWriter, whole_shards, write_manifest
    from cubediff.utils.logging import silence

    silence()
    data = build(config.data, _target_="cubediff.data.latent_cache.writing.TurnsDataModule", turns=config.cache.turns)
    data.setup()  # fails, where it must, before anything is written
    encoders = build(config.model.pipeline).encoders
    settings = {
        "turns": config.cache.turns,
        "dtype": config.cache.dtype,
        "face_size": config.face_size,
        "fov": config.fov,
        "encoders": encoders.fingerprint(),
        "source": str(config.data.path),
        "seed": config.seed,
        **{name: config.data[name] for name in ("yaw", "flip", "face_caption_probability", "face_caption_jitter")},
    }
    output = Path(config.cache.output)
    data.done = whole_shards(output, settings)
    options = {"callbacks": [ShardWriter(output)], "logger": False, "enable_checkpointing": False}
    trainer: Any = build(config.trainer, **options)
    encoder = Encoder(encoders, getattr(torch, config.cache.dtype))
    trainer.predict(encoder, datamodule=data, return_predictions=False)
    trainer.strategy.barrier()
    manifest = write_manifest(output, settings) if trainer.is_global_zero else {}
    trainer.strategy.barrier()
    return manifest


@command("cache")
def main(config: DictConfig) -> None:
    try:
        manifest = cache(config)
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    if manifest:
        splits = manifest["splits"]
        size = sum(shard["bytes"] for split in splits.values() for shard in split["shards"])
        print(
            f"{config.cache.output}: {splits['train']['samples']} training and {splits['val']['samples']} validation "
            f"panoramas, {config.cache.turns} turns each, {size / 1e6:.1f} MB; train with "
            f"data=latents data.path={config.cache.output}"
        )


if __name__ == "__main__":
    main()
