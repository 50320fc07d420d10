"""The part of a batch that callbacks read."""

from typing import TypedDict


class KeyedBatch(TypedDict):
    """A batch of any data module.

    Attributes:
        key: Names of its B samples.
    """

    key: list[str]
