"""Speed of the projections on the CPU against py360convert and against bare cv2.remap, the bound.

    python tests/bench_geometry.py [threads]

The same work on every side: uint8 in and out, a 2048 × 1024 panorama and six 512-pixel faces of 90°, bilinear
point samples, grids and maps ready. The contestants take turns, so that whatever else the machine does meets
them all; a ratio is the median over the rounds of py360convert's time by the contestant's: above 1 is faster.
"""

import statistics
import sys
import time

import cv2
import numpy as np
import py360convert
import torch

from cubediff.geometry import cube_to_equirect, equirect_to_cube, face_directions

HEIGHT, SIZE, BATCH, ROUNDS = 1024, 512, 16, 9


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    print(f"threads: {threads} for torch and for cv2; ms a panorama; {ROUNDS} rounds")
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (HEIGHT // 8, HEIGHT // 4, 3), dtype=np.uint8)
    panorama = cv2.resize(small, (2 * HEIGHT, HEIGHT), interpolation=cv2.INTER_CUBIC)
    faces = py360convert.e2c(panorama, SIZE, cube_format="list")
    faces = [np.ascontiguousarray(face) for face in faces]

    rays = face_directions(SIZE, 90.0, torch.float64).reshape(-1, SIZE, 3)
    x, y, z = rays.unbind(-1)
    to_cube = (
        ((torch.atan2(x, z) / (2 * torch.pi) + 0.5) * 2 * HEIGHT - 0.5).float().numpy(),
        ((0.5 - torch.asin(y) / torch.pi) * HEIGHT - 0.5).float().numpy(),
    )
    yaw, pitch = np.meshgrid(np.linspace(-np.pi, np.pi, 2 * HEIGHT), np.linspace(1, -1, HEIGHT) * np.pi / 2)
    rows = np.minimum(np.cos(pitch) * np.cos(yaw) * 0.5 + 0.5, 1) * (6 * SIZE - 1)  # any map costs much the same
    to_equirect = ((yaw / np.pi / 2 + 0.5).astype(np.float32) * (SIZE - 1), rows.astype(np.float32))
    stacked = np.concatenate(faces)

    one = torch.from_numpy(panorama).permute(2, 0, 1)[None].contiguous()
    cube = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)[None].contiguous()
    many, cubes = one.repeat(BATCH, 1, 1, 1), cube.repeat(BATCH, 1, 1, 1, 1)
    maps = [cv2.convertMaps(*m, cv2.CV_16SC2) for m in (to_cube, to_equirect)]
    compare(
        "equirect_to_cube",
        {
            "py360convert": (1, lambda: py360convert.e2c(panorama, SIZE, cube_format="list")),
            "cubediff, one": (1, lambda: equirect_to_cube(one, SIZE, 90.0, antialias=False)),
            f"cubediff, batch of {BATCH}": (
                BATCH,
                lambda: equirect_to_cube(many, SIZE, 90.0, antialias=False),
            ),
            "cv2.remap (bound)": (1, lambda: cv2.remap(panorama, *maps[0], cv2.INTER_LINEAR)),
        },
    )
    compare(
        "cube_to_equirect",
        {
            "py360convert": (1, lambda: py360convert.c2e(faces, HEIGHT, 2 * HEIGHT, cube_format="list")),
            "cubediff, one": (1, lambda: cube_to_equirect(cube, HEIGHT, 90.0)),
            f"cubediff, batch of {BATCH}": (BATCH, lambda: cube_to_equirect(cubes, HEIGHT, 90.0)),
            "cv2.remap (bound)": (1, lambda: cv2.remap(stacked, *maps[1], cv2.INTER_LINEAR)),
        },
    )


def compare(title: str, contestants: dict) -> None:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS + 1):  # the first round fills caches
        for name, (panoramas, run) in contestants.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / panoramas * 1e3)
    print(f"\n{title:24}{'ms':>8}{'ratio':>8}")
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(times["py360convert"][1:], taken[1:], strict=True)]
        print(f"{name:24}{statistics.median(taken[1:]):8.1f}{statistics.median(ratios):8.2f}")


if __name__ == "__main__":
    main()
