"""Measures how fast panoramas become shards, and the overhead of Ray.

    python benchmarks/prepare.py [PANORAMAS] [--rounds N]

The panoramas are those of data/samples as PNG of 2048 × 1024 pixels, which must be re-encoded. The configurations take
turns, so that other load on the machine affects all of them; the results are medians over the rounds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from cubediff.data.building.engines import Engine, open_engine
from cubediff.data.building.write import build_shards
from cubediff.data.sources import open_source

SAMPLES = sorted((Path(__file__).resolve().parents[1] / "data" / "samples").glob("*.jpg"))
CONFIGURATIONS: list[tuple[Engine, int]] = [("local", 1), ("local", 2), ("ray", 1), ("ray", 2)]  # engine, workers
T = TypeVar("T")


def write_panoramas(folder: Path, count: int) -> None:
    """Writes a folder that `cubediff prepare` reads."""
    folder.mkdir()
    for i in range(count):
        image = np.asarray(cv2.imread(str(SAMPLES[i % len(SAMPLES)])))
        cv2.imwrite(str(folder / f"{i:06d}.png"), cv2.resize(image, (2048, 1024), interpolation=cv2.INTER_CUBIC))
    (folder / "prompts.txt").write_text("a panorama\n" * count)


def measure(source: Path, output: Path, engine: Engine, workers: int) -> tuple[float, float, float]:
    """Builds shards; returns panoramas per second after the first one, seconds until the first, seconds in all."""
    moments: list[float] = []

    def record(results: Iterable[T], total: int, label: str) -> Iterator[T]:
        for result in results:
            if label == "reading":
                moments.append(time.perf_counter())
            yield result

    start = time.perf_counter()
    build_shards(source, output, engine=engine, workers=workers, progress=record)
    seconds = time.perf_counter() - start
    return (len(moments) - 1) / (moments[-1] - moments[0]), moments[0] - start, seconds


def task_overhead(engine: Engine) -> float:
    """Milliseconds of an empty task on two workers."""
    with open_engine(engine, 2) as mapped:
        list(mapped(str, range(10)))
        start = time.perf_counter()
        list(mapped(str, range(2000)))
        return (time.perf_counter() - start) / 2000 * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("panoramas", type=int, nargs="?", default=60)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "panoramas"
        write_panoramas(folder, args.panoramas)
        source = open_source(folder)
        one_core: list[float] = []
        measured: dict[tuple[Engine, int], list[tuple[float, float, float]]] = {key: [] for key in CONFIGURATIONS}
        for turn in range(args.rounds):
            start = time.perf_counter()
            for entry in source.entries()[0]:
                source.load(entry, 16384, 95)
            one_core.append(args.panoramas / (time.perf_counter() - start))
            for engine, workers in CONFIGURATIONS:
                output = Path(scratch) / f"{engine}{workers}-{turn}"
                measured[engine, workers].append(measure(folder, output, engine, workers))
    print(f"decoding, checking and encoding on one core: {statistics.median(one_core):.2f} panoramas/s")
    for (engine, workers), rounds in measured.items():
        speed, first, seconds = map(statistics.median, zip(*rounds, strict=True))
        print(
            f"{engine}, {workers} workers: {speed:.2f} panoramas/s, {speed / workers:.2f} per worker; "
            f"first after {first:.1f} s; {args.panoramas} built in {seconds:.1f} s"
        )
    for engine in ("local", "ray"):
        print(f"{engine}, an empty task: {task_overhead(engine):.2f} ms")


if __name__ == "__main__":
    main()
