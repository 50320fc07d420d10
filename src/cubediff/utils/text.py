"""Text on a terminal, in logs and in files: control characters are escaped, secrets redacted, numbers rounded, columns
aligned."""

import math
import re
from collections.abc import Sequence

from cubediff.utils.errors import message_of

# C0 and C1 controls, line separators, marks that change the direction of text, surrogates.
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_REDACTED = "***"
_SECRETS = (
    (re.compile(r"(://)[^/\s@'\"]+@"), rf"\1{_REDACTED}@"),  # user:password@host
    (re.compile(r"(://[^\s?'\"]*\?)[^\s'\"#]+"), rf"\1{_REDACTED}"),  # the query of a URL, of signed ones above all
    (re.compile(r"\b(hf|ghp|gho|ghs|github_pat|glpat|sk|xox[abp])[_-]\w[\w-]{7,}"), rf"\1_{_REDACTED}"),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{12,}"), rf"\1{_REDACTED}"),
    (re.compile(r"(?i)(authorization:\s*\w+\s+)[^\s'\"]+"), rf"\1{_REDACTED}"),
    (re.compile(r"(?i)([\w-]*(?:token|secret|password|passwd|api[_-]?key|signature)\s*[=:]\s*)[^\s'\"&,;]+"),
     rf"\1{_REDACTED}"),
    (re.compile(r"((?:^|\s)(?:-u|--user)[ =])\S+"), rf"\1{_REDACTED}"),  # of curl and wget
)  # fmt: skip


def printable(text: str, keep: str = "") -> str:
    r"""Escapes what a terminal would obey or hide: control characters, marks of direction, bytes that are not UTF-8.

    Args:
        text: Any text, such as a file name or a caption.
        keep: Characters to leave as they are, such as the line breaks of a message.

    Example:
        >>> printable("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in keep else _escaped(match[0]), text)


def is_unicode(text: str) -> bool:
    """Whether a text holds no surrogates, which stand for bytes that are not UTF-8, or are half of a pair."""
    return _SURROGATE.search(text) is None


def escape_surrogates(text: str) -> str:
    r"""Escapes what is no Unicode text, such as bytes that are not UTF-8 in the name of a file, and nothing else.

    Example:
        >>> escape_surrogates("caf\udce9.jpg")
        'caf\\xe9.jpg'
    """
    return _SURROGATE.sub(lambda match: _escaped(match[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python decodes file names
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def redact(text: str) -> str:
    """Replaces passwords, tokens and the queries of URLs by `***`.

    Args:
        text: A path, URL, command or message.

    Example:
        >>> redact("https://me:secret@host/train-{000..041}.tar?X-Signature=abc is not a tar")
        'https://***@host/train-{000..041}.tar?*** is not a tar'
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def redact_values(value: object) -> object:
    """A config or record with all its texts redacted; `value` is a plain container and stays as it is."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(inner) for inner in value]
    return value


def significant(value: float | None) -> str:
    """A number with three significant digits; an en dash for None and NaN.

    Example:
        >>> [significant(value) for value in (0.0290, 1234.5, -0.5, float("nan"))]
        ['0.0290', '1230', '-0.500', '–']
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    rounded = float(f"{value:.2e}")
    if rounded == 0:
        return "0"
    exponent = math.floor(math.log10(abs(rounded)))
    return f"{rounded:.{max(0, 2 - exponent)}f}" if -5 < exponent < 7 else f"{value:.2e}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table with its columns aligned to the left.

    Args:
        rows: The cells of each row; as many in all of them.

    Example:
        >>> print(*aligned([("metric", "value"), ("sharpness", "0.98")]), sep="\\n")
        metric     value
        sharpness  0.98
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def error_line(error: object, keep: str = "\n\t") -> str:
    """An error as a command prints it: without secrets, and with control characters escaped.

    Args:
        error: The message, or the error; that of a file or a disk is printed with its remedy.
        keep: As in `printable`; empty for an error of one line, in which a line break can only be part of a name.
    """
    return "error: " + printable(redact(message_of(error)), keep)
