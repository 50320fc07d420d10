"""The output of `cubediff train … dry_run=true`: the config, the plan and the data."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cubediff.configs import build, check
from cubediff.data.streaming.catalog import needs_fetching
from cubediff.planning.cost import devices
from cubediff.planning.report import limit_steps, plan
from cubediff.runs.resume import find_checkpoint
from cubediff.utils.text import redact


def describe(config: DictConfig, run_dir: Path) -> str:
    """Describes a run without starting it; needs no GPU.

    Args:
        config: The composed config of `cubediff train`.
        run_dir: The run's folder.

    Returns:
        The text to print.

    Raises:
        ValueError: As the run itself would.
    """
    check(config)
    checkpoint = find_checkpoint(str(config.resume), run_dir)
    data = build(config.data)
    per_step = config.data.batch_size * devices(config) * config.trainer.accumulate_grad_batches
    lines = [redact(OmegaConf.to_yaml(config, resolve=True)), plan(config, search=False).text, "", "data"]
    output = ["", f"output folder: {run_dir}" + (f", resuming from {checkpoint}" if checkpoint else "")]
    if unread := [redact(path) for path in data.paths if needs_fetching(path)]:
        lines += [f"  {path}: not read, because a dry run runs no command and downloads no shard" for path in unread]
        return "\n".join([*lines, *output])
    data.setup()
    samples = data.samples("train")
    steps = limit_steps(config, samples)
    epochs = "no limit of steps" if steps is None else f"{steps * per_step / samples:.1f} epochs in {steps} steps"
    for path, shards in zip(data.paths, data.shards, strict=True):
        counts = ", ".join(
            f"{sum(map(len, shards[split]))} {kind} panoramas in {len(shards[split])} shards"
            for split, kind in (("train", "training"), ("val", "validation"))
        )
        lines.append(f"  {redact(path)}: {counts}")
    lines.append(f"  {data.sample_bytes / 1e3:.0f} kB per panorama, {samples / per_step:.1f} steps per epoch, {epochs}")
    return "\n".join([*lines, *output])
