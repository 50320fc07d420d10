"""Caption metrics against torchmetrics and known embeddings."""

import math
from types import SimpleNamespace

import pytest
import torch
from support.clip import small_clip
from torch import Tensor
from torchmetrics.functional.multimodal import clip_score

from cubediff.evaluation.captions import Upright, clip_scores, fits_upright, mirror, turn_upside_down
from cubediff.evaluation.extractors import ClipImages
from cubediff.evaluation.views import PROTOCOLS, render_views
from cubediff.geometry.conventions import rotation_matrix, sphere_directions


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipImages:
    return ClipImages(small_clip(tmp_path_factory.mktemp("clip")))


def at(degrees: float, length: float = 1.0) -> Tensor:
    """An embedding in the plane."""
    angle = math.radians(degrees)
    return length * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)


def test_a_score_is_100_times_the_cosine_and_not_negative() -> None:
    images = torch.stack([at(30), at(60, 5), at(90), at(170)])
    texts = torch.stack([at(30, 3), at(0), at(0), at(0)])
    assert clip_scores(images, texts).tolist() == pytest.approx([100, 50, 0, 0], abs=1e-9)
    assert clip_scores(images.view(2, 2, 2), texts.view(2, 2, 2)).shape == (2, 2)


def test_scores_are_torchmetrics(clip: ClipImages) -> None:
    """With the embeddings of a random model, whose signs are chosen so that all scores are positive."""
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    captions = ["a hall", "a garden in the morning", "", "snow " * 40]
    texts = clip.texts(captions)
    texts = texts * (clip(images) * texts).sum(1, keepdim=True).sign()
    model = SimpleNamespace(get_image_features=clip, get_text_features=lambda *tokens: texts, to=lambda device: model)

    def processor(images: list[Tensor] | None = None, text: list[str] | None = None, **options: object) -> object:
        if images is not None:
            return {"pixel_values": torch.stack(images)}
        return dict.fromkeys(("input_ids", "attention_mask"), torch.zeros(1, 1))

    model.config = SimpleNamespace()
    theirs = clip_score(images, captions, model_name_or_path=lambda: (model, processor))
    ours = clip_scores(clip(images), texts)
    assert theirs > 0
    assert ours.mean().item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_caption_fits_better_if_the_mean_score_of_the_views_is_greater() -> None:
    text = at(20)
    views, half = torch.stack([at(10), at(20), at(40)]), torch.stack([at(20), at(20), at(80)])
    assert fits_upright(text, views, half, views) == Upright(than_upside_down=True, than_flipped=False)
    assert fits_upright(text, half, views, half) == Upright(than_upside_down=False, than_flipped=False)
    assert fits_upright(text, views, half, half) == Upright(than_upside_down=True, than_flipped=True)
    assert fits_upright(text, views, views.flip(0), half).than_upside_down is False  # the same views


class Stub:
    """Embeds a view as its mean colour above and below its middle, left and right of it."""

    def __call__(self, views: Tensor) -> Tensor:
        rows, columns = views.mean((1, 3)), views.mean((1, 2))
        halves = [half.mean(1) for each in (rows, columns) for half in each.chunk(2, 1)]
        return torch.stack(halves, 1)


def test_the_copies_of_a_panorama_are_seen_by_the_views_of_a_protocol() -> None:
    """Bright above, dark below: as its text says, which its copy upside down contradicts and the mirrored one not.

    The second is brighter at the right of the front, which only its mirrored copy contradicts: the copy upside down
    swaps left and right too.
    """
    height = 64
    up = torch.linspace(1, 0, height)[None, :, None].expand(3, height, 2 * height)
    turn = (torch.arange(2 * height) + 0.5) / (2 * height)
    right = ((turn - 0.5).abs() < 0.25).float() * turn
    views = PROTOCOLS["faces"].views(0)[:1]
    stub = Stub()
    found = []
    for panorama, text in ((up, [1.0, 0.0, 0.5, 0.5]), (right.expand(3, height, -1), [0.5, 0.5, 0.0, 1.0])):
        embedded = [stub(render_views(x, views, 32)) for x in (panorama, turn_upside_down(panorama), mirror(panorama))]
        found.append(fits_upright(torch.tensor(text), *embedded))
    assert found[0].than_upside_down
    assert found[1].than_flipped
    assert found[1].than_upside_down


def test_upside_down_is_a_roll_by_180_degrees() -> None:
    directions = sphere_directions(32).movedim(-1, 0)
    rolled = torch.einsum("ij,jhw->ihw", rotation_matrix(0.0, 0.0, 180.0).to(directions), directions)
    torch.testing.assert_close(turn_upside_down(directions), rolled)
    swapped = mirror(directions)
    torch.testing.assert_close(swapped, directions * torch.tensor([-1.0, 1.0, 1.0])[:, None, None].to(directions))
    assert turn_upside_down(directions[None]).shape == mirror(directions[None]).shape == (1, 3, 32, 64)


def test_captions_that_are_truncated_are_counted(clip: ClipImages, caplog: pytest.LogCaptureFixture) -> None:
    """The small model reads 16 tokens, two of which are the start and the end."""
    assert clip.length == 16
    word = "a "
    assert len(clip.tokenizer(word * 14).input_ids) == 16
    assert clip.truncated([word * 14, word * 15, "", word * 100]) == 2
    assert clip.truncated(["a hall"]) == 0
    torch.testing.assert_close(clip.texts([word * 15]), clip.texts([word * 100]))
    assert not caplog.records


def test_a_caption_for_each_face_is_compared_with_its_own_face(clip: ClipImages) -> None:
    faces = torch.rand(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    captions = [f"face {face} of scene {scene}" for scene in range(2) for face in range(6)]
    images, texts = clip(faces.flatten(0, 1)).unflatten(0, (2, 6)), clip.texts(captions).unflatten(0, (2, 6))
    scores = clip_scores(images, texts)
    assert scores.shape == (2, 6)
    cosine = torch.nn.functional.cosine_similarity(images[1, 3].double(), texts[1, 3].double(), dim=0)
    assert scores[1, 3].item() == pytest.approx(max(0, 100 * cosine.item()), rel=1e-4)
