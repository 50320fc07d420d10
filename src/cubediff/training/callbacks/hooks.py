"""The types of what Lightning's hooks pass to this package's callbacks."""

from typing import TypedDict

import lightning as L

from cubediff.training.module import CubeDiffModule


class KeyedBatch(TypedDict):
    """The part of any data module's batch that callbacks read.

    Attributes:
        key: Names of its B samples.
    """

    key: list[str]


def cube_module(module: L.LightningModule) -> CubeDiffModule:
    """Returns the hook's module as the CubeDiffModule that it must be.

    Raises:
        TypeError: If it is of another class.
    """
    if not isinstance(module, CubeDiffModule):
        raise TypeError(
            f"expected a CubeDiffModule, got {type(module).__module__}.{type(module).__qualname__}: "
            "train a subclass of CubeDiffModule, or remove the callback"
        )
    return module
