"""The conventions, in one place: face order, where every pixel looks, how a viewer turns, orders in use elsewhere
(CubeDiff, section 3: cubemap representation, 95° faces, positional encoding).

World: x right, y up, z forward. Pixel (i, j) of an S × S face with t = tan(fov/2) looks along x = t·((2j + 1)/S − 1),
y = −t·((2i + 1)/S − 1), z = 1, turned to its face. Degrees at every public interface.
"""

import math
from functools import lru_cache
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FACE_FOV: Final = 95.0  # degrees; 5° more than a quarter turn, so that neighbouring faces overlap (section 3)

FACES = ("front", "right", "back", "left", "up", "down")

# Rows of each face's frame: where its image's right, its image's top and its centre point to in the world.
FRAMES = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
)

# Every order below turns its faces as FACES does: py360convert since 1.0, OpenGL's sc/tc/ma table read with this
# module's axes, the public SD 1.5 checkpoints. So an order is a permutation and nothing is flipped.
FACE_ORDERS = {
    "cubediff": FACES,
    "py360convert": ("front", "right", "back", "left", "up", "down"),
    "opengl": ("right", "left", "up", "down", "front", "back"),
    "opencubediff": ("front", "back", "left", "right", "up", "down"),
}


def face_directions(size: int, fov: float = FACE_FOV, dtype: torch.dtype = torch.float32) -> Float[Tensor, "6 s s 3"]:
    """Unit vectors through the pixel centres of six `size` × `size` faces of `fov` degrees, in FACES order.

    Samples that lie on the face's border instead (linspace with both ends, as py360convert and the public SD 1.5
    checkpoints have it) are those of the field of view f' with tan(f'/2) = tan(fov/2)·S/(S − 1).
    """
    tan = tan_half(fov)
    check_size(size, "size")
    across = tan * ((2 * torch.arange(size, dtype=torch.float64) + 1) / size - 1)
    plane = torch.stack([across.expand(size, size), -across[:, None].expand(size, size), torch.ones(size, size)], -1)
    rays = torch.einsum("ijk,fkw->fijw", plane, torch.tensor(FRAMES, dtype=torch.float64))
    return F.normalize(rays, dim=-1).to(dtype)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def face_rays(size: int, fov: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "6 s s 3"]:
    """`face_directions`, kept on the device."""
    return face_directions(size, fov, torch.float64).to(device, dtype)


def rotation_matrix(
    yaw: float | Tensor, pitch: float | Tensor = 0.0, roll: float | Tensor = 0.0
) -> Float[Tensor, "*batch 3 3"]:
    """The matrix that turns a viewer: yaw to the right, pitch up, roll clockwise as the viewer sees it (degrees).

    Maps a direction in the viewer's frame to one in the world: yaw(pitch(roll(direction))), so that the front axis goes
    to that yaw and pitch whatever the roll. Tensors and floats broadcast against each other.
    """
    tensors = [a for a in (yaw, pitch, roll) if isinstance(a, Tensor)]
    like = tensors[0] if tensors else torch.zeros(())
    angles = [on_device(a, like.dtype, like.device) for a in (yaw, pitch, roll)]
    y, p, r = torch.broadcast_tensors(*(torch.deg2rad(a) for a in angles))
    (sy, cy), (sp, cp), (sr, cr) = ((a.sin(), a.cos()) for a in (y, p, r))
    right = [cy * cr + sy * sp * sr, -cp * sr, -sy * cr + cy * sp * sr]
    up = [cy * sr - sy * sp * cr, cp * cr, -sy * sr - cy * sp * cr]
    front = [sy * cp, sp, cy * cp]
    return torch.stack([torch.stack(axis, -1) for axis in (right, up, front)], -1)


def position_map(
    size: int, fov: float = FACE_FOV, encoding: str = "uv", samples: str = "centers"
) -> Float[Tensor, "6 c s s"]:
    """Where each face pixel looks, as channels: "uv" (yaw/2π + ½, pitch/π + ½), "uv_pi" (pitch/2π + ½ instead), or
    "xyz" (the unit direction, which does not jump behind the viewer).

    samples: "centers" of the pixels, or "corners": samples whose outermost lie on the face's border. The public SD 1.5
    checkpoints have "uv_pi" at "corners".
    """
    if samples == "corners":
        fov = math.degrees(2 * math.atan(tan_half(fov) * size / (size - 1)))
    elif samples != "centers":
        raise ValueError(f"unknown position samples {samples!r}: use 'centers' or 'corners'")
    rays = face_directions(size, fov, torch.float64)
    if encoding == "xyz":
        channels = rays
    elif encoding in ("uv", "uv_pi"):
        yaw, pitch = angles(rays)
        channels = torch.stack([yaw / math.tau + 0.5, pitch / (math.pi if encoding == "uv" else math.tau) + 0.5], -1)
    else:
        raise ValueError(f"unknown position encoding {encoding!r}: use 'uv', 'uv_pi' or 'xyz'")
    return channels.movedim(-1, 1).float().contiguous()


def reorder_faces(faces: Tensor, source: str, target: str) -> Tensor:
    """Faces (B, 6, C, S, S) given in the order `source`, in the order `target` (names: FACE_ORDERS).

    "opengl" is +x −x +y −y +z −z as the cube-map table of the OpenGL specification looks it up with a direction in this
    module's axes; a right-handed scene that looks along −z has to negate z first.
    """
    for name in (source, target):
        if name not in FACE_ORDERS:
            raise ValueError(f"unknown face order {name!r}: use one of {', '.join(FACE_ORDERS)}")
    if faces.ndim != 5 or faces.shape[1] != 6:
        raise ValueError(f"faces must be (B, 6, C, S, S), not {tuple(faces.shape)}")
    return faces[:, [FACE_ORDERS[source].index(name) for name in FACE_ORDERS[target]]]


def angles(rays: Float[Tensor, "*n 3"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Yaw and pitch of directions, in radians."""
    x, y, z = rays.unbind(-1)
    level = (x * x + z * z).clamp_min(1e-30).sqrt()  # its gradient at a pole is 0, that of hypot NaN
    return torch.atan2(x, z), torch.atan2(y, level)


def on_device(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a tensor that is made where it is needed: a copy of it would wait for the device."""
    return value.to(device, dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=device)


def tan_half(fov: float) -> float:
    if not 0 < fov < 180:
        raise ValueError(f"fov is {fov}°: a field of view lies between 0° and 180°, both excluded")
    return math.tan(math.radians(fov) / 2)


def check_size(size: int, name: str) -> None:
    if size < 1:
        raise ValueError(f"{name} is {size}: it must be at least 1 pixel")
