"""Speed of the projections on the CPU against py360convert and against bare cv2.remap, the bound; and how true they
are on the panoramas of data/samples.

    python benchmarks/projections.py [threads]

The same work on every side: uint8 in and out, 2048 × 1024 panoramas and six 512-pixel faces of 90°, bilinear point
samples, grids and maps ready. A batch is different panoramas, for py360convert one call after the other. cv2.remap's
maps are those of our own projections; it is given an image that already has its surroundings. The contestants take
turns, so that whatever else the machine does meets them all; a ratio is the median over the rounds of py360convert's
time by the contestant's in the same round: above 1 is faster.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import py360convert
import torch

from cubediff.geometry import cube_to_equirect, equirect_to_cube
from cubediff.geometry import projections as geometry

HEIGHT, SIZE, BATCH, ROUNDS = 1024, 512, 16, 11


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    print(f"torch {torch.__version__}, OpenCV {cv2.__version__}, py360convert {py360convert.__version__}")
    print(f"threads: {threads} for torch and for OpenCV; ms a panorama; medians of {ROUNDS} rounds")
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
        lambda k: py360convert.c2e(lists[k], HEIGHT, 2 * HEIGHT, cube_format="list"),
        lambda p: cube_to_equirect(p, HEIGHT, 90.0),
        cubes,
        cube_planes,
        lambda: cv2.remap(atlas, *back, cv2.INTER_LINEAR),
    )
    fidelity()


def fidelity() -> None:
    """Agreement with py360convert on its own grid at 90°, and the way to 95° faces and back, bicubic in float."""
    agreement, round_trip = [], []
    for path in sorted((Path(__file__).parents[1] / "data" / "samples").glob("*.jpg")):
        image = cv2.imread(str(path))
        panorama = torch.from_numpy(image).permute(2, 0, 1)[None]
        height, width = image.shape[:2]
        size = width // 4
        border = math.degrees(2 * math.atan(size / (size - 1)))  # its outermost samples lie on the face's border
        ours = equirect_to_cube(panorama.float(), size, border, antialias=False)[0].permute(0, 2, 3, 1).numpy()
        theirs = py360convert.e2c(image, size, cube_format="list")
        agreement += [cv2.PSNR(a, b.astype(np.float32), 255) for a, b in zip(ours, theirs, strict=True)]
        faces = equirect_to_cube(panorama.float(), 3 * width // 8, mode="bicubic")
        back = cube_to_equirect(faces, height, mode="bicubic")[0].clamp(0, 255).permute(1, 2, 0).numpy()
        round_trip.append(cv2.PSNR(image.astype(np.float32), back, 255))
    print(f"\n{'data/samples, PSNR in dB':40}{'mean':>8}{'worst':>8}")
    for name, values in (("faces against py360convert's", agreement), ("to 95° faces and back", round_trip)):
        print(f"{name:40}{statistics.mean(values):8.1f}{min(values):8.1f}")


def compare(
    title: str,
    theirs: Callable[[int], object],
    ours: Callable[[torch.Tensor], torch.Tensor],
    batch: torch.Tensor,
    planes: torch.Tensor,
    bound: Callable[[], object],
) -> None:
    contestants = {
        "py360convert": (1, lambda: theirs(0)),
        "cubediff": (1, lambda: ours(batch[:1])),
        "cubediff, planar memory": (1, lambda: ours(planes[:1])),
        "cv2.remap, the bound": (1, bound),
        f"py360convert, {BATCH}": (BATCH, lambda: [theirs(k) for k in range(BATCH)]),
        f"cubediff, batch of {BATCH}": (BATCH, lambda: ours(batch)),
        f"cubediff, planar, {BATCH}": (BATCH, lambda: ours(planes)),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS + 1):  # the first round fills caches
        for name, (panoramas, run) in contestants.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / panoramas * 1e3)
    print(f"\n{title:26}{'ms':>8}{'least':>8}{'ratio':>8}")
    for name, taken in times.items():
        peer = times["py360convert" if contestants[name][0] == 1 else f"py360convert, {BATCH}"]
        ratio = statistics.median(a / b for a, b in zip(peer[1:], taken[1:], strict=True))
        print(f"{name:26}{statistics.median(taken[1:]):8.1f}{min(taken[1:]):8.1f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
