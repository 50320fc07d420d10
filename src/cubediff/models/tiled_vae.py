"""Encodes and decodes the six faces of a panorama strip by strip, so that large faces fit into a device's memory.

A stock `AutoencoderKL` with `enable_tiling()` runs the whole network on every tile: each tile is normalised by its own
statistics, and its neighbours are blended over it. Here every layer runs on strips of the whole image instead. The
statistics of a GroupNorm are collected over all strips before it is applied, and a convolution reads the rows beyond
its strip; results differ from those of the whole network by rounding alone.

Between the layers activations are kept in main memory, as a list of six tensors (1, C, H, W). The device holds the
activations of one strip, whose area is that of one face of the size that the autoencoder was trained with, and those of
six faces at the resolution of the latents, where the attention needs all pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction

import torch
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float
from torch import Tensor, nn

from cubediff.models.backbone import execution_device
from cubediff.models.inflation import CubeGroupNorm

Layer = Callable[[Tensor], Tensor]
_SAME = Fraction(1)
Normalisation = Callable[[int, Tensor], Tensor]  # of the number of a face, and of a strip


def decode_tiled(vae: AutoencoderKL, latents: Float[Tensor, "6 c h w"]) -> Float[Tensor, "6 3 s s"]:
    """What `vae.decode(latents).sample` is without tiling.

    Args:
        vae: The autoencoder.
        latents: Of one panorama, unscaled.

    Raises:
        ValueError: If the autoencoder has other layers than Stable Diffusion's.
    """
    decoder = vae.decoder
    _check_blocks(decoder.up_blocks, UpDecoderBlock2D)
    strips = _Strips(vae, latents.shape[-1])
    if vae.post_quant_conv is not None:
        latents = vae.post_quant_conv(latents)
    faces = list(decoder.mid_block(decoder.conv_in(latents), None).split(1))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            faces = strips.resnet(resnet, faces)
        for upsampler in block.upsamplers or ():
            faces = strips.upsample(upsampler, faces)
    faces = strips.convolve(decoder.conv_out, decoder.conv_act, decoder.conv_norm_out, faces)
    return torch.cat(faces).to(latents)


def encode_tiled(vae: AutoencoderKL, images: Float[Tensor, "6 3 s s"]) -> Float[Tensor, "6 c2 h w"]:
    """The moments whose distribution `vae.encode(images)` returns without tiling: means, then log-variances.

    Args:
        vae: The autoencoder.
        images: The faces of one panorama.

    Raises:
        ValueError: If the autoencoder has other layers than Stable Diffusion's.
    """
    encoder = vae.encoder
    _check_blocks(encoder.down_blocks, DownEncoderBlock2D)
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    strips = _Strips(vae, images.shape[-1] // scale)
    faces = strips.map(lambda _, strip: encoder.conv_in(strip), images.split(1))
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            faces = strips.resnet(resnet, faces)
        for downsampler in block.downsamplers or ():
            faces = strips.downsample(downsampler, faces)
    sample = encoder.mid_block(torch.cat(faces).to(images))
    moments: Tensor = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(sample)))
    if vae.quant_conv is not None:
        moments = vae.quant_conv(moments)
    return moments


def _check_blocks(blocks: Iterable[nn.Module], expected: type[nn.Module]) -> None:
    for block in blocks:
        layers = [layer for layers in block.children() for layer in layers.children()]
        if type(block) is not expected or not all(map(_is_known, layers)):
            raise ValueError(
                f"cannot run the autoencoder's {type(block).__name__} in tiles, only those of Stable Diffusion: call "
                "disable_vae_tiling()"
            )


def _is_known(layer: nn.Module) -> bool:
    """Whether a layer computes what `_Strips` computes of it."""
    if isinstance(layer, ResnetBlock2D):
        return layer.time_emb_proj is None and layer.upsample is None and layer.downsample is None
    if isinstance(layer, Upsample2D):
        return layer.norm is None and layer.use_conv and not layer.use_conv_transpose and layer.interpolate
    return isinstance(layer, Downsample2D) and layer.norm is None and layer.use_conv and layer.padding == 0


class _Strips:
    """Runs layers on strips of faces.

    Args:
        vae: The autoencoder.
        latent_size: Height and width of the faces' latents.
    """

    def __init__(self, vae: AutoencoderKL, latent_size: int) -> None:
        self.device = execution_device(vae)
        # A strip is as wide as a face and covers as many pixels as a square tile.
        self.share = Fraction(vae.tile_latent_min_size**2, latent_size**2)

    def bounds(self, height: int) -> Iterator[tuple[int, int]]:
        """First row and end of the strips; even numbers of rows, for the downsampling."""
        rows = max(2, int(height * self.share) // 2 * 2)
        return ((start, min(start + rows, height)) for start in range(0, height, rows))

    def map(
        self,
        function: Callable[..., Tensor],
        *inputs: Iterable[Tensor],
        above: int = 1,
        below: int = 1,
        scale: Fraction = _SAME,
    ) -> list[Tensor]:
        """Applies a function of a few neighbouring rows to whole faces.

        Args:
            function: Of the number of a face and a strip of each input; it pads them as a whole face.
            inputs: Faces of equal sizes.
            above, below: Rows beyond a strip that the function reads.
            scale: Rows of the result per row.
        """
        results = []
        for k, faces in enumerate(zip(*inputs, strict=True)):
            strips = []
            for start, end in self.bounds(faces[0].shape[2]):
                first = max(start - above, 0)
                strip = function(k, *(face[:, :, first : end + below].to(self.device) for face in faces))
                skipped = int((start - first) * scale)
                strips.append(strip[:, :, skipped : skipped + int((end - start) * scale)].cpu())
            results.append(torch.cat(strips, 2))
        return results

    def norm(self, norm: nn.GroupNorm, faces: Sequence[Tensor]) -> Normalisation:
        """A GroupNorm with the statistics of whole faces: synchronized if the module is, else of each face alone."""
        counts, means, variances = [], [], []  # of each strip; float64 on the CPU, as not every device has it
        for face in faces:
            for start, end in self.bounds(face.shape[2]):
                groups = face[:, :, start:end].to(self.device, torch.float32).reshape(norm.num_groups, -1)
                variance, mean = (values.cpu().double() for values in torch.var_mean(groups, 1, correction=0))
                counts.append(groups.shape[1])
                means.append(mean)
                variances.append(variance)
        rows = 1 if isinstance(norm, CubeGroupNorm) else len(faces)
        share = torch.tensor(counts, dtype=torch.float64).view(rows, -1, 1)
        share = share / share.sum(1, keepdim=True)
        mean, variance = (torch.stack(values).unflatten(0, (rows, -1)) for values in (means, variances))
        centre = (share * mean).sum(1, keepdim=True)
        spread = (share * (variance + (mean - centre) ** 2)).sum(1)
        weight, bias = _affine(norm)
        repeats = norm.num_channels // norm.num_groups
        gain = weight * (spread + norm.eps).rsqrt().repeat_interleave(repeats, 1)
        shift = bias - centre[:, 0].repeat_interleave(repeats, 1) * gain
        gain, shift = (values.to(self.device, torch.float32)[..., None, None] for values in (gain, shift))

        def apply(k: int, strip: Tensor) -> Tensor:
            return torch.addcmul(shift[k % rows], strip.float(), gain[k % rows]).to(strip.dtype)

        return apply

    def convolve(
        self, convolution: nn.Module, activation: Layer, norm: nn.GroupNorm, faces: list[Tensor]
    ) -> list[Tensor]:
        """Normalisation, activation and a 3 × 3 convolution."""
        normed = self.norm(norm, faces)
        return self.map(lambda k, strip: convolution(activation(normed(k, strip))), faces)

    def resnet(self, block: ResnetBlock2D, faces: list[Tensor]) -> list[Tensor]:
        """A residual block; empties `faces`."""
        hidden = self.convolve(block.conv1, block.nonlinearity, block.norm1, faces)
        normed = self.norm(block.norm2, hidden)

        def add(k: int, strip: Tensor, residual: Tensor) -> Tensor:
            residual = block.conv2(block.nonlinearity(normed(k, residual)))
            strip = strip if block.conv_shortcut is None else block.conv_shortcut(strip)
            total: Tensor = (strip + residual) / block.output_scale_factor
            return total

        return self.map(add, _popped(faces), _popped(hidden))

    def upsample(self, layer: Upsample2D, faces: list[Tensor]) -> list[Tensor]:
        """An upsampling by two; empties `faces`."""
        return self.map(lambda _, strip: layer(strip), _popped(faces), scale=Fraction(2))

    def downsample(self, layer: Downsample2D, faces: list[Tensor]) -> list[Tensor]:
        """A downsampling by two, whose last row and column are zeros; empties `faces`."""
        return self.map(lambda _, strip: layer(strip), _popped(faces), above=0, scale=Fraction(1, 2))


def _popped(faces: list[Tensor]) -> Iterator[Tensor]:
    """The items of a list, which is emptied, so that a face's memory is free when its result is complete."""
    while faces:
        yield faces.pop(0)


def _affine(norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of a norm in float64 on the CPU, where accelerate's hooks offload them."""
    hook = getattr(norm, "_hf_hook", None)
    if hook is None:
        return norm.weight.cpu().double(), norm.bias.cpu().double()
    hook.pre_forward(norm)
    try:
        return norm.weight.cpu().double(), norm.bias.cpu().double()
    finally:
        hook.post_forward(norm, None)
