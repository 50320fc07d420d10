"""The panoramas of a pipeline call that are edited: the generated pixels meet the kept ones, which do not change.

Legend: B panoramas, H panorama height.
"""

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import PIL.Image
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from cubediff.geometry.conventions import tan_half
from cubediff.geometry.panoramas import Panorama
from cubediff.geometry.photos import Photo, project_photos
from cubediff.geometry.projections import equirect_to_cube
from cubediff.images.canvas import Canvas

FEATHER = 2  # latent pixels over which generated colours are led to the kept ones
_CORRECTION_HEIGHT = 2048  # pixels


class Edits:
    """The panoramas to edit among the images of a pipeline call, checked before the sampling.

    Attributes:
        height: Height of the resulting panoramas, in pixels; None for that of the faces.

    Args:
        images: The images of each panorama of the call; None for none.
        panorama_height: The call's argument.
        output_type: The call's argument.

    Raises:
        ValueError: If a panorama has several to edit, they differ in size, or the result cannot hold them.
    """

    def __init__(
        self, images: Sequence[Sequence[Photo | Panorama]] | None, panorama_height: int | None, output_type: str
    ) -> None:
        own = [[image.canvas for image in each if isinstance(image, Panorama)] for each in images or ()]
        if any(len(each) > 1 for each in own):
            raise ValueError("several Panoramas for one panorama: pass one Panorama, and Photos")
        self.canvases = [each[0] if each else None for each in own]
        edited = [canvas for canvas in self.canvases if canvas is not None]
        heights = {canvas.height for canvas in edited}
        if len(heights) > 1:
            raise ValueError(f"Panoramas of the heights {sorted(heights)} in one call: call once for each size")
        if edited and panorama_height not in (None, *heights):
            raise ValueError(
                f"height={panorama_height} and a Panorama of height {edited[0].height}: omit the height, or scale the "
                "Panorama"
            )
        if output_type == "pil" and any(canvas.is_16_bit for canvas in edited):
            raise ValueError('a Panorama has 16 bits a channel, PIL images have 8: use output_type="np" or "pt"')
        self.height = edited[0].height if edited else panorama_height

    def _rows(self, batch: int) -> Iterator[tuple[int, Canvas]]:
        """The rows of a batch of panoramas that are edited, with their canvases."""
        if self.canvases:
            for row in range(batch):
                if (canvas := self.canvases[row * len(self.canvases) // batch]) is not None:
                    yield row, canvas

    def apply(
        self, panoramas: Float[Tensor, "b 3 h w"], faces: Float[Tensor, "b 6 3 s s"], fov: float, latent_scale: int
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 6 3 s s"]]:
        """Generated panoramas with the kept pixels of those to edit, and their faces.

        Args:
            panoramas: In [−1, 1].
            faces: Their faces, in [−1, 1].
            fov: Field of view of the faces, degrees.
            latent_scale: Side of a latent pixel in face pixels.
        """
        size = faces.shape[-1]
        for row, canvas in self._rows(len(panoramas)):
            feather = feather_width(canvas.height, size // latent_scale, fov)
            edited = composite(panoramas[row], canvas, feather).to(panoramas)
            panoramas[row] = edited
            shown = canvas.to_srgb(edited.permute(1, 2, 0).cpu().numpy())
            srgb = torch.from_numpy(shown).permute(2, 0, 1).to(faces)
            faces[row] = equirect_to_cube(srgb[None], size, fov, mode="bicubic")[0].clamp(-1, 1)
        return panoramas, faces

    def with_kept_values(self, arrays: Float32[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b h w 3"]:
        """Arrays in [0, 1] with the kept values of float arrays, which are [−1, 1] in between, bit by bit."""
        for row, canvas in self._rows(len(arrays)):
            if canvas.is_float:
                arrays[row][canvas.kept] = canvas.pixels[canvas.kept]
        return arrays

    def with_profiles(self, images: list[PIL.Image.Image]) -> list[PIL.Image.Image]:
        """Images with the ICC profiles of the panoramas that were edited."""
        for row, canvas in self._rows(len(images)):
            if canvas.profile is not None:
                images[row].info["icc_profile"] = canvas.profile
        return images


def photo_coverage(
    images: Sequence[Sequence[Photo | Panorama]], covered: Bool[Tensor, "b 6 1 s s"], fov: float
) -> Bool[Tensor, "b 6 1 s s"]:
    """The face pixels that photos cover.

    The network sees the clean latents of photos, with its mask channel set, as in training. Those of the kept pixels
    of a panorama it sees in its sample alone, where they follow their noise trajectory (RePaint, arXiv 2201.09865,
    section 4.1, without resampling): a mask of most of the sphere is none that a model is trained with, and guidance
    towards it burns colours. docs/generation.md has the measurement.

    Args:
        images: The images of each panorama.
        covered: The face pixels that any of them covers.
        fov: Field of view of the faces, degrees.
    """
    covered = covered.clone()
    for row, own in enumerate(images):
        photos = [image for image in own if isinstance(image, Photo)]
        if not photos:
            covered[row] = False
        elif len(photos) < len(own):
            covered[row] = project_photos([photos], covered.shape[-1], fov)[1][0]
    return covered


def feather_width(height: int, latent_size: int, fov: float) -> int:
    """`FEATHER` latent pixels at the centre of a face, in pixels of a panorama.

    Args:
        height: Height of the panorama.
        latent_size: Latent pixels along a face.
        fov: Field of view of a face, degrees.
    """
    return max(1, round(FEATHER * 2 * tan_half(fov) / latent_size / (math.pi / height)))


def composite(generated: Float[Tensor, "3 h w"], canvas: Canvas, feather: int) -> Float[Tensor, "3 h w"]:
    """The kept pixels of a panorama, and generated ones in place of the others.

    Within `feather` pixels of the kept ones, the generated colours are shifted by the difference of kept and generated
    colours at the border, which falls to 0 over this distance; so no edge shows where the autoencoder or the model
    changes the colours. What the panorama shows in the pixels to repaint has no effect.

    Args:
        generated: In [−1, 1], sRGB, of the panorama's size.
        canvas: The panorama.
        feather: In pixels.

    Returns:
        The edited panorama in [−1, 1], in the panorama's colour space.
    """
    own = canvas.scaled()
    result = np.array(canvas.from_srgb(generated.permute(1, 2, 0).cpu().numpy()))
    difference = own - result
    difference[~canvas.kept] = 0
    result += _correction(difference, canvas.kept, feather)
    result.clip(-1, 1, out=result)
    result[canvas.kept] = own[canvas.kept]
    return torch.from_numpy(result).permute(2, 0, 1)


def _correction(
    difference: Float32[np.ndarray, "h w 3"], kept: Bool[np.ndarray, "h w"], feather: int
) -> Float32[np.ndarray, "h w 3"]:
    """The differences of kept pixels, continued smoothly into the others and falling to 0 over `feather` pixels."""
    height, width = kept.shape
    feather = min(feather, width)
    # Faces are coarser than a large panorama: its correction needs no more detail than this.
    shrink = math.ceil(height / _CORRECTION_HEIGHT)
    size = (width // shrink, height // shrink)
    sums, alpha = (cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in (difference, kept.astype(np.float32)))
    margin = min(size[0], math.ceil(feather / shrink))  # across the left and right edge of the panorama
    filled = _pull_push(np.pad(np.dstack([sums, alpha]), ((0, 0), (margin, margin), (0, 0)), mode="wrap"))
    colours = np.ascontiguousarray(filled[:, margin : margin + size[0], :3])
    away = np.pad((~kept).astype(np.uint8), ((0, 0), (feather, feather)), mode="wrap")
    distance = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[:, feather : feather + width]
    fading = np.cos(np.minimum(distance / feather, 1) * (math.pi / 2)) ** 2
    correction: Float32[np.ndarray, "h w 3"] = cv2.resize(colours, (width, height), interpolation=cv2.INTER_LINEAR)
    correction *= fading[..., None].astype(np.float32)
    return correction


def _pull_push(pixels: Float32[np.ndarray, "h w 4"]) -> Float32[np.ndarray, "h w 4"]:
    """Fills premultiplied pixels where the fourth channel, their alpha, is below 1, by coarser and coarser means.

    Gortler et al., "The Lumigraph" (1996), section 3.4.
    """
    height, width, _ = pixels.shape
    if min(height, width) <= 2:
        total = pixels.sum((0, 1))
        return np.broadcast_to(total / total[3], pixels.shape)
    coarse = 4 * np.asarray(cv2.pyrDown(pixels))
    finer = cv2.pyrUp(_pull_push(coarse / np.maximum(coarse[..., 3:], 1)), dstsize=(width, height))
    filled: Float32[np.ndarray, "h w 4"] = pixels + (1 - pixels[..., 3:]) * np.asarray(finer)
    return filled
