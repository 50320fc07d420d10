"""Splits that a dataset declares, kept when its shards are built."""

from dataclasses import replace

from cubediff.data.sources.base import Entry, Listing, Rejection
from cubediff.data.sources.tables import declared_split


def keep_declared_splits(entries: list[Entry], rejected: list[Rejection]) -> Listing:
    """Puts each entry on the side of the split that its name declares.

    The shards have two sides: the test split is the validation side if no validation split is declared, else it is
    rejected. Without a validation or test split, no entry is put on a side.
    """
    declared = {entry.file: declared_split(entry.file) for entry in entries}
    if not {"validation", "test"} & set(declared.values()):
        return entries, rejected
    has_validation = "validation" in declared.values()
    kept: list[Entry] = []
    for entry in entries:
        split = declared[entry.file]
        if split == "test" and has_validation:
            reason = (
                "belongs to the test split, and shards have a training and a validation split: build it from its folder"
            )
            rejected = [*rejected, Rejection(entry.file, reason)]
        elif split is None:
            kept.append(entry)
        else:
            kept.append(replace(entry, split="train" if split == "train" else "val"))
    return kept, rejected
