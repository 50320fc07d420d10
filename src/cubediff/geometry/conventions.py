"""Conventions of the geometry, all in this module: axes, face order and orientation, rotations, position maps
(CubeDiff, section 3: cubemap representation, 95° faces, positional encoding).

World axes: x right, y up, z forward. Pixel (i, j) of an S × S face with t = tan(fov/2) looks along
x = t·((2j + 1)/S − 1), y = −t·((2i + 1)/S − 1), z = 1, rotated to its face. Angles at public interfaces are in degrees.
"""

import math
from functools import lru_cache
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cubediff.geometry.faces import FACE_FOV as FACE_FOV
from cubediff.geometry.faces import FACE_ORDERS as FACE_ORDERS
from cubediff.geometry.faces import FACES as FACES

# Axes of each face's frame in the world: the right and the top of its image, and its centre.
FRAMES: Final = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
)


def face_directions(size: int, fov: float = FACE_FOV, dtype: torch.dtype = torch.float32) -> Float[Tensor, "6 s s 3"]:
    """Viewing directions of the pixels of six faces.

    Directions go through pixel centres. Samples that lie on the border of the face instead (linspace including both
    ends, as in py360convert and the public SD 1.5 checkpoints) have the directions of the field of view f' with
    tan(f'/2) = tan(fov/2)·S/(S − 1).

    Args:
        size: Side of a face, in pixels.
        fov: Field of view of a face, in degrees.
        dtype: Type of the result, which is computed in float64.

    Returns:
        Unit vectors (6, S, S, 3) of (x, y, z), faces in FACES order.

    Raises:
        ValueError: If `size` is below 1 or `fov` is not between 0° and 180°.

    Example:
        >>> face_directions(1)[:, 0, 0].tolist()[:2]  # one pixel looks along the face's axis
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    tan = tan_half(fov)
    check_size(size, "size")
    across = tan * ((2 * torch.arange(size, dtype=torch.float64) + 1) / size - 1)
    plane = torch.stack([across.expand(size, size), -across[:, None].expand(size, size), torch.ones(size, size)], -1)
    rays = torch.einsum("ijk,fkw->fijw", plane, torch.tensor(FRAMES, dtype=torch.float64))
    return F.normalize(rays, dim=-1).to(dtype)


def sphere_directions(height: int, start: int = 0, end: int | None = None) -> Float[Tensor, "h w 3"]:
    """Viewing directions of the pixels of a panorama.

    Args:
        height: Height of the panorama, in pixels.
        start, end: The rows from `start` to before `end`; None: to the last one.

    Returns:
        Unit vectors (end − start, 2·height, 3) of (x, y, z), in float64.
    """
    step = math.pi / height
    yaw = (torch.arange(2 * height, dtype=torch.float64) + 0.5) * step - math.pi
    rows = torch.arange(start, height if end is None else end, dtype=torch.float64)
    pitch = math.pi / 2 - (rows[:, None] + 0.5) * step
    return torch.stack(torch.broadcast_tensors(pitch.cos() * yaw.sin(), pitch.sin(), pitch.cos() * yaw.cos()), -1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def face_rays(size: int, fov: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "6 s s 3"]:
    """`face_directions` on a device, cached."""
    return face_directions(size, fov, torch.float64).to(device, dtype)


def rotation_matrix(
    yaw: float | Tensor, pitch: float | Tensor = 0.0, roll: float | Tensor = 0.0
) -> Float[Tensor, "*batch 3 3"]:
    """Rotation of a viewer's frame to the world.

    The matrix applies roll first, then pitch, then yaw: the front axis goes to the given yaw and pitch, independently
    of roll. Tensors and floats broadcast against each other.

    Args:
        yaw: Rotation to the right, in degrees.
        pitch: Rotation upwards, in degrees.
        roll: Clockwise rotation as the viewer sees it, in degrees.

    Returns:
        Matrices (…, 3, 3) that map directions in the viewer's frame to directions in the world.

    Example:
        >>> front = torch.tensor([0.0, 0.0, 1.0])
        >>> (rotation_matrix(90.0) @ front).round(decimals=3).tolist()  # a quarter turn to the right
        [1.0, 0.0, -0.0]
    """
    tensors = [a for a in (yaw, pitch, roll) if isinstance(a, Tensor)]
    like = tensors[0] if tensors else torch.zeros(())
    degrees = [as_tensor(a, like.dtype, like.device) for a in (yaw, pitch, roll)]
    y, p, r = torch.broadcast_tensors(*(torch.deg2rad(a) for a in degrees))
    (sy, cy), (sp, cp), (sr, cr) = ((a.sin(), a.cos()) for a in (y, p, r))
    right = [cy * cr + sy * sp * sr, -cp * sr, -sy * cr + cy * sp * sr]
    up = [cy * sr - sy * sp * cr, cp * cr, -sy * sr - cy * sp * cr]
    front = [sy * cp, sp, cy * cp]
    return torch.stack([torch.stack(axis, -1) for axis in (right, up, front)], -1)


def position_map(
    size: int, fov: float = FACE_FOV, encoding: str = "uv", samples: str = "centers"
) -> Float[Tensor, "6 c s s"]:
    """Positional encoding of the faces: the viewing direction of every pixel, as channels (CubeDiff, section 3).

    Args:
        size: Side of a face, in pixels.
        fov: Field of view of a face, in degrees.
        encoding: "uv": yaw/2π + ½ and pitch/π + ½, as in the paper. "uv_pi": pitch/2π + ½ instead, as in the public
            SD 1.5 checkpoints. "xyz": the unit direction, which has no discontinuity behind the viewer.
        samples: "centers" of the pixels, or "corners": the outermost samples lie on the border of the face, as in the
            public SD 1.5 checkpoints.

    Returns:
        Channels (6, 2, S, S) in [0, 1], or (6, 3, S, S) in [−1, 1] for "xyz"; float32, faces in FACES order.

    Raises:
        ValueError: If `encoding` or `samples` is unknown, `size` is below 1 or `fov` is not between 0° and 180°.

    Example:
        >>> u, v = position_map(1)[1]  # the right face: a quarter turn from the centre, on the horizon
        >>> u.item(), v.item()
        (0.75, 0.5)
    """
    if samples == "corners":
        fov = math.degrees(2 * math.atan(tan_half(fov) * size / (size - 1)))
    elif samples != "centers":
        raise ValueError(f"unknown position samples {samples!r}: use 'centers' or 'corners'")
    rays = face_directions(size, fov, torch.float64)
    if encoding == "xyz":
        channels = rays
    elif encoding in ("uv", "uv_pi"):
        yaw, pitch = yaw_pitch(rays)
        channels = torch.stack([yaw / math.tau + 0.5, pitch / (math.pi if encoding == "uv" else math.tau) + 0.5], -1)
    else:
        raise ValueError(f"unknown position encoding {encoding!r}: use 'uv', 'uv_pi' or 'xyz'")
    return channels.movedim(-1, 1).float().contiguous()


def reorder_faces(faces: Tensor, source: str, target: str) -> Tensor:
    """Permutes faces from one order to another.

    "opengl" is +x −x +y −y +z −z as the cube-map table of the OpenGL specification looks up a direction given in this
    module's axes; a right-handed scene that looks along −z has to negate z first.

    Args:
        faces: Faces (B, 6, C, S, S) in the order `source`.
        source: Name of the current order, a key of FACE_ORDERS.
        target: Name of the new order, a key of FACE_ORDERS.

    Returns:
        Faces (B, 6, C, S, S) in the order `target`.

    Raises:
        ValueError: If an order is unknown or the shape is wrong.

    Example:
        >>> faces = torch.arange(6.0).view(1, 6, 1, 1, 1)
        >>> reorder_faces(faces, "cubediff", "opengl").flatten().tolist()
        [1.0, 3.0, 4.0, 5.0, 0.0, 2.0]
    """
    for name in (source, target):
        if name not in FACE_ORDERS:
            raise ValueError(f"unknown face order {name!r}: use one of {', '.join(FACE_ORDERS)}")
    if faces.ndim != 5 or faces.shape[1] != 6:
        raise ValueError(f"faces must be (B, 6, C, S, S), not {tuple(faces.shape)}")
    return faces[:, [FACE_ORDERS[source].index(name) for name in FACE_ORDERS[target]]]


def rotate(rays: Tensor, rotation: Tensor) -> Tensor:
    """Rotates rays (1 or B, F, I, J, 3) by matrices (B, 3, 3), without a matrix product: autocast and TF32 round it."""
    columns = rotation[:, None, None, None].unbind(-1)
    return sum((column * rays[..., k : k + 1] for k, column in enumerate(columns)), rays.new_zeros(()))


def yaw_pitch(rays: Float[Tensor, "*n 3"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Yaw and pitch of directions, in radians."""
    x, y, z = rays.unbind(-1)
    horizontal = (x * x + z * z).clamp_min(1e-30).sqrt()  # its gradient at a pole is 0, that of hypot NaN
    return torch.atan2(x, z), torch.atan2(y, horizontal)


def as_tensor(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a tensor created on the device: a copy from the CPU would synchronise with it."""
    return value.to(device, dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=device)


def tan_half(fov: float) -> float:
    """Tangent of half a field of view in degrees.

    Raises:
        ValueError: If `fov` is not between 0° and 180°.
    """
    if not 0 < fov < 180:
        raise ValueError(f"fov is {fov}°: a field of view lies between 0° and 180°, both excluded")
    return math.tan(math.radians(fov) / 2)


def check_size(size: int, name: str) -> None:
    """Raises ValueError if a size in pixels is below 1."""
    if size < 1:
        raise ValueError(f"{name} is {size}: it must be at least 1 pixel")
