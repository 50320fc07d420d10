"""Measures the training data stream against its upper bound, JPEG decoding alone.

    python benchmarks/stream.py [--widths W …] [--rounds N] [--seconds S]

Prints panoramas per CPU second, which is per core, and how many cores deliver 5 and 60 panoramas a second. CPU time is
disturbed least by other load on the machine; every ratio is the median over rounds, each of which measures all cases.
No power of two reduces 6144 pixels to the 2048 of a batch.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from cubediff.data import PanoramaDataModule, build_shards
from cubediff.data.batches.decoding import decode_image, resize_panorama

FACE, BATCH, COUNT = 512, 4, 8
HEIGHT = 2 * FACE  # of the panoramas in a batch
RATES = {"4 L4": 5, "8 H100": 60}  # panoramas that the GPUs train on in a second


def panorama(height: int, seed: int) -> np.ndarray:
    """Returns noise of all scales (H, 2H, 3), whose JPEG has about as many bytes as a photograph's."""
    rng = np.random.default_rng(seed)
    image = np.zeros((1, 2, 3), np.float32)
    for octave in itertools.count(1):
        rows = min(2**octave, height)
        image = cv2.resize(image, (2 * rows, rows), interpolation=cv2.INTER_CUBIC)
        image += rng.standard_normal(image.shape, np.float32) * np.float32(50 * 1.5**-octave)
        if rows == height:
            break
    pixels: np.ndarray = np.clip(128 + image, 0, 255).astype(np.uint8)
    return pixels


def write_shards(folder: Path, height: int) -> Path:
    source = folder / "source"
    source.mkdir()
    for i in range(COUNT):
        cv2.imwrite(str(source / f"{i:03d}.jpg"), panorama(height, i), [cv2.IMWRITE_JPEG_QUALITY, 95])
    lines = [json.dumps({"file": f"{i:03d}.jpg", "caption": "noise"}) for i in range(COUNT)]
    (source / "captions.jsonl").write_text("\n".join(lines))
    build_shards(source, folder / "shards", val_fraction=0.0, shard_size=8)
    return folder / "shards"


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """The CPU time of a panorama, all threads included, if `work` is for COUNT of them."""
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats / COUNT


def measure(folder: Path, width: int, rounds: int, seconds: float) -> None:
    """Prints the table of one width."""
    shards = write_shards(folder, width // 2)
    files = [path.read_bytes() for path in sorted((folder / "source").glob("*.jpg"))]

    def decode(min_height: int | None, resize: bool = False) -> None:
        for file in files:
            image = decode_image(file, min_height)
            if resize:
                resize_panorama(image, HEIGHT)

    def stream(scaling: bool, workers: int = 0) -> Callable[[], object]:
        options = {"jpeg_scaling": scaling, "num_workers": workers}
        loader = PanoramaDataModule(shards, batch_size=BATCH, face_size=FACE, **options).train_dataloader()
        return lambda: deque(loader, maxlen=0)

    cases: dict[str, Callable[[], object]] = {
        "decoding at full size": lambda: decode(None),
        "decoding and resizing": lambda: decode(None, resize=True),
        "stream, jpeg_scaling=false": stream(False),
        "reduced decoding": lambda: decode(HEIGHT),
        "reduced decoding and resizing": lambda: decode(HEIGHT, resize=True),
        "stream": stream(True),
        "stream, two threads": stream(True, workers=2),
    }
    repeats = {name: max(1, math.ceil(seconds / COUNT / cpu_seconds(work, 1))) for name, work in cases.items()}
    orders = [list(cases)[:: (-1) ** number] for number in range(rounds)]
    times = [{name: cpu_seconds(cases[name], repeats[name]) for name in order} for order in orders]
    size = sum(map(len, files)) / len(files) / 1e3
    decoded = decode_image(files[0], HEIGHT).shape
    print(f"\n{width} × {width // 2} pixels, {size:.0f} kB; reduced to {decoded[1]} × {decoded[0]}")
    print(f"{'':30} per CPU second  of reduced decoding  of full  cores for " + ", ".join(RATES))
    for name in cases:
        cost = statistics.median(each[name] for each in times)
        bounds = (
            statistics.median(each[bound] / each[name] for each in times)
            for bound in ("reduced decoding", "decoding at full size")
        )
        cores = "  ".join(f"{rate * cost:6.2f}" for rate in RATES.values())
        print(f"{name:30} {1 / cost:14.1f}  {next(bounds):19.0%} {next(bounds):8.0%}  {cores}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[2048, 4096, 6144, 8192], help="of the JPEGs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU time of a case in a round")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, OpenCV {cv2.__version__}, batches of {BATCH}")
    for width in args.widths:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), width, args.rounds, args.seconds)


if __name__ == "__main__":
    main()
