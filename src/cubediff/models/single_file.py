"""Single-file Stable Diffusion 1.x and 2.x checkpoints: UNet, VAE and text encoder in the original key layout.

Such a file holds weights alone. The layout is that of CompVis/stable-diffusion; diffusers converts it.
"""

import re
import shlex
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    create_diffusers_clip_model_from_ldm,
)
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from cubediff.models.stable_diffusion import Components

SET_CONFIG = "set config=FOLDER (model.pipeline.config in training)"  # the remedy for missing or other configs
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # the Hub id whose configs diffusers takes for every 1.x file

_UNET, _VAE, _TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
_CONVERTERS = {"unet": (_UNET, convert_ldm_unet_checkpoint), "vae": (_VAE, convert_ldm_vae_checkpoint)}
# The first and last convolution of the UNet, and a weight of the text encoder of 1.x (CLIP) and of 2.x (OpenCLIP).
_CONV_IN, _CONV_OUT = f"{_UNET}input_blocks.0.0.weight", f"{_UNET}out.2.weight"
_CLIP = f"{_TEXT}transformer.text_model.embeddings.position_embedding.weight"
_OPEN_CLIP = f"{_TEXT}model.token_embedding.weight"
_FLOATS = ("F16", "BF16", "F32", "F64")  # in safetensors' notation
_IDS = ".position_ids"  # integers, which are no weights
_USES = {5: "depth", 8: "editing by instructions", 9: "inpainting"}  # by input channels
_WHOLE = "expected a single file with UNet, VAE and text encoder, or the folder that holds model_index.json"
# Pattern of names → what else a file is that has one; the first that fits counts.
_OTHERS = {
    r"lora|lycoris_|\.hada_|\.lokr_": "LoRA weights, which load_lora_weights adds to a CubeDiff; expected a model",
    r"^control_model\.|^controlnet_|^input_hint_block\.": "a ControlNet; expected the base model alone",
    r"^conditioner\.embedders\.": "Stable Diffusion XL; expected version 1.x or 2.x",
    rf"^{re.escape(_UNET)}label_emb\.": "a UNet with conditions besides text (label_emb), as that of "
    "Stable Diffusion XL; expected version 1.x or 2.x",
    r"joint_blocks\.|double_blocks\.": "a diffusion transformer; expected Stable Diffusion 1.x or 2.x",
    r"^(encoder|decoder)\.(conv_in|down|mid|up)": f"a VAE alone; {_WHOLE}",
    r"^(down_blocks|mid_block|up_blocks)\.": f"a UNet alone; {_WHOLE}",
    r"^text_model\.|^embeddings\.": f"a text encoder alone; {_WHOLE}",
}


