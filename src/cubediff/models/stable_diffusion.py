"""Stable Diffusion 1.x and 2.x as a `Backbone`: a UNet that attends to six faces, a VAE, a CLIP text encoder."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, Unpack, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cubediff.models.attention import constant_text, fuse_projections_
from cubediff.models.backbone import Backbone, Conditioning, CubeInput, Trainable, execution_device
from cubediff.models.encoders import FrozenEncoders
from cubediff.models.inflation import InflationOptions, inflate_, widen_conv_in_
from cubediff.models.inputs import input_channels, unet_input
from cubediff.models.presets import PRESETS, ModelConfigs
from cubediff.models.tokenizer import byte_tokenizer
from cubediff.models.visible_faces import visible_faces
from cubediff.utils.json_text import parse_json

TEXT = "text"  # the conditioning's only tensor, (B, 6, L, D)


class Components(TypedDict):
    """The models of a Stable Diffusion pipeline by their diffusers names."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel


class StableDiffusion(Backbone):
    """Stable Diffusion 1.x or 2.x on cubemaps.

    Args:
        vae, text_encoder, tokenizer, unet: Stock components of a Stable Diffusion pipeline.
        sync_vae_group_norm: See `FrozenEncoders`.
        **inflation: The options of `inflate_`.
    """

    network_name = "unet"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        sync_vae_group_norm: bool = True,
        **inflation: Unpack[InflationOptions],
    ) -> None:
        self.unet = unet
        self.encoders = FrozenEncoders(vae, text_encoder, tokenizer, sync_vae_group_norm)
        self.inflation = inflation
        self._keep_text: Callable[[Hashable], None] | None = None  # within `constant_conditioning`
        self._kept: dict[int, Conditioning] = {}  # by their ids, which stay theirs as long as they live

    # ------------------------------------------------------------------------------------------- components

    def components(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "vae": self.encoders.vae, "text_encoder": self.encoders.text_encoder}

    def inflate_(self) -> None:
        inflate_(self.unet, **self.inflation)  # FrozenEncoders synchronizes the VAE's norms

    def fresh_network(self, weights: Mapping[str, Tensor]) -> ModelMixin:
        unet = UNet2DConditionModel.from_config(self.unet.config)
        unet.load_state_dict(weights)
        return unet

    def fingerprint(self) -> str:
        return self.encoders.fingerprint()

    # ---------------------------------------------------------------------------------------------- latents

    @property
    def latent_channels(self) -> int:
        return int(self.encoders.vae.config.latent_channels)

    @property
    def latent_scale(self) -> int:
        return int(2 ** (len(self.encoders.vae.config.block_out_channels) - 1))

    @property
    def sample_size(self) -> int:
        return int(self.unet.config.sample_size)

    def encode(self, faces: Float[Tensor, "b 6 3 s s"]) -> Float[Tensor, "b 6 c h w"]:
        return self.encoders.encode(faces)

    def encode_each(self, faces: Float[Tensor, "b 6 3 s s"]) -> Float[Tensor, "b 6 c h w"]:
        return self.encoders.encode_each(faces)

    def decode(self, latents: Float[Tensor, "b 6 c h w"]) -> Float[Tensor, "b 6 3 s s"]:
        return self.encoders.decode(latents)

    def encode_captions(self, captions: Sequence[str], truncate: bool = False) -> dict[str, Tensor]:
        return {TEXT: self.encoders.encode_captions(captions, truncate)}

    def embedded_text(self, embeds: Tensor, name: str) -> Conditioning:
        width = self.encoders.text_encoder.config.hidden_size
        states = embeds[:, None].expand(-1, 6, -1, -1) if embeds.ndim == 3 else embeds
        if states.ndim != 4 or states.shape[1] != 6 or states.shape[3] != width or not states.numel():
            raise ValueError(
                f"{name} has shape {tuple(embeds.shape)}: expected (B, L, {width}), or (B, 6, L, {width}) with a text "
                "per face"
            )
        return Conditioning({TEXT: states.to(execution_device(self.encoders.text_encoder))})

    # ---------------------------------------------------------------------------------------------- network

    def predict(self, cube: CubeInput, timesteps: Tensor, conditioning: Conditioning) -> Float[Tensor, "b 6 c h w"]:
        latents = torch.where(cube.mask.bool(), cube.clean, cube.noisy)
        dtype = self.unet.dtype  # once, because diffusers looks for it in every module
        inputs = unet_input(latents, cube.mask, cube.positions).to(dtype)
        if self._keep_text is not None:
            self._kept[id(conditioning)] = conditioning
            self._keep_text(id(conditioning))
        visible = None if cube.hidden is None else visible_faces(cube.hidden, inputs.device)
        attention = {} if visible is None else {"cross_attention_kwargs": {"visible_faces": visible}}
        output: Tensor = self.unet(
            inputs,
            timesteps.repeat_interleave(6) if timesteps.ndim else timesteps,
            encoder_hidden_states=conditioning[TEXT].flatten(0, 1).to(dtype),
            return_dict=False,
            **attention,
        )[0]
        prediction: Tensor = output.unflatten(0, (-1, 6))
        return prediction.float()

    @contextmanager
    def constant_conditioning(self) -> Iterator[None]:
        try:
            with constant_text(self.unet) as self._keep_text:
                yield
        finally:
            self._keep_text = None
            self._kept.clear()

    def fuse_projections(self, enabled: bool) -> None:
        self.inflate_()  # so that its attention layers have this package's processors
        fuse_projections_(self.unet, enabled)

    def trainable(self, name: str, mode: Trainable) -> bool:
        layers = name.split(".")
        if layers[0] == "conv_in" or mode == "full":
            return True
        if mode == "lora":
            return "lora_A" in layers or "lora_B" in layers
        attention = "attn1" in layers or "attn2" in layers
        return attention and (mode == "attention" or "to_v" in layers or "to_out" in layers)

    def blocks(self) -> list[nn.Module]:
        return [module for module in self.unet.modules() if isinstance(module, BasicTransformerBlock | ResnetBlock2D)]

    def frozen_blocks(self) -> list[nn.Module]:
        return [module for module in self.encoders.vae.modules() if isinstance(module, ResnetBlock2D)]

    # ---------------------------------------------------------------------------------------------- loading

    @staticmethod
    def load(path: str | Path, dtype: torch.dtype, variant: str | None, revision: str | None) -> Components:
        """The components of a Stable Diffusion folder or Hub id, of a 2D model or a CubeDiff; safetensors only."""
        options = {"torch_dtype": dtype, "use_safetensors": True, "variant": variant, "revision": revision}
        # No trust_remote_code: these classes do not read `auto_map`.
        return Components(
            vae=AutoencoderKL.from_pretrained(path, subfolder="vae", **options),
            text_encoder=CLIPTextModel.from_pretrained(path, subfolder="text_encoder", **options),
            tokenizer=CLIPTokenizer.from_pretrained(path, subfolder="tokenizer", revision=revision),
            unet=UNet2DConditionModel.from_pretrained(path, subfolder="unet", **options),
        )

    @staticmethod
    def on_meta(path: str | Path, position_encoding: str, key: str = "path") -> Components:
        """The components on the meta device, which holds no weights: of a folder, or of a known Hub id.

        Args:
            path: The folder or Hub id.
            position_encoding: See `position_map`.
            key: Name of the setting that `path` comes from, for the message.

        Raises:
            ValueError: If `path` is neither.
        """
        configs = _model_configs(path, key)
        with torch.device("meta"):
            vae = AutoencoderKL.from_config(configs["vae"])
            channels = input_channels(vae.config.latent_channels, position_encoding)
            unet = UNet2DConditionModel.from_config({**configs["unet"], "in_channels": channels})
            text_encoder = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
        tokenizer = byte_tokenizer(max_length=cast(int, configs["text_encoder"]["max_position_embeddings"]))
        return Components(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet)


