"""Measures how JPEGs decoded at 1/2, 1/4 and 1/8 of their size differ from area averages of the full size.

    python benchmarks/jpeg_scaling.py [FOLDER]

FOLDER holds JPEG panoramas, by default data/samples. They are measured as they are stored; and encoded again, where the
error against the image that was encoded is known, too. All values are in levels from 0 to 255.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from cubediff.data.batches.decoding import resize_panorama
from cubediff.images.jpeg import decode_jpeg

SUBSAMPLING = {"4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444}
QUALITIES = (95, 85)


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(difference**2)))


def encoded(image: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """JPEGs of an RGB image, with what distinguishes them."""
    for quality in QUALITIES:
        for name, factor in SUBSAMPLING.items():
            options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
            yield f"quality {quality}, {name}", cv2.imencode(".jpg", image[..., ::-1], options)[1].tobytes()


def errors(jpeg: bytes, divisor: int, original: np.ndarray | None) -> tuple[float, ...]:
    """RMS and maximum of reduced − full; and the RMS of either − the original, if it is known."""
    full = decode_jpeg(jpeg)
    height = full.shape[0] // divisor
    averaged = resize_panorama(full, height).astype(np.float64)
    difference = decode_jpeg(jpeg, height) - averaged
    found = rms(difference), float(np.abs(difference).max())
    if original is None:
        return found
    exact = cv2.resize(original.astype(np.float64), (2 * height, height), interpolation=cv2.INTER_AREA)
    return *found, rms(averaged - exact), rms(averaged + difference - exact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data/samples"))
    files = sorted(parser.parse_args().folder.glob("*.jpg"))
    found: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for file in files:
        stored = file.read_bytes()
        image = decode_jpeg(stored)
        for divisor in (2, 4, 8):
            found.setdefault(("as stored", divisor), []).append(errors(stored, divisor, None))
            for name, jpeg in encoded(image):
                found.setdefault((name, divisor), []).append(errors(jpeg, divisor, image))
    print(f"{len(files)} panoramas, OpenCV {cv2.__version__}")
    print(f"{'':20} size   reduced − full: RMS, worst, max   against the original, RMS: full, reduced")
    for (name, divisor), rows in sorted(found.items()):
        mean, worst = np.mean(rows, axis=0), np.max(rows, axis=0)
        line = f"{name:20}  1/{divisor}  {mean[0]:19.2f} {worst[0]:6.2f} {worst[1]:4.0f}"
        print(line + (f" {mean[2]:38.2f} {mean[3]:8.2f}" if len(mean) > 2 else ""))


if __name__ == "__main__":
    main()
