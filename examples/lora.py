"""LoRA fine-tuning of the public SD 1.5 checkpoints of CubeDiff: train, load the adapter, generate.

    cubediff prepare data/samples experiments/runs/shards --captions data/samples/captions.jsonl
    python examples/lora.py experiments/runs/shards experiments/runs/lora

These commands take a minute on a CPU, because they use small random weights in the layout of the public checkpoints, so
that the panorama is noise. A third argument names a checkpoint to fine-tune instead, a folder or a Hub id such as
`hlicai/cubediff-512-multitxt`; that needs a GPU, and more steps.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(f"expected Python 3.11 or newer, got {sys.version.split()[0]}: run it with the Python of `make setup`")

import subprocess
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from cubediff import CubeDiffPipeline
from cubediff.pipelines.loading import tiny_random

STEPS = 10


def save_random_weights(folder: Path) -> Path:
    """A Stable Diffusion folder whose UNet has seven input channels: latents, two of the position, and the mask."""
    tiny = tiny_random()
    optional = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**tiny.components, **optional).save_pretrained(folder)
    return folder


def main(shards: str, output: str, checkpoint: str | None = None) -> None:
    folder, base, face_size = Path(output), checkpoint, 512
    if base is None:
        print("no checkpoint given: fine-tuning small random weights in the layout of the public ones", flush=True)
        base, face_size = str(save_random_weights(folder / "random_weights")), 64
    overrides = [
        *("model=sd15", f"model.pipeline.path={base}", f"face_size={face_size}"),
        *("model.trainable=lora", "model.lora_rank=8", "model.optimizer.lr=1e-3", "model.warmup_steps=0"),
        *(f"data.path={shards}", "data.batch_size=2", "data.num_workers=0", f"run_dir={folder / 'run'}"),
        *(f"trainer.max_steps={STEPS}", "callbacks.samples.count=0"),
    ]
    if code := subprocess.run([sys.executable, "-m", "cubediff", "train", *overrides]).returncode:
        sys.exit(code)

    pipeline = CubeDiffPipeline.from_pretrained(base).to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.load_lora_weights(folder / "run/export/unet_lora", adapter_name="samples")
    pipeline.set_adapters("samples", 1.0)  # the scale of the adapter: 0 is the checkpoint itself
    generator = torch.Generator().manual_seed(1)
    result = pipeline("an empty dance hall", num_inference_steps=10, generator=generator)
    result.panoramas[0].save(folder / "panorama.png")
    print(f"saved {folder / 'panorama.png'} with the adapters {pipeline.get_active_adapters()}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
