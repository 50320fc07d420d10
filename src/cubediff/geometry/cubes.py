"""Views of six faces along any directions: faces with another field of view, and pinhole views.

Faces of 95° differ where they overlap, because each is generated with its own pixels (CubeDiff, section 3). These
projections sample one blended sphere, so that the results agree along their common edges.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Real
from torch import Tensor

from cubediff.geometry import atlas as atlases
from cubediff.geometry import sampling
from cubediff.geometry.conventions import FACE_FOV, FRAMES, check_size, rotation_matrix, tan_half

_RAYS = 1 << 20  # directions that are sampled at once: about 200 MB of float64


def cube_to_cube(
    faces: Real[Tensor, "b f c i j"],
    size: int,
    fov: float = 90.0,
    face_fov: float = FACE_FOV,
    overlap: str = "blend",
    *,
    mode: str = "bicubic",
) -> Real[Tensor, "b 6 c s s"]:
    """Resamples faces to another size and field of view, with one interpolation.

    Args:
        faces: (B, 6, C, S, S) in FACES order, float in any range or uint8.
        size: Side of a new face, in pixels.
        fov: Field of view of a new face, in degrees. Faces of 90° meet at their edges, as engines need them.
        face_fov: Field of view of the given faces, in degrees: at least 90, below 180.
        overlap: "blend" or "crop", as in `cube_to_equirect`.
        mode: "bilinear" or "bicubic".

    Returns:
        Faces (B, 6, C, size, size) in FACES order and the dtype of `faces`.

    Raises:
        ValueError: If a shape, `size`, a field of view, `overlap`, `mode` or the dtype is invalid.

    Example:
        >>> faces = torch.rand(1, 6, 3, 32, 32)
        >>> cube_to_cube(faces, 32).shape
        torch.Size([1, 6, 3, 32, 32])
    """
    check_size(size, "size")
    frames = [torch.tensor(frame, dtype=torch.float64).T for frame in FRAMES]
    views = [_view(faces, (size, size), fov, frame, face_fov, overlap, mode) for frame in frames]
    return torch.stack(views, 1)


def cube_to_perspective(
    faces: Real[Tensor, "b f c i j"],
    size: int | tuple[int, int],
    fov: float,
    yaw: float = 0.0,
    pitch: float = 0.0,
    roll: float = 0.0,
    *,
    face_fov: float = FACE_FOV,
    mode: str = "bicubic",
) -> Real[Tensor, "b c s t"]:
    """Renders a pinhole view of six faces.

    Args:
        faces: (B, 6, C, S, S) in FACES order, float in any range or uint8.
        size: Side of the view, or (height, width), in pixels, which are square.
        fov: Horizontal field of view, in degrees.
        yaw: Direction of the view, to the right, in degrees (see `rotation_matrix`).
        pitch: Elevation of the view, upwards, in degrees.
        roll: Clockwise rotation of the viewer, in degrees.
        face_fov: Field of view of the faces, in degrees: at least 90, below 180.
        mode: "bilinear" or "bicubic".

    Returns:
        Views (B, C, height, width), in the dtype of `faces`.

    Raises:
        ValueError: If a shape, `size`, a field of view, `mode` or the dtype is invalid.

    Example:
        >>> faces = torch.rand(1, 6, 3, 32, 32)
        >>> cube_to_perspective(faces, (24, 32), fov=70.0, yaw=45.0).shape
        torch.Size([1, 3, 24, 32])
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    check_size(rows, "height")
    check_size(columns, "width")
    angles = (torch.tensor(angle, dtype=torch.float64) for angle in (yaw, pitch, roll))
    return _view(faces, (rows, columns), fov, rotation_matrix(*angles), face_fov, "blend", mode)


