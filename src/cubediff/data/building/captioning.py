"""Captions of panoramas and their faces by a vision-language model."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from typing_extensions import Unpack

from cubediff.configs import CONFIG_DIR
from cubediff.data.building.engines import Progress
from cubediff.data.building.output_folder import check_files_outside
from cubediff.data.sources import Entry, PanoramaJpeg, Rejection, Source
from cubediff.data.sources.records import entry_from
from cubediff.geometry.conventions import FACES
from cubediff.geometry.projections import equirect_to_cube
from cubediff.images.limits import MAX_WIDTH, QUALITY
from cubediff.utils.errors import DataError
from cubediff.utils.files import read_json_lines, write_atomic

VIEWS = ("panorama", *FACES)


@dataclass(frozen=True)
class Captioned:
    """A source with the captions of a JSON-lines file that `write_captions` wrote.

    Args:
        source: The source of the panoramas; its own captions are ignored.
        file: The captions file.
    """

    source: Source
    file: Path

    @property
    def identity(self) -> str:
        return f"{type(self).__qualname__}(source={self.source.identity}, file={self.file!r})"

    def entries(self) -> tuple[list[Entry], list[Rejection]]:
        entries, rejected = self.source.entries()
        records = _parse_captions(self.file, self.file.read_bytes())
        kept = []
        for entry in entries:
            try:
                if entry.file not in records:
                    raise DataError(f"has no caption in {self.file.name}")
                captioned = entry_from(entry.file, records[entry.file])
                metadata = {**entry.metadata, **captioned.metadata}
                kept.append(replace(entry, caption=captioned.caption, faces=captioned.faces, metadata=metadata))
            except DataError as error:
                rejected.append(Rejection(entry.file, str(error)))
        return kept, rejected

    def files(self, entry: Entry) -> list[Path]:
        return self.source.files(entry)

    def load(self, entry: Entry, max_width: int = MAX_WIDTH, quality: int = QUALITY) -> PanoramaJpeg:
        return self.source.load(entry, max_width, quality)


class CaptionOptions(TypedDict, total=False):
    """Keyword arguments of `write_captions`."""

    batch: int
    limit: int | None
    max_width: int
    device: str | None
    progress: Progress | None


@dataclass(frozen=True)
class CaptionSettings:
    """The content of conf/caption.yaml.

    Attributes:
        panorama: Instruction for a panorama.
        face: Instruction for a face.
        width: Width of the panorama that the model receives, in pixels.
        face_size: Size of a face, in pixels.
        max_new_tokens: Maximum number of generated tokens.
    """

    panorama: str
    face: str
    width: int
    face_size: int
    max_new_tokens: int


class Question(NamedTuple):
    """An image of one of VIEWS, and the instruction for the model."""

    entry: Entry
    view: str
    image: Image.Image
    instruction: str


def write_captions(
    source: Source,
    file: Path,
    model: str,
    *,
    batch: int = 8,
    limit: int | None = None,
    max_width: int = MAX_WIDTH,
    device: str | None = None,
    progress: Progress | None = None,
) -> int:
    """Captions the panoramas of a source that a captions file does not contain yet, and appends them to it.

    The same call resumes an interrupted one. conf/caption.yaml holds the instructions for the model. Panoramas that
    cannot be read get no line.

    Args:
        source: The panoramas.
        file: The captions file, in JSON lines.
        model: Folder or Hub id of an image-text-to-text model of transformers with a chat template (safetensors, no
            remote code).
        batch: Number of images in a batch.
        limit: Caption only the first panoramas; None: all.
        max_width: Maximum width of a panorama, in pixels.
        device: Device of the model; None: the GPU if there is one.
        progress: Wraps the panoramas, called with (entries, total, "captioning").

    Returns:
        The number of new lines.

    Raises:
        DataError: If the model cannot be loaded or has no chat template, or `file` is not a captions file.
    """
    entries, _ = source.entries()
    done = _captioned_files(file)
    remaining = [entry for entry in entries[:limit] if entry.file not in done]
    if not remaining:
        return 0
    settings = CaptionSettings(**{str(k): v for k, v in OmegaConf.load(Path(CONFIG_DIR) / "caption.yaml").items()})
    answer_all = _load_model(model, settings.max_new_tokens, device)
    shown = progress(remaining, len(remaining), "captioning") if progress else remaining
    questions = (q for entry in shown for q in _questions(source, entry, settings, max_width))
    written = 0
    captions: dict[str, str] = {}
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        for chunk in iter(lambda: list(islice(questions, batch)), []):
            for question, answer in zip(chunk, answer_all(chunk), strict=True):
                captions[question.view] = " ".join(answer.split())
                if len(captions) == len(VIEWS):
                    record = {"file": question.entry.file, "caption": captions.pop("panorama"), "faces": captions}
                    lines.write(json.dumps({**record, "captioned_by": model}, ensure_ascii=False) + "\n")
                    lines.flush()
                    captions = {}
                    written += 1
    return written


def caption_source(source: Source, file: Path, model: str, **options: Unpack[CaptionOptions]) -> Captioned:
    """Writes captions as `write_captions` does to a file in OUTPUT, and returns the source with these captions.

    Raises:
        DataError: As `write_captions`; or if a panorama lies in the folder of `file`, which the build would replace.
    """
    check_files_outside((path for entry in source.entries()[0] for path in source.files(entry)), file.parent)
    write_captions(source, file, model, **options)
    return Captioned(source, file)


def _captioned_files(file: Path) -> set[str]:
    """The panoramas that have a line. An incomplete last line, of an interrupted call, is removed from the file; a
    complete one without a newline gets it."""
    if not file.exists():
        return set()
    content = file.read_bytes()
    complete, last = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
    if last.strip().endswith(b"}"):
        complete = content + b"\n"
    if complete != content:
        write_atomic(file, complete)
    return set(_parse_captions(file, complete))


def _parse_captions(file: Path, content: bytes) -> dict[str, dict[str, object]]:
    """The lines of a captions file by the name of the panorama, which is removed from them."""
    records: dict[str, dict[str, object]] = {}
    try:
        for number, record in read_json_lines(content.decode()):
            if not isinstance(record, dict) or not isinstance(record.get("file"), str):
                raise ValueError(f"line {number}: expected an object with a file")
            records[record.pop("file")] = record
    except ValueError as error:
        raise DataError(f"{file} is not a captions file ({error}): repair or remove it") from None
    return records


def _questions(source: Source, entry: Entry, settings: CaptionSettings, max_width: int) -> Iterator[Question]:
    """One question for each view of a panorama; none if it cannot be read, which the build then rejects."""
    try:
        panorama = source.load(entry, max_width)
    except DataError:
        return
    with Image.open(io.BytesIO(panorama.jpeg), formats=("JPEG",)) as opened:
        panorama_image = opened.convert("RGB")
    pixels = torch.from_numpy(np.array(panorama_image)).permute(2, 0, 1)[None]
    faces = equirect_to_cube(pixels, settings.face_size, fov=90.0)[0].permute(0, 2, 3, 1).numpy()
    size = (settings.width, settings.width // 2)
    yield Question(entry, "panorama", panorama_image.resize(size, Image.Resampling.LANCZOS), settings.panorama)
    for name, face in zip(FACES, faces, strict=True):
        yield Question(entry, name, Image.fromarray(np.ascontiguousarray(face)), settings.face)


def _load_model(model: str, max_new_tokens: int, device: str | None) -> Callable[[list[Question]], list[str]]:
    from transformers import AutoModelForImageTextToText, AutoProcessor  # slow to import

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
        network = AutoModelForImageTextToText.from_pretrained(
            model, use_safetensors=True, trust_remote_code=False, dtype="auto"
        ).to(device)
    except (OSError, ValueError) as error:
        raise DataError(f"--caption {model}: cannot be loaded as an image-text-to-text model ({error})") from error
    if getattr(processor, "chat_template", None) is None:
        raise DataError(f"--caption {model}: has no chat template: choose an instruction-tuned model")
    processor.tokenizer.padding_side = "left"  # padding must not separate an answer from its prompt

    @torch.inference_mode()
    def answer(questions: list[Question]) -> list[str]:
        chats = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": q.image}, {"type": "text", "text": q.instruction}],
                }
            ]
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

    return answer
