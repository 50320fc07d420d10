"""The model card of an export: what it says, and that it survives saving, pushing to the Hub and further exports."""

import os
import shutil
from pathlib import Path

import diffusers.utils.hub_utils
import pytest
import yaml
from huggingface_hub import ModelCard, RepoUrl
from huggingface_hub.utils import EntryNotFoundError
from omegaconf import OmegaConf
from PIL import Image
from support.builds import contents
from support.promises import promised
from support.runs import composed, train

from cubediff import CubeDiffPipeline
from cubediff.pipelines.cards import copy_card
from cubediff.pipelines.loading import tiny_random
from cubediff.runs.export_card import TrainingFacts, card_text, newest_samples, write_card
from cubediff.runs.record import DataRecord

PAGE = "docs/training.md"


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(
        tiny_shards,
        tmp_path_factory.mktemp("card") / "run",
        "name='a|b <i>'",
        "callbacks.samples.count=1",
        "trainer.val_check_interval=2",
    )


@pytest.fixture
def export(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run / "export", tmp_path / "export"))


def facts(*overrides: str, **changes: object) -> TrainingFacts:
    data = [DataRecord(path="secret/shards", manifest_sha256="ab" * 32)]
    given = {"data": data, "panoramas": 700, "steps": 9, "weights": "ema", "samples": [], **changes}
    return TrainingFacts(config=composed(*overrides), **given)  # type: ignore[arg-type]


def test_an_export_has_a_card_with_data_settings_and_pictures(run: Path, tiny_shards: Path) -> None:
    promised(PAGE, "The export has a model card (`README.md`)", "sample pictures of the run")
    card = ModelCard.load(run / "export/README.md")
    assert card.data.pipeline_tag == "text-to-image"
    assert card.data.library_name == "diffusers"
    assert {"cubediff", "panorama"} <= set(card.data.tags)
    manifest = OmegaConf.load(run / "run.json")["data"][0]["manifest_sha256"]
    assert f"| `{tiny_shards.name}` | `{manifest}` |" in card.text
    assert str(tiny_shards.parent) not in card.text  # a path of this machine
    assert "2 steps; the weights are `ema`; seed 0." in card.text
    assert "5 training panoramas" in card.text
    assert "| `face_size` | `64` |" in card.text
    assert "# a\\|b \\<i\\>" in card.text
    pictures = sorted((run / "export/samples").iterdir())
    assert [picture.name for picture in pictures] == ["step0000002_text_0.jpg", "step0000002_text_photo_0.jpg"]
    for picture in pictures:
        assert f"]({picture.relative_to(run / 'export').as_posix()})" in card.text
        with Image.open(picture) as image:
            assert image.size == (256, 128)
        assert picture.read_bytes() == (run / "samples" / picture.name).read_bytes()


@pytest.mark.parametrize(
    ("base", "licence"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "creativeml-openrail-m"),
        ("stabilityai/stable-diffusion-2-1-base", "openrail++"),
        ("somebody/else", None),
    ],
)
def test_the_licence_is_that_of_the_base(base: str, licence: str | None) -> None:
    card = ModelCard(card_text(facts("model=sd15", f"model.pipeline.path={base}"), []))
    assert card.data.base_model == base
    assert card.data.license == licence
    known = f"The base model's licence, `{licence}`, applies to this model too."
    assert (known if licence else "add it to the metadata before you publish the model") in card.text


