"""Estimates communication, scaling efficiency and reading of training on 4 to 1024 GPUs, from counts of the networks.

    python experiments/scaling/scale.py OUTPUT

Writes OUTPUT/metrics.json and OUTPUT/efficiency.png, and prints the README's tables. These are formulas, not
measurements on GPUs; measure.py checks them as far as a CPU can.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from PIL import Image, ImageDraw, ImageFont

from cubediff.configs import CONFIG_DIR
from cubediff.data.streaming.order import Order
from cubediff.planning.cost import cost
from cubediff.planning.gpus import GPUS
from cubediff.planning.roofline import REACHED_LINK, seconds_by_kind

TRAINABLE = ("attention", "lora", "full")
SHOWN = (("attention", "ddp"), ("lora", "ddp"), ("full", "ddp"), ("attention", "fsdp"), ("full", "fsdp"))
NUMBERS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
BATCH = 64  # panoramas per step on up to 64 GPUs, as in the paper
MICRO = 1  # panoramas of a micro-batch; on more than 64 GPUs a step is GROWN panoramas on each
GROWN = 2
BUCKET = 25 * 2**20  # bytes of a DDP gradient bucket, the default
HALF = 2  # bytes of a bf16 weight, as FSDP gathers them under bf16-mixed; gradients are reduced in float32

SPECS = {"L4": GPUS["L4"], "H100": GPUS["H100-SXM"]}

# Assumed, not measured.
HOP = 10e-6  # latency of a message from one GPU to the next, in seconds
PANORAMAS, PANORAMA = 48_000, 500e3  # number of them as in the paper; bytes of one as in conf/plan.yaml
SHARD, SHUFFLE = 256, 1024  # in panoramas, the defaults of cubediff prepare and data.shuffle_buffer


@dataclass(frozen=True)
class Machine:
    """GPUs per node, and bandwidths in bytes per second and direction, of a GPU within its node and between nodes."""

    gpu: str
    gpus: int
    link: float
    network: float


MACHINES = (
    Machine("L4", 4, 32e9, 50e9 / 8),  # g2-standard-48: PCIe 4.0 × 16 and no NVLink; 50 Gb/s
    Machine("H100", 8, 450e9, 8 * 400e9 / 8),  # DGX H100: NVLink 4, eight ConnectX-7 of 400 Gb/s
)


def ring(devices: int, size: float) -> float:
    """Bytes that each device sends in a ring all-reduce of `size` bytes: a reduce-scatter, then an all-gather."""
    return 2 * (devices - 1) / devices * size


def ddp(devices: int, gradients: float, micro_batches: int = 1) -> float:
    """Bytes that each device sends per step: gradients are reduced once, with the last micro-batch (DDP's no_sync)."""
    return ring(devices, gradients)


def fsdp(devices: int, weights: float, gradients: float, micro_batches: int = 1) -> float:
    """Bytes that each device sends per step with all parameters sharded.

    Every micro-batch gathers the weights for the forward pass and again for the backward pass, and reduce-scatters the
    gradients. Each of the three is half a ring.
    """
    return micro_batches * ring(devices, 2 * weights + gradients) / 2


def seconds(machine: Machine, devices: int, sent: float, messages: int) -> float:
    """Seconds of communication in a ring over all devices.

    Each node's network carries what one of its GPUs sends. NCCL sends short messages along a tree, so that a message
    takes 2 log2(devices) hops.
    """
    rate = machine.link if devices <= machine.gpus else min(machine.link, machine.network)
    return sent / (rate * REACHED_LINK) + messages * 2 * math.ceil(math.log2(devices)) * HOP


def counts() -> dict[str, dict[str, Any]]:
    """Parameters, bytes, and FLOPs and seconds per panorama of SD 1.5, by trainable parameters."""
    counted: dict[str, dict[str, Any]] = {}
    for trainable in TRAINABLE:
        with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
            words = ["experiment=sd15_l4x4", f"model.trainable={trainable}", f"data.batch_size={MICRO}"]
            config = compose("plan", overrides=words)
        one = cost(config, MICRO)
        counted[trainable] = {
            "parameters": one.parameters,
            "trained": one.trained,
            "gradients": one.gradients,
            "checkpoint": one.checkpoint,
            "flops": one.flops / MICRO,
            "seconds": {
                name: sum(seconds_by_kind(one.operations + one.rendering, gpu, config.trainer.precision).values())
                / MICRO
                for name, gpu in SPECS.items()
            },
        }
    return counted


def steps(counted: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A training step for each machine, trainable parameters, number of GPUs and strategy."""
    rows = []
    for machine in MACHINES:
        for trainable, of in counted.items():
            for devices in NUMBERS:
                each = BATCH // devices if devices <= BATCH else GROWN
                micro_batches = math.ceil(each / MICRO)
                compute = each * of["seconds"][machine.gpu]
                buckets = math.ceil(of["gradients"] / BUCKET)
                for strategy in ("ddp", "fsdp"):
                    if strategy == "ddp":
                        sent, messages = ddp(devices, of["gradients"], micro_batches), buckets
                    else:
                        weights = HALF * of["parameters"]
                        sent = fsdp(devices, weights, of["gradients"], micro_batches)
                        messages = 3 * micro_batches * math.ceil(weights / BUCKET)
                    wait = seconds(machine, devices, sent, messages)
                    rows.append({
                        "machine": machine.gpu,
                        "trainable": trainable,
                        "devices": devices,
                        "strategy": strategy,
                        "panoramas": each * devices,
                        "micro_batches": micro_batches,
                        "sent": sent,
                        "compute_s": compute,
                        "communication_s": wait,
                        "efficiency": compute / (compute + wait),
                    })  # fmt: skip
    return rows


def reading(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The reading of attention training with DDP, from the shards that the stream requests in its first epoch.

    A rank requests the shards of its samples, and for prefetching that of the sample data.shuffle_buffer after the
    first one of each batch.
    """
    counts = [min(SHARD, PANORAMAS - first) for first in range(0, PANORAMAS, SHARD)]
    order = Order(counts, SHUFFLE, [0, 0])
    positions = np.arange(PANORAMAS)
    shards = np.array([order[int(position)] // SHARD for position in positions])
    ahead = positions[positions + SHUFFLE < PANORAMAS]
    readings = []
    for row in rows:
        if (row["trainable"], row["strategy"]) != ("attention", "ddp"):
            continue
        gpus = next(machine.gpus for machine in MACHINES if machine.gpu == row["machine"])
        nodes = math.ceil(row["devices"] / gpus)
        batch = row["panoramas"] // row["micro_batches"]
        node = positions // (batch // nodes) % nodes
        firsts = ahead[ahead % (batch // row["devices"]) == 0]
        needed = np.unique(node * len(counts) + shards)  # pairs of a node and a shard
        pairs = np.union1d(needed, node[firsts] * len(counts) + shards[firsts + SHUFFLE])
        rate = row["panoramas"] / (row["compute_s"] + row["communication_s"])
        fetched = float(np.array(counts)[pairs % len(counts)].sum() * PANORAMA)
        readings.append({
            "machine": row["machine"],
            "devices": row["devices"],
            "nodes": nodes,
            "panoramas_per_s": rate,
            "used_bytes_per_s": rate * PANORAMA,
            "epoch_s": PANORAMAS / rate,
            "share_needed_by_a_node": len(needed) / nodes / len(counts),
            "share_fetched_by_a_node": len(pairs) / nodes / len(counts),
            "fetched_bytes": fetched,
            "fetched_bytes_per_s_per_node": fetched / nodes * rate / PANORAMAS,
        })  # fmt: skip
    return readings


def tables(metrics: dict[str, Any]) -> str:
    """The README's tables."""
    counted = metrics["counts"]
    lines = ["| trained | parameters | gradients | checkpoint | a panorama |", "|---|---|---|---|---|"]
    for trainable, of in counted.items():
        lines.append(
            f"| `{trainable}` | {of['trained'] / 1e6:.1f} M of {of['parameters'] / 1e6:.1f} M | "
            f"{of['gradients'] / 1e6:.0f} MB | {of['checkpoint'] / 1e9:.2f} GB | "
            f"{of['flops'] / 1e12:.1f} TFLOP |"
        )
    found = {(r["machine"], r["trainable"], r["devices"], r["strategy"]): r for r in metrics["steps"]}
    for machine in MACHINES:
        titles = " | ".join(f"`{trainable}`, {strategy.upper()}" for trainable, strategy in SHOWN)
        lines += ["", f"| {machine.gpu}, {machine.gpus} a node | a step | compute | {titles} |", "|---" * 8 + "|"]
        for devices in NUMBERS:
            one = found[machine.gpu, "attention", devices, "ddp"]
            cells = []
            for trainable, strategy in SHOWN:
                row = found[machine.gpu, trainable, devices, strategy]
                cells.append(f"{_size(row['sent'])}, {_time(row['communication_s'])}, {row['efficiency']:.0%}")
            lines.append(f"| {devices} | {one['panoramas']} | {_time(one['compute_s'])} | {' | '.join(cells)} |")
    titles = "GPUs | nodes | panoramas/s | used | an epoch | shards a node needs | fetches | bytes in all | a node"
    lines += ["", f"| {titles} |", "|---" * 9 + "|"]
    for row in metrics["reading"]:
        lines.append(
            f"| {row['devices']} × {row['machine']} | {row['nodes']} | {row['panoramas_per_s']:,.0f} | "
            f"{_size(row['used_bytes_per_s'])}/s | {_time(row['epoch_s'])} | {row['share_needed_by_a_node']:.0%} | "
            f"{row['share_fetched_by_a_node']:.0%} | "
            f"{_size(row['fetched_bytes'])} | {_size(row['fetched_bytes_per_s_per_node'])}/s |"
        )
    return "\n".join(lines)


def _size(size: float) -> str:
    unit, name = next((u, n) for u, n in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1.0, "B")) if size >= u)
    return f"{size / unit:.3g} {name}" if size < 1000 * unit else f"{size / unit:.0f} {name}"


def _time(time: float) -> str:
    if time < 1:
        return f"{time * 1000:.3g} ms"
    return f"{time:.3g} s" if time < 600 else f"{time / 3600:.2g} h"


def figure(rows: list[dict[str, Any]]) -> Image.Image:
    """Plots efficiency against the number of GPUs, with a panel for each machine."""
    scale, width, height, left, top = 3, 470, 300, 46, 34  # drawn at three times the size, for smooth lines
    plot_width, plot_height = width - left - 14, height - top - 40
    image = Image.new("RGB", (2 * width * scale, (height + 30) * scale), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(12 * scale)
    colours = ((31, 119, 180), (44, 160, 44), (214, 39, 40), (148, 103, 189), (255, 127, 14))
    kinds = [(*kind, colour) for kind, colour in zip(SHOWN, colours, strict=True)]

    def text(x: float, y: float, words: str, anchor: str, colour: Any = "black") -> None:
        draw.text((x * scale, y * scale), words, colour, font, anchor)

    def line(points: list[tuple[float, float]], colour: Any, thick: float) -> None:
        draw.line([(x * scale, y * scale) for x, y in points], colour, round(thick * scale), "curve")

    for panel, machine in enumerate(MACHINES):
        x0 = panel * width + left

        def place(devices: float, share: float, x0: float = x0) -> tuple[float, float]:
            along = math.log2(devices / NUMBERS[0]) / math.log2(NUMBERS[-1] / NUMBERS[0])
            return x0 + along * plot_width, top + (1 - share) * plot_height

        text(x0 + plot_width / 2, 16, f"{machine.gpu}, {machine.gpus} a node", "mm")
        for percent in (0, 25, 50, 75, 100):
            line([place(NUMBERS[0], percent / 100), place(NUMBERS[-1], percent / 100)], (225, 225, 225), 1)
            text(x0 - 6, place(4, percent / 100)[1], f"{percent} %", "rm")
        for devices in NUMBERS:
            text(place(devices, 0)[0], top + plot_height + 12, str(devices), "mm")
        line([place(BATCH, 0), place(BATCH, 1)], (150, 150, 150), 1)
        text(x0 + plot_width / 2, top + plot_height + 28, "GPUs (grey line: 64; beyond it a step grows)", "mm")
        for trainable, strategy, colour in kinds:
            points = [
                place(r["devices"], r["efficiency"])
                for r in rows
                if (r["machine"], r["trainable"], r["strategy"]) == (machine.gpu, trainable, strategy)
            ]
            line(points, colour, 2)
    for number, (trainable, strategy, colour) in enumerate(kinds):
        x = left + number * (2 * width - 2 * left) / len(kinds)
        line([(x, height + 14), (x + 22, height + 14)], colour, 3)
        text(x + 28, height + 14, f"{trainable}, {strategy.upper()}", "lm")
    return image.resize((image.width // scale, image.height // scale), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    output: Path = parser.parse_args().output
    counted = counts()
    rows = steps(counted)
    metrics = {"counts": counted, "steps": rows, "reading": reading(rows)}
    output.mkdir(parents=True, exist_ok=True)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    figure(rows).save(output / "efficiency.png", optimize=True)
    print(tables(metrics))


if __name__ == "__main__":
    main()
