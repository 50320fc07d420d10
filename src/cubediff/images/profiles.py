"""ICC profiles: their transforms to sRGB, for images of 8 and 16 bits (ICC.1, by LittleCMS through Pillow)."""

import io
from functools import lru_cache, partial, reduce
from itertools import product

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image, ImageCms

from cubediff.images.colour import in_strips

_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile → Pillow's mode
_DEVICES = ("scnr", "mntr", "prtr", "spac")  # classes of profiles that describe the colours of an image
_SAME = 2  # levels; a transform that changes no colour by more is that of sRGB, up to rounding
_MIN_RANGE = 64  # levels between black and white; with less, the curves of a profile are damaged
_RAMP = Image.frombytes("L", (256, 1), bytes(range(256)))


@lru_cache(maxsize=16)
def srgb_transform(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform | None, str | None]:
    """The transform of an embedded ICC profile to 8-bit sRGB, by the profile's perceptual intent.

    Args:
        profile: The ICC profile.
        mode: Mode of the image: "RGB", "L" or "CMYK".

    Returns:
        The transform, and None; it is None too if the profile is that of sRGB. Or None, and why the profile cannot be
        used: the image is then read as if it had none.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space, device = source.profile.xcolor_space.strip(), source.profile.device_class.strip()
        if device not in _DEVICES or _SPACES.get(space) != mode:
            note = (
                f"its ICC profile is for {space or None} (class {device or None}), its pixels are {mode}: read as sRGB"
            )
            return None, note
        # LittleCMS would sample the curve of grey at 33 points; a look-up table of 256 levels needs no speed.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
        before, after = _sampled(transform, mode)
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None, "its ICC profile is damaged: read as sRGB"
    black, white = (after[-1], after[0]) if mode == "CMYK" else (after[0], after[-1])
    if white.astype(int).min() - black.max() < _MIN_RANGE:
        return None, f"its ICC profile is damaged (white is {tuple(white.tolist())}): read as sRGB"
    is_srgb = mode != "CMYK" and np.abs(after.astype(int) - before).max() <= _SAME
    return (None if is_srgb else transform), None


def convert(
    colours: Float32[np.ndarray, "h w 3"], source: bytes | None, target: bytes | None
) -> Float32[np.ndarray, "h w 3"]:
    """Converts RGB in [−1, 1] between the colour spaces of ICC profiles, in 8 bits.

    Args:
        colours: The colours.
        source: Their ICC profile; None for sRGB.
        target: The profile of the result; None for sRGB.
    """
    levels = np.round((colours + 1) * 127.5).clip(0, 255).astype(np.uint8)
    before, after = (
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB") if data is None else io.BytesIO(data))
        for data in (source, target)
    )
    transform = ImageCms.buildTransform(before, after, "RGB", "RGB")
    return _transformed(transform, Image.fromarray(levels)).astype(np.float32) / np.float32(127.5) - 1


def lab_transform() -> ImageCms.ImageCmsTransform:
    """The transform of 8-bit CIELAB images to sRGB."""
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """The sRGB levels of an image in the transform's mode."""
    if image.mode == "L":
        levels: UInt8[np.ndarray, "h w 3"] = _transformed(transform, _RAMP)[0][np.asarray(image)]
        return levels
    return _transformed(transform, image)


def _transformed(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is None only for a conversion in place
    return np.asarray(converted)


def apply_16_bit(
    transform: ImageCms.ImageCmsTransform | None, levels: UInt16[np.ndarray, "h w c"]
) -> UInt8[np.ndarray, "h w 3"]:
    """sRGB levels of an image with 16 bits a channel.

    Pillow's transforms take 8 bits, in which dark tones of linear profiles are a few steps apart. Each pixel is
    interpolated linearly between the transforms of the 8-bit colours around it.

    Args:
        transform: Of `srgb_transform` for "RGB" (c = 3) or "L" (c = 1); None: the levels are sRGB, and their lower byte
            is dropped.
        levels: From 0 to 65535.
    """
    if transform is None:
        return np.repeat((levels >> 8).astype(np.uint8), 3 // levels.shape[2], axis=2)
    return in_strips(partial(_interpolated, transform), levels)


def _interpolated(
    transform: ImageCms.ImageCmsTransform, levels: UInt16[np.ndarray, "h w c"]
) -> UInt8[np.ndarray, "h w 3"]:
    low = (levels // 257).astype(np.uint8)  # 65535 = 255 · 257
    share = (levels % 257).astype(np.float32) / 257
    ends, weights = (low, np.minimum(low, 254) + 1), (1 - share, share)
    channels = range(levels.shape[2])
    result = np.zeros((*levels.shape[:2], 3), np.float32)
    for corner in product((0, 1), repeat=len(channels)):  # of the cell of 8-bit colours around each pixel
        colours = np.stack([ends[corner[c]][..., c] for c in channels], -1)
        weight = reduce(np.multiply, [weights[corner[c]][..., c] for c in channels])
        image = Image.fromarray(colours[..., 0] if len(channels) == 1 else colours)
        result += weight[..., None] * apply(transform, image)
    return np.asarray(np.round(result), np.uint8)


def _sampled(
    transform: ImageCms.ImageCmsTransform, mode: str
) -> tuple[UInt8[np.ndarray, "n c"], UInt8[np.ndarray, "n 3"]]:
    """Colours from black (no ink) to white (all ink), and their transforms."""
    steps = {"L": 256, "RGB": 17, "CMYK": 5}[mode]
    values = np.linspace(0, 255, steps).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(*[values] * len(mode), indexing="ij"), -1).reshape(-1, len(mode))
    image = Image.frombytes(mode, (len(colours), 1), colours.tobytes())
    return colours, _transformed(transform, image)[0]