def _view(
    faces: Tensor,
    shape: tuple[int, int],
    fov: float,
    frame: Float[Tensor, "3 3"],
    face_fov: float,
    overlap: str,
    mode: str,
) -> Tensor:
    """A pinhole view; `frame` maps right, top and forward of its camera to the world."""
    atlases.check_faces(faces, face_fov, overlap)
    size, work = faces.shape[-1], sampling.work_dtype(faces)
    (height, width), tan = shape, tan_half(fov)
    supersampling = 1
    while size * tan > sampling.SUPERSAMPLE_ABOVE * supersampling * width * tan_half(face_fov):
        supersampling *= 2
    margin = atlases.margin_of(mode)
    atlas = atlases.build_atlas(faces, face_fov, margin)
    blend = overlap == "blend" and tan_half(face_fov) > 1 + 1e-9
    columns = supersampling * width
    x = tan * ((2 * torch.arange(columns, dtype=torch.float64) + 1) / columns - 1)
    bands = []
    at_once = max(1, _RAYS // (columns * supersampling))  # rows of the view
    for first in range(0, height, at_once):
        rows = torch.arange(supersampling * first, supersampling * min(first + at_once, height), dtype=torch.float64)
        y = tan * (supersampling * height - 1 - 2 * rows) / columns
        plane = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, columns), torch.ones(len(y), columns)], -1)
        rays = (plane[..., None, :] * frame).sum(-1).flatten(0, 1)
        grid, overlaps = atlases.ray_grids(rays, face_fov, blend, size, margin, work)
        grid = grid.to(faces.device)[None, None].expand(len(faces), -1, -1, -1)
        band = sampling.sample(atlas, grid, mode).flatten(2)
        if overlaps is not None:
            on_device = atlases.Overlaps(*(values.to(faces.device) for values in overlaps))
            atlases.add_overlaps_(band, atlas, on_device, mode)
        band = band.unflatten(2, (-1, columns))
        bands.append(F.avg_pool2d(band, supersampling) if supersampling > 1 else band)
    return sampling.to_pixels(torch.cat(bands, 2), faces.dtype)


def edge_difference(faces: Real[Tensor, "b 6 c s s"], fov: float, samples: int = 256) -> float:
    """Mean absolute difference of neighbouring faces where they see the twelve edges of the cube.

    It is smallest for the field of view that the faces have.

    Args:
        faces: (B, 6, C, S, S) in FACES order, float in any range or uint8.
        fov: Assumed field of view of a face, in degrees: at least 90, below 180.
        samples: Directions along an edge.

    Returns:
        The difference, in the units of the faces.

    Raises:
        ValueError: If a shape, `fov` or the dtype is invalid.
    """
    atlases.check_faces(faces, fov, "blend")
    along = (2 * torch.arange(samples, dtype=torch.float64) + 1) / samples - 1
    ones = torch.ones(samples, dtype=torch.float64)
    edges = [
        torch.stack([(a * ones, b * ones, along)[(axis - k) % 3 - 1] for k in range(3)], -1)
        for axis in range(3)
        for a in (-1, 1)
        for b in (-1, 1)
    ]
    rays = torch.cat(edges)
    seeing = (rays @ torch.tensor([frame[2] for frame in FRAMES], dtype=torch.float64).T).topk(2).indices
    first, second = (sample_faces(faces, rays, seeing[:, k], fov) for k in (0, 1))
    return float((first - second).abs().mean())


def sample_faces(
    faces: Real[Tensor, "b 6 c s s"], rays: Float[Tensor, "n 3"], seen_by: Int[Tensor, " n"], fov: float
) -> Float[Tensor, "b c n"]:
    """Samples faces bilinearly along directions, each on the face that is given for it.

    Args:
        faces: Faces in FACES order, float in any range or uint8.
        rays: Directions in float64, of any length.
        seen_by: Index of the face that is sampled along each direction.
        fov: Field of view of a face, in degrees.

    Returns:
        Samples; beyond the border of a face those at the border.
    """
    pixels = faces.to(sampling.work_dtype(faces))
    samples = pixels.new_empty(*pixels.shape[:1], pixels.shape[2], len(rays))
    for face, frame in enumerate(FRAMES):
        chosen = seen_by == face
        u, v, depth = (rays[chosen] @ torch.tensor(frame, dtype=torch.float64).T).unbind(-1)
        grid = torch.stack([u, -v], -1) / (depth * tan_half(fov))[:, None]
        grid = grid.to(pixels)[None, None].expand(len(faces), -1, -1, -1)
        samples[..., chosen.to(pixels.device)] = sampling.sample(pixels[:, face], grid, "bilinear").flatten(2)
    return samples
