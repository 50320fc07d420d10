"""Model cards: README.md of a pipeline folder and its pictures, kept when the pipeline is saved or pushed."""

import shutil
from pathlib import Path

from diffusers import DiffusionPipeline

CARD = "README.md"
PICTURES = "samples"  # the folder of the card's pictures
_TEMPLATE = "[More Information Needed]"  # in the card that diffusers writes where the Hub has none
_SUFFIXES = (".jpg", ".png", ".webp")


class PipelineWithCard(DiffusionPipeline):
    """A pipeline that keeps the card of the folder that it was loaded from.

    diffusers sends an empty card to the Hub where there is none: `push_to_hub` sends the kept one in its place. A card
    that is on the Hub already stays.
    """

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, *args: object, **kwargs: object
    ) -> None:
        """Saves the pipeline as diffusers does, with its card; a card that is in the folder already stays.

        Raises:
            ValueError: With `safe_serialization=False`, because `from_pretrained` refuses pickled weights.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False: from_pretrained refuses pickled weights; save safetensors")
        super().save_pretrained(str(save_directory), True, *args, **kwargs)
        self._copy_card(Path(save_directory))

    def _upload_folder(self, working_dir: str | Path, *args: object, **kwargs: object) -> object:
        self._copy_card(Path(working_dir))
        return super()._upload_folder(working_dir, *args, **kwargs)

    def _copy_card(self, target: Path) -> None:
        loaded_from: str | None = self.config.get("_name_or_path")
        if loaded_from and Path(loaded_from).resolve() != target.resolve():
            copy_card(Path(loaded_from), target)


def copy_card(source: Path, target: Path) -> None:
    """Copies the card of a folder and its pictures, unless the target has a card other than diffusers' empty one.

    Links are not followed: those in a folder of others could lead to private files.

    Args:
        source: The folder with the card; without one nothing is copied.
        target: An existing folder.

    Raises:
        OSError: If a file cannot be copied.
    """
    card, written = source / CARD, target / CARD
    if not _is_plain(card) or (written.exists() and _TEMPLATE not in written.read_text("utf-8", errors="replace")):
        return
    shutil.copyfile(card, written)
    pictures = source / PICTURES
    if pictures.is_dir() and not pictures.is_symlink():
        for picture in sorted(pictures.iterdir()):
            if picture.suffix in _SUFFIXES and _is_plain(picture):
                (target / PICTURES).mkdir(exist_ok=True)
                shutil.copyfile(picture, target / PICTURES / picture.name)


def _is_plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()
