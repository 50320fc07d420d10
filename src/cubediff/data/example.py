"""Procedural panoramas as example data: sky, ground and one object on each side, with a caption of the panorama and of
each face.

`cubediff example NUM OUTPUT` writes a folder that `cubediff prepare` takes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from jaxtyping import Float, UInt8

Array = np.ndarray
RGB = tuple[float, float, float]


class Sky(NamedTuple):
    """Appearance of a sky; colours are RGB in [0, 1]."""

    caption: str
    zenith: RGB
    horizon: RGB
    light: float  # brightness of everything below the sky
    sun: RGB | None
    sun_pitch: float  # degrees
    clouds: float
    stars: bool = False


SKIES = (
    Sky("a clear blue sky", (0.16, 0.38, 0.78), (0.70, 0.84, 0.96), 1.0, (1.0, 0.98, 0.86), 48, 0.0),
    Sky(
        "a blue sky with white clouds",
        (0.20, 0.45, 0.82),
        (0.76, 0.87, 0.96),
        0.95,
        (1.0, 0.98, 0.9),
        40,
        0.9,
    ),
    Sky("an overcast grey sky", (0.50, 0.53, 0.57), (0.62, 0.63, 0.65), 0.75, None, 0, 0.35),
    Sky("an orange sunset sky", (0.20, 0.22, 0.48), (0.98, 0.55, 0.22), 0.6, (1.0, 0.80, 0.45), 8, 0.2),
    Sky("a dark night sky with stars", (0.01, 0.02, 0.07), (0.06, 0.09, 0.19), 0.28, None, 0, 0.0, True),
)
GROUNDS: dict[str, tuple[RGB, RGB]] = {
    "green grass": ((0.24, 0.50, 0.14), (0.36, 0.62, 0.20)),
    "yellow sand": ((0.80, 0.66, 0.38), (0.90, 0.77, 0.50)),
    "white snow": ((0.86, 0.89, 0.94), (0.96, 0.97, 0.99)),
    "blue water": ((0.06, 0.26, 0.46), (0.16, 0.40, 0.60)),
    "grey paving stones": ((0.42, 0.42, 0.43), (0.58, 0.57, 0.56)),
}
COLOURS: dict[str, RGB] = {
    "red": (0.80, 0.12, 0.10),
    "green": (0.10, 0.58, 0.18),
    "blue": (0.12, 0.25, 0.80),
    "yellow": (0.94, 0.80, 0.10),
    "orange": (0.95, 0.48, 0.08),
    "purple": (0.52, 0.16, 0.62),
}
_SPREAD = 0.85  # largest extent of an object from the centre of its face (a tangent): no neighbouring face shows it


def create_example_dataset(
    num_samples: int, output_dir: str | Path, size: tuple[int, int] = (256, 512), seed: int = 0
) -> Path:
    """Writes procedural panoramas and captions.jsonl to a folder.

    Args:
        num_samples: Number of panoramas, at least 1.
        output_dir: The folder, created if it does not exist.
        size: Height and width in pixels, 1:2 and at least 16 x 32.
        seed: Panorama i depends on the seed and i only.

    Returns:
        The folder.

    Raises:
        ValueError: If the number or the size is out of range.
    """
    height, width = size
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}, expected at least 1")
    if width != 2 * height or height < 16:
        raise ValueError(f"size is {height}x{width} (height, width), expected 1:2 and at least 16x32")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    from cubediff.images.writing import encode_jpeg  # imports torch, which --help does not wait for

    lines = []
    for i in range(num_samples):
        image, caption, faces = draw_example(height, seed, i)
        file = f"example_{i:06d}.jpg"
        (folder / file).write_bytes(encode_jpeg(image, quality=92))
        lines.append(json.dumps({"file": file, "caption": caption, "faces": faces}) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def draw_example(height: int, seed: int, index: int) -> tuple[UInt8[Array, "h w 3"], str, dict[str, str]]:
    """Draws a panorama: sRGB levels (height, 2·height, 3), a caption that holds at any yaw, and the faces' captions."""
    from cubediff.geometry.conventions import FACES

    rng = np.random.default_rng([seed, index])
    sky = SKIES[rng.integers(len(SKIES))]
    ground = list(GROUNDS)[rng.integers(len(GROUNDS))]
    fine = 2 * height  # drawn at twice the size, then averaged to avoid aliasing
    yaw = ((np.arange(2 * fine) + 0.5) / (2 * fine) - 0.5) * 2 * np.pi
    pitch = (0.5 - (np.arange(fine) + 0.5) / fine) * np.pi
    yaw, pitch = np.meshgrid(yaw.astype(np.float32), pitch.astype(np.float32))
    rays = np.stack([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], -1)
    image = np.where((pitch > 0)[..., None], _draw_sky(rays, sky, rng), _draw_ground(rays, sky, ground, rng))
    objects = []
    things, colours = rng.permutation(len(THINGS)), rng.permutation(len(COLOURS))
    for wall in range(4):
        name, draw = THINGS[things[wall]]
        colour = list(COLOURS)[colours[wall]]
        relative_yaw = yaw - wall * np.pi / 2
        ahead = np.cos(relative_yaw) > 0.3
        right = np.tan(np.where(ahead, relative_yaw, 0.0))  # tangent coordinates on the wall's face: right and up
        up = np.tan(pitch) / np.where(ahead, np.cos(relative_yaw), 1.0)
        for mask, shade in draw(right, up, np.array(COLOURS[colour]), rng):
            image[mask & ahead] = (shade * sky.light * (0.85 + 0.15 * np.cos(relative_yaw))[..., None])[mask & ahead]
        objects.append(name.format(colour=colour))
    caption = f"{', '.join(objects[:3])} and {objects[3]} around a place of {ground} under {sky.caption}"
    walls = [f"{thing} on {ground} under {sky.caption}" for thing in objects]
    captions = [*walls, sky.caption, ground]
    faces = {face: text[0].upper() + text[1:] for face, text in zip(FACES, captions, strict=True)}
    image = np.clip(image, 0, 1).reshape(height, 2, 2 * height, 2, 3).mean((1, 3))
    return np.round(image * 255).astype(np.uint8), caption[0].upper() + caption[1:], faces


