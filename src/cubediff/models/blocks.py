"""Stable Diffusion's blocks without the copies of activations that those of diffusers make.

diffusers stores activations contiguously at two places, which undoes the channels_last format of the convolutions
around them, and divides each residual block's output by a factor that is 1. The values are the same.
"""

from types import MethodType

from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from jaxtyping import Float
from torch import Tensor, nn


def keep_memory_format_(module: nn.Module) -> None:
    """Replaces the classes of the residual and transformer blocks inside a UNet or a VAE, in place."""
    for child in module.modules():
        if type(child) is ResnetBlock2D and is_plain(child):
            change_class_(child, _ResnetBlock2D)
        elif type(child) is Transformer2DModel and child.is_input_continuous:
            change_class_(child, _Transformer2DModel)


def change_class_(module: nn.Module, kind: type[nn.Module]) -> None:
    """Makes a module one of another class, in place; its parameters stay."""
    module.__class__ = kind
    if "_old_forward" in vars(module):  # accelerate's hooks hold the method that they wrap
        vars(module)["_old_forward"] = MethodType(kind.forward, module)


def is_plain(block: ResnetBlock2D) -> bool:
    """Whether a residual block neither resizes its input nor scales it by the time embedding."""
    return block.upsample is None and block.downsample is None and block.time_embedding_norm == "default"


class _ResnetBlock2D(ResnetBlock2D):
    def forward(self, input_tensor: Float[Tensor, "n c h w"], temb: Tensor | None) -> Float[Tensor, "n d h w"]:
        hidden: Tensor = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        if self.time_emb_proj is not None:
            embedding = temb if self.skip_time_act else self.nonlinearity(temb)
            hidden = hidden + self.time_emb_proj(embedding)[:, :, None, None]
        hidden = self.conv2(self.dropout(self.nonlinearity(self.norm2(hidden))))
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        total: Tensor = shortcut + hidden
        return total if self.output_scale_factor == 1 else total / self.output_scale_factor


class _Transformer2DModel(Transformer2DModel):
    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Float[Tensor, "n p c"],
        residual: Float[Tensor, "n c h w"],
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Float[Tensor, "n c h w"]:
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        faces: Tensor = hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # channels_last
        if not self.use_linear_projection:
            faces = self.proj_out(faces)
        return residual + faces  # in the format of the first
