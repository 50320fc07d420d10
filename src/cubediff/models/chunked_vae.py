"""Encodes and decodes the six faces of a panorama in chunks, so that large faces fit into a device's memory.

A chunk is a few faces or, with `enable_tiling()`, a strip of one face. A stock `AutoencoderKL` runs the whole network
on each slice or tile, which is normalised by statistics of its own. Here every layer runs on all chunks before the next
one does. The statistics of a GroupNorm are collected over all chunks before it is applied, and a convolution reads the
rows beyond its strip; results differ from those of the whole network by rounding alone.

Chunks of faces remain on the device. Strips wait in main memory; the device holds the activations of one strip, whose
area is that of one face of the size that the autoencoder was trained with. At the resolution of the latents, where the
attention needs all pixels, the faces are not divided.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import cast

import torch
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float
from torch import Tensor, nn

from cubediff.models.backbone import execution_device, no_autocast
from cubediff.models.group_norm import arithmetic_dtype, channel_sums
from cubediff.models.inflation import CubeGroupNorm

# Bytes of a chunk's largest activation: six faces of 512 pixels in the encoder of Stable Diffusion in bfloat16. Six
# faces with less pass through the network together.
MAX_ACTIVATION = 384 * 2**20

Layer = Callable[[Tensor], Tensor]
_SAME = Fraction(1)


def decode(vae: AutoencoderKL, latents: Float[Tensor, "n c h w"], sliced: bool = False) -> Float[Tensor, "n 3 s s"]:
    """What `vae.decode(latents).sample` is without slicing and tiling.

    A chunk is as many faces as have activations of `MAX_ACTIVATION` bytes; all faces if the layers are not those of
    Stable Diffusion. If tiling is enabled and the faces are larger than a tile, a chunk is a strip.

    Args:
        vae: The autoencoder.
        latents: Of the faces of one panorama, unscaled.
        sliced: Whether a chunk is one face.

    Raises:
        ValueError: If `sliced` is true or tiling is enabled, and the layers are not those of Stable Diffusion.
    """
    chunks = _Chunks(vae, vae.decoder.up_blocks, latents.shape[-1], sliced)
    if chunks.hold(len(latents)):
        whole: Tensor = AutoencoderKL._decode(vae, latents).sample
        return whole
    return torch.cat([_decode(vae, chunks, faces) for faces in _normalised_together(vae.decoder, latents)])


def encode(vae: AutoencoderKL, images: Float[Tensor, "n 3 s s"], sliced: bool = False) -> Float[Tensor, "n c2 h w"]:
    """The moments whose distribution `vae.encode(images)` returns without slicing and tiling: means, log-variances.

    Args:
        vae: The autoencoder. Chunks are those of `decode`.
        images: The faces of one panorama.
        sliced: Whether a chunk is one face.

    Raises:
        ValueError: If `sliced` is true or tiling is enabled, and the layers are not those of Stable Diffusion.
    """
    chunks = _Chunks(vae, vae.encoder.down_blocks, images.shape[-1], sliced)
    if chunks.hold(len(images)):
        whole: Tensor = AutoencoderKL._encode(vae, images)
        return whole
    return torch.cat([_encode(vae, chunks, faces) for faces in _normalised_together(vae.encoder, images)])


def _decode(vae: AutoencoderKL, chunks: "_Chunks", latents: Tensor) -> Tensor:
    decoder = vae.decoder
    if vae.post_quant_conv is not None:
        latents = vae.post_quant_conv(latents)
    faces = [decoder.mid_block(decoder.conv_in(latents), None)]
    for block, values in zip(decoder.up_blocks, chunks.values, strict=True):
        faces = chunks.regroup(faces, values)
        for resnet in block.resnets:
            faces = chunks.resnet(resnet, faces)
        for upsampler in block.upsamplers or ():
            faces = chunks.upsample(upsampler, faces)
    faces = chunks.convolve(decoder.conv_out, decoder.conv_act, decoder.conv_norm_out, faces)
    return chunks.on_device(torch.cat(faces))


def _encode(vae: AutoencoderKL, chunks: "_Chunks", images: Tensor) -> Tensor:
    encoder = vae.encoder
    faces = chunks.map(encoder.conv_in, chunks.regroup([images], chunks.values[0]))
    for block, values in zip(encoder.down_blocks, chunks.values, strict=True):
        faces = chunks.regroup(faces, values)
        for resnet in block.resnets:
            faces = chunks.resnet(resnet, faces)
        for downsampler in block.downsamplers or ():
            faces = chunks.downsample(downsampler, faces)
    sample = encoder.mid_block(chunks.on_device(torch.cat(faces)))
    moments: Tensor = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(sample)))
    if vae.quant_conv is not None:
        moments = vae.quant_conv(moments)
    return moments


def _normalised_together(coder: nn.Module, faces: Tensor) -> Sequence[Tensor]:
    """All faces if the norms are synchronized, else each face."""
    return [faces] if isinstance(coder.conv_norm_out, CubeGroupNorm) else faces.split(1)


def _find_unknown(blocks: Iterable[nn.Module]) -> nn.Module | None:
    """The first block that has other layers than those that `_Chunks` computes."""
    for block in blocks:
        layers = [layer for layers in block.children() for layer in layers.children()]
        if type(block) not in (DownEncoderBlock2D, UpDecoderBlock2D) or not all(map(_is_known, layers)):
            return block
    return None


def _is_known(layer: nn.Module) -> bool:
    if isinstance(layer, ResnetBlock2D):
        return layer.time_emb_proj is None and layer.upsample is None and layer.downsample is None
    if isinstance(layer, Upsample2D):
        return layer.norm is None and layer.use_conv and not layer.use_conv_transpose and layer.interpolate
    return isinstance(layer, Downsample2D) and layer.norm is None and layer.use_conv and layer.padding == 0


def _activation_sizes(blocks: Iterable[nn.Module], size: int) -> Iterator[int]:
    """Values of a face's largest activation in each block, from the size of the faces that the first one receives."""
    for block in blocks:
        before, size = size, size * 2 if getattr(block, "upsamplers", None) else size
        resnets = cast(Sequence[ResnetBlock2D], block.resnets)
        yield max(resnets[0].in_channels * before**2, resnets[-1].out_channels * size**2)
        size = size // 2 if getattr(block, "downsamplers", None) else size


