"""result.json: how a run ended, its losses and its duration."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import cast

from cubediff.training.logged_metrics import Curves
from cubediff.utils.files import write_atomic
from cubediff.utils.json_text import parse_json
from cubediff.utils.text import redact_values

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
        content = cast(dict[str, object], redact_values(asdict(self)))
        text = json.dumps({**content, "curves": curves}, indent=1, allow_nan=False)
        write_atomic(run_dir / RESULT, text + "\n", sync=True)


def read_results(folder: Path) -> dict[Path, Result]:
    """Reads the results of the runs in the subfolders of `folder`, ordered by job number.

    Raises:
        ValueError: If a result.json is damaged.
    """
    found = {file.parent: read_result(file) for file in folder.glob(f"*/{RESULT}")}
    return dict(sorted(found.items(), key=lambda item: (item[1].job or 0, item[1].started, item[0].name)))


def read_result(file: Path) -> Result:
    """Reads a result.json. Keys that this version does not know are ignored.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        content = parse_json(file.read_bytes())
        if not isinstance(content, dict):
            raise TypeError("expected an object")
        known = {name: content[name] for name in (each.name for each in fields(Result)) if name in content}
        if wrong := [name for name, value in known.items() if not _VALID[name](value)]:
            raise TypeError(f"values of another type: {', '.join(wrong)}")
        curves = {
            name: [(step, None if value is None else float(value)) for step, value in points]
            for name, points in known.pop("curves").items()
        }
        numbers = {name: float(known[name]) for name in ("started", "seconds", "loss") if known.get(name) is not None}
        return Result(**known | numbers, curves=curves)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}): remove it and run the job again") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_curve(points: object) -> bool:
    return isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and _is_integer(point[0]) and _is_loss(point[1]) for point in points
    )


def _is_loss(value: object) -> bool:
    return value is None or _is_number(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


# Whether a value that was read fits the field.
_VALID: dict[str, Callable[[object], bool]] = {
    "status": _is_text,
    "name": _is_text,
    "job": lambda value: value is None or _is_integer(value),
    "overrides": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "started": _is_number,
    "seconds": _is_number,
    "config": _is_text,
    "error": lambda value: value is None or _is_text(value),
    "loss": _is_loss,
    "curves": lambda value: isinstance(value, dict) and all(map(_is_curve, value.values())),
}
