"""Captions by a vision-language model: a tiny random model of a real class, called as in production."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.pictures import picture
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from typer.testing import CliRunner

from cubediff.data.building import captioning as caption
from cubediff.data.building.captioning import VIEWS, Captioned, Question, write_captions
from cubediff.data.sources import open_source
from cubediff.geometry import FACES
from cubediff.prepare import app
from cubediff.utils.errors import DataError

CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of two layers with random weights, which generates letters."""
    path = tmp_path_factory.mktemp("vlm")
    tokens = ["<pad>", "<s>", "</s>", "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            extra_special_tokens={"image_token": "<image>"},
        ),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(path)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=CLIPVisionConfig(**layers, image_size=32, patch_size=16, projection_dim=16),
                text_config=LlamaConfig(
                    **layers,
                    vocab_size=len(tokens),
                    num_key_value_heads=2,
                    pad_token_id=0,
                    bos_token_id=1,
                    eos_token_id=2,
                ),
                image_token_index=tokens.index("<image>"),
                image_seq_length=4,
            )
        )
        letters = [tokens.index(chr(code)) for code in range(ord("a"), ord("z") + 1)]
        network.lm_head.weight.data[[i for i in range(len(tokens)) if i not in letters]] *= 1e-3  # never the end token
        network.generation_config.suppress_tokens = [i for i in range(len(tokens)) if i not in letters]
    network.save_pretrained(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for i in range(3):
        picture(i).save(source / f"{i}.jpg")
    return source


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_panorama_gets_a_caption_and_one_for_each_face(model: Path, folder: Path, tmp_path: Path) -> None:
    source = open_source(folder, captioned=False)
    assert write_captions(source, tmp_path / "out" / "captions.jsonl", str(model), batch=5) == 3
    written = records(tmp_path / "out" / "captions.jsonl")
    assert [record["file"] for record in written] == ["0.jpg", "1.jpg", "2.jpg"]
    for record in written:
        assert record["captioned_by"] == str(model)
        assert list(record["faces"]) == list(FACES)
        assert all(text.isalpha() for text in (record["caption"], *record["faces"].values()))


def test_captions_do_not_depend_on_the_batch_size(model: Path, folder: Path, tmp_path: Path) -> None:
    source = open_source(folder, captioned=False)
    for batch in (1, 4):
        write_captions(source, tmp_path / f"{batch}.jsonl", str(model), batch=batch)
    assert records(tmp_path / "1.jsonl") == records(tmp_path / "4.jsonl")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """Records the questions; each is answered with its number."""
    questions: list[Question] = []

    def ask(some: list[Question]) -> list[str]:
        questions.extend(some)
        return [f"{q.view}  of\n{q.entry.file}" for q in some]

    monkeypatch.setattr(caption, "_load_model", lambda *_: ask)
    return questions


def test_the_model_sees_the_panorama_and_its_faces(folder: Path, tmp_path: Path, calls: list[Question]) -> None:
    yaw = np.linspace(-180, 180, 256, endpoint=False)
    left_and_right = np.broadcast_to(np.where(yaw < 0, 40, 220)[None, :, None], (128, 256, 3)).astype(np.uint8)
    Image.fromarray(left_and_right).save(folder / "0.jpg")
    write_captions(open_source(folder, captioned=False), tmp_path / "captions.jsonl", "any")
    first = {q.view: np.asarray(q.image, np.float64) for q in calls[: len(VIEWS)]}
    assert tuple(first) == VIEWS
    assert first["panorama"].shape == (512, 1024, 3)
    assert first["front"].shape == (512, 512, 3)
    assert first["right"].mean() > 215
    assert first["left"].mean() < 45
    assert first["front"][:, :200].mean() < 45 < 215 < first["front"][:, -200:].mean()
    assert len({q.instruction for q in calls if q.view == "panorama"}) == 1
    assert records(tmp_path / "captions.jsonl")[2]["faces"]["up"] == "up of 2.jpg"


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_an_interrupted_call_resumes(folder: Path, tmp_path: Path, calls: list[Question], cut: int) -> None:
    source, file = open_source(folder, captioned=False), tmp_path / "captions.jsonl"
    write_captions(source, file, "any")
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    file.write_bytes(whole[: first + cut])
    calls.clear()
    assert write_captions(source, file, "any") == 2
    assert file.read_bytes() == whole
    assert {q.entry.file for q in calls} == {"1.jpg", "2.jpg"}
    assert write_captions(source, file, "any") == 0


def test_a_limit_takes_the_first(folder: Path, tmp_path: Path, calls: list[Question]) -> None:
    source, file = open_source(folder, captioned=False), tmp_path / "captions.jsonl"
    assert write_captions(source, file, "any", limit=2) == 2
    assert [record["file"] for record in records(file)] == ["0.jpg", "1.jpg"]


def test_unreadable_panoramas_are_skipped(folder: Path, tmp_path: Path, calls: list[Question]) -> None:
    (folder / "1.jpg").write_bytes(b"no picture")
    source, file = open_source(folder, captioned=False), tmp_path / "captions.jsonl"
    write_captions(source, file, "any")
    entries, rejected = Captioned(source, file).entries()
    assert [entry.file for entry in entries] == ["0.jpg", "2.jpg"]
    assert [(r.file, r.reason) for r in rejected] == [("1.jpg", "has no caption in captions.jsonl")]
    assert entries[0].caption == "panorama of 0.jpg"
    assert entries[0].faces == {face: f"{face} of 0.jpg" for face in FACES}
    assert entries[0].metadata == {"captioned_by": "any"}


def test_the_command_captions_and_builds(folder: Path, tmp_path: Path, calls: list[Question]) -> None:
    words = [str(folder), str(tmp_path / "out"), "--caption", "any", "--workers", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "(3 with face captions)" in done.output
    assert len(records(tmp_path / "out" / "captions.jsonl")) == 3
    calls.clear()
    assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == 0
    assert not calls
    (tmp_path / "out" / "captions.jsonl").unlink()
    done = CliRunner().invoke(app, words)
    assert "already holds shards" in done.output
    assert not calls  # refused before captioning
    done = CliRunner().invoke(app, [*words, "--captions", "x.jsonl"])
    assert done.exit_code == 1
    assert "not both" in done.output


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path / "nothing", "cannot be loaded as an image-text-to-text model"),
        (lambda path: Path((path / "chat_template.jinja").unlink() or path), "has no chat template"),
    ],
)
def test_error_of_an_unusable_model_names_it(
    model: Path, folder: Path, tmp_path: Path, spoil: Callable[[Path], Path], message: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=message):
        write_captions(open_source(folder, captioned=False), tmp_path / "captions.jsonl", str(spoil(copy)))


def test_error_of_an_invalid_captions_file_names_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text("something else\n")
    with pytest.raises(DataError, match="is not a captions file"):
        write_captions(open_source(folder, captioned=False), tmp_path / "captions.jsonl", "any")
