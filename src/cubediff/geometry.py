"""Face order, rays, and the ways between equirectangular panoramas, cubemaps and perspective views
(CubeDiff, section 3: cubemap representation, 95° faces, positional encoding).

World: x right, y up, z forward. Column j of an H × W panorama (W = 2H) looks at yaw ((j + ½)/W − ½)·360°, row
i at pitch (½ − (i + ½)/H)·180°. Pixel (i, j) of an S × S face with t = tan(fov/2) looks along x = t·((2j +
1)/S − 1), y = −t·((2i + 1)/S − 1), z = 1, turned to its face. Degrees at every public interface. Images are
float (any range) or uint8; half precision is sampled in float32, because a half-precision sampling grid is
off by whole pixels. Grids that do not depend on the sample are built in float64 and kept.

Anti-aliasing: where an output pixel spans more than 1.25 source pixels it is the mean of 2 × 2 samples; a
panorama is first low-passed to at most 4 of its pixels per view-centre pixel (a triangle filter; more would
blur the corners of a face, whose pixels are three times finer than its centre's). 1024-wide panoramas to
64-pixel faces of 95°, against 24 × 24 samples a pixel (dB; 8 real panoramas, 3 zone plates, white noise):
point samples 31.4/21.6/15.2, low-pass to 2 and one sample 40.4/24.7/29.4, to 4 and 2 × 2 samples
48.5/39.2/33.2.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor

FACES = ("front", "right", "back", "left", "up", "down")

# Rows of each face's frame: where its image's right, its image's top and its centre point to in the world.
_FRAMES = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
)

# Every order below turns its faces as FACES does: py360convert since 1.0, OpenGL's sc/tc/ma table read with
# this module's axes, the public SD 1.5 checkpoints. So an order is a permutation and nothing is flipped.
FACE_ORDERS = {
    "cubediff": FACES,
    "py360convert": ("front", "right", "back", "left", "up", "down"),
    "opengl": ("right", "left", "up", "down", "front", "back"),
    "opencubediff": ("front", "back", "left", "right", "up", "down"),
}

_COARSE = 1.25  # source pixels per output pixel, at a face's centre, from which an output pixel is an average


# ------------------------------------------------------------------------------------------------ rays


def face_directions(size: int, fov: float = 95.0, dtype: torch.dtype = torch.float32) -> Float[Tensor, "6 s s 3"]:
    """Unit vectors through the pixel centres of six `size` × `size` faces of `fov` degrees, in FACES order.

    Samples that lie on the face's border instead (linspace with both ends, as py360convert and the public SD
    1.5 checkpoints have it) are those of the field of view f' with tan(f'/2) = tan(fov/2)·S/(S − 1).
    """
    tan = _tan_half(fov)
    _check_size(size, "size")
    across = tan * ((2 * torch.arange(size, dtype=torch.float64) + 1) / size - 1)
    plane = torch.stack([across.expand(size, size), -across[:, None].expand(size, size), torch.ones(size, size)], -1)
    rays = torch.einsum("ijk,fkw->fijw", plane, torch.tensor(_FRAMES, dtype=torch.float64))
    return F.normalize(rays, dim=-1).to(dtype)


def rotation_matrix(
    yaw: float | Tensor, pitch: float | Tensor = 0.0, roll: float | Tensor = 0.0
) -> Float[Tensor, "*batch 3 3"]:
    """The matrix that turns a viewer: yaw to the right, pitch up, roll clockwise as the viewer sees it
    (degrees).

    Maps a direction in the viewer's frame to one in the world: yaw(pitch(roll(direction))), so that the front
    axis goes to that yaw and pitch whatever the roll. Tensors and floats broadcast against each other.
    """
    tensors = [a for a in (yaw, pitch, roll) if isinstance(a, Tensor)]
    like = tensors[0] if tensors else torch.zeros(())
    angles = [torch.as_tensor(a, dtype=like.dtype, device=like.device) for a in (yaw, pitch, roll)]
    y, p, r = torch.broadcast_tensors(*(torch.deg2rad(a) for a in angles))
    (sy, cy), (sp, cp), (sr, cr) = ((a.sin(), a.cos()) for a in (y, p, r))
    right = [cy * cr + sy * sp * sr, -cp * sr, -sy * cr + cy * sp * sr]
    up = [cy * sr - sy * sp * cr, cp * cr, -sy * sr - cy * sp * cr]
    front = [sy * cp, sp, cy * cp]
    return torch.stack([torch.stack(axis, -1) for axis in (right, up, front)], -1)


def position_map(size: int, fov: float = 95.0, encoding: str = "uv") -> Float[Tensor, "6 c s s"]:
    """Where each face pixel looks, as channels: "uv" (yaw/2π + ½, pitch/π + ½), "uv_pi" (pitch/2π + ½
    instead, as the public SD 1.5 checkpoints have it), or "xyz" (the unit direction, which does not jump
    behind the viewer)."""
    rays = face_directions(size, fov, torch.float64)
    if encoding == "xyz":
        channels = rays
    elif encoding in ("uv", "uv_pi"):
        yaw, pitch = _angles(rays)
        channels = torch.stack([yaw / math.tau + 0.5, pitch / (math.pi if encoding == "uv" else math.tau) + 0.5], -1)
    else:
        raise ValueError(f"unknown position encoding {encoding!r}: use 'uv', 'uv_pi' or 'xyz'")
    return channels.movedim(-1, 1).float().contiguous()


def reorder_faces(faces: Tensor, source: str, target: str) -> Tensor:
    """Faces (B, 6, C, S, S) given in the order `source`, in the order `target` (names: FACE_ORDERS).

    "opengl" is +x −x +y −y +z −z as the cube-map table of the OpenGL specification looks it up with a
    direction in this module's axes; a right-handed scene that looks along −z has to negate z first.
    """
    for name in (source, target):
        if name not in FACE_ORDERS:
            raise ValueError(f"unknown face order {name!r}: use one of {', '.join(FACE_ORDERS)}")
    if faces.ndim != 5 or faces.shape[1] != 6:
        raise ValueError(f"faces must be (B, 6, C, S, S), not {tuple(faces.shape)}")
    return faces[:, [FACE_ORDERS[source].index(name) for name in FACE_ORDERS[target]]]


# ------------------------------------------------------------------------------- panorama to faces and views


def equirect_to_cube(
    panorama: Real[Tensor, "b c h w"],
    size: int,
    fov: float = 95.0,
    rotation: Float[Tensor, "b 3 3"] | None = None,
    *,
    mode: str = "bilinear",
    antialias: bool = True,
) -> Real[Tensor, "b 6 c s s"]:
    """Six `size` × `size` faces of `fov` degrees of panoramas twice as wide as high.

    `rotation` takes a direction in the cube's frame to one in the panorama's: with rotation_matrix(yaw,
    pitch, roll) the front face looks along that yaw and pitch in the panorama. Without `antialias` every face
    pixel is one point sample, however coarse the faces are. `mode` is "bilinear" or "bicubic".
    """
    _check_panorama(panorama)
    _check_size(size, "size")
    batch, _, height, width = panorama.shape
    if rotation is not None and rotation.shape != (batch, 3, 3):
        raise ValueError(f"rotation must be (B, 3, 3) with B = {batch}, not {tuple(rotation.shape)}")
    if batch > 1 and panorama.device.type == "cpu":  # one after the other: a whole batch leaves the caches
        turns = [None] * batch if rotation is None else rotation.split(1)
        each = zip(panorama.split(1), turns, strict=True)
        return torch.cat([equirect_to_cube(p, size, fov, r, mode=mode, antialias=antialias) for p, r in each])
    work = _work_dtype(panorama)
    ratio = width / math.pi * _tan_half(fov) / size if antialias else 1.0
    image, margin, fine = _prepared(panorama, work, ratio)
    if rotation is None:
        grid = _cube_grid(fine * size, fov, height, margin, work, panorama.device)
    else:
        rays = face_directions(fine * size, fov, torch.float64).to(panorama.device, work)
        grid = _panorama_grid(_turned(rays[None], rotation.to(panorama.device, work)), height, margin)
    if batch == 1:  # the CPU's threads share a batch: let it be the faces
        faces = _lookup(image.expand(6, -1, -1, -1), grid[0], mode, fine)[None]
    else:
        grid = grid.flatten(1, 2).expand(batch, -1, -1, -1)
        faces = _lookup(image, grid, mode, fine).unflatten(2, (6, size)).transpose(1, 2)
    return _restore(faces, panorama.dtype)


def equirect_to_perspective(
    panorama: Real[Tensor, "#b c h w"],
    size: int | tuple[int, int],
    fov: float | Tensor,
    yaw: float | Tensor,
    pitch: float | Tensor = 0.0,
    roll: float | Tensor = 0.0,
    *,
    mode: str = "bilinear",
    antialias: bool = True,
) -> Real[Tensor, "b c s t"]:
    """Pinhole views of `size` (one side, or (height, width)) with horizontal field of view `fov`, in degrees.

    `fov`, `yaw`, `pitch`, `roll` are floats or tensors of one value per view; a batch of one panorama serves
    all views. Pixels are square; the viewer turns as in `rotation_matrix`.
    """
    _check_panorama(panorama)
    rows, columns = (size, size) if isinstance(size, int) else size
    _check_size(rows, "height")
    _check_size(columns, "width")
    work = _work_dtype(panorama)
    device = panorama.device
    narrowest = min(_tan_half(value) for value in (fov.flatten().tolist() if isinstance(fov, Tensor) else [fov]))
    half, *turns = (torch.as_tensor(a, dtype=work, device=device) for a in (fov, yaw, pitch, roll))
    tan = torch.deg2rad(half / 2).tan()
    turn = rotation_matrix(*turns)
    views = max(panorama.shape[0], tan.numel(), turn.numel() // 9)
    height, width = panorama.shape[-2:]
    ratio = width / math.pi * narrowest / columns if antialias else 1.0
    image, margin, fine = _prepared(panorama, work, ratio)
    x = (2 * torch.arange(fine * columns, dtype=work, device=device) + 1) / (fine * columns) - 1
    y = (fine * rows - 1 - 2 * torch.arange(fine * rows, dtype=work, device=device)) / (fine * columns)
    plane = torch.stack(torch.broadcast_tensors(x, y[:, None]), -1)
    rays = F.pad(plane * tan.reshape(-1, 1, 1, 1), (0, 1), value=1.0)
    rays = _turned(rays[:, None], turn.reshape(-1, 3, 3))[:, 0].expand(views, -1, -1, -1)
    sampled = _lookup(image.expand(views, -1, -1, -1), _panorama_grid(rays, height, margin), mode, fine)
    return _restore(sampled, panorama.dtype)


# --------------------------------------------------------------------------------------- faces to panorama


def cube_to_equirect(
    faces: Real[Tensor, "b f c i j"],
    height: int,
    fov: float = 95.0,
    overlap: str = "blend",
    mode: str = "bilinear",
) -> Real[Tensor, "b c h w"]:
    """The panorama of `height` × 2·`height` that six faces of `fov` ≥ 90 degrees show, sampled by direction.

    "crop": the face whose axis is nearest to the direction wins (the central 90°). "blend": with t =
    tan(fov/2) and a direction's tangent-plane coordinates u, v on a face, that face weighs clamp((t −
    max(|u|, |v|))/(t − 1), 0, 1), divided by the sum over the faces that see the direction; so a face alone
    has weight 1, two faces on their common edge ½ each, and weights fall to 0 at the face's border. At fov =
    90 there is no overlap and both are the same.

    A panorama coarser than the faces is rendered at twice its height, and again, then averaged.
    """
    if faces.ndim != 5 or faces.shape[1] != 6 or faces.shape[-1] != faces.shape[-2]:
        raise ValueError(f"faces must be (B, 6, C, S, S), not {tuple(faces.shape)}")
    if overlap not in ("blend", "crop"):
        raise ValueError(f"unknown overlap {overlap!r}: use 'blend' or 'crop'")
    if not 90 <= fov < 180:
        raise ValueError(f"fov is {fov}°: six faces cover the sphere from 90° on, and must stay below 180°")
    _check_size(height, "height")
    batch, size = faces.shape[0], faces.shape[-1]
    if batch > 1 and faces.device.type == "cpu":
        return torch.cat([cube_to_equirect(cube, height, fov, overlap, mode) for cube in faces.split(1)])
    work = _work_dtype(faces)
    fine = 1
    while size * math.pi > _COARSE * fine * 2 * height * _tan_half(fov):
        fine *= 2
    margin = 2  # a bicubic sample at the face's border reads two pixels beyond it
    atlas = F.pad(faces.to(work).flatten(0, 1), (margin,) * 4, mode="replicate")
    atlas = atlas.unflatten(0, (batch, 6)).transpose(1, 2).flatten(2, 3)  # (B, C, 6·(S + 4), S + 4)
    (_, grid, _), *overlapping = _cube_layers(fine * height, fov, overlap, size, margin, work, faces.device)
    if batch == 1:
        bands = grid[0].unflatten(0, (math.gcd(height, 8), -1))
        nearest = _lookup(atlas.expand(len(bands), -1, -1, -1), bands, mode).transpose(0, 1).flatten(1)[None]
    else:
        nearest = _lookup(atlas, grid.expand(batch, -1, -1, -1), mode).flatten(2)
    panorama = nearest
    for where, grid, weight in overlapping:
        other = _lookup(atlas, grid.expand(batch, -1, -1, -1), mode).flatten(2)
        panorama = panorama.index_add(2, where, (other - nearest[..., where]) * weight)
    panorama = panorama.unflatten(2, (fine * height, -1))
    return _restore(F.avg_pool2d(panorama, fine) if fine > 1 else panorama, faces.dtype)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _cube_layers(
    height: int, fov: float, overlap: str, size: int, margin: int, dtype: torch.dtype, device: torch.device
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Where panorama pixels lie in the atlas of padded faces: (pixel indices, atlas grid, weights) for every
    pixel on its nearest face, then for those that a second and a third face see too."""
    tan = _tan_half(fov)
    step = math.pi / height
    yaw = (torch.arange(2 * height, dtype=torch.float64) + 0.5) * step - math.pi
    pitch = math.pi / 2 - (torch.arange(height, dtype=torch.float64)[:, None] + 0.5) * step
    rays = torch.stack(torch.broadcast_tensors(pitch.cos() * yaw.sin(), pitch.sin(), pitch.cos() * yaw.cos()), -1)
    local = torch.einsum("fkw,nw->kfn", torch.tensor(_FRAMES, dtype=torch.float64), rays.flatten(0, 1))
    u, v = local[:2] / local[2]  # (6, N) each
    reach = torch.where(local[2] > 0, torch.maximum(u.abs(), v.abs()), torch.inf)
    reach, face = reach.topk(3, 0, largest=False)
    blends = overlap == "blend" and tan > 1 + 1e-9
    weights = ((tan - reach) / (tan - 1)).clamp(0, 1) if blends else (reach == reach[0]).double()
    weights = weights / weights.sum(0)
    edge = size + 2 * margin
    x = ((u.gather(0, face) / tan + 1) / 2 * size + margin) / edge
    y = ((1 - v.gather(0, face) / tan) / 2 * size + margin + face * edge) / (6 * edge)
    grids = (torch.stack([x, y], -1) * 2 - 1).to(dtype)
    layers = [(torch.arange(x.shape[1]), grids[0].view(1, height, 2 * height, 2), weights[0])]
    for rank in (1, 2) if blends else ():
        where = weights[rank].nonzero()[:, 0]
        layers.append((where, grids[rank, where][None, None], weights[rank, where].to(dtype)))
    return [(where.to(device), grid.to(device), weight.to(device)) for where, grid, weight in layers]