class SingleFile:
    """A checkpoint file, of which only the header has been read.

    Args:
        path: The `.safetensors` file.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it is damaged.
        ValueError: If it is pickled, or is no complete checkpoint of a 2D text-to-image model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _check_name(self.path)
        try:
            with safe_open(self.path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
                self.shapes: dict[str, tuple[int, ...]] = {k: tuple(v.get_shape()) for k, v in slices.items()}
                self.dtypes: dict[str, str] = {name: each.get_dtype() for name, each in slices.items()}
                self.metadata: dict[str, str] = file.metadata() or {}
        except SafetensorError as error:
            raise OSError(f"{self.path} is incomplete or damaged ({error}): copy the file again") from error
        self._check_kind()

    @property
    def default_configs(self) -> str:
        """The Hub id with the configs that fit the file.

        Raises:
            ValueError: If the file is of version 2.x, which does not say the noise schedule.
        """
        if _OPEN_CLIP in self.shapes:
            raise ValueError(
                f"{self.path} holds Stable Diffusion 2.x, and not whether it predicts noise or v: {SET_CONFIG}, a "
                "folder or Hub id with the configs of its base model, such as stabilityai/stable-diffusion-2-1-base"
            )
        return SD15

    def check_prediction_type(self, configured: str) -> None:
        """Raises ValueError if the file states another prediction type than its configs.

        The statement is the metadata `modelspec.prediction_type` (https://github.com/Stability-AI/ModelSpec), or a
        tensor named `v_pred`.
        """
        named = {"v": "v_prediction", "epsilon": "epsilon"}.get(self.metadata.get("modelspec.prediction_type", ""))
        stated = "v_prediction" if "v_pred" in self.shapes else named
        if stated is not None and stated != configured:
            raise ValueError(
                f"{self.path} states the prediction type {stated}, but its configs have {configured}: set "
                f"scheduler={{'prediction_type': {stated!r}}} (+model.pipeline.scheduler.prediction_type={stated} in "
                "training), or the configs of another model"
            )

    def load(self, configs: Path, dtype: torch.dtype) -> Components:
        """The models of the file, and the tokenizer of a folder.

        Args:
            configs: A Stable Diffusion folder in the diffusers layout; its weights, if any, are not read.
            dtype: The dtype of all models, independently of the file's.

        Raises:
            ValueError: If the weights do not fit the configs.
        """
        unet = self._load(UNet2DConditionModel, "unet", configs, dtype)
        vae = self._load(AutoencoderKL, "vae", configs, dtype)
        text_encoder = self._load_text_encoder(configs, dtype)
        tokenizer = CLIPTokenizer.from_pretrained(configs, subfolder="tokenizer")
        return Components(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet)

    def _names(self, prefix: str) -> list[str]:
        return [name for name in self.shapes if name.startswith(prefix)]

    def _read(self, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name).to(dtype) for name in self._names(prefix)}

    def _check_kind(self) -> None:
        for pattern, kind in _OTHERS.items():
            if any(re.search(pattern, name) for name in self.shapes):
                raise ValueError(f"{self.path} holds {kind}")
        expected = {
            f"UNet ({_CONV_IN})": _CONV_IN in self.shapes,
            f"VAE ({_VAE}…)": bool(self._names(_VAE)),
            f"text encoder ({_CLIP} or {_OPEN_CLIP})": _CLIP in self.shapes or _OPEN_CLIP in self.shapes,
        }
        if missing := [part for part, found in expected.items() if not found]:
            raise ValueError(
                f"{self.path} has no {' and no '.join(missing)}: expected a complete checkpoint of Stable Diffusion "
                "1.x or 2.x in its original layout"
            )
        # Not yet checked shapes may be of any length.
        channels, latent_channels = (*self.shapes[_CONV_IN], 0, 0)[1], (*self.shapes.get(_CONV_OUT, ()), 4)[0]
        if channels != latent_channels:
            use = f" for {_USES[channels]}" if channels in _USES else ""
            raise ValueError(
                f"{self.path}: expected a UNet with {latent_channels} input channels, as 2D text-to-image models have, "
                f"got {channels}{use}: use a base model"
            )
        for name in [name for prefix in (_UNET, _VAE, _TEXT) for name in self._names(prefix)]:
            if self.dtypes[name] not in _FLOATS and not name.endswith(_IDS):
                raise ValueError(
                    f"{self.path}: {name} has the dtype {self.dtypes[name]}: expected float16, bfloat16 or float32; "
                    "use a version of the checkpoint that is not quantized"
                )

    def _load(self, kind: type[ModelMixin], part: str, configs: Path, dtype: torch.dtype) -> ModelMixin:
        """The UNet or the VAE; unlike diffusers' from_single_file, it names the weights that do not fit."""
        prefix, convert = _CONVERTERS[part]
        with torch.device("meta"):
            model = kind.from_config(kind.load_config(str(configs), subfolder=part, local_files_only=True))
        read = self._read(prefix, dtype)
        try:
            weights, expected = convert(read, config=model.config), model.state_dict()
        except (KeyError, IndexError, AttributeError) as error:
            raise ValueError(self._misfit(part, "not converted", [str(error)], configs)) from error
        wrong = [
            name
            for name in sorted(weights.keys() | expected.keys())
            if weights.get(name) is None or name not in expected or weights[name].shape != expected[name].shape
        ]
        if part == "unet":  # weights that the converter does not know; a VAE may have those of its training loss
            converted = {id(value) for value in weights.values()}
            wrong += [name for name, value in read.items() if id(value) not in converted]
        if wrong:
            raise ValueError(self._misfit(part, "missing, unexpected or of another shape", wrong, configs))
        model.load_state_dict(weights, assign=True)
        return model.eval()

    def _load_text_encoder(self, configs: Path, dtype: torch.dtype) -> CLIPTextModel:
        """The text encoder; layers of the file behind the last one of the config are not used, as in version 2.x."""
        try:
            model = create_diffusers_clip_model_from_ldm(
                CLIPTextModel,
                self._read(_TEXT, dtype),
                subfolder="text_encoder",
                config=str(configs),
                torch_dtype=dtype,
                local_files_only=True,
            )
        except (ValueError, IndexError) as error:
            wrong = re.findall(r"because (\S+) expected shape", str(error)) or [str(error)]
            raise ValueError(self._misfit("text_encoder", "of another shape", wrong, configs)) from error
        if missing := [name for name, tensor in model.state_dict().items() if tensor.is_meta]:
            raise ValueError(self._misfit("text_encoder", "missing", missing, configs))
        return model

    def _misfit(self, part: str, problem: str, names: list[str], configs: Path) -> str:
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return (
            f"{self.path} does not fit {configs / part / 'config.json'} ({problem}: {listed}): {SET_CONFIG}, a folder "
            "with the configs of this model, or copy the file again if it is incomplete"
        )


def _check_name(path: Path) -> None:
    """Raises an error unless the path is that of an existing `.safetensors` file."""
    if re.match(r"https?:/", str(path)):
        raise ValueError(f"{path}: expected a file on this machine, got a URL: download the file first")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (looked from {Path.cwd()})")
    if path.suffix.lower() == ".safetensors":
        return
    converted = path.with_suffix(".safetensors")
    raise ValueError(
        f"{path}: expected a .safetensors file; others may be pickled, and can run code when they are loaded. Use the "
        ".safetensors version of the checkpoint, or convert it with\n"
        '  python -c "import sys, torch, safetensors.torch as s; w = torch.load(sys.argv[1], weights_only=True, '
        "map_location='cpu'); w = w.get('state_dict', w); s.save_file({k: v.clone().contiguous() for k, v in w.items() "
        f'if torch.is_tensor(v)}}, sys.argv[2])" {shlex.quote(str(path))} {shlex.quote(str(converted))}'
    )
