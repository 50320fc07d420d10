"""Compares decoding six faces whole and in tiles: time and peak memory, each in a process of its own.

    python benchmarks/vae_tiling.py [--size N] [--dtype float32|bfloat16] [--device cpu|cuda]

The autoencoder is Stable Diffusion's with random weights; time and memory do not depend on their values. Peak memory is
that of the process less what it has before the decoding. On a GPU it is that of the device.
"""

import argparse
import multiprocessing
import time

import torch
from diffusers import AutoencoderKL

from cubediff.models.inflation import sync_group_norm_
from cubediff.models.presets import SD15
from cubediff.models.tiled_vae import decode_tiled

GIB = 2**30


@torch.no_grad()
def decode(name: str, size: int, dtype: str, device: str) -> None:
    torch.manual_seed(0)
    vae = sync_group_norm_(AutoencoderKL.from_config(SD15["vae"])).eval()
    vae.to(device, getattr(torch, dtype), memory_format=torch.channels_last)
    latents = torch.randn(6, 4, size // 8, size // 8).to(device, vae.dtype)
    run = {"whole": lambda: vae.decode(latents).sample, "tiled": lambda: decode_tiled(vae, latents)}[name]
    before, start = peak_memory(device), time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    print(f"{name}  {seconds:8.1f}  {(peak_memory(device) - before) / GIB:11.1f}", flush=True)


def peak_memory(device: str) -> int:
    """Peak memory of the GPU or of this process in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=768, help="of the faces, pixels")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    print("way    time (s)  memory (GiB)")
    for name in ("whole", "tiled"):
        process = multiprocessing.get_context("spawn").Process(
            target=decode, args=(name, args.size, args.dtype, args.device)
        )
        process.start()
        process.join()
        if process.exitcode:
            print(f"{name}  the process ended with exit code {process.exitcode}")


if __name__ == "__main__":
    main()
