"""Compares decoding six faces whole, in chunks of faces (the default) and in strips: time and peak memory.

    python benchmarks/vae_tiling.py [--size N] [--dtype float32|bfloat16] [--device cpu|cuda] [--paper]

The autoencoder is Stable Diffusion's with random weights; time and memory do not depend on their values. Each way runs
in a process of its own. Peak memory is that of the process less what it has before the decoding, so that it excludes
the weights; on a GPU it is that of the device. On paper, the peak is counted without decoding, as `cubediff plan` does;
it includes the main memory in which strips wait.
"""

import argparse
import multiprocessing
import os
import time

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cubediff.models import chunked_vae
from cubediff.models.blocks import keep_memory_format_
from cubediff.models.inflation import sync_group_norm_
from cubediff.models.presets import SD15
from cubediff.planning.counting import AllocationCounter, to_fake_parameters_
from cubediff.planning.cuda_rules import CudaFormats

GIB = 2**30
WAYS = ("whole", "chunks", "strips")
# The allocator returns memory at once, so that the process has what the tensors take.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def autoencoder(dtype: str, device: str) -> AutoencoderKL:
    with torch.device(device):
        vae = AutoencoderKL.from_config(SD15["vae"]).requires_grad_(False).eval()
    keep_memory_format_(vae)
    return sync_group_norm_(vae).to(getattr(torch, dtype), memory_format=torch.channels_last)


@torch.no_grad()
def decode(vae: AutoencoderKL, way: str, latents: Tensor) -> None:
    if way == "whole":
        vae.decode(latents)
        return
    if way == "strips":
        vae.enable_tiling()
        vae.tile_latent_min_size = latents.shape[-1] // 2  # a strip is a quarter of a face
    chunked_vae.decode(vae, latents)


def on_paper(way: str, size: int, dtype: str) -> float:
    """Peak GiB of decoding, weights excluded."""
    vae = autoencoder(dtype, "meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        to_fake_parameters_(vae)
        latents = torch.empty(6, 4, size // 8, size // 8, dtype=getattr(torch, dtype))
        with AllocationCounter() as memory, CudaFormats():
            decode(vae, way, latents)
    return memory.peak / GIB


def measure(way: str, size: int, dtype: str, device: str) -> None:
    torch.manual_seed(0)
    vae = autoencoder(dtype, device)
    latents = torch.randn(6, 4, size // 8, size // 8).to(device, getattr(torch, dtype))
    before, start = peak_memory(device), time.perf_counter()
    decode(vae, way, latents)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds, peak = time.perf_counter() - start, (peak_memory(device) - before) / GIB
    print(f"{way:6s}  {seconds:8.1f}  {peak:11.2f}  {on_paper(way, size, dtype):14.2f}", flush=True)


def peak_memory(device: str) -> int:
    """Peak memory of the GPU or of this process in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="of the faces, pixels")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--paper", action="store_true", help="only count")
    args = parser.parse_args()
    if args.paper:
        print("way     on paper (GiB)")
        for way in WAYS:
            print(f"{way:6s}  {on_paper(way, args.size, args.dtype):14.2f}")
        return
    print("way     time (s)  memory (GiB)  on paper (GiB)")
    os.environ.update(ALLOCATOR)
    for way in WAYS:
        process = multiprocessing.get_context("spawn").Process(
            target=measure, args=(way, args.size, args.dtype, args.device)
        )
        process.start()
        process.join()
        if process.exitcode:
            print(f"{way}  the process ended with exit code {process.exitcode}")


if __name__ == "__main__":
    main()
