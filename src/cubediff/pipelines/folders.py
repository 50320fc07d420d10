"""Finds model folders."""

import re
from pathlib import Path
from typing import cast

from cubediff.utils.errors import DataError, check_version
from cubediff.utils.files import read_limited
from cubediff.utils.json_text import parse_json

# Holds experiments/ with the small models when the package runs from a checkout; does not exist for an installed wheel.
_CHECKOUT = Path(__file__).resolve().parents[3]
FORMAT = "_cubediff_format"  # key in model_index.json; the first folders have none
FORMAT_VERSION = 1
_VARIANT = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>[A-Za-z]\w*))?(?:-\d+-of-\d+)?\.safetensors")
_MAX_CONFIG = 1 << 24  # bytes of a JSON file, less a tokenizer's
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # names that are files, present or not
_SMALL_MODELS = ("experiments/tiny_sd/model", "experiments/cubediff_tiny/model")


def find_model(path: str | Path) -> str | Path:
    """Finds a model folder: as given, or a relative path that exists only in the checkout of this package.

    `model=tiny` and `model=cubediff_tiny` name folders of the checkout, and so work from any working directory.

    Args:
        path: A model folder or a Hub id (`owner/name`).

    Returns:
        The path in the checkout if only that one exists, else `path` unchanged.
    """
    folder = Path(path)
    in_checkout = _CHECKOUT / folder
    if not folder.is_absolute() and not folder.exists() and (in_checkout / "model_index.json").is_file():
        return in_checkout
    return path


def is_file_path(path: str | Path) -> bool:
    """Whether a path is that of a file, by its name if nothing is there: "models/sd.ckpt" is no Hub id."""
    path = Path(path)
    return path.is_file() or (path.suffix.lower() in _FILES and not path.is_dir())


def read_index(folder: str | Path) -> dict[str, object]:
    """The content of a model folder's model_index.json.

    Raises:
        ValueError: If it is damaged, or was written by a newer version of this package.
    """
    file = Path(folder) / "model_index.json"
    index = read_config(file)
    check_version(index.get(FORMAT), FORMAT_VERSION, file)
    return index


def read_config(file: Path) -> dict[str, object]:
    """The content of a model folder's JSON file.

    Raises:
        ValueError: If it is not a JSON object, or not a regular file.
        OSError: If it cannot be read, or is larger than a config.
    """
    try:
        content: object = parse_json(read_limited(file, _MAX_CONFIG))
    except DataError:  # it is not a regular file
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}): copy or export the model again") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{file}: expected an object, got {kind}: copy or export the model again")
    return cast(dict[str, object], content)


def only_variant(folder: Path) -> str | None:
    """The variant of a folder's weights, such as "fp16" (`model.fp16.safetensors`), if it holds no plain weights.

    Raises:
        ValueError: If it holds several variants and no plain weights.
    """
    named = [_VARIANT.fullmatch(file.name) for file in sorted(folder.glob("*/*.safetensors"))]
    variants = {match["variant"] for match in named if match}
    if len(variants) > 1 and None not in variants:
        raise ValueError(
            f"{folder} holds the variants {', '.join(map(str, sorted(variants, key=str)))}: choose one, for example "
            f"variant={min(map(str, variants))!r} (model.pipeline.variant in training)"
        )
    return None if len(variants) != 1 else variants.pop()


def check_folder(path: str | Path) -> str | Path:
    """Finds a model folder with `find_model`, and checks that it exists.

    Args:
        path: A model folder or a Hub id (`owner/name`), which is not checked.

    Returns:
        The folder or Hub id to load.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds no `model_index.json`.
        ValueError: If it is a file.
    """
    path = find_model(path)
    folder = Path(path)
    if folder.is_file():
        raise ValueError(
            f"{folder} is a file, and a single file is at most a 2D model, which generates no panoramas: use a folder "
            f"that `cubediff train` exported. A Stable Diffusion .safetensors file is trained with "
            f"model.pipeline.path={folder}, or loaded untrained with CubeDiffPipeline.from_2d"
        )
    if is_file_path(folder):
        raise FileNotFoundError(f"{folder}: no such file (looked from {Path.cwd()})")
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"{folder}: no model_index.json in it, so this is not a model folder; a training run exports one to "
                "RUN_DIR/export"
            )
        read_index(folder)
    elif folder.as_posix() in _SMALL_MODELS:
        raise FileNotFoundError(
            f"{folder}: no such model folder (looked from {Path.cwd()}). The small models are not part of the wheel: "
            f"clone https://github.com/cubediff/cubediff and set model.pipeline.path=CLONE/{folder.as_posix()}"
        )
    elif folder.is_absolute() or len(folder.parts) != 2 or folder.parts[0] in (".", ".."):
        raise FileNotFoundError(f"{folder}: no such model folder (looked from {Path.cwd()})")
    return path
