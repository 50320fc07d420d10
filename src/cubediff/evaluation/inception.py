"""Inception v3 as FID is defined with it: TensorFlow's network of 2015-12-05, in the layers of its PyTorch conversion.

The weights are the file `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity, which is not downloaded here.
The network differs from torchvision's: its average pools leave out the padding, and the last block takes the maximum.

Legend: N images.
"""

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cubediff.utils.files import text_path

SIZE = 299
FEATURES = 2048
_CLASSES = 1008
Kernel = int | tuple[int, int]


class _Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, padding: bool = True) -> None:
        super().__init__()
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        pad = (rows // 2, columns // 2) if padding else 0
        self.conv = nn.Conv2d(inputs, outputs, (rows, columns), stride, pad, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


Chain = list[tuple[str, int, Kernel]]  # convolutions after each other: name, output channels, kernel


class _Block(nn.Module):
    """Branches of convolutions next to each other, and a pool.

    Args:
        inputs: Input channels.
        branches: A chain of convolutions for each branch; names that end in a and b are two at the end of a chain.
        pooled: Output channels of the convolution after the pool; 0 for a block that halves its input: the last
            convolutions and the pool have a stride of 2.
        maximum: Pool by the maximum instead of the mean.
    """

    def __init__(self, inputs: int, branches: list[Chain], pooled: int, maximum: bool = False) -> None:
        super().__init__()
        self.branches, self.pooled, self.maximum = branches, pooled, maximum
        for chain in branches:
            channels = inputs
            for number, (name, outputs, kernel) in enumerate(chain):
                halves = not pooled and number == len(chain) - 1
                layer = _Convolution(channels, outputs, kernel, 2 if halves else 1, padding=not halves)
                self.add_module(name, layer)
                channels = channels if name.endswith("a") else outputs
        if pooled:
            self.branch_pool = _Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.branches:
            y = x
            for name, _, _ in chain:
                layer = self.get_submodule(name)
                if name.endswith(("a", "b")):
                    outputs.append(layer(y))
                else:
                    y = layer(y)
            if not chain[-1][0].endswith("b"):
                outputs.append(y)
        if not self.pooled:
            return torch.cat([*outputs, F.max_pool2d(x, 3, 2)], 1)
        pool = F.max_pool2d(x, 3, 1, 1) if self.maximum else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([*outputs, self.branch_pool(pool)], 1)


def _block_a(inputs: int, pooled: int) -> _Block:
    wide: Chain = [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)]
    double: Chain = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    return _Block(inputs, [[("branch1x1", 64, 1)], wide, double], pooled)


def _block_c(width: int) -> _Block:
    long: Chain = [("branch7x7_1", width, 1), ("branch7x7_2", width, (1, 7)), ("branch7x7_3", 192, (7, 1))]
    kernels: list[Kernel] = [1, (7, 1), (1, 7), (7, 1), (1, 7)]
    widths = [width] * 4 + [192]
    double: Chain = [(f"branch7x7dbl_{i}", w, k) for i, (w, k) in enumerate(zip(widths, kernels, strict=True), start=1)]
    return _Block(768, [[("branch1x1", 192, 1)], long, double], 192)


def _block_e(inputs: int, maximum: bool) -> _Block:
    split: list[tuple[str, int, Kernel]] = [("a", 384, (1, 3)), ("b", 384, (3, 1))]
    wide: Chain = [("branch3x3_1", 384, 1), *((f"branch3x3_2{side}", w, k) for side, w, k in split)]
    double: Chain = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)]
    double += [(f"branch3x3dbl_3{side}", w, k) for side, w, k in split]
    return _Block(inputs, [[("branch1x1", 320, 1)], wide, double], 192, maximum)


class InceptionV3(nn.Module):
    """The extractor of FID, KID and the Inception score: 2048 features after the last pool; `logits` for the score.

    Args:
        file: torch-fidelity's weights.

    Raises:
        ValueError: If the file holds something else.
    """

    name = "inception"

    def __init__(self, file: str | Path) -> None:
        super().__init__()
        blocks = {
            "Conv2d_1a_3x3": _Convolution(3, 32, 3, stride=2, padding=False),
            "Conv2d_2a_3x3": _Convolution(32, 32, 3, padding=False),
            "Conv2d_2b_3x3": _Convolution(32, 64, 3),
            "MaxPool_1": nn.MaxPool2d(3, 2),
            "Conv2d_3b_1x1": _Convolution(64, 80, 1),
            "Conv2d_4a_3x3": _Convolution(80, 192, 3, padding=False),
            "MaxPool_2": nn.MaxPool2d(3, 2),
            "Mixed_5b": _block_a(192, 32),
            "Mixed_5c": _block_a(256, 64),
            "Mixed_5d": _block_a(288, 64),
            "Mixed_6a": _Block(288, [[("branch3x3", 384, 3)], _double_of_b()], 0),
            **{f"Mixed_6{letter}": _block_c(width) for letter, width in zip("bcde", (128, 160, 160, 192), strict=True)},
            "Mixed_7a": _Block(768, _branches_of_d(), 0),
            "Mixed_7b": _block_e(1280, maximum=False),
            "Mixed_7c": _block_e(2048, maximum=True),
        }
        self.order = list(blocks)
        for name, block in blocks.items():
            self.add_module(name, block)
        self.fc = nn.Linear(FEATURES, _CLASSES)
        self._load(Path(file))
        self.eval().requires_grad_(False)

    def _load(self, file: Path) -> None:
        try:
            self.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
            expected = "weights-inception-2015-12-05-6726825d.pth of torch-fidelity"
            raise ValueError(f"{text_path(file)} does not hold the weights of {expected}") from error

    def forward(self, views: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2048"]:
        """Computes the features of views in [0, 1], rounded to 8 bits and resized as TensorFlow 1 resizes."""
        pixels = (views * 255).round().clamp(0, 255)
        x = (_resize_like_tensorflow(pixels, SIZE) - 128) / 128
        for name in self.order:
            x = self.get_submodule(name)(x)
        features: Tensor = x.mean((2, 3))
        return features

    def logits(self, features: Float[Tensor, "*n 2048"]) -> Float[Tensor, "*n 1008"]:
        """The logits without bias, of which the Inception score is made."""
        return features @ self.fc.weight.T


def _double_of_b() -> Chain:
    return [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]


def _branches_of_d() -> list[Chain]:
    long: Chain = [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))]
    return [[("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)], [*long, ("branch7x7x3_4", 192, 3)]]


def _resize_like_tensorflow(images: Tensor, size: int) -> Tensor:
    """Bilinear resizing without antialiasing in which output pixel i samples input position i·(input size/size)."""

    def positions(length: int) -> tuple[Tensor, Tensor, Tensor]:
        at = torch.arange(size, dtype=torch.float32) * (length / size)
        low = at.floor().long()
        return low, (low + 1).clamp_max(length - 1), at - low

    for dim in (-1, -2):
        low, high, share = (each.to(images.device) for each in positions(images.shape[dim]))
        share = share if dim == -1 else share[:, None]
        images = images.index_select(dim, low) * (1 - share) + images.index_select(dim, high) * share
    return images
