"""Model folders: where one is, and whether it can be loaded safely."""

import json
from pathlib import Path

from cubediff.utils.errors import check_version

# Holds experiments/ with the small models when the package runs from a checkout; does not exist for an installed wheel.
_CHECKOUT = Path(__file__).resolve().parents[3]
FORMAT = "_cubediff_format"  # key in model_index.json; the first folders have none
FORMAT_VERSION = 1
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


def read_index(folder: str | Path) -> dict[str, object]:
    """The content of a model folder's model_index.json.

    Raises:
        ValueError: If it is damaged, or was written by a newer version of this package.
    """
    file = Path(folder) / "model_index.json"
    try:
        index: object = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): copy or export the model again") from error
    if not isinstance(index, dict):
        raise ValueError(f"{file}: expected an object, got {type(index).__name__}: copy or export the model again")
    check_version(index.get(FORMAT), FORMAT_VERSION, file)
    return index


def check_folder(path: str | Path) -> str | Path:
    """Finds a model folder with `find_model` and checks that it can be loaded.

    Args:
        path: A model folder or a Hub id (`owner/name`), which is not checked.

    Returns:
        The folder or Hub id to load.

    Raises:
        FileNotFoundError: There is no such folder, or it holds no `model_index.json`.
        ValueError: The folder holds pickled weights only.
    """
    path = find_model(path)
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"{folder}: no model_index.json in it, so this is not a model folder; a training run exports one to "
                "RUN_DIR/export"
            )
        read_index(folder)
        for part in ("unet", "vae", "text_encoder"):
            pickled = [file for kind in ("*.bin", "*.pt", "*.ckpt") for file in (folder / part).glob(kind)]
            if pickled and not any((folder / part).glob("*.safetensors")):
                name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
                raise ValueError(
                    f"{pickled[0]} holds pickled weights, which can run code when they are loaded: convert them with\n"
                    '  python -c "import sys, torch, safetensors.torch as s; w = torch.load(sys.argv[1], '
                    "weights_only=True, map_location='cpu'); s.save_file({k: v.clone().contiguous() for k, v in "
                    f'w.items()}}, sys.argv[2])" {pickled[0]} {folder / part / name}.safetensors'
                )
    elif folder.as_posix() in _SMALL_MODELS:
        raise FileNotFoundError(
            f"{folder}: no such model folder (looked from {Path.cwd()}). The small models are not part of the wheel: "
            f"clone https://github.com/cubediff/cubediff and set model.pipeline.path=CLONE/{folder.as_posix()}"
        )
    elif folder.is_absolute() or len(folder.parts) != 2 or folder.parts[0] in (".", ".."):
        raise FileNotFoundError(f"{folder}: no such model folder (looked from {Path.cwd()})")
    return path
