"""Projections between pinhole views and panoramas or cubemaps, by the conventions of `projections`.

They render photos from panoramas, and project photos onto the faces (CubeDiff, section 4.3: image conditioning).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Real
from torch import Tensor

from cubediff.geometry import sampling
from cubediff.geometry.conventions import (
    as_tensor,
    check_size,
    face_rays,
    rotate,
    rotation_matrix,
    sphere_directions,
    tan_half,
)


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
    """Renders pinhole views of panoramas.

    `fov`, `yaw`, `pitch` and `roll` are floats, or tensors (V,) with a value per view; one panorama serves all views.

    Args:
        panorama: (B, C, H, 2H) with B = V or 1, float in any range or uint8.
        size: Side of a view, or (height, width), in pixels, which are square.
        fov: Horizontal field of view, in degrees.
        yaw: Direction of the view, to the right, in degrees (see `rotation_matrix`).
        pitch: Elevation of the view, upwards, in degrees.
        roll: Clockwise rotation of the viewer, in degrees.
        mode: "bilinear" or "bicubic".
        antialias: Filter where views are coarser than the panorama. False: one point sample a pixel.

    Returns:
        Views (V, C, height, width), in the panorama's dtype.

    Raises:
        ValueError: If a shape, `size`, `fov`, `mode` or the dtype is invalid.

    Example:
        >>> panorama = torch.rand(1, 3, 64, 128)
        >>> equirect_to_perspective(panorama, (24, 32), fov=90.0, yaw=torch.tensor([0.0, 120.0, 240.0])).shape
        torch.Size([3, 3, 24, 32])
    """
    sampling.check_panorama(panorama)
    rows, columns = (size, size) if isinstance(size, int) else size
    check_size(rows, "height")
    check_size(columns, "width")
    work = sampling.work_dtype(panorama)
    device = panorama.device
    narrowest = _least_tan_half(fov)
    fov_degrees, *angles = (as_tensor(a, work, device) for a in (fov, yaw, pitch, roll))
    tan = torch.deg2rad(fov_degrees / 2).tan()
    rotation = rotation_matrix(*angles)
    views = max(panorama.shape[0], tan.numel(), rotation.numel() // 9)
    height, width = panorama.shape[-2:]
    ratio = width / math.pi * narrowest / columns if antialias else 1.0
    supersampling = 2 if ratio > sampling.SUPERSAMPLE_ABOVE else 1
    image, margin = sampling.pad_panorama(panorama, work, ratio)
    fine_rows, fine_columns = supersampling * rows, supersampling * columns
    x = (2 * torch.arange(fine_columns, dtype=work, device=device) + 1) / fine_columns - 1
    y = (fine_rows - 1 - 2 * torch.arange(fine_rows, dtype=work, device=device)) / fine_columns
    plane = torch.stack(torch.broadcast_tensors(x, y[:, None]), -1)
    rays = F.pad(plane * tan.reshape(-1, 1, 1, 1), (0, 1), value=1.0)
    rays = rotate(rays[:, None], rotation.reshape(-1, 3, 3))[:, 0].expand(views, -1, -1, -1)
    grid = sampling.panorama_grid(rays, height, margin)
    sampled = sampling.sample(image.expand(views, -1, -1, -1), grid, mode, supersampling)
    return sampling.to_pixels(sampled, panorama.dtype)


def perspective_to_cube(
    image: Real[Tensor, "b c h w"],
    size: int,
    face_fov: float,
    fov: float | Tensor,
    yaw: float | Tensor = 0.0,
    pitch: float | Tensor = 0.0,
    roll: float | Tensor = 0.0,
    *,
    mode: str = "bilinear",
) -> tuple[Real[Tensor, "b 6 c s s"], Bool[Tensor, "b 6 1 s s"]]:
    """Projects pinhole images onto the faces, the inverse of `equirect_to_perspective`.

    Around an image the faces repeat its nearest border pixel, and the half space behind the camera reflects the one in
    front, so that the image continues over the sphere without a discontinuity.

    Args:
        image: (B, C, height, width), float in any range or uint8.
        size: Side of a face, in pixels.
        face_fov: Field of view of a face, in degrees.
        fov: Horizontal field of view of an image, in degrees; a float or a tensor (B,), as the angles below.
        yaw: Direction of the camera, to the right, in degrees (see `rotation_matrix`).
        pitch: Elevation of the camera, upwards, in degrees.
        roll: Clockwise rotation of the camera, in degrees.
        mode: "bilinear" or "bicubic".

    Returns:
        Faces (B, 6, C, S, S) in FACES order and the image's dtype, and a mask (B, 6, 1, S, S) of the pixels whose
        centres look into the image.

    Raises:
        ValueError: If `size`, `fov`, `face_fov`, `mode` or the dtype is invalid.

    Example:
        >>> faces, mask = perspective_to_cube(torch.rand(1, 3, 32, 32), size=16, face_fov=95.0, fov=60.0)
        >>> mask[0, :, 0].any((1, 2)).tolist()  # straight ahead lies on the front face
        [True, False, False, False, False, False]
    """
    check_size(size, "size")
    work = sampling.work_dtype(image)
    ratio = image.shape[-1] * tan_half(face_fov) / (size * _least_tan_half(fov))
    faces, mask = _project(
        image,
        lambda samples: face_rays(samples * size, face_fov, work, image.device),
        ratio,
        (fov, yaw, pitch, roll),
        mode,
    )
    return faces.transpose(1, 2).contiguous(), mask[:, :, None]


def perspective_to_equirect(
    image: Real[Tensor, "b c h w"],
    height: int,
    fov: float | Tensor,
    yaw: float | Tensor = 0.0,
    pitch: float | Tensor = 0.0,
    roll: float | Tensor = 0.0,
    *,
    mode: str = "bilinear",
) -> tuple[Real[Tensor, "b c i j"], Bool[Tensor, "b 1 i j"]]:
    """Projects pinhole images onto panoramas; around an image they continue as in `perspective_to_cube`.

    Args:
        image: (B, C, rows, columns), float in any range or uint8.
        height: Height of the panorama, in pixels.
        fov: Horizontal field of view of an image, in degrees; a float or a tensor (B,), as the angles below.
        yaw: Direction of the camera, to the right, in degrees (see `rotation_matrix`).
        pitch: Elevation of the camera, upwards, in degrees.
        roll: Clockwise rotation of the camera, in degrees.
        mode: "bilinear" or "bicubic".

    Returns:
        Panoramas (B, C, height, 2·height) in the image's dtype, and a mask (B, 1, height, 2·height) of the pixels whose
        centres look into the image.

    Raises:
        ValueError: If `height`, `fov`, `mode` or the dtype is invalid.
    """
    check_size(height, "height")
    work = sampling.work_dtype(image)
    ratio = math.pi * image.shape[-1] / (2 * height * _least_tan_half(fov))
    panoramas, mask = _project(
        image,
        lambda samples: sphere_directions(samples * height)[None].to(image.device, work),
        ratio,
        (fov, yaw, pitch, roll),
        mode,
    )
    return panoramas[:, :, 0], mask


def _project(
    image: Tensor,
    rays_of: Callable[[int], Tensor],
    ratio: float,
    camera: tuple[float | Tensor, ...],
    mode: str,
) -> tuple[Tensor, Tensor]:
    """Pinhole images along the rays of F surfaces, (B, C, F, I, J), and which rays look into the image, (B, F, I, J).

    `rays_of(n)` has n × n rays a pixel; `ratio` is the number of pixels of the image per pixel.
    """
    batch, _, rows, columns = image.shape
    work = sampling.work_dtype(image)
    supersampling = 2 if ratio > sampling.SUPERSAMPLE_ABOVE else 1
    source = image.to(work)
    if (shrink := ratio / 4) > 1:
        smaller = [max(1, round(n / shrink)) for n in (rows, columns)]
        source = F.interpolate(source, smaller, mode="bilinear", antialias=True)
    fov, *angles = (as_tensor(value, work, image.device) for value in camera)
    tan = torch.deg2rad(fov / 2).tan().reshape(-1, 1, 1, 1)
    extent = torch.stack([tan, tan * rows / columns], -1)  # half size of the image on the plane one unit ahead
    inverse = rotation_matrix(*angles).reshape(-1, 3, 3).mT.expand(batch, 3, 3)

    def coordinates(samples: int) -> tuple[Tensor, Tensor]:
        """Where rays look in the image, in [−1, 1] inside, and whether they look ahead of the camera."""
        x, y, z = rotate(rays_of(samples)[None], inverse).unbind(-1)
        return torch.stack([x, -y], -1) / z.abs().clamp_min(1e-12)[..., None] / extent, z > 0

    position, ahead = coordinates(1)
    mask = (position.abs().amax(-1) <= 1) & ahead
    grid = (coordinates(supersampling)[0] if supersampling > 1 else position).clamp(-1, 1)
    sampled = sampling.sample(source, grid.flatten(1, 2), mode, supersampling).unflatten(2, mask.shape[1:3])
    return sampling.to_pixels(sampled, image.dtype), mask


def _least_tan_half(fov: float | Tensor) -> float:
    return min(tan_half(value) for value in (fov.flatten().tolist() if isinstance(fov, Tensor) else [fov]))
