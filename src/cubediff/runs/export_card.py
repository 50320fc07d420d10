"""The model card of an export: README.md with the Hub's metadata, the training data, settings, and sample pictures."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from huggingface_hub import ModelCardData, metadata_load
from omegaconf import DictConfig, OmegaConf

from cubediff.data.streaming.remote import is_remote
from cubediff.pipelines.cards import CARD, PICTURES
from cubediff.runs.record import DataRecord
from cubediff.utils.text import printable

_OWNED = "<!-- Remove this line to edit the card: cubediff rewrites it with every export while the line is here. -->"
_MAX_PICTURES = 4
# Licences of common base models, by Hub id in lower case: the `license` of their model cards.
_LICENSES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "runwayml/stable-diffusion-v1-5": "creativeml-openrail-m",
    "compvis/stable-diffusion-v1-4": "creativeml-openrail-m",
    "stabilityai/stable-diffusion-2-1-base": "openrail++",
    "stabilityai/stable-diffusion-2-base": "openrail++",
}
# Settings that the card lists, by key of the config.
_SETTINGS = (
    "model.optimizer._target_", "model.optimizer.lr", "data.batch_size", "trainer.accumulate_grad_batches",
    "trainer.precision", "model.trainable", "model.lr_schedule", "model.warmup_steps",
    "model.pipeline.position_encoding", "model.pipeline.sync_group_norm", "model.pipeline.scheduler.prediction_type",
    "model.objective.drop_text", "model.objective.drop_image", "model.objective.drop_both",
    "face_size", "fov",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingFacts:
    """What a card says of a training run.

    Attributes:
        config: The composed config of `cubediff train`.
        data: The datasets.
        panoramas: Number of training panoramas.
        steps: Number of optimizer steps.
        weights: Name of the exported weights, such as "ema".
        samples: The run's sample panoramas; the newest are shown.
    """

    config: DictConfig
    data: Sequence[DataRecord]
    panoramas: int
    steps: int
    weights: str
    samples: Sequence[Path] = field(default=())


def write_card(folder: Path, former: Path, facts: TrainingFacts) -> None:
    """Writes the card of an export and copies the pictures that it shows.

    Args:
        folder: The new export's folder.
        former: The folder of the earlier export. A card there that its owner has taken over stays; its line at the top
            says how.
        facts: What the card says.

    Raises:
        OSError: If a file cannot be written.
    """
    (folder / CARD).unlink(missing_ok=True)  # of the model that the run began with
    shutil.rmtree(folder / PICTURES, ignore_errors=True)
    kept = former / CARD
    if kept.is_file() and _OWNED not in kept.read_text(encoding="utf-8", errors="replace"):
        return
    pictures = newest_samples(facts.samples)
    if pictures:
        (folder / PICTURES).mkdir()
    for picture in pictures:
        shutil.copyfile(picture, folder / PICTURES / picture.name)
    (folder / CARD).write_text(card_text(facts, [picture.name for picture in pictures]), encoding="utf-8")


def newest_samples(samples: Sequence[Path]) -> list[Path]:
    """The panoramas of the last step among a run's samples, whose names are `stepNNNNNNN_KIND_I.jpg`."""
    panoramas = sorted(path for path in samples if path.suffix == ".jpg" and not path.stem.endswith("_faces"))
    steps = [path.name.partition("_")[0] for path in panoramas]
    return [path for path, step in zip(panoramas, steps, strict=True) if step == steps[-1]][:_MAX_PICTURES]


def card_text(facts: TrainingFacts, pictures: Sequence[str]) -> str:
    """The card as Markdown, below metadata in YAML."""
    config = facts.config
    name, base = str(config.name), OmegaConf.select(config, "model.pipeline.path")
    is_hub_id = base is not None and not Path(base).exists() and len(PurePath(base).parts) == 2
    licence = _licence(base)
    metadata = ModelCardData(
        license=licence,
        base_model=base if is_hub_id else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["cubediff", "panorama", "360", "cubemap", "image-to-image"],
    )
    origin = "no pretrained model" if base is None else _code(base if is_hub_id else PurePath(base).name)
    rights = (
        "Add a licence to the metadata before you publish the model."
        if base is None
        else f"The base model's licence, {_code(licence)}, applies to this model too."
        if licence is not None
        else "The licence of the base model is not known here: add it to the metadata before you publish the model."
    )
    shown = [f"![Sample {i + 1}]({PICTURES}/{picture})" for i, picture in enumerate(pictures)]
    return "\n".join(
        [
            "---",
            metadata.to_yaml(),
            "---",
            _OWNED,
            f"# {_plain(name)}",
            "",
            "Generates 360° panoramas from text, from photos, or from both (CubeDiff, https://arxiv.org/abs/2501.17162).",
            "",
            *[f"{picture}\n" for picture in shown],
            "## Use",
            "```python",
            "from cubediff import CubeDiffPipeline",
            "",
            'pipeline = CubeDiffPipeline.from_pretrained("THIS_MODEL")  # a folder or an id of the Hub',
            'pipeline("a pine forest in the morning").panoramas[0].save("panorama.jpg")',
            "```",
            "",
            "## Training",
            f"- Base model: {origin}. {rights}",
            f"- {facts.steps} steps; the weights are {_code(facts.weights)}; seed {config.seed}.",
            f"- {facts.panoramas} training panoramas.",
            "",
            "| data | SHA-256 of its manifest |",
            "|---|---|",
            *[
                f"| {_code(_data_name(each['path']))} | {_code(each['manifest_sha256'] or 'none')} |"
                for each in facts.data
            ],
            "",
            "| setting | value |",
            "|---|---|",
            *[_row(key, value) for key in _SETTINGS if (value := _select(config, key)) is not None],
            "",
        ]
    )


def _row(name: str, value: object) -> str:
    return f"| {_code(name)} | {_code(value)} |"


def _select(config: DictConfig, key: str) -> object:
    value: object = OmegaConf.select(config, key)
    return value


def _licence(base: str | None) -> str | None:
    """The licence of a base model: of a local folder's card, or of a known Hub id."""
    if base is None:
        return None
    if (card := Path(base) / CARD).is_file():
        try:
            stated: object = (metadata_load(card) or {}).get("license")
        except Exception:  # YAML raises many types; the card then says that the licence is unknown
            return None
        return stated if isinstance(stated, str) else None
    return _LICENSES.get(str(base).lower())


def _data_name(path: str) -> str:
    """A dataset's name: paths on this machine are nobody else's business."""
    return path if is_remote(path) else PurePath(path.rstrip("/")).name


def _plain(text: str) -> str:
    """A text in Markdown that is not markup."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#+!|" else c for c in printable(text))


def _code(value: object) -> str:
    """A value as code in Markdown, also inside a table."""
    text = printable(str(value)).replace("`", "'").replace("|", "\\|")
    return f"`{text}`"
