"""A training loop in plain PyTorch, without Lightning's Trainer.

It trains the attention layers of a small random model for 64-pixel faces, prints the loss of every step, and saves a
model for `cubediff generate --model`. From the repository's folder:

    cubediff prepare data/samples experiments/runs/shards --captions data/samples/captions.jsonl
    python examples/training_loop.py experiments/runs/shards experiments/runs/loop
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(f"expected Python 3.11 or newer, got {sys.version.split()[0]}: run it with the Python of `make setup`")

import torch

from cubediff import Objective, PanoramaDataModule
from cubediff.diffusion.objective import Example
from cubediff.models.trainable import select_trainable_
from cubediff.pipelines.loading import tiny_random


def main(shards: str, output: str, epochs: int = 3) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = tiny_random().to(device)  # or CubeDiffPipeline.from_2d(a Stable Diffusion folder)
    backbone, fov = pipeline.backbone, pipeline.config.fov
    select_trainable_(backbone, "attention")
    parameters = [parameter for parameter in backbone.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    data = PanoramaDataModule(shards, batch_size=4, face_size=64, fov=fov)
    objective = Objective(drop_text=0.1, drop_image=0.1, drop_both=0.1)
    process = objective.noising(pipeline.scheduler)
    positions, no_text = pipeline.positions(backbone.sample_size, device), backbone.null_text()
    generator = torch.Generator(device).manual_seed(0)
    for epoch in range(epochs):
        for step, batch in enumerate(data.train_dataloader()):
            cubes = data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)
            with torch.no_grad():
                latents = backbone.encode(cubes["faces"])  # (B, 6, 4, h, w)
                text = backbone.encode_text(cubes["prompts"], truncate=True)
                example = Example(latents, text, no_text, positions, fov=fov)
            loss = objective.loss(backbone, process, example, generator).losses.mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            print(f"epoch {epoch} step {step} loss {loss.item():.4f}", flush=True)
    pipeline.save_pretrained(output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
