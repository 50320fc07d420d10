"""result.json: how a run ended, its losses and its duration."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cubediff.training.logged_metrics import Curves
from cubediff.utils.files import write_atomic

RESULT = "result.json"


@dataclass
class Result:
    """The result of one run.

    Attributes:
        status: "running", "done", "failed", or "cut" for a run that a signal interrupted. A killed run stays "running".
        name: The config's `name`.
        job: Number of the job in its sweep; None for a single run.
        overrides: The overrides of the command line.
        started: Start in seconds since 1970.
        seconds: Duration.
        config: Fingerprint of the config.
        error: Message of a failed run.
        loss: Last val/loss.
        curves: The losses.
    """

    status: str
    name: str
    job: int | None
    overrides: list[str]
    started: float
    seconds: float = 0.0
    config: str = ""
    error: str | None = None
    loss: float | None = None
    curves: Curves = field(default_factory=dict)

    def write(self, run_dir: Path) -> None:
        """Writes result.json into the run's folder, atomically."""
        curves = {
            name: [(step, value if value is not None and math.isfinite(value) else None) for step, value in points]
            for name, points in self.curves.items()
        }
        text = json.dumps({**asdict(self), "curves": curves}, indent=1, allow_nan=False)
        write_atomic(run_dir / RESULT, text + "\n")


def read_results(folder: Path) -> dict[Path, Result]:
    """Reads the results of the runs in the subfolders of `folder`, ordered by job number.

    Raises:
        ValueError: If a result.json is damaged.
    """
    found = {file.parent: read_result(file) for file in folder.glob(f"*/{RESULT}")}
    return dict(sorted(found.items(), key=lambda item: (item[1].job or 0, item[1].started, item[0].name)))


def read_result(file: Path) -> Result:
    """Reads a result.json.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        curves = {name: [(step, value) for step, value in points] for name, points in content.pop("curves").items()}
        return Result(**content, curves=curves)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error}): remove it and run the job again") from error
