"""What `python -m cubediff.train … dry_run=true` says instead of training: the config, the plan, and the data."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cubediff.configs import build, check
from cubediff.planning.cost import devices
from cubediff.planning.report import report
from cubediff.runs.resume import choose


def describe(config: DictConfig, run_dir: Path) -> str:
    """All of it as text; needs no GPU. Raises ValueError as the run itself would."""
    check(config)
    begin = choose(str(config.resume), run_dir)
    data = build(config.data)
    data.setup()
    step = config.data.batch_size * devices(config) * config.trainer.accumulate_grad_batches
    steps = config.trainer.max_steps
    lines = [OmegaConf.to_yaml(config, resolve=True), report(config), "", "data"]
    for path, shards in zip(data.paths, data.shards, strict=True):
        counts = ", ".join(f"{sum(map(len, shards[split]))} to {what} with in {len(shards[split])} shards"
                           for split, what in (("train", "train"), ("val", "validate")))  # fmt: skip
        lines.append(f"  {path}: {counts}")
    lines += [
        f"  {data.sample_bytes / 1e3:.0f} kB a panorama, {data.samples('train') / step:.1f} steps an epoch, "
        f"{steps * step / data.samples('train'):.1f} epochs in {steps} steps",
        "",
        f"everything would go to {run_dir}" + (f", on from {begin}" if begin else ""),
    ]
    return "\n".join(lines)
