"""Frozen weights in the 16-bit dtype that autocast would cast them to in every forward pass."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class CastWeights:
    """Frozen weights that were cast in place, and what they were.

    Attributes:
        parameters: The parameters by their names.
        originals: Their values of before, on the CPU.
    """

    parameters: dict[str, nn.Parameter]
    originals: dict[str, Tensor]

    @classmethod
    def cast_(cls, network: nn.Module, dtype: torch.dtype) -> "CastWeights":
        """Casts the frozen weights of a network's convolutions and linear layers, in place.

        Under autocast to the same dtype, the network's outputs and gradients stay the same, bit by bit. Norms and
        embeddings, which autocast leaves in float32, keep their dtype.
        """
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        cast = {id(parameter) for parameter in _frozen(layers)}
        parameters = {name: p for name, p in network.named_parameters() if id(p) in cast}
        # `cubediff plan` casts weights without values, which no device copies.
        originals = {name: p.detach() if p.is_meta else p.detach().cpu() for name, p in parameters.items()}
        for parameter in parameters.values():
            parameter.data = parameter.data.to(dtype)
        return cls(parameters, originals)

    def restore_(self) -> None:
        """Gives the parameters their values of before."""
        for name, parameter in self.parameters.items():
            parameter.data = self.originals[name].to(parameter.device)


def _frozen(layers: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [p for layer in layers for p in layer.parameters(recurse=False) if not p.requires_grad]