# ---- sky and ground ----------------------------------------------------------------------------------------


def _noise(points: Float[Array, "... 3"], scale: float, rng: np.random.Generator) -> Float[Array, "..."]:
    """Smooth noise of about [-1, 1] as a function of the point in space, so that it has no seam and no poles."""
    waves = scale * rng.normal(size=(6, 3)).astype(np.float32) * np.array([[1], [1], [2], [2], [4], [4]], np.float32)
    weights = 1 / np.linalg.norm(waves, axis=1)
    phases = rng.uniform(0, 2 * np.pi, 6).astype(np.float32)
    noise: Array = np.sin(points.astype(np.float32) @ waves.T + phases) @ (weights / weights.sum())
    return noise


def _draw_sky(rays: Float[Array, "h w 3"], sky: Sky, rng: np.random.Generator) -> Float[Array, "h w 3"]:
    up = np.clip(rays[..., 1:2], 0, 1) ** 0.6
    image: Array = (1 - up) * np.array(sky.horizon) + up * np.array(sky.zenith)
    if sky.clouds:
        cloud = np.clip(1.6 * _noise(rays * (1, 2.5, 1), 5.0, rng) + 0.1, 0, 1) * np.clip(6 * rays[..., 1], 0, 1)
        image += (sky.clouds * cloud)[..., None] * (0.97 - image)
    if sky.stars:
        height, width = image.shape[:2]
        rows = (0.5 - np.arcsin(rng.uniform(0.1, 1, 300)) / np.pi) * height  # uniform density over the sphere
        columns, shine = rng.integers(0, width - 1, 300), rng.uniform(0.3, 1, (300, 1))
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            image[rows.astype(int) + down, columns + right] = shine
    if sky.sun:
        yaw, pitch = rng.uniform(0, 2 * np.pi), np.radians(sky.sun_pitch)
        sun = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
        away = (1 - rays @ sun)[..., None]
        glow = 0.35 * np.exp(-away * 12) + np.exp(-np.clip(away - 0.002, 0, None) * 1500)
        image += np.clip(glow, 0, 1) * (np.array(sky.sun) - image)
    return image


def _draw_ground(rays: Float[Array, "h w 3"], sky: Sky, ground: str, rng: np.random.Generator) -> Float[Array, "h w 3"]:
    dark, light = (np.array(c) for c in GROUNDS[ground])
    depth = np.clip(-rays[..., 1:2], 0.02, None)
    plane = rays / depth  # where the ray meets the plane one unit below
    if ground == "grey paving stones":
        x, z = 1.5 * plane[..., 0], 1.5 * plane[..., 2]
        stone = np.sin((np.floor(x) * 7 + np.floor(z) * 13) * 12.9898)
        texture = np.where(np.minimum(x % 1, z % 1) < 0.06, -1.5, 0.6 * stone)
    else:
        texture = _noise(plane * ((1, 0, 4) if ground == "blue water" else (1, 0, 1)), 4.0, rng)
    texture *= np.clip(depth[..., 0] * 4, 0, 1)  # fades out towards the horizon, where it is finer than a pixel
    image = (dark + (light - dark) * (0.5 + 0.5 * texture)[..., None]) * sky.light
    haze = np.exp(-depth * 14) * 0.7
    blended: Array = image + haze * (np.array(sky.horizon) * max(sky.light, 0.5) - image)
    return blended


# ---- objects -----------------------------------------------------------------------------------------------
# Each returns layers (mask, colours) over the plane of a face; right and up are tangents, 0 at its centre, 1 at 45°.

Layers = list[tuple[Array, Array]]
_WOOD, _WHITE, _DARK = (
    np.array([0.36, 0.24, 0.14]),
    np.array([0.93, 0.90, 0.87]),
    np.array([0.12, 0.14, 0.18]),
)