def test_the_licence_of_a_local_base_is_in_its_card(tmp_path: Path) -> None:
    for name, text in {
        "stated": "---\nlicense: mit\n---\n",
        "damaged": "---\n: [\n---\n",
        "none": "no metadata",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(text)
        card = ModelCard(card_text(facts("model=sd15", f"model.pipeline.path={tmp_path / name}"), []))
        assert card.data.license == ("mit" if name == "stated" else None)
        assert card.data.base_model is None
        assert f"Base model: `{name}`." in card.text
        assert str(tmp_path) not in card.text


def test_texts_cannot_break_the_card() -> None:
    text = card_text(facts("model=sd15", "name='[x](y)'", "model.pipeline.path='a/b: [c'"), [])
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["base_model"] == "a/b: [c"
    assert "# \\[x\\](y)" in text


def test_the_newest_samples_are_shown(tmp_path: Path) -> None:
    names = [
        "step0000009_text_0.jpg",
        "step0000010_text_0.jpg",
        "step0000010_text_0_faces.jpg",
        "step0000010_text_0.html",
    ]
    assert newest_samples([tmp_path / name for name in names]) == [tmp_path / "step0000010_text_0.jpg"]
    assert newest_samples([]) == []
    assert len(newest_samples([tmp_path / f"step0000010_text_{i}.jpg" for i in range(9)])) == 4


def test_a_card_that_its_owner_has_edited_stays(tmp_path: Path) -> None:
    promised(PAGE, "To keep your own edits when the run exports again, remove the comment at its top.")
    for name in ("former", "part", "again"):
        (tmp_path / name).mkdir()
    write_card(tmp_path / "part", tmp_path / "former", facts())
    own = (tmp_path / "part/README.md").read_text()
    (tmp_path / "former/README.md").write_text(own.replace("9 steps", "8 steps"))
    write_card(tmp_path / "part", tmp_path / "former", facts())
    assert (tmp_path / "part/README.md").read_text() == own
    (tmp_path / "former/README.md").write_text("my own card")
    (tmp_path / "again/README.md").write_text("the card of the model that the run began with")
    write_card(tmp_path / "again", tmp_path / "former", facts())
    assert not (tmp_path / "again/README.md").exists()  # the export keeps files that are not written anew


def test_saving_keeps_the_card(export: Path, tmp_path: Path) -> None:
    pipeline = CubeDiffPipeline.from_pretrained(export)
    pipeline.save_pretrained(tmp_path / "saved")
    for name in ("README.md", "samples/step0000002_text_0.jpg"):
        assert (tmp_path / "saved" / name).read_bytes() == (export / name).read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/README.md").write_text("mine")
    pipeline.save_pretrained(tmp_path / "other")
    assert (tmp_path / "other/README.md").read_text() == "mine"


def test_a_pipeline_without_a_folder_has_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("of the working directory")
    monkeypatch.chdir(tmp_path)
    tiny_random().save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved/README.md").exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A folder of others could link to private files, which would be pushed."""
    for name in ("source/samples", "target", "linked"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "private").write_text("key")
    (tmp_path / "source/README.md").write_text("card")
    (tmp_path / "source/samples/a.jpg").symlink_to(tmp_path / "private")
    (tmp_path / "source/samples/b.txt").write_text("no picture")
    copy_card(tmp_path / "source", tmp_path / "target")
    assert contents(tmp_path / "target") == {"README.md": b"card"}
    (tmp_path / "linked/README.md").symlink_to(tmp_path / "private")
    copy_card(tmp_path / "linked", tmp_path / "source")
    assert (tmp_path / "source/README.md").read_text() == "card"


@pytest.mark.parametrize("card_on_hub", [None, "---\nlicense: mit\n---\nthe card on the Hub"])
def test_push_to_hub_sends_the_card(export: Path, monkeypatch: pytest.MonkeyPatch, card_on_hub: str | None) -> None:
    """Unless the Hub has one; as diffusers loads it, and with nothing sent for this test."""
    promised(PAGE, "`push_to_hub` of a pipeline that was loaded from the export uploads the card, too")
    sent: dict[str, bytes] = {}

    def load(repo_id: str, token: str | None = None) -> ModelCard:
        if card_on_hub is None:
            raise EntryNotFoundError("no card")
        return ModelCard(card_on_hub)

    hub = diffusers.utils.hub_utils
    monkeypatch.setattr(hub, "create_repo", lambda name, **_: RepoUrl(f"https://huggingface.co/{name}"))
    monkeypatch.setattr(hub, "upload_folder", lambda folder_path, **_: sent.update(contents(Path(folder_path))))
    monkeypatch.setattr(hub.ModelCard, "load", load)
    CubeDiffPipeline.from_pretrained(export).push_to_hub("me/panoramas")
    assert {"model_index.json", "README.md", "samples/step0000002_text_0.jpg"} <= set(sent)
    if card_on_hub is None:
        assert sent["README.md"] == (export / "README.md").read_bytes()
    else:
        assert b"the card on the Hub" in sent["README.md"]
    assert os.fspath(export) not in sent["README.md"].decode()
