"""The ways between equirectangular panoramas, cubemaps and perspective views, and the conventions of `rays`
(CubeDiff, section 3: cubemap representation, 95° faces).

Column j of an H × W panorama (W = 2H) looks at yaw ((j + ½)/W − ½)·360°, row i at pitch (½ − (i + ½)/H)·180°; faces
are those of `rays`. Degrees at every public interface.

Images are float (any range) or uint8, and come back as they went in; half precision is sampled in float32. Bilinear
point samples of uint8 on the CPU, unturned and unblended, are OpenCV's (see `resample`): exact to 1/32 pixel, and
views of channels-last memory. Grids and maps that do not depend on the sample are built in float64 and kept.
"""

import math
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Real
from torch import Tensor

from cubediff.geometry import sampling as resample
from cubediff.geometry.conventions import (
    FACE_FOV,
    FACE_ORDERS,
    FACES,
    FRAMES,
    angles,
    check_size,
    face_directions,
    face_rays,
    on_device,
    position_map,
    reorder_faces,
    rotation_matrix,
    tan_half,
)

__all__ = [
    "FACES",
    "FACE_ORDERS",
    "cube_to_equirect",
    "equirect_to_cube",
    "equirect_to_perspective",
    "face_directions",
    "perspective_to_cube",
    "position_map",
    "reorder_faces",
    "rotation_matrix",
]

# ------------------------------------------------------------------------------- panorama to faces and views


