"""Where the Hydra configs are: inside an installed package, or at the top of a checkout."""

from pathlib import Path


def _find() -> str:
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(f"no conf/ beside {package} or at the top of its checkout: install cubediff again")


CONFIG_DIR = _find()
