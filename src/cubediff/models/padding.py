"""Convolutions that see the neighbouring faces beyond the border of a face, instead of zeros (DreamCube,
arXiv 2506.17206, section 3.2)."""

from typing import TypeVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cubediff.geometry.padding import pad_faces
from cubediff.models.blocks import change_class_

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class CubeConv2d(nn.Conv2d):
    """A convolution of the six faces of cubes whose padding is that of `pad_faces`.

    Attributes:
        fov: Field of view of the faces, in degrees.
    """

    fov: float

    def forward(self, input: Float[Tensor, "b6 c s s"]) -> Float[Tensor, "b6 d t t"]:
        padded = pad_faces(input, self.fov, int(self.padding[0]))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def pad_convolutions_(module: ModuleT, fov: float | None) -> ModuleT:
    """Makes every padded convolution inside a module see the neighbouring faces, in place.

    Args:
        module: A UNet or any other module on (B·6, C, S, S). Its weights and state-dict keys do not change.
        fov: Field of view of the faces, in degrees; None pads by zeros again.

    Returns:
        The module.
    """
    old, new = (CubeConv2d, nn.Conv2d) if fov is None else (nn.Conv2d, CubeConv2d)
    for child in module.modules():
        if type(child) is old and _pads_by_zeros(child):
            change_class_(child, new)
        if isinstance(child, CubeConv2d) and fov is not None:
            child.fov = fov
    return module


def _pads_by_zeros(layer: nn.Conv2d) -> bool:
    padding = layer.padding
    return isinstance(padding, tuple) and len(set(padding)) == 1 and padding[0] > 0 and layer.padding_mode == "zeros"
