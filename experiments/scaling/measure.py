"""Checks scale.py's formulas as far as a CPU can.

Measures the gradient buckets of Stable Diffusion 1.5's UNet under DDP, the bytes that gloo ranks write to each other,
and the time of an all-reduce between two ranks.

    python experiments/scaling/measure.py OUTPUT

Writes OUTPUT/measured.json and prints the README's tables. Needs 8 GB of memory and some minutes.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

MIB = 2**20
WIDTH, LAYERS = 512, 8  # of the network that FSDP shards
REDUCED, SHARDED = 32 * MIB, 4 * WIDTH * WIDTH * LAYERS  # bytes


def written() -> int:
    """Bytes that this process has written to sockets and files so far, by Linux's count."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="utf-8").splitlines())
    return int(counters["wchar"])


def ranks(world: int, functions: tuple[Callable[[], Any], ...]) -> list[list[Any]]:
    """Calls the functions in `world` gloo ranks; returns a list of the ranks' results for each function."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (world, functions, folder), nprocs=world)
        by_rank = [json.loads(Path(folder, str(rank)).read_text(encoding="utf-8")) for rank in range(world)]
    return [list(results) for results in zip(*by_rank, strict=True)]


def _rank(rank: int, world: int, functions: tuple[Callable[[], Any], ...], folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    results = [function() for function in functions]
    dist.barrier()
    Path(folder, str(rank)).write_text(json.dumps(results), encoding="utf-8")
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo sometimes aborts a process that exits normally


def all_reduced() -> int:
    """Bytes that a rank writes for an all-reduce of REDUCED bytes."""
    numbers = torch.ones(REDUCED // 4)
    dist.all_reduce(numbers)  # connects
    before = written()
    dist.all_reduce(numbers)
    return written() - before


def sharded() -> int:
    """Bytes that a rank writes for a step of an FSDP network of SHARDED bytes, each layer sharded by itself."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in network:
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)

    def step() -> None:
        network(torch.ones(1, WIDTH)).sum().backward()

    step()
    before = written()
    step()
    return written() - before


def timed() -> dict[int, float]:
    """Median seconds of an all-reduce, by its bytes."""
    medians = {}
    for size in (2**n for n in range(12, 29, 2)):
        numbers = torch.ones(size // 4)
        laps = []
        for _ in range(5 if size > MIB else 20):
            dist.barrier()
            begin = time.perf_counter()
            dist.all_reduce(numbers)
            laps.append(time.perf_counter() - begin)
        medians[size] = statistics.median(laps[1:])
    return medians


def line(seconds: dict[int, float]) -> tuple[float, float]:
    """Fits latency in seconds and bandwidth in bytes per second, by least squares of relative errors."""
    sizes, laps = torch.tensor(list(seconds), dtype=torch.float64), torch.tensor(list(seconds.values())).double()
    terms = torch.stack([torch.ones_like(sizes), sizes], 1) / laps[:, None]
    start, slope = torch.linalg.lstsq(terms, torch.ones(len(laps), 1).double()).solution.flatten().tolist()
    return start, 1 / slope


def buckets(trainable: str) -> list[int]:
    """Bytes of DDP's gradient buckets in the second step of SD 1.5's UNet with random weights."""
    from diffusers import UNet2DConditionModel

    from cubediff.models.inflation import inflate_
    from cubediff.models.presets import SD15
    from cubediff.models.trainable import select_trainable_

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config({**SD15["unet"], "in_channels": 7})
    unet = unet.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.fill_(1e-3)  # the values do not affect the bytes
    select_trainable_(inflate_(unet), trainable)  # type: ignore[arg-type]
    model = nn.parallel.DistributedDataParallel(unet, gradient_as_bucket_view=True)
    sizes: list[int] = []

    def hook(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sizes.append(bucket.buffer().nbytes)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model.register_comm_hook(None, hook)
    for _ in range(2):  # DDP rebuilds its buckets after the first step
        sizes.clear()
        faces = torch.ones(6, 7, 8, 8)
        model(faces, torch.zeros(6, dtype=torch.long), torch.ones(6, 77, 768)).sample.mean().backward()
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    output: Path = parser.parse_args().output
    measured: dict[str, Any] = {"cpus": os.cpu_count(), "torch": torch.__version__, "buckets": {}, "written": []}
    for world in (2, 3, 4):
        for of, size, each in zip(("all-reduce", "FSDP step"), (REDUCED, SHARDED), ranks(world, (all_reduced, sharded)),
                                  strict=True):  # fmt: skip
            measured["written"].append({"of": of, "ranks": world, "bytes": size, "written": each})
    ((seconds, _),) = ranks(2, (timed,))
    seconds = {int(size): lap for size, lap in seconds.items()}
    start, rate = line(seconds)
    measured["all_reduce_s"] = seconds
    measured["line"] = {"start_s": start, "bytes_per_s": rate}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for trainable in ("attention", "lora", "full"):
        measured["buckets"][trainable] = buckets(trainable)
    dist.destroy_process_group()
    output.mkdir(parents=True, exist_ok=True)
    (output / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    for trainable, sizes in measured["buckets"].items():
        print(f"| `{trainable}` | {sum(sizes):,} | {len(sizes)} | {max(sizes) / 1e6:.1f} MB |")
    for row in measured["written"]:
        print(f"| {row['of']} | {row['ranks']} | {row['bytes']:,} | {statistics.mean(row['written']):,.0f} |")
    for size, lap in seconds.items():
        print(f"| {size:,} | {lap * 1000:.3f} ms | {(start + size / rate) * 1000:.3f} ms |")
    print(f"{start * 1e6:.0f} µs + bytes / {rate / 1e9:.2f} GB/s")


if __name__ == "__main__":
    main()
