"""Features of the views of a set of panoramas, and a cache of those of references.

Legend: P panoramas, V views of each, D features.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import platformdirs
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cubediff.evaluation.extractors import Extractor
from cubediff.evaluation.sets import PanoramaSet
from cubediff.evaluation.views import EQUIRECT, ViewProtocol, render_views
from cubediff.utils.errors import DataError
from cubediff.utils.files import write_atomic

_VERSION = 1  # of the views' rendering and the extractors' processing; another one makes cached features outdated

Progress = Callable[[Iterable[int], int, str], Iterable[int]]


@dataclass(frozen=True)
class Looking:
    """How panoramas are looked at, equal for all sets of an evaluation.

    Attributes:
        protocol: The views.
        seed: Of random views.
        device: Where views are rendered and features computed.
    """

    protocol: ViewProtocol
    seed: int
    device: torch.device

    def views(self, panorama: Float[Tensor, "3 h w"], index: int) -> Float[Tensor, "v 3 _ _"]:
        """The views of the panorama with an index in its set; by `EQUIRECT` the panorama itself, (1, 3, H, W)."""
        if self.protocol == EQUIRECT:
            return panorama.to(self.device)[None]
        views = self.protocol.views(index, self.seed)
        return render_views(panorama.to(self.device), views, self.protocol.size).clamp(0, 1)


@runtime_checkable
class NetworkExtractor(Extractor, Protocol):
    """An extractor that is a module."""

    def state_dict(self) -> dict[str, Tensor]: ...


@torch.inference_mode()
def extract(
    panoramas: PanoramaSet, looking: Looking, extractor: Extractor, progress: Progress
) -> Float[Tensor, "p v d"]:
    """Computes the features of a set.

    Args:
        panoramas: The set.
        looking: The views.
        extractor: The network.
        progress: Shows the progress over items, of which there is a number, under a title.

    Raises:
        DataError: If a panorama is damaged.
        ValueError: If a feature is not finite; the message names the panorama.
    """
    features = []
    count = len(panoramas.names)
    for index in progress(range(count), count, f"{extractor.name}: {panoramas.path.name}"):
        each = extractor(looking.views(panoramas.panorama(index), index)).float().cpu()
        if not each.isfinite().all():
            raise ValueError(
                f"{extractor.name} gives features that are not finite for {panoramas.names[index]} of "
                f"{panoramas.path}: check the extractor's weights"
            )
        features.append(each)
    return torch.stack(features)


def default_cache() -> Path:
    """The folder for features of references if none is given: in the user's cache folder."""
    return platformdirs.user_cache_path("cubediff") / "features"


def cached(
    folder: Path, panoramas: PanoramaSet, looking: Looking, extractor: NetworkExtractor, progress: Progress
) -> tuple[Float[Tensor, "p v d"], str]:
    """`extract`, from a file of the folder if it has been computed before.

    Returns:
        The features, and the key of their file: a checksum of the panoramas, the views and the extractor's weights.
    """
    key = features_key(panoramas, looking, extractor)
    if (known := read_features(folder, key)) is not None:
        return known, key
    features = extract(panoramas, looking, extractor, progress)
    write_features(folder / f"{key}.safetensors", features)
    return features, key


def features_key(panoramas: PanoramaSet, looking: Looking, extractor: NetworkExtractor) -> str:
    """The checksum of everything that determines the features of a set."""
    digest = hashlib.sha256(f"{_VERSION} {panoramas.digest()} {looking.protocol.size} {looking.device.type}".encode())
    for index in range(len(panoramas.names)):
        digest.update(str(looking.protocol.views(index, looking.seed)).encode())
        if looking.protocol.same_for_all:
            break
    digest.update(f"{extractor.name} {weights_digest(extractor)}".encode())
    return digest.hexdigest()


def weights_digest(network: NetworkExtractor | nn.Module) -> str:
    """The SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_features(folder: Path, key: str) -> Float[Tensor, "p v d"] | None:
    """The features of a file of the folder, None if there is none.

    Raises:
        DataError: If the file is damaged.
    """
    file = folder / f"{key}.safetensors"
    if not file.is_file():
        return None
    try:
        return load_file(file)["features"]
    except (SafetensorError, KeyError) as error:
        raise DataError(f"{file} is damaged ({error}): remove it") from None


def write_features(file: Path, features: Float[Tensor, "p v d"]) -> None:
    """Writes features, also the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, save({"features": features.contiguous()}))
