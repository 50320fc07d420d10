"""Whether a panorama follows its condition: differences where the condition shows it, and recognition of the original.

Legend: B panoramas, N originals, C channels, H and W height and width, V views, D features.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure


def psnr(
    image: Float[Tensor, "*b c h w"],
    original: Float[Tensor, "*a c h w"],
    where: Float[Tensor, "*m 1 h w"] | None = None,
) -> Float[Tensor, "*n"]:
    """Peak signal-to-noise ratio of images in [0, 1], in dB; infinite for equal ones.

    Args:
        image: Images; batch dimensions broadcast.
        original: What they should be.
        where: Weights of pixels, 1 where they count; None: all count.
    """
    error = (image - original).square().mean(-3)
    if where is None:
        mean = error.mean((-2, -1))
    else:
        mean = (error * where[..., 0, :, :]).sum((-2, -1)) / where.sum((-3, -2, -1))
    return -10 * mean.log10()


def ssim(
    image: Float[Tensor, "b c h w"], original: Float[Tensor, "b c h w"], where: Float[Tensor, "#b 1 h w"] | None = None
) -> Float[Tensor, " b"]:
    """Structural similarity of images in [0, 1] with Gaussian windows (Wang et al., 2004), by torchmetrics.

    Args:
        image: Images of at least 11 pixels.
        original: What they should be.
        where: Weights of window centres, 1 where they count; None: all count.
    """
    _, similarity = structural_similarity_index_measure(
        image, original, data_range=1.0, reduction="none", return_full_image=True
    )
    values: Tensor = similarity.mean(1)
    weights = torch.ones_like(values) if where is None else where[:, 0].expand_as(values)
    means: Tensor = (values * weights).sum((1, 2)) / weights.sum((1, 2))
    return means


def nearest_originals(
    panoramas: Float[Tensor, "b c h w"], originals: Float[Tensor, "n c h w"], *, turns: int = 1
) -> Int[Tensor, " b"]:
    """The index of the original that each panorama is most similar to, by PSNR.

    A panorama is recognised if that is the one it was generated from. From a text, which does not say where the front
    is, it may look in any direction.

    Args:
        panoramas: Equirectangular panoramas, or faces side by side, of the size of the originals.
        originals: All originals, of which each panorama has one.
        turns: Number of yaws, a step apart, of which the most similar counts.

    Raises:
        ValueError: If the width is no multiple of `turns`.
    """
    width = panoramas.shape[-1]
    if width % turns:
        raise ValueError(f"a width of {width} pixels is no multiple of {turns} turns")
    nearest = []
    for panorama in panoramas:
        turned = torch.stack([panorama.roll(turn * width // turns, -1) for turn in range(turns)])
        similarity = torch.stack([psnr(turned, original).amax() for original in originals])
        nearest.append(similarity.argmax())
    return torch.stack(nearest)


def nearest_by_features(
    panoramas: Float[Tensor, "b v d"], originals: Float[Tensor, "n v d"], *, turns: bool = False
) -> Int[Tensor, " b"]:
    """The index of the original that each panorama is most similar to, by the mean cosine of the features of its views.

    Args:
        panoramas: Features of views around the horizon, in equal steps.
        originals: Features of the same views of all originals.
        turns: Whether the most similar yaw counts, of as many as there are views; see `nearest_originals`.
    """
    first, second = (nn.functional.normalize(each, dim=-1) for each in (panoramas, originals))
    steps = range(panoramas.shape[1] if turns else 1)
    similarity = torch.stack([first.roll(step, 1).flatten(1) @ second.flatten(1).T for step in steps]).amax(0)
    return similarity.argmax(1)
