"""The faces that self-attention sees while others are hidden (CubeDiff, section 4.3, drops the image in this way).

Rows of queries that see equally many faces attend together, to the keys of those faces alone. A mask would compute the
same, but flash attention takes none.

Legend: B panoramas, 6 faces, R rows of queries, N of them in a group, K faces that each of those sees.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from cubediff.geometry.conventions import FACES
from cubediff.models.backbone import to_device_async


class Group(NamedTuple):
    """Rows of queries that see equally many faces.

    Attributes:
        rows: Indices of the rows.
        faces: The faces that each of them sees, as indices among the B·6 faces.
    """

    rows: Int[Tensor, " n"]
    faces: Int[Tensor, "n k"]

    def keys(self, tokens: Tensor) -> Tensor:
        """The tokens that each row sees, (N, K·L, C), of those of all faces (B·6, L, C)."""
        keys: Tensor = tokens.index_select(0, self.faces.flatten()).unflatten(0, self.faces.shape).flatten(1, 2)
        return keys


class Grouping(NamedTuple):
    """All rows of queries in groups.

    Attributes:
        groups: The groups.
        order: For each row its index in the concatenated groups.
    """

    groups: tuple[Group, ...]
    order: Int[Tensor, " r"]

    def map(self, attend: Callable[[Group], Tensor]) -> Tensor:
        """The results of `attend`, (N, …) of a group, in the order of the rows."""
        return torch.cat([attend(group) for group in self.groups]).index_select(0, self.order)


class VisibleFaces(NamedTuple):
    """The faces that queries see.

    Attributes:
        of_panoramas: For rows of queries that are panoramas, their visible faces.
        of_faces: For rows of queries that are faces, the visible ones of the other five.
    """

    of_panoramas: Grouping
    of_faces: Grouping


def visible_faces(hidden: Bool[Tensor, "b 6"], device: torch.device) -> VisibleFaces | None:
    """The faces that queries see, for the `cross_attention_kwargs` of a UNet, under the key "visible_faces".

    Queries of a panorama without a visible face attend to nothing; the result of their attention is zero.

    Args:
        hidden: Faces that no query attends to. On the CPU, so that nothing waits for a device.
        device: The UNet's.

    Returns:
        None if no face is hidden.

    Example:
        >>> hidden = torch.zeros(3, 6, dtype=torch.bool)
        >>> hidden[1, 0] = True
        >>> groups = visible_faces(hidden, torch.device("cpu")).of_panoramas.groups
        >>> [(group.rows.tolist(), group.faces.shape[1]) for group in groups]
        [([0, 2], 6), ([1], 5)]
    """
    if not hidden.any():
        return None
    seen = [[len(FACES) * panorama + face for face, is_hidden in enumerate(row) if not is_hidden]
            for panorama, row in enumerate(hidden.tolist())]  # fmt: skip
    others = [[one for one in seen[face // len(FACES)] if one != face] for face in range(hidden.numel())]
    indices, structure = tree_flatten(VisibleFaces(_grouped(seen), _grouped(others)))
    moved = to_device_async(torch.cat([index.flatten() for index in indices]), device)  # one copy for all
    parts = moved.split([index.numel() for index in indices])
    visible: VisibleFaces = tree_unflatten(
        [part.view(index.shape) for part, index in zip(parts, indices, strict=True)], structure
    )
    return visible


def check_no_mask(attention_mask: Tensor | None) -> None:
    """Checks that attention to other faces has no mask.

    Raises:
        ValueError: If it has one.
    """
    if attention_mask is not None:
        raise ValueError("attention to six faces takes no attention_mask and no encoder_attention_mask: hide faces by "
                         'cross_attention_kwargs={"visible_faces": visible_faces(hidden, device)}')  # fmt: skip


def _grouped(seen: list[list[int]]) -> Grouping:
    """The rows in groups, those that see the most faces first, of the faces that each row sees."""
    counts = [len(faces) for faces in seen]
    members = [[row for row, count in enumerate(counts) if count == each] for each in sorted({*counts}, reverse=True)]
    groups = tuple(
        Group(torch.tensor(rows), torch.tensor([seen[row] for row in rows], dtype=torch.long)) for rows in members
    )
    return Grouping(groups, torch.cat([group.rows for group in groups]).argsort())
