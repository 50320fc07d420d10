"""The encoder of FAED, the Fréchet distance of an autoencoder's features of whole equirectangular panoramas.

The encoder and its weights are those of PanFusion (Zhang et al., 2024), whose table reports the distance: the file
`faed.ckpt` that its repository chengzhag/PanFusion links, a checkpoint of Lightning. It is not downloaded here. The
encoder was trained on Matterport3D, and sees panoramas of 512 rows.

Legend: N panoramas, H height, C channels, R rows of the features.
"""

import math
import pickle
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cubediff.evaluation.views import EQUIRECT
from cubediff.utils.files import text_path

_PREFIX = "net.encoder."  # of the encoder's keys in the checkpoint
# Of each scale: channels, and size of the kernels of its residual block. Each but the first has half the resolution of
# the one before, and the last, 1/32 of the panorama, has no residual block.
_CHANNELS = (32, 64, 128, 128, 128, 128)
_KERNELS = (9, 7, 5, 3, 3)


class _Convolution(nn.Module):
    """A convolution that wraps around at the left and right border; above and below are zeros."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.margin = (kernel - 1) // 2
        self.conv2d = nn.Conv2d(inputs, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        around = F.pad(x, (self.margin, self.margin, 0, 0), mode="circular")
        output: Tensor = self.conv2d(F.pad(around, (0, 0, self.margin, self.margin)))
        return output


class _Downsampling(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _Convolution(inputs, outputs, 4, stride=2)
        self.batchnorm1 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.batchnorm1(self.conv1(x)))


class _Residual(nn.Module):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = _Convolution(channels, channels, kernel)
        self.batchnorm1 = nn.BatchNorm2d(channels)
        self.conv2 = _Convolution(channels, channels, kernel)
        self.batchnorm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.batchnorm2(self.conv2(F.relu(self.batchnorm1(self.conv1(x)))))
        return x + change


class Faed(nn.Module):
    """The extractor of FAED: 2048 features of a panorama, 128 channels in each of 16 rows.

    Args:
        file: PanFusion's `faed.ckpt`, or its tensors in a safetensors file.

    Raises:
        ValueError: If the file holds something else.
    """

    name = "faed"
    protocol = EQUIRECT

    def __init__(self, file: str | Path) -> None:
        super().__init__()
        names = ["downconv1_rgb"]
        self.downconv1_rgb = _Convolution(3, _CHANNELS[0], _KERNELS[0])
        for scale, outputs in enumerate(_CHANNELS, start=1):
            if scale > 1:
                self.add_module(f"downconv{scale}_rgb", _Downsampling(_CHANNELS[scale - 2], outputs))
                names.append(f"downconv{scale}_rgb")
            if scale <= len(_KERNELS):
                self.add_module(f"downres{scale}_rgb", _Residual(outputs, _KERNELS[scale - 1]))
                names.append(f"downres{scale}_rgb")
        self.fuse = _Convolution(_CHANNELS[-1], _CHANNELS[-1], 3)
        self.order = [*names, "fuse"]
        self._load(Path(file))
        self.eval().requires_grad_(False)

    def _load(self, file: Path) -> None:
        try:
            if file.suffix == ".safetensors":
                tensors = load_file(file)
            else:
                tensors = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
            self.load_state_dict(
                {key.removeprefix(_PREFIX): value for key, value in tensors.items() if key.startswith(_PREFIX)}
            )
        except _BROKEN as error:
            expected = "faed.ckpt of PanFusion, or its state_dict as safetensors"
            raise ValueError(f"{text_path(file)} does not hold the weights of {expected}") from error

    def forward(self, panoramas: Float[Tensor, "n 3 h 2*h"]) -> Float[Tensor, "n d"]:
        """Computes the features of panoramas in [0, 1], rounded to 8 bits and resized as PanFusion resizes originals.

        Features are means over columns, and rows are weighted by the cosine of −90° to 90° in equal steps.
        """
        x = _resize(panoramas, EQUIRECT.size) / 127.5 - 1
        for name in self.order:
            x = self.get_submodule(name)(x)
        rows = x.mean(3)  # (N, C, R)
        latitude = torch.linspace(math.pi / 2, -math.pi / 2, rows.shape[2], device=x.device)
        features: Tensor = (rows * latitude.cos()).flatten(1)
        return features


_BROKEN = (
    OSError,
    RuntimeError,
    TypeError,
    AttributeError,
    KeyError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)


def _resize(panoramas: Tensor, height: int) -> Tensor:
    """Pixels from 0 to 255 with `height` rows, by OpenCV's means over areas."""
    levels = (panoramas * 255).round().clamp(0, 255)
    if panoramas.shape[2] == height:
        return levels
    images = levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    resized = np.stack([cv2.resize(image, (2 * height, height), interpolation=cv2.INTER_AREA) for image in images])
    return torch.from_numpy(resized).to(panoramas.device).permute(0, 3, 1, 2).float()
