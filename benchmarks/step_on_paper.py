"""Counts the training step of Stable Diffusion 1.5 on paper: kernels, operations and bytes by kind, per panorama.

    python benchmarks/step_on_paper.py [OVERRIDE …]

The step runs on fake tensors with CUDA's rules (`cubediff.planning.cuda_rules`), so that no GPU and no weights are
needed. Overrides are those of `cubediff train`; the tables are of the recipe of experiment=sd15_l4x4, of the same
with gradient checkpointing, and of training on cached latents.
"""

import sys
from collections import Counter

from hydra import compose, initialize_config_dir

from cubediff.configs import CONFIG_DIR
from cubediff.planning.cost import Cost, cost
from cubediff.planning.gpus import GIB
from cubediff.planning.operations import Traffic, totals

VARIANTS = {
    "the recipe": (),
    "gradient checkpointing": ("data.batch_size=2", "model.gradient_checkpointing=true"),
    "selective gradient checkpointing": ("data.batch_size=2", "model.gradient_checkpointing=selective"),
    "cached latents": ("data=latents",),
}


def counted(*overrides: str) -> Cost:
    """The micro-batch of experiment=sd15_l4x4 with further overrides."""
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = compose("plan", overrides=["experiment=sd15_l4x4", *overrides])
    return cost(config, config.data.batch_size)


def table(one: Cost) -> list[str]:
    """Rows by kind, then totals and what could be saved, per panorama."""
    rows = totals(one.operations)
    whole = Traffic(*(sum(row[i] for row in rows.values()) for i in range(3)))
    lines = [f"  {'':18s}{'kernels':>9s}{'TFLOP':>9s}{'GB':>9s}"]
    for name, row in {**rows, "total": whole}.items():
        lines.append(f"  {name:18s}{row.calls:9d}{row.flops / one.batch / 1e12:9.2f}{row.bytes / one.batch / 1e9:9.2f}")
    formats = Counter(
        each.channels_last for each in one.operations if each.name == "convolution" and each.shapes[1][-2:] == (3, 3)
    )
    return [
        *lines,
        f"  recomputation {(one.flops - one.model_flops) / one.batch / 1e12:.2f} TFLOP; of the 3 × 3 convolutions "
        f"{formats[True]} in channels_last, {formats[False]} not; "
        f"peak {one.peak / GIB:.2f} GiB, {one.step_peak / GIB:.2f} of it loss and backward",
    ]


def main() -> None:
    for name, words in VARIANTS.items():
        one = counted(*words, *sys.argv[1:])
        print(f"{name} (batch {one.batch}), per panorama", *table(one), sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
