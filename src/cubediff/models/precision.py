"""Weights in 16 bits for inference without autocast."""

import torch
from torch import nn

from cubediff.models.inflation import CubeGroupNorm


def cast_weights_(network: nn.Module, dtype: torch.dtype, keep_norms: bool = True) -> None:
    """Casts the weights and buffers of a network, in place.

    Args:
        network: Its activations then have that dtype, too.
        dtype: The new dtype.
        keep_norms: Leave weights of GroupNorms over six faces as they are: these norms compute in float32, and take
            activations in 16 bits. Other norms compute in float32, too, but CUDA's kernels need weights and activations
            of one dtype.
    """
    norms = [module for module in network.modules() if isinstance(module, CubeGroupNorm) and keep_norms]
    kept = {id(parameter) for norm in norms for parameter in norm.parameters()}
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point() and id(tensor) not in kept:
            tensor.data = tensor.data.to(dtype)
