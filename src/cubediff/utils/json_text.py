"""Strict JSON: Python's parser also takes NaN and Infinity, which no number of a file of this package may be."""

import json
import math
import re
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Parses JSON text.

    Raises:
        ValueError: If it is not JSON, or holds NaN, Infinity or a number beyond float64; names the line.

    Example:
        >>> parse_json('{"fov": 95.0}')
        {'fov': 95.0}
    """

    def refuse(literal: str) -> float:
        decoded = text.decode(errors="replace") if isinstance(text, bytes) else text
        found = re.search(rf"(?<![\w\"]){re.escape(literal)}(?![\w\"])", decoded)
        line = decoded.count("\n", 0, found.start() if found else 0) + 1
        raise ValueError(f"line {line}: {literal} is not a finite number")

    def parse_float(literal: str) -> float:
        value = float(literal)
        return value if math.isfinite(value) else refuse(literal)

    return json.loads(text, parse_constant=refuse, parse_float=parse_float)
