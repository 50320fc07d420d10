"""FID's network against torch-fidelity's: values that its version 0.4.0 gave, and, where it is installed, itself."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.waves import scattered_weights, wave_image

from cubediff.evaluation.inception import InceptionV3

# Of `scattered_weights` and `wave_image`: features 0, 1 and 1000, their mean and deviation, and the logits 0 and 1007.
FEATURES = (2.962104559, 1.168106675, 0.002025259426)
MEAN, DEVIATION, LOGITS = 0.786409318, 1.080178261, (-0.635757744, 2.936029673)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InceptionV3, "_load", lambda self, file: None)
        shapes = InceptionV3(path).state_dict()
    torch.save(scattered_weights(shapes), path)
    return path


def test_features_are_those_of_torch_fidelity_0_4_0(file: Path) -> None:
    extractor = InceptionV3(file)
    features = extractor(wave_image(128, 128).float() / 255)
    assert features.shape == (1, 2048)
    assert features[0, [0, 1, 1000]].tolist() == pytest.approx(FEATURES, rel=1e-4)
    assert features.std().item() == pytest.approx(DEVIATION, rel=1e-4)
    assert features.mean().item() == pytest.approx(MEAN, rel=1e-4)
    assert extractor.logits(features)[0, [0, 1007]].tolist() == pytest.approx(LOGITS, rel=1e-4)


def test_features_depend_on_the_image(file: Path) -> None:
    """Without it, the values above would say little."""
    extractor, pixels = InceptionV3(file), wave_image(128, 128).float() / 255
    changed = pixels.clone()
    changed[..., 88:] = 0
    features = extractor(torch.cat([pixels, changed]))
    assert (features[1] - features[0]).norm() > 0.1 * features[0].norm()
    logits = extractor.logits(features)
    torch.testing.assert_close(extractor.logits(features[:, None]), logits[:, None])


@pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="torch-fidelity needs torchvision")
@pytest.mark.parametrize("size", [128, 299, 400])
def test_features_are_those_of_the_installed_torch_fidelity(file: Path, size: int) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file))
    ours = InceptionV3(file)
    features, logits = theirs(wave_image(size, size))
    torch.testing.assert_close(ours(wave_image(size, size).float() / 255), features, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.logits(features), logits, rtol=1e-5, atol=1e-5)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not hold the weights of weights-inception-2015-12-05"):
        InceptionV3(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth does not hold the weights of"):
        InceptionV3(tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pth does not hold the weights of"):
        InceptionV3(tmp_path / "text.pth")
    with pytest.raises(ValueError, match=r"does not hold the weights of"):
        InceptionV3(tmp_path)