def _box(right: Array, up: Array, x0: float, x1: float, y0: float, y1: float) -> Array:
    return (right > x0) & (right < x1) & (up > y0) & (up < y1)


def _wall(right: Array, up: Array, colour: Array, rng: np.random.Generator) -> Layers:
    row = np.floor(up / 0.09)
    joint = ((up / 0.09) % 1 < 0.1) | ((right / 0.2 + 0.5 * (row % 2)) % 1 < 0.05)
    return [
        (
            _box(right, up, -_SPREAD, _SPREAD, -0.5, rng.uniform(0.3, 0.6)),
            colour * (1 - 0.25 * joint[..., None]),
        )
    ]


def _house(right: Array, up: Array, colour: Array, rng: np.random.Generator) -> Layers:
    half = rng.uniform(0.45, 0.65)
    roof = (up >= 0.25) & (up < 0.25 + 0.7 * (half + 0.1 - np.abs(right)))
    window = _box(np.abs(right), up, half - 0.28, half - 0.1, -0.05, 0.14)
    return [
        (_box(right, up, -half, half, -0.45, 0.25), colour),
        (roof, _DARK * 1.6),
        (_box(right, up, -0.08, 0.08, -0.45, -0.14), _WOOD),
        (window, np.array([0.75, 0.88, 0.95])),
    ]


def _ball(right: Array, up: Array, colour: Array, rng: np.random.Generator) -> Layers:
    radius = rng.uniform(0.35, 0.5)
    inside = right**2 + (up + 0.05) ** 2 < radius**2
    lit = 0.8 + 0.3 * np.clip((up - 0.6 * right) / radius, -1, 0.6)[..., None]
    shadow = (right / radius) ** 2 + ((up + 0.05 + radius) / 0.07) ** 2 < 1
    return [(shadow & (up < -0.02), _DARK), (inside, colour * lit)]


def _tower(right: Array, up: Array, colour: Array, rng: np.random.Generator) -> Layers:
    half, top = rng.uniform(0.14, 0.2), rng.uniform(0.55, 0.7)
    band = (np.floor((up + 0.42) / 0.14) % 2 == 1)[..., None]
    roof = (up >= top) & (up < top + 1.2 * (half * 1.25 - np.abs(right)))
    return [
        (_box(right, up, -half, half, -0.42, top), np.where(band, _WHITE, colour)),
        (roof, colour * 0.7),
    ]


def _pines(right: Array, up: Array, colour: Array, rng: np.random.Generator) -> Layers:
    layers: Layers = []
    for x in rng.permutation(np.linspace(-0.65, 0.65, 5)) + rng.uniform(-0.06, 0.06, 5):
        foot, height = rng.uniform(-0.3, -0.15), rng.uniform(0.5, 0.8)
        level = (up - foot - 0.06) / height
        width = 0.17 * (1 - level) * (0.75 + 0.25 * ((4 * (1 - level)) % 1))
        crown = (level > 0) & (level < 1) & (np.abs(right - x) < width)
        layers.append((_box(right, up, x - 0.02, x + 0.02, foot, foot + 0.1), _WOOD))
        layers.append((crown, np.array([0.07, 0.32, 0.15]) * rng.uniform(0.8, 1.3)))
    return layers


def _mountains(right: Array, up: Array, colour: Array, rng: np.random.Generator) -> Layers:
    peaks = [(rng.uniform(-0.45, 0.45), rng.uniform(0.3, 0.5)) for _ in range(3)]
    ridge = np.max([h - 0.9 * np.abs(right - x) for x, h in peaks], axis=0)
    ridge = np.minimum(ridge, 2 * (_SPREAD - np.abs(right))) + 0.015 * np.sin(right * 60)
    below = (up > -0.01) & (up < ridge)
    snow = below & (up > 0.18 + 0.02 * np.sin(right * 45))
    return [(below, np.array([0.36, 0.38, 0.46])), (snow, np.array([0.95, 0.95, 0.97]))]


THINGS: tuple[tuple[str, Callable[[Array, Array, Array, np.random.Generator], Layers]], ...] = (
    ("a {colour} brick wall", _wall),
    ("a {colour} house with a dark roof", _house),
    ("a big {colour} ball", _ball),
    ("a tall tower with {colour} and white stripes", _tower),
    ("pine trees", _pines),
    ("snowy mountains", _mountains),
)


def main(
    num: Annotated[int, typer.Argument(help="Number of panoramas.", min=1)],
    output: Annotated[Path, typer.Argument(help="Folder for the panoramas and captions.jsonl.")],
    height: Annotated[int, typer.Option(help="Of a panorama in pixels; its width is twice that.", min=16)] = 256,
    seed: Annotated[int, typer.Option(help="Another seed, other panoramas.")] = 0,
) -> None:
    """Write procedural panoramas with captions, for `cubediff prepare`."""
    folder = create_example_dataset(num, output, (height, 2 * height), seed)
    typer.echo(f"{folder}: {num} panoramas and captions.jsonl; next: cubediff prepare {folder} SHARDS")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    app(prog_name="cubediff example")
