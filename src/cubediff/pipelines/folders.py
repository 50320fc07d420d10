"""Model folders: which layout a folder has."""

from pathlib import Path


def check_folder(path: str | Path) -> None:
    """An error for what is neither a pipeline folder nor could be a Hub id (`owner/name`), and for pickled weights."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(f"{folder}: no model_index.json in it, so no model folder; a training run writes "
                                    "one to its export/")  # fmt: skip
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
    elif folder.is_absolute() or len(folder.parts) != 2 or folder.parts[0] in (".", ".."):
        raise FileNotFoundError(f"{folder}: no such model folder (looked from {Path.cwd()})")