def widen_2d_(components: Components, path: str | Path, position_encoding: str) -> None:
    """Widens the UNet of a 2D model in place by position and mask channels.

    Args:
        components: The components of the model.
        path: Where they come from, for the message.
        position_encoding: See `position_map`.

    Raises:
        ValueError: If the UNet is not that of a 2D text-to-image model.
    """
    unet, latent_channels = components["unet"], components["vae"].config.latent_channels
    if unet.config.in_channels != latent_channels:
        raise ValueError(
            f"{path}: expected a UNet with {latent_channels} input channels, as 2D text-to-image models have, got "
            f"{unet.config.in_channels}: use a base model, or load a CubeDiff with from_pretrained"
        )
    widen_conv_in_(unet, input_channels(latent_channels, position_encoding))


def _model_configs(path: str | Path, key: str) -> ModelConfigs:
    """The models' `config.json` files of a folder, or of a known Hub id."""
    if (preset := PRESETS.get(str(path).lower())) is not None:
        return preset
    files = {part: Path(path) / part / "config.json" for part in ModelConfigs.__annotations__}
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing:
        raise ValueError(
            f"model.pipeline.{key}={path} is neither a local model folder ({missing[0]} does not exist) nor one of "
            f"{', '.join(PRESETS)}: use one of these"
        )
    return cast(ModelConfigs, {part: parse_json(file.read_text(encoding="utf-8")) for part, file in files.items()})
