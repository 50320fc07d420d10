"""Projections between equirectangular panoramas and cubemaps (CubeDiff, section 3: cubemap representation, 95° faces).

Column j of an H × W panorama (W = 2H) looks at yaw ((j + ½)/W − ½)·360°, row i at pitch (½ − (i + ½)/H)·180°; faces are
those of `conventions`.

Images are float (any range) or uint8 and keep their dtype; half precision is sampled in float32. Bilinear point samples
of uint8 on the CPU, without rotation or blending, are OpenCV's (see `sampling`): exact to 1/32 pixel, and views of
channels-last memory. Grids and maps that are equal for all images are computed in float64 and cached.
"""

import math
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor

from cubediff.geometry import atlas as atlases
from cubediff.geometry import sampling
from cubediff.geometry.conventions import (
    FACE_FOV,
    check_size,
    face_directions,
    face_rays,
    rotate,
    sphere_directions,
    tan_half,
)

_BAND_PIXELS = 1 << 22  # samples of a panorama that are taken at once: about 200 MB with their positions and weights
_CPU = torch.device("cpu")


def equirect_to_cube(
    panorama: Real[Tensor, "b c h w"],
    size: int,
    fov: float = FACE_FOV,
    rotation: Float[Tensor, "b 3 3"] | None = None,
    *,
    mode: str = "bilinear",
    antialias: bool = True,
) -> Real[Tensor, "b 6 c s s"]:
    """Renders the six faces of panoramas.

    Args:
        panorama: (B, C, H, 2H), float in any range or uint8.
        size: Side of a face, in pixels.
        fov: Field of view of a face, in degrees.
        rotation: (B, 3, 3), maps directions in the cube's frame to the panorama's: with
            `rotation_matrix(yaw, pitch, roll)` the front face looks along that yaw and pitch. None: no rotation.
        mode: "bilinear" or "bicubic".
        antialias: Filter where faces are coarser than the panorama. False: one point sample a pixel.

    Returns:
        Faces (B, 6, C, S, S) in FACES order, in the panorama's dtype.

    Raises:
        ValueError: If a shape, `size`, `fov`, `mode` or the dtype is invalid.

    Example:
        >>> panorama = torch.rand(1, 3, 64, 128)
        >>> equirect_to_cube(panorama, size=32).shape
        torch.Size([1, 6, 3, 32, 32])
    """
    sampling.check_panorama(panorama)
    check_size(size, "size")
    batch, _, height, width = panorama.shape
    if rotation is not None and rotation.shape != (batch, 3, 3):
        raise ValueError(f"rotation must be (B, 3, 3) with B = {batch}, not {tuple(rotation.shape)}")
    work = sampling.work_dtype(panorama)
    ratio = width / math.pi * tan_half(fov) / size if antialias else 1.0
    supersampling = 2 if ratio > sampling.SUPERSAMPLE_ABOVE else 1
    if rotation is None and supersampling == 1 and sampling.can_remap(panorama, mode, width + 2, 6 * size):
        stack = sampling.remap(panorama[:, None], partial(sampling.fill_margin_, m=1), _cube_maps(size, fov, height))
        faces: Tensor = stack.unflatten(2, (6, size)).transpose(1, 2)
        return faces
    if batch > 1 and panorama.device.type == "cpu":  # one by one: a whole batch does not fit the caches
        rotations = [None] * batch if rotation is None else rotation.split(1)
        each = zip(panorama.split(1), rotations, strict=True)
        return torch.cat([equirect_to_cube(p, size, fov, r, mode=mode, antialias=antialias) for p, r in each])
    image, margin = sampling.pad_panorama(panorama, work, ratio)
    if rotation is None:
        grid = _cube_grid(supersampling * size, fov, height, margin, work, panorama.device)
    else:
        rays = face_rays(supersampling * size, fov, work, panorama.device)
        grid = sampling.panorama_grid(rotate(rays[None], rotation.to(panorama.device, work)), height, margin)
    if batch == 1:  # the faces become the batch, which the CPU's threads share
        faces = sampling.sample(image.expand(6, -1, -1, -1), grid[0], mode, supersampling)[None]
    else:
        grid = grid.flatten(1, 2).expand(batch, -1, -1, -1)
        faces = sampling.sample(image, grid, mode, supersampling).unflatten(2, (6, size)).transpose(1, 2)
    return sampling.to_pixels(faces, panorama.dtype)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _cube_grid(
    size: int, fov: float, height: int, margin: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "1 6 s s 2"]:
    return sampling.panorama_grid(face_directions(size, fov, torch.float64), height, margin)[None].to(device, dtype)


@lru_cache(maxsize=8)
def _cube_maps(size: int, fov: float, height: int) -> tuple[np.ndarray, np.ndarray]:
    grid = sampling.panorama_grid(face_directions(size, fov, torch.float64).flatten(0, 1), height, 1)
    return sampling.fixed_point(grid, height + 2, 2 * height + 2)