def equirect_to_cube(
    panorama: Real[Tensor, "b c h w"],
    size: int,
    fov: float = FACE_FOV,
    rotation: Float[Tensor, "b 3 3"] | None = None,
    *,
    mode: str = "bilinear",
    antialias: bool = True,
) -> Real[Tensor, "b 6 c s s"]:
    """Six `size` × `size` faces of `fov` degrees of panoramas twice as wide as high.

    `rotation` takes a direction in the cube's frame to one in the panorama's: with rotation_matrix(yaw, pitch, roll)
    the front face looks along that yaw and pitch in the panorama. Without `antialias` every face pixel is one point
    sample, however coarse the faces are. `mode` is "bilinear" or "bicubic".
    """
    _check_panorama(panorama)
    check_size(size, "size")
    batch, _, height, width = panorama.shape
    if rotation is not None and rotation.shape != (batch, 3, 3):
        raise ValueError(f"rotation must be (B, 3, 3) with B = {batch}, not {tuple(rotation.shape)}")
    work = resample.work_dtype(panorama)
    ratio = width / math.pi * tan_half(fov) / size if antialias else 1.0
    fine = 2 if ratio > resample.COARSE else 1
    if rotation is None and fine == 1 and resample.remappable(panorama, mode, width + 2, 6 * size):
        faces = resample.remap(panorama[:, None], partial(resample.surround_, m=1), _cube_maps(size, fov, height))
        return faces.unflatten(2, (6, size)).transpose(1, 2)
    if batch > 1 and panorama.device.type == "cpu":  # one after the other: a whole batch leaves the caches
        turns = [None] * batch if rotation is None else rotation.split(1)
        each = zip(panorama.split(1), turns, strict=True)
        return torch.cat([equirect_to_cube(p, size, fov, r, mode=mode, antialias=antialias) for p, r in each])
    image, margin = resample.surrounded(panorama, work, ratio)
    if rotation is None:
        grid = _cube_grid(fine * size, fov, height, margin, work, panorama.device)
    else:
        rays = face_rays(fine * size, fov, work, panorama.device)
        grid = _panorama_grid(_turned(rays[None], rotation.to(panorama.device, work)), height, margin)
    if batch == 1:  # the CPU's threads share a batch: let it be the faces
        faces = resample.lookup(image.expand(6, -1, -1, -1), grid[0], mode, fine)[None]
    else:
        grid = grid.flatten(1, 2).expand(batch, -1, -1, -1)
        faces = resample.lookup(image, grid, mode, fine).unflatten(2, (6, size)).transpose(1, 2)
    return resample.restore(faces, panorama.dtype)


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

    `fov`, `yaw`, `pitch`, `roll` are floats or tensors of one value per view; a batch of one panorama serves all
    views. Pixels are square; the viewer turns as in `rotation_matrix`.
    """
    _check_panorama(panorama)
    rows, columns = (size, size) if isinstance(size, int) else size
    check_size(rows, "height")
    check_size(columns, "width")
    work = resample.work_dtype(panorama)
    device = panorama.device
    narrowest = min(tan_half(value) for value in (fov.flatten().tolist() if isinstance(fov, Tensor) else [fov]))
    half, *turns = (on_device(a, work, device) for a in (fov, yaw, pitch, roll))
    tan = torch.deg2rad(half / 2).tan()
    turn = rotation_matrix(*turns)
    views = max(panorama.shape[0], tan.numel(), turn.numel() // 9)
    height, width = panorama.shape[-2:]
    ratio = width / math.pi * narrowest / columns if antialias else 1.0
    fine = 2 if ratio > resample.COARSE else 1
    image, margin = resample.surrounded(panorama, work, ratio)
    x = (2 * torch.arange(fine * columns, dtype=work, device=device) + 1) / (fine * columns) - 1
    y = (fine * rows - 1 - 2 * torch.arange(fine * rows, dtype=work, device=device)) / (fine * columns)
    plane = torch.stack(torch.broadcast_tensors(x, y[:, None]), -1)
    rays = F.pad(plane * tan.reshape(-1, 1, 1, 1), (0, 1), value=1.0)
    rays = _turned(rays[:, None], turn.reshape(-1, 3, 3))[:, 0].expand(views, -1, -1, -1)
    sampled = resample.lookup(image.expand(views, -1, -1, -1), _panorama_grid(rays, height, margin), mode, fine)
    return resample.restore(sampled, panorama.dtype)


def perspective_to_cube(
    picture: Real[Tensor, "b c h w"],
    size: int,
    face_fov: float,
    fov: float | Tensor,
    yaw: float | Tensor = 0.0,
    pitch: float | Tensor = 0.0,
    roll: float | Tensor = 0.0,
    *,
    mode: str = "bilinear",
) -> tuple[Real[Tensor, "b 6 c s s"], Bool[Tensor, "b 6 1 s s"]]:
    """Puts pinhole pictures on the faces where `equirect_to_perspective` would have taken them: (faces, covered).

    `fov` is a picture's horizontal field of view, `face_fov` the faces'; degrees. `covered` is true where a pixel's
    centre looks into the picture. Around it the faces show its nearest border pixel, and the half behind the camera
    mirrors the half before it: the picture is continued over the whole sphere without a jump.
    """
    check_size(size, "size")
    batch, _, rows, columns = picture.shape
    work = resample.work_dtype(picture)
    narrowest = min(tan_half(value) for value in (fov.flatten().tolist() if isinstance(fov, Tensor) else [fov]))
    half, *turns = (on_device(a, work, picture.device) for a in (fov, yaw, pitch, roll))
    ratio = columns * tan_half(face_fov) / (size * narrowest)
    fine = 2 if ratio > resample.COARSE else 1
    image = picture.to(work)
    if (shrink := ratio / 4) > 1:
        smaller = [max(1, round(n / shrink)) for n in (rows, columns)]
        image = F.interpolate(image, smaller, mode="bilinear", antialias=True)
    tan = torch.deg2rad(half / 2).tan().reshape(-1, 1, 1, 1)
    extent = torch.stack([tan, tan * rows / columns], -1)  # of the picture on the plane one unit ahead
    inverse = rotation_matrix(*turns).reshape(-1, 3, 3).mT.expand(batch, 3, 3)

    def plane(samples: int) -> tuple[Tensor, Tensor]:
        """Coordinates in the picture, from −1 to 1 inside, of face pixels' directions; and which are ahead."""
        rays = face_rays(samples, face_fov, work, picture.device)
        x, y, z = _turned(rays[None], inverse).unbind(-1)
        return torch.stack([x, -y], -1) / z.abs().clamp_min(1e-12)[..., None] / extent, z > 0

    grid = plane(fine * size)[0].clamp(-1, 1)
    faces = resample.lookup(image, grid.flatten(1, 2), mode, fine).unflatten(2, (6, size)).transpose(1, 2)
    place, ahead = plane(size)
    covered = (place.abs().amax(-1) <= 1) & ahead
    return resample.restore(faces, picture.dtype), covered[:, :, None]


def _turned(rays: Tensor, rotation: Tensor) -> Tensor:
    """rotation (B, 3, 3) of rays (1 or B, F, I, J, 3); autocast and TF32 would coarsen a matrix product."""
    columns = rotation[:, None, None, None].unbind(-1)
    return sum((column * rays[..., k : k + 1] for k, column in enumerate(columns)), rays.new_zeros(()))


