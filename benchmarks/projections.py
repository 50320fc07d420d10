"""Measures the projections on the CPU against py360convert and against cv2.remap, the upper bound, and their accuracy.

    python benchmarks/projections.py [THREADS] [--rounds N]

All sides do the same work: uint8 in and out, 2048 × 1024 panoramas and six 512-pixel faces of 90°, bilinear point
samples, precomputed grids and maps. A batch holds different panoramas; py360convert is called for one after the other.
cv2.remap gets the maps of our own projections and an image that is already padded. The implementations take turns, so
that other load on the machine affects all of them. A ratio is the median over the rounds of py360convert's time divided
by the implementation's time in the same round: above 1 is faster. The accuracy is that on data/samples.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import py360convert
import torch

from cubediff.geometry import cube_to_equirect, equirect_to_cube
from cubediff.geometry import projections as geometry

HEIGHT, SIZE, BATCH = 1024, 512, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("threads", type=int, nargs="?", default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    print(f"torch {torch.__version__}, OpenCV {cv2.__version__}, py360convert {py360convert.__version__}")
    print(f"threads: {args.threads} for torch and for OpenCV; ms per panorama; medians of {args.rounds} rounds")
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (BATCH, HEIGHT // 8, HEIGHT // 4, 3), dtype=np.uint8)
    panoramas = [cv2.resize(p, (2 * HEIGHT, HEIGHT), interpolation=cv2.INTER_CUBIC) for p in small]
    batch = torch.from_numpy(np.stack(panoramas)).permute(0, 3, 1, 2)  # views of (B, H, W, C)
    cubes = equirect_to_cube(batch, SIZE, 90.0, antialias=False)  # views of (B, 6, S, S, C)
    lists = [[np.ascontiguousarray(face) for face in cube] for cube in cubes.permute(0, 1, 3, 4, 2).numpy()]
    planes, cube_planes = batch.contiguous(), cubes.contiguous()

    padded = np.pad(panoramas[0], ((1, 1), (1, 1), (0, 0)), mode="wrap")
    maps = geometry._cube_maps(SIZE, 90.0, HEIGHT)
    compare(
        "equirect_to_cube",
        args.rounds,
        lambda k: py360convert.e2c(panoramas[k], SIZE, cube_format="list"),
        lambda p: equirect_to_cube(p, SIZE, 90.0, antialias=False),
        batch,
        planes,
        lambda: cv2.remap(padded, *maps, cv2.INTER_LINEAR),
    )
    atlas = np.concatenate([np.pad(face, ((1, 1), (1, 1), (0, 0)), mode="edge") for face in lists[0]])
    back = geometry._sphere_maps(HEIGHT, 90.0, SIZE)
    compare(
        "cube_to_equirect",
        args.rounds,
        lambda k: py360convert.c2e(lists[k], HEIGHT, 2 * HEIGHT, cube_format="list"),
        lambda p: cube_to_equirect(p, HEIGHT, 90.0),
        cubes,
        cube_planes,
        lambda: cv2.remap(atlas, *back, cv2.INTER_LINEAR),
    )
    accuracy()


def accuracy() -> None:
    """Prints the PSNR against py360convert on its own grid at 90°, and of the round trip to 95° faces and back.

    The round trip is bicubic in float32.
    """
    agreement, round_trip = [], []
    for path in sorted((Path(__file__).parents[1] / "data" / "samples").glob("*.jpg")):
        image = np.asarray(cv2.imread(str(path)))
        panorama = torch.from_numpy(image).permute(2, 0, 1)[None]
        height, width = image.shape[:2]
        size = width // 4
        # py360convert's outermost samples lie on the border of the face.
        border = math.degrees(2 * math.atan(size / (size - 1)))
        ours = equirect_to_cube(panorama.float(), size, border, antialias=False)[0].permute(0, 2, 3, 1).numpy()
        theirs = py360convert.e2c(image, size, cube_format="list")
        agreement += [cv2.PSNR(a, b.astype(np.float32), 255) for a, b in zip(ours, theirs, strict=True)]
        faces = equirect_to_cube(panorama.float(), 3 * width // 8, mode="bicubic")
        back = cube_to_equirect(faces, height, mode="bicubic")[0].clamp(0, 255).permute(1, 2, 0).numpy()
        round_trip.append(cv2.PSNR(image.astype(np.float32), back, 255))
    print(f"\n{'data/samples, PSNR in dB':40}{'mean':>8}{'worst':>8}")
    for name, values in (("faces, against py360convert", agreement), ("round trip to 95° faces", round_trip)):
        print(f"{name:40}{statistics.mean(values):8.1f}{min(values):8.1f}")


def compare(
    title: str,
    rounds: int,
    theirs: Callable[[int], object],
    ours: Callable[[torch.Tensor], torch.Tensor],
    batch: torch.Tensor,
    planes: torch.Tensor,
    bound: Callable[[], object],
) -> None:
    """Prints the times of one projection.

    Args:
        title: Name of the projection.
        rounds: Number of timed rounds.
        theirs: Projects one panorama, given by its index, with py360convert.
        ours: Projects a batch.
        batch: Input of `ours`, with channels last in memory.
        planes: The same input, with contiguous planes.
        bound: Runs cv2.remap alone.
    """
    implementations: dict[str, tuple[int, Callable[[], object]]] = {
        "py360convert": (1, lambda: theirs(0)),
        "cubediff": (1, lambda: ours(batch[:1])),
        "cubediff, planar memory": (1, lambda: ours(planes[:1])),
        "cv2.remap (bound)": (1, bound),
        f"py360convert, {BATCH}": (BATCH, lambda: [theirs(k) for k in range(BATCH)]),
        f"cubediff, batch of {BATCH}": (BATCH, lambda: ours(batch)),
        f"cubediff, planar, {BATCH}": (BATCH, lambda: ours(planes)),
    }
    times: dict[str, list[float]] = {name: [] for name in implementations}
    for _ in range(rounds + 1):  # the first round fills caches
        for name, (panoramas, run) in implementations.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / panoramas * 1e3)
    print(f"\n{title:26}{'ms':>8}{'min':>8}{'ratio':>8}")
    for name, laps in times.items():
        peer = times["py360convert" if implementations[name][0] == 1 else f"py360convert, {BATCH}"]
        ratio = statistics.median(a / b for a, b in zip(peer[1:], laps[1:], strict=True))
        print(f"{name:26}{statistics.median(laps[1:]):8.1f}{min(laps[1:]):8.1f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
