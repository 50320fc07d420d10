"""Refuses weights that are NaN or infinite when a model is loaded."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class NonFiniteWeightsError(ValueError):
    """A model holds weights that are NaN or infinite; the message names the first tensor."""


def check_finite(components: Mapping[str, object]) -> None:
    """Checks the weights of the models among a pipeline's components.

    Args:
        components: Models and other objects by their names; models on the meta device are not checked.

    Raises:
        NonFiniteWeightsError: If a weight is NaN or infinite.
    """
    for component, model in components.items():
        for name, tensor in model.state_dict().items() if isinstance(model, nn.Module) else ():
            if not is_finite(tensor):
                count = int((~tensor.isfinite()).sum())
                raise NonFiniteWeightsError(
                    f"{component}: {count} of {tensor.numel()} values of {name} are NaN or infinite: copy or export "
                    "the model again"
                )


def is_finite(tensor: Tensor) -> bool:
    """Whether all values of a tensor are finite; also true of integers and on the meta device."""
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor.detach())  # NaN if any value is; without a mask of the tensor's size
    return bool(low.isfinite() & high.isfinite())
