"""Encodes panoramas and captions once, for training without encoders: cubediff cache experiment=NAME data.path=SHARDS
cache.output=LATENTS; then cubediff train with data=latents data.path=LATENTS."""

from pathlib import Path

from omegaconf import DictConfig

from cubediff.configs.overrides import command, messages_of_errors


@command("cache")
def main(config: DictConfig) -> None:
    """Caches latents and prints a summary; exits with the message of an error that the user can fix."""
    from cubediff.runs.cache_latents import cache  # here for start-up time

    with messages_of_errors("the same command caches the shards that are left"):
        manifest = cache(config)
    if manifest is not None:
        train, val = manifest["splits"]["train"], manifest["splits"]["val"]
        size = sum(path.stat().st_size for path in Path(config.cache.output).glob("*.tar"))
        print(
            f"{config.cache.output}: {train['samples']} training and {val['samples']} validation panoramas, "
            f"{config.cache.turns} yaw rotations each, {size / 1e6:.1f} MB; train with data=latents "
            f"data.path={config.cache.output}"
        )


if __name__ == "__main__":
    main()
