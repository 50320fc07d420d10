"""The interface between general code and a family of latent diffusion models.

Training, sampling, planning and the latent cache talk to a `Backbone` alone; `StableDiffusion` is the implementation in
this package. Other packages register a pipeline class, whose `backbone` is theirs, in the entry-point group
`cubediff.backbones` (see `cubediff.pipelines.loading`).

Legend: B panoramas, 6 faces, C latent channels, P position channels, h w latent size, S face size, N captions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

Trainable = Literal["attention", "value_output", "lora", "full"]
TRAINABLE: tuple[Trainable, ...] = ("attention", "value_output", "lora", "full")


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of a network, in addition to its input: named tensors (B, 6, …), one entry per face."""

    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Applies a function to every tensor."""
        return Conditioning({name: function(tensor) for name, tensor in self.tensors.items()})

    def rows(self, start: int, end: int) -> "Conditioning":
        """The conditioning of the panoramas from `start` to before `end`."""
        return self.map(lambda tensor: tensor[start:end])

    def where(self, drop: Bool[Tensor, " b"], other: "Conditioning") -> "Conditioning":
        """Replaces the conditioning of some panoramas.

        Args:
            drop: Selects the panoramas to replace.
            other: Their new conditioning, of one panorama or of B.
        """
        return Conditioning(
            {
                name: torch.where(drop.view(-1, *[1] * (tensor.ndim - 1)), other[name], tensor)
                for name, tensor in self.tensors.items()
            }
        )

    def state(self) -> dict[str, Tensor]:
        """The tensors by name, which the latent cache stores."""
        return dict(self.tensors)

    @staticmethod
    def cat(conditionings: Iterable["Conditioning"]) -> "Conditioning":
        """Concatenates conditionings along the panoramas."""
        each = list(conditionings)
        return Conditioning({name: torch.cat([one[name] for one in each]) for name in each[0].tensors})


@dataclass(frozen=True)
class CubeInput:
    """The input of a network for B panoramas.

    Attributes:
        noisy: Noisy latents.
        clean: Clean latents of the condition; used where `mask` is 1.
        mask: 1 on latent pixels whose clean latent is given, 0 elsewhere (CubeDiff, section 4.3).
        positions: Position channels, the same for all panoramas (CubeDiff, section 4.2).
        hidden: Faces whose keys no query may attend to, on the CPU on every device, so that a network can choose its
            kernels by them without waiting for the device; None to hide none.
    """

    noisy: Float[Tensor, "b 6 c h w"]
    clean: Float[Tensor, "b 6 c h w"]
    mask: Float[Tensor, "b 6 1 h w"]
    positions: Float[Tensor, "6 p h w"]
    hidden: Bool[Tensor, "b 6"] | None = None


class Backbone(ABC):
    """A family of latent diffusion models, inflated to the six faces of a cube.

    An implementation wraps the components of a pipeline without copying them. Only `network`, a diffusers ModelMixin,
    is trained; the others stay frozen.

    Attributes:
        network_name: The trained component's name in the pipeline, such as "unet" or "transformer".
        lora_targets: Names of the layers that `trainable="lora"` adds low-rank matrices to.
    """

    network_name: ClassVar[str]
    lora_targets: ClassVar[tuple[str, ...]]

    # ------------------------------------------------------------------------------------------- components

    @abstractmethod
    def components(self) -> dict[str, nn.Module]:
        """All models of the pipeline by their diffusers names, `network` among them."""

    @property
    def network(self) -> ModelMixin:
        """The trained network."""
        return self.components()[self.network_name]

    def frozen_components(self) -> dict[str, nn.Module]:
        """The models that are never trained: autoencoder and text encoders."""
        return {name: module for name, module in self.components().items() if name != self.network_name}

    @abstractmethod
    def inflate_(self) -> None:
        """Makes the components attend to and normalise over all six faces; a second call changes nothing."""

    @abstractmethod
    def fresh_network(self, weights: Mapping[str, Tensor]) -> ModelMixin:
        """A network like `network`, on the CPU and not sharded, that holds `weights`."""

    def to(self, device: torch.device | str) -> "Backbone":
        """Moves the frozen components to a device."""
        for module in self.frozen_components().values():
            module.to(device)
        return self

    def release(self) -> None:
        """Frees the memory of the frozen components, which cannot be used afterwards."""
        self.to("meta")

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over the frozen components' weights, hexadecimal; optionally a dash and another of their settings.

        Fingerprints are compared by their parts, see `cubediff.models.encoders.same_fingerprint`.
        """

    # ---------------------------------------------------------------------------------------------- latents

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of the latents."""

    @property
    @abstractmethod
    def latent_scale(self) -> int:
        """Side of a latent pixel in face pixels."""

    @property
    @abstractmethod
    def sample_size(self) -> int:
        """Height and width of the latents that the network was trained on."""

    def set_face_size_(self, face_size: int) -> None:
        """Makes `sample_size` that of faces of this size, in place; the network's config on disk keeps it.

        A family whose network depends on the size in another way than by `sample_size` of its config overrides this.

        Args:
            face_size: In pixels.

        Raises:
            ValueError: If `face_size` is not a positive multiple of `latent_scale`, or the network has another fixed
                size.
        """
        size, rest = divmod(face_size, self.latent_scale)
        if size < 1 or rest:
            raise ValueError(f"face_size={face_size}: expected a multiple of {self.latent_scale}, the pixels of a "
                             "latent pixel")  # fmt: skip
        if size == self.sample_size:
            return
        self.network.register_to_config(sample_size=size)
        if size != self.sample_size:
            raise ValueError(
                f"face_size={face_size}: this model is for faces of {self.sample_size * self.latent_scale} pixels; set "
                f"face_size={self.sample_size * self.latent_scale}"
            )

    @abstractmethod
    def encode(self, faces: Float[Tensor, "b 6 3 s s"]) -> Float[Tensor, "b 6 c h w"]:
        """Latents, float32, scaled and shifted as the network expects them, of faces in [−1, 1]."""

    def encode_each(self, faces: Float[Tensor, "b 6 3 s s"]) -> Float[Tensor, "b 6 c h w"]:
        """As `encode`, with each face encoded alone; the same for an autoencoder whose faces never see each other."""
        return self.encode(faces)

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b 6 c h w"]) -> Float[Tensor, "b 6 3 s s"]:
        """Faces in [−1, 1], float32, of latents."""

    # ------------------------------------------------------------------------------------------------- text

    @abstractmethod
    def encode_captions(self, captions: Sequence[str], truncate: bool = False) -> dict[str, Tensor]:
        """Encodes N captions to named tensors (N, …).

        Args:
            captions: The captions.
            truncate: Truncate captions that are too long, with a warning, instead of raising.

        Raises:
            ValueError: If a caption is longer than a text encoder takes and `truncate` is false.
        """

    def encode_text(self, prompts: Sequence[Sequence[str]], truncate: bool = False) -> Conditioning:
        """The conditioning on six prompts for each panorama; equal prompts are encoded once.

        Args:
            prompts: Six prompts per panorama, in the order of `FACES`.
            truncate: Cut prompts that are too long, with a warning, instead of raising.

        Raises:
            ValueError: As `encode_captions`.
        """
        flat = [prompt for six in prompts for prompt in six]
        captions = sorted(set(flat))
        states = self.encode_captions(captions, truncate)
        order = torch.tensor([captions.index(prompt) for prompt in flat])
        return Conditioning(
            {name: state[to_device_async(order, state.device)].unflatten(0, (-1, 6)) for name, state in states.items()}
        )

    def embedded_text(self, embeds: Tensor, name: str) -> Conditioning:
        """The conditioning on text that a caller has encoded.

        Args:
            embeds: Text states (B, L, D), or (B, 6, L, D) with a text per face.
            name: The argument that messages name.

        Raises:
            ValueError: If the shape is another one, or the family has no single tensor of text states.
        """
        raise ValueError(f"{name}: {type(self).__name__} takes no text embeddings; pass the text itself")

    def null_text(self) -> Conditioning:
        """The conditioning on no text, of one panorama."""
        return self.encode_text([[""] * 6])

    # ---------------------------------------------------------------------------------------------- network

    @abstractmethod
    def predict(
        self, cube: CubeInput, timesteps: Shaped[Tensor, "*b"], conditioning: Conditioning
    ) -> Float[Tensor, "b 6 c h w"]:
        """The network's prediction, float32.

        Args:
            cube: The input of B panoramas.
            timesteps: One for each panorama (B,), or one for all ().
            conditioning: The conditioning of the B panoramas.
        """

    def constant_conditioning(self) -> AbstractContextManager[None]:
        """Within it, `predict` may keep what it computes of a `Conditioning` alone for calls with the same one."""
        return nullcontext()

    def fuse_projections(self, enabled: bool) -> None:
        """Makes one matrix product of an attention layer's projections, or separates them again.

        Raises:
            ValueError: If the family does not support it.
        """
        raise ValueError(f"{type(self).__name__} does not fuse the projections of its attention layers")

    @abstractmethod
    def trainable(self, name: str, mode: Trainable) -> bool:
        """Whether a parameter of the network is trained.

        Input layers that read the position and mask channels are always trained: their weights start at zero.

        Args:
            name: The parameter's name in the network.
            mode: The trainable layers, see `select_trainable_`.
        """

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The network's repeated blocks, the units of checkpointing, compilation and gathering under FSDP."""

    def frozen_blocks(self) -> list[nn.Module]:
        """The repeated blocks of the frozen components that `model.compile` compiles."""
        return []

    # --------------------------------------------------------------------------------------------- planning

    def example(self, batch: int, face_size: int) -> tuple[Float[Tensor, "b 6 3 s s"], list[list[str]]]:
        """Faces without content and distinct prompts for B panoramas, to count a training step with."""
        faces = torch.empty(batch, 6, 3, face_size, face_size)
        return faces, [[f"{panorama} {face}" for face in range(6)] for panorama in range(batch)]


def execution_device(module: nn.Module) -> torch.device:
    """The device that a model computes on: that of its weights, or the one to which accelerate's hooks move them."""
    for child in module.modules():
        device = getattr(getattr(child, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Disables autocast for a device's tensors; not every device has it."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def to_device_async(values: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to a device; to a GPU from pinned memory, without waiting for the work queued there."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
