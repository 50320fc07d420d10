"""Measures the training data stream against its upper bound, JPEG decoding alone.

    python benchmarks/stream.py [--rounds N] [--epochs N]

Prints panoramas per CPU second, which other load on the machine disturbs least.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from cubediff.data import PanoramaDataModule, build_shards

HEIGHT, FACE, BATCH = 1024, 512, 4
COUNT = 32  # panoramas


def panorama(seed: int) -> np.ndarray:
    """Returns noise of all scales (H, 2H, 3), whose JPEG has about as many bytes as a photograph's."""
    rng = np.random.default_rng(seed)
    octaves = [rng.normal(size=(2**k, 2 ** (k + 1), 3)) * 1.5**-k for k in range(1, 11)]
    image = sum(cv2.resize(octave, (2 * HEIGHT, HEIGHT), interpolation=cv2.INTER_CUBIC) for octave in octaves)
    pixels: np.ndarray = np.clip(128 + 50 * np.asarray(image), 0, 255).astype(np.uint8)
    return pixels


def write_shards(folder: Path) -> Path:
    source = folder / "source"
    source.mkdir()
    for i in range(COUNT):
        cv2.imwrite(str(source / f"{i:03d}.jpg"), panorama(i), [cv2.IMWRITE_JPEG_QUALITY, 95])
    lines = [json.dumps({"file": f"{i:03d}.jpg", "caption": "noise"}) for i in range(COUNT)]
    (source / "captions.jsonl").write_text("\n".join(lines))
    build_shards(source, folder / "shards", val_fraction=0.0, shard_size=8)
    return folder / "shards"


def per_second(work: Callable[[], None], count: int, rounds: int) -> float:
    """Returns `count` divided by the CPU seconds of `work`, threads included, in the best of the rounds."""
    best = math.inf
    for _ in range(rounds):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return count / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8, help="epochs of a round")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder))
        files = [path.read_bytes() for path in sorted((Path(folder) / "source").glob("*.jpg"))]

        def decode() -> None:
            for file in files * args.epochs:
                cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)

        def stream(workers: int, cubes: bool = False) -> None:
            module = PanoramaDataModule(shards, batch_size=BATCH, face_size=FACE, num_workers=workers)
            loader = module.train_dataloader()
            for _ in range(1 if cubes else args.epochs):
                for batch in loader:
                    if cubes:
                        module.on_after_batch_transfer(batch, 0)

        cases: dict[str, Callable[[], None]] = {
            "JPEG decoding alone": decode,
            "stream to batches, no thread": lambda: stream(0),
            "stream to batches, one thread": lambda: stream(1),
            "stream to batches, two threads": lambda: stream(2),
            f"stream to 6 × {FACE} × {FACE} cubes on the CPU": lambda: stream(0, cubes=True),
        }
        size = sum(map(len, files)) / len(files) / 1e3
        print(f"{COUNT} panoramas of {2 * HEIGHT} × {HEIGHT} pixels, {size:.0f} kB each")
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, OpenCV {cv2.__version__}")
        rates = {
            name: per_second(work, COUNT, 1) if "cubes" in name else per_second(work, COUNT * args.epochs, args.rounds)
            for name, work in cases.items()
        }
        bound = next(iter(rates.values()))
        for name, rate in rates.items():
            print(f"{name:40} {rate:6.1f} panoramas per CPU second, {rate / bound:5.0%} of the bound")


if __name__ == "__main__":
    main()