def cube_to_equirect(
    faces: Real[Tensor, "b f c i j"],
    height: int,
    fov: float = FACE_FOV,
    overlap: str = "blend",
    mode: str = "bilinear",
) -> Real[Tensor, "b c h w"]:
    """Renders panoramas from six faces; every panorama pixel is sampled from the faces by its direction.

    "crop" takes the face whose axis is nearest to the direction (the central 90°). "blend" weights all faces that see
    the direction: with t = tan(fov/2) and tangent-plane coordinates u, v on a face, that face weighs
    `clamp((t − max(|u|, |v|))/(t − 1), 0, 1)`, divided by the sum of the weights. A face alone has weight 1, two faces
    on their common edge ½ each, and weights fall to 0 at the border of a face. At fov = 90 both are equal.

    Where faces overlap by less than a pixel (always at fov = 90), samples in the outermost half pixel of a face are
    interpolated with the neighbouring face. A panorama coarser than the faces is rendered at a multiple of its height
    and averaged.

    Args:
        faces: (B, 6, C, S, S) in FACES order, float in any range or uint8.
        height: Height of the panorama, in pixels.
        fov: Field of view of a face, in degrees: at least 90, below 180.
        overlap: "blend" or "crop".
        mode: "bilinear" or "bicubic".

    Returns:
        Panoramas (B, C, height, 2·height), in the faces' dtype.

    Raises:
        ValueError: If a shape, `height`, `fov`, `overlap`, `mode` or the dtype is invalid.

    Example:
        >>> faces = torch.rand(1, 6, 3, 32, 32)
        >>> cube_to_equirect(faces, height=64).shape
        torch.Size([1, 3, 64, 128])
    """
    atlases.check_faces(faces, fov, overlap)
    check_size(height, "height")
    batch, size = faces.shape[0], faces.shape[-1]
    work = sampling.work_dtype(faces)
    tan = tan_half(fov)
    supersampling = 1
    while size * math.pi > sampling.SUPERSAMPLE_ABOVE * supersampling * 2 * height * tan:
        supersampling *= 2
    blend = overlap == "blend" and tan > 1 + 1e-9
    if supersampling == 1 and not blend and sampling.can_remap(faces, mode, 6 * (size + 2), 2 * height):
        fills_border = atlases.needs_border(size, fov)
        return sampling.remap(
            faces,
            partial(sampling.fill_border_, *_border_maps(size, fov)) if fills_border else lambda _: None,
            _sphere_maps(height, fov, size),
        )
    if batch > 1 and faces.device.type == "cpu":
        return torch.cat([cube_to_equirect(cube, height, fov, overlap, mode) for cube in faces.split(1)])
    margin = atlases.margin_of(mode)
    atlas = atlases.build_atlas(faces, fov, margin)
    rows = max(1, _BAND_PIXELS // (2 * height * supersampling**2))
    find = _sphere_grids if rows >= height else _sphere_grids.__wrapped__  # grids of many bands are too large to cache
    panorama = faces.new_empty(batch, faces.shape[2], height, 2 * height)
    for start in range(0, height, rows):
        end = min(start + rows, height)
        bounds = (supersampling * start, supersampling * end)
        grids = find(supersampling * height, bounds, fov, blend, size, margin, work, faces.device)
        panorama[:, :, start:end] = sampling.to_pixels(_sample_band(atlas, grids, mode, supersampling), faces.dtype)
    return panorama


def _sample_band(
    atlas: Tensor, grids: tuple[Tensor, atlases.Overlaps | None], mode: str, supersampling: int
) -> Float[Tensor, "b c rows w"]:
    """Some rows of panoramas."""
    grid, overlaps = grids
    height = grid.shape[1]
    if len(atlas) == 1:  # parts of the rows become the batch, which the CPU's threads share
        parts = grid[0].unflatten(0, (math.gcd(height, 8), -1))
        band = sampling.sample(atlas.expand(len(parts), -1, -1, -1), parts, mode).transpose(0, 1).flatten(1)[None]
    else:
        band = sampling.sample(atlas, grid.expand(len(atlas), -1, -1, -1), mode).flatten(2)
    if overlaps is not None:
        atlases.add_overlaps_(band, atlas, overlaps, mode)
    band = band.unflatten(2, (height, -1))
    return F.avg_pool2d(band, supersampling) if supersampling > 1 else band


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _sphere_grids(
    height: int,
    rows: tuple[int, int],
    fov: float,
    blend: bool,
    size: int,
    margin: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Float[Tensor, "1 i j 2"], atlases.Overlaps | None]:
    """Positions in the atlas of some rows of a panorama's pixels."""
    rays = sphere_directions(height, *rows).flatten(0, 1)
    nearest, overlaps = atlases.ray_grids(rays, fov, blend, size, margin, dtype)
    if overlaps is not None:
        overlaps = atlases.Overlaps(*(values.to(device) for values in overlaps))
    return nearest.to(device).view(1, -1, 2 * height, 2), overlaps


@lru_cache(maxsize=8)
def _sphere_maps(height: int, fov: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    grid, _ = _sphere_grids.__wrapped__(height, (0, height), fov, False, size, 1, torch.float64, _CPU)  # not cached
    return sampling.fixed_point(grid[0], 6 * (size + 2), size + 2)


@lru_cache(maxsize=8)
def _border_maps(size: int, fov: float) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    indices, grid = atlases.border_grid(size, fov, 1, torch.float64, torch.device("cpu"))
    return indices.numpy(), sampling.fixed_point(grid[0], 6 * (size + 2), size + 2)
