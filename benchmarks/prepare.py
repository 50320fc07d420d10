"""How fast panoramas become shards, and what Ray costs: 2048 × 1024 PNG, which have to be re-encoded, of data/samples.

    python benchmarks/prepare.py [NUMBER]

The contestants take turns, so that whatever else the machine does meets them all; told are medians over the rounds.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2

from cubediff.data.building.engines import Engine, open_engine
from cubediff.data.building.write import build_shards
from cubediff.data.sources import open_source

SAMPLES = sorted((Path(__file__).parents[1] / "data" / "samples").glob("*.jpg"))
ROUNDS = 5


def panoramas(folder: Path, number: int) -> None:
    folder.mkdir()
    for i in range(number):
        image = cv2.imread(str(SAMPLES[i % len(SAMPLES)]))
        cv2.imwrite(str(folder / f"{i:06d}.png"), cv2.resize(image, (2048, 1024), interpolation=cv2.INTER_CUBIC))
    (folder / "prompts.txt").write_text("a panorama\n" * number)


def rate(source: Path, output: Path, engine: Engine, workers: int) -> tuple[float, float, float]:
    """Panoramas a second from the first that is done on, seconds until then, and seconds of all."""
    moments: list[float] = []

    def clock(results, total, what):
        for result in results:
            if what == "reading":
                moments.append(time.perf_counter())
            yield result

    start = time.perf_counter()
    build_shards(source, output, engine=engine, workers=workers, progress=clock)
    whole = time.perf_counter() - start
    return (len(moments) - 1) / (moments[-1] - moments[0]), moments[0] - start, whole


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    contestants: list[tuple[Engine, int]] = [("local", 1), ("local", 2), ("ray", 1), ("ray", 2)]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "in"
        panoramas(source, number)
        opened = open_source(source)
        alone, rates = [], {contestant: [] for contestant in contestants}
        for turn in range(ROUNDS):
            start = time.perf_counter()
            for entry in opened.entries()[0]:
                opened.load(entry, 16384, 95)
            alone.append(number / (time.perf_counter() - start))
            for engine, workers in contestants:
                rates[engine, workers].append(
                    rate(source, Path(scratch) / f"{engine}{workers}-{turn}", engine, workers)
                )
        print(f"decoding, checking and encoding alone, one core: {statistics.median(alone):.2f} panoramas/s")
        for (engine, workers), told in rates.items():
            speed, first, whole = map(statistics.median, zip(*told, strict=True))
            print(
                f"{engine}, {workers} workers: {speed:.2f} panoramas/s, {speed / workers:.2f} per worker; "
                f"the first after {first:.1f} s; {number} built in {whole:.1f} s"
            )
        for engine in ("local", "ray"):
            with open_engine(engine, 2) as mapped:
                list(mapped(str, range(10)))
                start = time.perf_counter()
                list(mapped(str, range(2000)))
                print(f"{engine}, an empty task: {(time.perf_counter() - start) / 2000 * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