# --------------------------------------------------------------------------------------------- sampling


def _angles(rays: Tensor) -> tuple[Tensor, Tensor]:
    x, y, z = rays.unbind(-1)
    level = (x * x + z * z).clamp_min(1e-30).sqrt()  # its gradient at a pole is 0, that of hypot NaN
    return torch.atan2(x, z), torch.atan2(y, level)


def _turned(rays: Tensor, rotation: Tensor) -> Tensor:
    """rotation (B, 3, 3) of rays (1 or B, F, I, J, 3); autocast and TF32 would coarsen a matrix product."""
    columns = rotation[:, None, None, None].unbind(-1)
    return sum((column * rays[..., k : k + 1] for k, column in enumerate(columns)), rays.new_zeros(()))


def _panorama_grid(rays: Tensor, height: int, margin: int) -> Tensor:
    """grid_sample coordinates of directions in a panorama with `margin` more pixels on every side."""
    yaw, pitch = _angles(rays)
    across = yaw * (2 * height / (math.pi * (2 * height + 2 * margin)))
    down = pitch * (-2 * height / (math.pi * (height + 2 * margin)))
    return torch.stack([across, down], -1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _cube_grid(
    size: int, fov: float, height: int, margin: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "1 6 s s 2"]:
    return _panorama_grid(face_directions(size, fov, torch.float64), height, margin)[None].to(device, dtype)


def _prepared(panorama: Tensor, work: torch.dtype, ratio: float) -> tuple[Tensor, int, int]:
    """The panorama with its surroundings, their width in its pixels, and how many samples to take across a
    pixel.

    Columns wrap around; rows beyond a pole are the rows before it, half a turn away. A panorama with `ratio`
    > 4 pixels per view-centre pixel is resized together with its surroundings: normalised coordinates stay
    the same.
    """
    height, width = panorama.shape[-2:]
    shrink = max(1.0, ratio / 4)
    m = min(2 if shrink == 1 else math.ceil(5 * shrink), height)
    image = panorama.new_empty((*panorama.shape[:2], height + 2 * m, width + 2 * m), dtype=work)
    image[..., m:-m, m:-m] = panorama
    image[..., :m, m:-m] = panorama[..., :m, :].flip(-2).roll(width // 2, -1)
    image[..., -m:, m:-m] = panorama[..., -m:, :].flip(-2).roll(width // 2, -1)
    image[..., :m] = image[..., width : width + m].clone()
    image[..., -m:] = image[..., m : 2 * m].clone()
    if shrink > 1:
        image = F.interpolate(image, [round(n / shrink) for n in image.shape[-2:]], mode="bilinear", antialias=True)
    return image, m, 2 if ratio > _COARSE else 1


def _lookup(image: Tensor, grid: Tensor, mode: str, fine: int = 1) -> Tensor:
    if mode not in ("bilinear", "bicubic"):
        raise ValueError(f"unknown interpolation mode {mode!r}: use 'bilinear' or 'bicubic'")
    sampled = F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, fine) if fine > 1 else sampled


def _work_dtype(image: Tensor) -> torch.dtype:
    if not (image.is_floating_point() or image.dtype == torch.uint8):
        raise ValueError(f"pixels must be float or uint8, not {image.dtype}: convert them first")
    return torch.float64 if image.dtype == torch.float64 else torch.float32


def _restore(image: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.uint8:
        image = image.round_().clamp_(0, 255)
    return image.to(dtype).contiguous()


# ----------------------------------------------------------------------------------------------- checks


def _tan_half(fov: float) -> float:
    if not 0 < fov < 180:
        raise ValueError(f"fov is {fov}°: a face's field of view lies between 0° and 180°, both excluded")
    return math.tan(math.radians(fov) / 2)


def _check_panorama(panorama: Tensor) -> None:
    if panorama.ndim != 4 or panorama.shape[-1] != 2 * panorama.shape[-2] or panorama.shape[-2] == 0:
        raise ValueError(f"a panorama must be (B, C, H, 2H), twice as wide as high, not {tuple(panorama.shape)}")


def _check_size(size: int, name: str) -> None:
    if size < 1:
        raise ValueError(f"{name} is {size}: it must be at least 1 pixel")