def _panorama_grid(rays: Tensor, height: int, margin: int) -> Tensor:
    """grid_sample coordinates of directions in a panorama with `margin` more pixels on every side."""
    yaw, pitch = angles(rays)
    across = yaw * (2 * height / (math.pi * (2 * height + 2 * margin)))
    down = pitch * (-2 * height / (math.pi * (height + 2 * margin)))
    return torch.stack([across, down], -1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _cube_grid(
    size: int, fov: float, height: int, margin: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "1 6 s s 2"]:
    return _panorama_grid(face_directions(size, fov, torch.float64), height, margin)[None].to(device, dtype)


@lru_cache(maxsize=8)
def _cube_maps(size: int, fov: float, height: int) -> tuple[np.ndarray, np.ndarray]:
    grid = _panorama_grid(face_directions(size, fov, torch.float64).flatten(0, 1), height, 1)
    return resample.fixed_point(grid, height + 2, 2 * height + 2)


# --------------------------------------------------------------------------------------- faces to panorama


def cube_to_equirect(
    faces: Real[Tensor, "b f c i j"],
    height: int,
    fov: float = FACE_FOV,
    overlap: str = "blend",
    mode: str = "bilinear",
) -> Real[Tensor, "b c h w"]:
    """The panorama of `height` × 2·`height` that six faces of `fov` ≥ 90 degrees show, sampled by direction.

    "crop": the face whose axis is nearest to the direction wins (the central 90°). "blend": with t = tan(fov/2) and a
    direction's tangent-plane coordinates u, v on a face, that face weighs clamp((t − max(|u|, |v|))/(t − 1), 0, 1),
    divided by the sum over the faces that see the direction; so a face alone has weight 1, two faces on their common
    edge ½ each, and weights fall to 0 at the face's border. At fov = 90 there is no overlap and both are the same.

    Where faces overlap by less than a pixel (at fov = 90 above all) a sample in the outermost half pixel of one is
    interpolated with the neighbouring face. A panorama coarser than the faces is rendered at twice its height, and
    again, then averaged.
    """
    if faces.ndim != 5 or faces.shape[1] != 6 or faces.shape[-1] != faces.shape[-2]:
        raise ValueError(f"faces must be (B, 6, C, S, S), not {tuple(faces.shape)}")
    if overlap not in ("blend", "crop"):
        raise ValueError(f"unknown overlap {overlap!r}: use 'blend' or 'crop'")
    if not 90 <= fov < 180:
        raise ValueError(f"fov is {fov}°: six faces cover the sphere from 90° on, and must stay below 180°")
    check_size(height, "height")
    batch, size = faces.shape[0], faces.shape[-1]
    work = resample.work_dtype(faces)
    tan = tan_half(fov)
    fine = 1
    while size * math.pi > resample.COARSE * fine * 2 * height * tan:
        fine *= 2
    blends = overlap == "blend" and tan > 1 + 1e-9
    joins = tan * (1 - 1 / size) < 1
    if fine == 1 and not blends and resample.remappable(faces, mode, 6 * (size + 2), 2 * height):
        return resample.remap(
            faces,
            partial(resample.refill_, *_border_maps(size, fov)) if joins else lambda _: None,
            _sphere_maps(height, fov, size),
        )
    if batch > 1 and faces.device.type == "cpu":
        return torch.cat([cube_to_equirect(cube, height, fov, overlap, mode) for cube in faces.split(1)])
    margin = 2 if mode == "bicubic" else 1  # how far a sample at the face's border reads beyond it
    atlas = F.pad(faces.to(work).flatten(0, 1), (margin,) * 4, mode="replicate")
    atlas = atlas.unflatten(0, (batch, 6)).transpose(1, 2).flatten(2, 3)  # (B, C, 6·(S + 2·margin), S + 2·margin)
    if joins:
        where, grid = _border_grid(size, fov, margin, work, faces.device)
        border = resample.lookup(atlas, grid.expand(batch, -1, -1, -1), "bilinear").flatten(2)
        atlas = atlas.flatten(2).index_copy(2, where, border).view_as(atlas)
    grid, overlaps = _sphere_grids(fine * height, fov, blends, size, margin, work, faces.device)
    if batch == 1:
        bands = grid[0].unflatten(0, (math.gcd(height, 8), -1))
        panorama = resample.lookup(atlas.expand(len(bands), -1, -1, -1), bands, mode).transpose(0, 1).flatten(1)[None]
    else:
        panorama = resample.lookup(atlas, grid.expand(batch, -1, -1, -1), mode).flatten(2)
    if overlaps is not None:
        where, grid, weight = overlaps
        other = resample.lookup(atlas, grid.expand(batch, -1, -1, -1), mode).flatten(2)
        panorama.index_add_(2, where, (other - panorama[..., where]) * weight)
    panorama = panorama.unflatten(2, (fine * height, -1))
    return resample.restore(F.avg_pool2d(panorama, fine) if fine > 1 else panorama, faces.dtype)


def _on_faces(rays: Tensor, size: int, tan: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The three faces nearest to directions (N, 3), how far from their axes, and column and row there: (3, N) each."""
    local = torch.einsum("fkw,nw->kfn", torch.tensor(FRAMES, dtype=torch.float64), rays)
    u, v = local[:2] / local[2]  # (6, N) each
    reach = torch.where(local[2] > 0, torch.maximum(u.abs(), v.abs()), torch.inf)
    reach, face = reach.topk(3, 0, largest=False)
    column, row = ((w.gather(0, face) / tan + 1) / 2 * size - 0.5 for w in (u, -v))
    return face, reach, column, row


def _atlas_grid(face: Tensor, column: Tensor, row: Tensor, size: int, margin: int) -> Tensor:
    """grid_sample coordinates in six faces below each other, each with `margin` more pixels on every side."""
    edge = size + 2 * margin
    x, y = (column + margin + 0.5) / edge, (row + margin + 0.5 + face * edge) / (6 * edge)
    return torch.stack([x, y], -1) * 2 - 1


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _sphere_grids(
    height: int, fov: float, blends: bool, size: int, margin: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Where panorama pixels lie in the atlas of padded faces: the grid of every pixel on its nearest face; and, if the
    faces blend, (pixel indices, grid, weights) on the second and third face that see some of them too."""
    tan = tan_half(fov)
    step = math.pi / height
    yaw = (torch.arange(2 * height, dtype=torch.float64) + 0.5) * step - math.pi
    pitch = math.pi / 2 - (torch.arange(height, dtype=torch.float64)[:, None] + 0.5) * step
    rays = torch.stack(torch.broadcast_tensors(pitch.cos() * yaw.sin(), pitch.sin(), pitch.cos() * yaw.cos()), -1)
    face, reach, column, row = _on_faces(rays.flatten(0, 1), size, tan)
    grids = _atlas_grid(face, column, row, size, margin).to(device, dtype)
    nearest = grids[0].view(1, height, 2 * height, 2)
    if not blends:
        return nearest, None
    weights = ((tan - reach) / (tan - 1)).clamp(0, 1)
    weights = (weights / weights.sum(0))[1:].to(device, dtype)
    rank, where = weights.nonzero(as_tuple=True)
    return nearest, (where, grids[1:][rank, where][None, None], weights[rank, where])


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _border_grid(
    size: int, fov: float, margin: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Float[Tensor, "1 i j 2"]]:
    """The pixels around each face in the atlas of padded faces: their indices, and the atlas grid of where the nearest
    face sees what they would."""
    edge = size + 2 * margin
    wide = math.degrees(2 * math.atan(tan_half(fov) * edge / size))
    around = torch.ones(6, edge, edge, dtype=torch.bool)
    around[:, margin:-margin, margin:-margin] = False
    rays = face_directions(edge, wide, torch.float64)[around]
    face, _, column, row = _on_faces(rays, size, tan_half(fov))
    grid = _atlas_grid(face[0], column[0].clamp(0, size - 1), row[0].clamp(0, size - 1), size, margin)
    where = around.flatten().nonzero()[:, 0]
    return where.to(device), grid.view(1, 24, -1, 2).to(device, dtype)


@lru_cache(maxsize=8)
def _sphere_maps(height: int, fov: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    grid, _ = _sphere_grids.__wrapped__(height, fov, False, size, 1, torch.float64, torch.device("cpu"))  # not kept
    return resample.fixed_point(grid[0], 6 * (size + 2), size + 2)


@lru_cache(maxsize=8)
def _border_maps(size: int, fov: float) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    where, grid = _border_grid(size, fov, 1, torch.float64, torch.device("cpu"))
    return where.numpy(), resample.fixed_point(grid[0], 6 * (size + 2), size + 2)


# ----------------------------------------------------------------------------------------------- checks


def _check_panorama(panorama: Tensor) -> None:
    if panorama.ndim != 4 or panorama.shape[-1] != 2 * panorama.shape[-2] or panorama.shape[-2] == 0:
        raise ValueError(f"a panorama must be (B, C, H, 2H), twice as wide as high, not {tuple(panorama.shape)}")
