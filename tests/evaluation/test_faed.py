"""FAED's encoder against PanFusion's: values that its published code gave for the same weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.waves import scattered_weights, wave_image
from torch import Tensor

from cubediff.evaluation import faed
from cubediff.evaluation.faed import Faed
from cubediff.evaluation.features import Looking
from cubediff.evaluation.views import EQUIRECT

# Of `scattered_weights` and `wave_image(160, 320)`, as if panoramas had 160 rows: features 1, 2, 303 and 637.
FEATURES = (17.344602585, 14.459299088, -22.784702301, -12.969171524)
MEAN, DEVIATION = -0.243613213, 16.106792450


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Faed, "_load", lambda self, file: None)
        return scattered_weights({f"net.encoder.{name}": value for name, value in Faed("").state_dict().items()})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]) -> Path:
    """With the other contents of a checkpoint of Lightning: the decoder, hyperparameters and the optimizer's state."""
    path = tmp_path_factory.mktemp("faed") / "faed.ckpt"
    decoder = {"net.decoder.outconv_rgb.conv2d.bias": torch.zeros(3)}
    content = {"state_dict": tensors | decoder, "hyper_parameters": {"lr": 1e-4}, "optimizer_states": [{"state": {}}]}
    torch.save(content, path)
    return path


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    """Panoramas of 160 rows, for speed."""
    monkeypatch.setattr(faed, "EQUIRECT", replace(EQUIRECT, size=160))


@pytest.mark.usefixtures("low")
def test_features_are_those_of_the_published_code(file: Path) -> None:
    features = Faed(file)(wave_image(160, 320).float() / 255)
    assert features.shape == (1, 640)
    assert features[0, [1, 2, 303, 637]].tolist() == pytest.approx(FEATURES, rel=1e-4)
    assert features.mean().item() == pytest.approx(MEAN, rel=1e-3)
    assert features.std().item() == pytest.approx(DEVIATION, rel=1e-4)


@pytest.mark.usefixtures("low")
def test_the_border_is_no_border_and_rows_at_the_poles_do_not_count(file: Path) -> None:
    extractor, panorama = Faed(file), wave_image(160, 320).float() / 255
    features = extractor(panorama)
    torch.testing.assert_close(extractor(panorama.roll(64, -1)), features, rtol=1e-3, atol=1e-3)
    rows = features.unflatten(1, (128, 5))
    assert rows[..., [0, 4]].abs().max() < 1e-5 < rows[..., [1, 2, 3]].abs().max()


@pytest.mark.usefixtures("low")
def test_panoramas_of_other_sizes_are_averaged_over_areas(file: Path) -> None:
    extractor, small = Faed(file), wave_image(160, 320).float() / 255
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(extractor(large), extractor(small))
    assert extractor(small[..., ::2, ::2]).shape == (1, 640)


@pytest.mark.usefixtures("low")
def test_tensors_of_a_safetensors_file_give_the_same_features(file: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, file.with_suffix(".safetensors"))
    panorama = wave_image(160, 320).float() / 255
    assert torch.equal(Faed(file.with_suffix(".safetensors"))(panorama), Faed(file)(panorama))


def test_it_sees_panoramas_of_512_rows_and_not_views(file: Path) -> None:
    assert Faed(file).protocol.size == 512
    panorama = wave_image(32, 64)[0].float() / 255
    seen = Looking(Faed.protocol, seed=0, device=torch.device("cpu")).views(panorama, 3)
    assert torch.equal(seen, panorama[None])


def test_other_files_are_refused_by_name(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    """Another checkpoint, one with a tensor of another shape, and files that are no checkpoints."""
    torch.save({"state_dict": {"net.encoder.weight": torch.zeros(3)}}, tmp_path / "other.ckpt")
    torch.save(tensors, tmp_path / "without.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"state_dict": tensors | {"net.encoder.fuse.conv2d.bias": torch.zeros(3)}}, tmp_path / "shape.ckpt")
    (tmp_path / "text.ckpt").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "folder").mkdir()
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=rf"{file.name} does not hold the weights of faed.ckpt of PanFusion"):
            Faed(file)
