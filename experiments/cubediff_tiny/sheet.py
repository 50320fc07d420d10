"""Draws a contact sheet of evaluations: python experiments/cubediff_tiny/sheet.py OUTPUT.jpg PANORAMAS EVALUATION …

Every other panorama, 12 at most: the original, and the sample of each evaluation from it.
"""

import sys
from pathlib import Path

import PIL.Image

from cubediff.evaluation.opened_sets import open_set
from cubediff.evaluation.sets import PanoramaSet, Sized, in_order_of
from cubediff.images.writing import to_pil

ROWS, GAP = 256, 4  # pixels

output, originals, *evaluations = map(Path, sys.argv[1:])
first = open_set(originals)
sets: list[PanoramaSet] = [first, *(in_order_of(open_set(each / "samples"), first.names) for each in evaluations)]
columns = [Sized(panoramas, ROWS, "resize") for panoramas in sets]
shown = range(0, len(first.names), 2)[:12]
canvas = PIL.Image.new("RGB", (len(columns) * (2 * ROWS + GAP), len(shown) * (ROWS + GAP)), "white")
for y, index in enumerate(shown):
    for x, panoramas in enumerate(columns):
        (image,) = to_pil(panoramas.panorama(index)[None] * 2 - 1)
        canvas.paste(image, (x * (2 * ROWS + GAP), y * (ROWS + GAP)))
canvas.save(output, quality=85)
