r"""A backbone: a small transformer on downscaled pixels in place of Stable Diffusion.

It implements `cubediff.models.backbone.Backbone` and `cubediff.pipelines.base.CubePipeline`, and
`examples/conf/model/toy.yaml` makes it a choice of the group `model`. From the repository's folder:

    cubediff prepare data/samples experiments/runs/shards --captions data/samples/captions.jsonl
    PYTHONPATH=examples cubediff train --config-dir examples/conf model=toy trainer.max_steps=20 data.batch_size=4 \
        data.num_workers=0 data.path=experiments/runs/shards run_dir=experiments/runs/toy
    PYTHONPATH=examples python -c "from toy_backbone import ToyPipeline as Toy; \
        Toy.from_pretrained('experiments/runs/toy/export')('a hall').panoramas[0].save('experiments/runs/toy.jpg')"

The other commands, such as `cubediff generate`, find the pipeline if an installed package registers it:

    [project.entry-points."cubediff.backbones"]
    toy = "toy_backbone:ToyPipeline"
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers import SchedulerMixin
from torch import Tensor, nn

from cubediff.models.backbone import Backbone, Conditioning, CubeInput, Trainable
from cubediff.models.inputs import input_channels
from cubediff.pipelines.base import CubePipeline

SCALE, CHANNELS, WORDS = 8, 3, 16


class ToyTransformer(ModelMixin, ConfigMixin):
    """Two transformer layers over the latent pixels of six faces."""

    @register_to_config
    def __init__(self, in_channels: int, width: int = 32) -> None:
        super().__init__()
        self.proj_in = nn.Linear(in_channels, width)
        self.time = nn.Linear(1, width)
        self.words = nn.Linear(WORDS, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.proj_out = nn.Linear(width, CHANNELS)

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = self.proj_in(x.movedim(2, -1)) + self.words(words)[:, :, None, None]
        tokens = tokens + self.time(t.float().reshape(-1, 1) / 1000)[:, None, None, None]
        tokens = tokens.flatten(1, 3)  # the tokens of all six faces attend to each other
        for layer in self.layers:
            tokens = layer(tokens)
        return self.proj_out(tokens).unflatten(1, (6, height, width)).movedim(-1, 2)


class ToyBackbone(Backbone):
    network_name = "transformer"
    lora_targets = ("linear1", "linear2")

    def __init__(self, transformer: ToyTransformer) -> None:
        self.transformer = transformer

    def components(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer}

    def inflate_(self) -> None:
        """The transformer attends to all six faces already."""

    def fresh_network(self, weights: Mapping[str, Tensor]) -> ModelMixin:
        network = ToyTransformer.from_config(self.transformer.config)
        network.load_state_dict(weights)
        return network

    def fingerprint(self) -> str:
        return hashlib.sha256(b"toy").hexdigest()

    latent_channels, latent_scale, sample_size = CHANNELS, SCALE, 8

    def encode(self, faces: Tensor) -> Tensor:
        return F.avg_pool2d(faces.flatten(0, 1), SCALE).unflatten(0, (-1, 6))

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents.flatten(0, 1), scale_factor=SCALE).unflatten(0, (-1, 6)).clamp(-1, 1)

    def encode_captions(self, captions: Sequence[str], truncate: bool = False) -> dict[str, Tensor]:
        digests = [hashlib.sha256(caption.encode()).digest()[:WORDS] for caption in captions]
        device = self.transformer.proj_in.weight.device
        return {"words": torch.tensor([list(digest) for digest in digests], device=device).float() / 255}

    def predict(self, cube: CubeInput, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        latents = torch.where(cube.mask.bool(), cube.clean, cube.noisy)
        positions = cube.positions.expand(len(latents), -1, -1, -1, -1)
        x = torch.cat([latents, positions, cube.mask], dim=2)
        return self.transformer(x, timesteps, conditioning["words"]).float()

    def trainable(self, name: str, mode: Trainable) -> bool:
        return mode == "full" or name.startswith(("proj_in", "layers"))

    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.layers)


class ToyPipeline(CubePipeline):
    """The pipeline of `ToyBackbone`."""

    def __init__(
        self,
        transformer: ToyTransformer,
        scheduler: SchedulerMixin,
        fov: float = 95.0,
        position_encoding: str = "uv",
        position_samples: str = "centers",
        image_drop: str = "noise",
        drops: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.check_input_channels(transformer.config.in_channels, CHANNELS, position_encoding)
        self.register(
            {"transformer": transformer, "scheduler": scheduler},
            {
                "fov": fov,
                "position_encoding": position_encoding,
                "position_samples": position_samples,
                "image_drop": image_drop,
                "drops": None if drops is None else list(drops),
            },
        )

    @property
    def backbone(self) -> ToyBackbone:
        return ToyBackbone(self.transformer)


def untrained(fov: float, position_encoding: str, position_samples: str, image_drop: str, seed: int = 0) -> ToyPipeline:
    """A pipeline with random weights, equal for equal seeds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = ToyTransformer(input_channels(CHANNELS, position_encoding))
    return ToyPipeline(transformer, DDIMScheduler(), fov, position_encoding, position_samples, image_drop)
