"""Captions by a vision-language model, one for each panorama and one for each of its faces (the paper's training data
has such)."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from typing_extensions import Unpack

from cubediff.configs import CONFIG_DIR
from cubediff.data.building.engines import Progress
from cubediff.data.sources import Entry, Panorama, Rejection, Source
from cubediff.data.sources.captions import entry_from
from cubediff.geometry.conventions import FACES
from cubediff.geometry.projections import equirect_to_cube
from cubediff.utils.errors import DataError

VIEWS = ("panorama", *FACES)


@dataclass(frozen=True)
class Captioned:
    """A source whose captions are those of a JSON-lines file that `write_captions` wrote."""

    source: Source
    file: Path

    @property
    def identity(self) -> str:
        return f"{type(self).__qualname__}(source={self.source.identity}, file={self.file!r})"

    def entries(self) -> tuple[list[Entry], list[Rejection]]:
        entries, rejected = self.source.entries()
        records = {record.pop("file"): record for record in map(json.loads, self.file.read_bytes().splitlines())}
        kept = []
        for entry in entries:
            try:
                if entry.file not in records:
                    raise DataError(f"has no caption in {self.file.name}")
                told = entry_from(entry.file, records[entry.file])
                metadata = {**entry.metadata, **told.metadata}
                kept.append(replace(entry, caption=told.caption, faces=told.faces, metadata=metadata))
            except DataError as error:
                rejected.append(Rejection(entry.file, str(error)))
        return kept, rejected

    def files(self, entry: Entry) -> list[Path]:
        return self.source.files(entry)

    def load(self, entry: Entry, max_width: int = 16384, quality: int = 95) -> Panorama:
        return self.source.load(entry, max_width, quality)


class CaptionOptions(TypedDict, total=False):
    """Keyword arguments of `write_captions`."""

    batch: int
    limit: int | None
    max_width: int
    device: str | None
    progress: Progress | None


class Question(NamedTuple):
    """A picture of one of VIEWS, and what the model is asked about it."""

    entry: Entry
    view: str
    picture: Image.Image
    text: str


def write_captions(
    source: Source,
    file: Path,
    model: str,
    *,
    batch: int = 8,
    limit: int | None = None,
    max_width: int = 16384,
    device: str | None = None,
    progress: Progress | None = None,
) -> int:
    """Appends a line of captions to `file` for every panorama of `source` (the first `limit`) that it has none of;
    returns how many.

    `model` is the folder or Hub id of any transformers image-text-to-text model with a chat template (safetensors, no
    remote code); `batch` the pictures it sees at once. conf/caption.yaml says what it is asked. A call that is cut is
    gone on with by the same call. Panoramas that cannot be read are left out. Raises DataError where the model cannot
    be loaded.
    """
    entries, _ = source.entries()
    done = _whole_lines(file)
    left = [entry for entry in entries[:limit] if entry.file not in done]
    if not left:
        return 0
    settings = OmegaConf.load(Path(CONFIG_DIR) / "caption.yaml")
    ask = _load(model, int(settings.max_new_tokens), device)
    shown = progress(left, len(left), "captioning") if progress else left
    questions = (q for entry in shown for q in _questions(source, entry, settings, max_width))
    written = 0
    captions: dict[str, str] = {}
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        for some in iter(lambda: list(islice(questions, batch)), []):
            for question, answer in zip(some, ask(some), strict=True):
                captions[question.view] = " ".join(answer.split())
                if len(captions) == len(VIEWS):
                    record = {"file": question.entry.file, "caption": captions.pop("panorama"), "faces": captions}
                    lines.write(json.dumps({**record, "captioned_by": model}, ensure_ascii=False) + "\n")
                    lines.flush()
                    captions = {}
                    written += 1
    return written


def caption_source(source: Source, file: Path, model: str, **options: Unpack[CaptionOptions]) -> Captioned:
    """Writes captions as `write_captions` does and returns the source with these captions."""
    write_captions(source, file, model, **options)
    return Captioned(source, file)


def _whole_lines(file: Path) -> set[str]:
    """The panoramas that have a line already; a last line that was cut is taken off the file."""
    if not file.exists():
        return set()
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        file.write_bytes(whole)
    try:
        return {json.loads(line)["file"] for line in whole.splitlines() if line.strip()}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no file of captions ({error}): repair or remove it") from None


def _questions(source: Source, entry: Entry, settings: Any, max_width: int) -> Iterator[Question]:
    """The views of a panorama; none where it cannot be read, which the building of shards then reports."""
    try:
        panorama = source.load(entry, max_width, 95)
    except DataError:
        return
    with Image.open(io.BytesIO(panorama.jpeg)) as opened:
        whole = opened.convert("RGB")
    pixels = torch.from_numpy(np.array(whole)).permute(2, 0, 1)[None]
    faces = equirect_to_cube(pixels, int(settings.face_size), fov=90.0)[0].permute(0, 2, 3, 1).numpy()
    size = (int(settings.width), int(settings.width) // 2)
    yield Question(entry, "panorama", whole.resize(size, Image.Resampling.LANCZOS), settings.panorama)
    for name, face in zip(FACES, faces, strict=True):
        yield Question(entry, name, Image.fromarray(np.ascontiguousarray(face)), settings.face)


def _load(model: str, max_new_tokens: int, device: str | None) -> Callable[[list[Question]], list[str]]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        processor = AutoProcessor.from_pretrained(model)
        network = AutoModelForImageTextToText.from_pretrained(model, use_safetensors=True, dtype="auto").to(device)
    except (OSError, ValueError) as error:
        raise DataError(f"--caption {model}: cannot be loaded as an image-text-to-text model ({error})") from error
    if getattr(processor, "chat_template", None) is None:
        raise DataError(
            f"--caption {model}: has no chat template, so it cannot be asked; take an instruction-tuned model"
        )
    processor.tokenizer.padding_side = "left"  # else the answers of a batch would begin after padding

    @torch.inference_mode()
    def ask(questions: list[Question]) -> list[str]:
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": q.picture}, {"type": "text", "text": q.text}]}]
            for q in questions
        ]
        inputs = processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        ).to(device, network.dtype)
        answers = network.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        texts: list[str] = processor.batch_decode(answers[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts

    return ask