class _Chunks:
    """Runs layers on chunks of faces.

    Args:
        vae: The autoencoder.
        blocks: Those of its encoder or decoder.
        size: Height and width of the faces that the first block receives.
        sliced: As in `decode`.

    Raises:
        ValueError: As `decode`.
    """

    def __init__(self, vae: AutoencoderKL, blocks: nn.ModuleList, size: int, sliced: bool) -> None:
        tile = vae.tile_latent_min_size if blocks is vae.decoder.up_blocks else vae.tile_sample_min_size
        is_tiled = vae.use_tiling and size > tile
        # A strip is as wide as a face and covers as many pixels as a square tile.
        self.share = Fraction(tile**2, size**2) if is_tiled else _SAME
        self.device = execution_device(vae) if is_tiled else None  # None: chunks remain where a layer returns them
        self.max_values = 0 if is_tiled or sliced else MAX_ACTIVATION // vae.dtype.itemsize
        unknown = _find_unknown(blocks)
        if unknown is not None and not self.max_values:
            raise ValueError(
                f"cannot run the autoencoder's {type(unknown).__name__} in slices or tiles, only those of Stable "
                "Diffusion: call disable_vae_slicing() and disable_vae_tiling()"
            )
        self.values = [] if unknown is not None else list(_activation_sizes(blocks, size))

    def hold(self, count: int) -> bool:
        """Whether one chunk holds that many faces in every block."""
        return all(self._number(count, values) == count for values in self.values)

    def _number(self, count: int, values: int) -> int:
        """The largest number of faces in a chunk that divides `count`; at least one."""
        divisors = (number for number in range(count, 1, -1) if count % number == 0)
        return next((number for number in divisors if number * values <= self.max_values), 1)

    def regroup(self, faces: Sequence[Tensor], values: int) -> list[Tensor]:
        """Chunks of as many faces as fit with activations of `values` per face."""
        number = self._number(sum(map(len, faces)), values)
        if all(len(chunk) == number for chunk in faces):
            return list(faces)
        return list((faces[0] if len(faces) == 1 else torch.cat(list(faces))).split(number))

    def on_device(self, strip: Tensor) -> Tensor:
        """A strip of a chunk, which waits in main memory if faces are divided, on the device that computes."""
        return strip if self.device is None else strip.to(self.device)

    def bounds(self, height: int) -> Iterator[tuple[int, int]]:
        """First row and end of the strips; even numbers of rows, for the downsampling."""
        rows = height if self.share == 1 else max(2, int(height * self.share) // 2 * 2)
        return ((start, min(start + rows, height)) for start in range(0, height, rows))

    def map(
        self,
        function: Callable[..., Tensor],
        *inputs: Iterable[Tensor],
        above: int = 1,
        below: int = 1,
        scale: Fraction = _SAME,
    ) -> list[Tensor]:
        """Applies a function of a few neighbouring rows to all faces.

        Args:
            function: Of a strip of each input; it pads them as whole faces.
            inputs: Chunks of equal sizes.
            above, below: Rows beyond a strip that the function reads.
            scale: Rows of the result per row.
        """
        results = []
        for chunks in zip(*inputs, strict=True):
            strips = []
            for start, end in self.bounds(chunks[0].shape[2]):
                first = max(start - above, 0)
                strip = function(*(self.on_device(chunk[:, :, first : end + below]) for chunk in chunks))
                skipped = int((start - first) * scale)
                strip = strip[:, :, skipped : skipped + int((end - start) * scale)]
                strips.append(strip if self.device is None else strip.cpu())
            results.append(strips[0] if len(strips) == 1 else torch.cat(strips, 2))
        return results

    def norm(self, norm: nn.GroupNorm, faces: Sequence[Tensor]) -> Layer:
        """A GroupNorm with the statistics of all faces."""
        dtype, device = arithmetic_dtype(faces[0]), self.device or faces[0].device
        width = norm.num_channels // norm.num_groups
        centre = None  # near the mean, for the precision of the sums; 16 bits lose more by their own rounding
        if faces[0].dtype is dtype:
            first = torch.cat([chunk[:, :, 0, 0] for chunk in faces]).to(device).unflatten(1, (norm.num_groups, -1))
            centre = first.mean((0, 2)).repeat_interleave(width)[:, None, None]
        with no_autocast(device):
            sums = torch.zeros(2, norm.num_channels, dtype=dtype, device=device)
            for chunk in faces:
                for start, end in self.bounds(chunk.shape[2]):
                    strip = self.on_device(chunk[:, :, start:end])
                    sums += channel_sums((strip if centre is None else strip - centre).flatten(2)).sum(1)
            number = sum(chunk[:, :width].numel() for chunk in faces)
            mean, squares = sums.view(2, norm.num_groups, width).sum(2, keepdim=True) / number
            rstd = (torch.addcmul(squares, mean, mean, value=-1).clamp_min_(0) + norm.eps).rsqrt_()
            with _fetched(norm):
                weight, bias = (each.to(device, dtype).view(-1, width) for each in (norm.weight, norm.bias))
                scale = rstd * weight
                offset = torch.addcmul(bias, mean, scale, value=-1)
        scale, offset = (each.reshape(-1, 1, 1) for each in (scale, offset))

        def apply(strip: Tensor) -> Tensor:
            values = strip if centre is None else strip - centre
            with no_autocast(device):
                result: Tensor = torch.addcmul(offset, values, scale, out=torch.empty_like(strip))
            return result

        return apply

    def convolve(
        self, convolution: nn.Module, activation: Layer, norm: nn.GroupNorm, faces: list[Tensor]
    ) -> list[Tensor]:
        """Normalisation, activation and a 3 × 3 convolution."""
        normed = self.norm(norm, faces)
        return self.map(lambda strip: convolution(activation(normed(strip))), faces)

    def resnet(self, block: ResnetBlock2D, faces: list[Tensor]) -> list[Tensor]:
        """A residual block; empties `faces`."""
        hidden = self.convolve(block.conv1, block.nonlinearity, block.norm1, faces)
        normed = self.norm(block.norm2, hidden)

        def add(strip: Tensor, residual: Tensor) -> Tensor:
            residual = block.conv2(block.nonlinearity(normed(residual)))
            total = (strip if block.conv_shortcut is None else block.conv_shortcut(strip)) + residual
            return total if block.output_scale_factor == 1 else total / block.output_scale_factor

        return self.map(add, _popped(faces), _popped(hidden))

    def upsample(self, layer: Upsample2D, faces: list[Tensor]) -> list[Tensor]:
        """An upsampling by two; empties `faces`."""
        return self.map(layer, _popped(faces), scale=Fraction(2))

    def downsample(self, layer: Downsample2D, faces: list[Tensor]) -> list[Tensor]:
        """A downsampling by two, whose last row and column are zeros; empties `faces`."""
        return self.map(layer, _popped(faces), above=0, scale=Fraction(1, 2))


def _popped(faces: list[Tensor]) -> Iterator[Tensor]:
    """The items of a list, which is emptied, so that a chunk's memory is free when its result is complete."""
    while faces:
        yield faces.pop(0)


@contextmanager
def _fetched(norm: nn.GroupNorm) -> Iterator[None]:
    """Within it, accelerate's hooks have fetched the weights that they offload."""
    hook = getattr(norm, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(norm)
    try:
        yield
    finally:
        if hook is not None:
            hook.post_forward(norm, None)
