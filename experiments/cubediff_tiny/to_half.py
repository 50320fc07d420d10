"""Converts an exported pipeline to float16 weights: python experiments/cubediff_tiny/to_half.py EXPORT OUTPUT

It turns average_overlap on, whose measurements are in the README of this folder.
"""

import sys

import torch

from cubediff import CubeDiffPipeline

source, output = sys.argv[1:]
pipeline = CubeDiffPipeline.from_pretrained(source, average_overlap=True)
for part in (pipeline.unet, pipeline.vae):
    part.register_to_config(_name_or_path="")  # else the config holds the path that it was loaded from
pipeline.register_to_config(_name_or_path="")
pipeline.to(torch.float16).save_pretrained(output)
