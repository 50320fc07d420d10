"""HTML templates and escaping."""

import html
import re
from collections.abc import Mapping
from importlib import resources


def read_template(package: str, name: str) -> str:
    """Returns the text of a template file of a package.

    Args:
        package: Dotted name of the package.
        name: Name of the file.
    """
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Replaces every `{{key}}` of a template by `values[key]`, in one pass: values are not filled again.

    Args:
        template: HTML with placeholders.
        values: Values that are HTML, so texts must be escaped (see `escape`).

    Raises:
        KeyError: If the template has a key that is not in `values`.

    Example:
        >>> fill_template("<p>{{name}}</p>", {"name": escape("<me>")})
        '<p>&lt;me&gt;</p>'
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def escape(text: str) -> str:
    """Escapes text for HTML elements and attributes; control characters become visible symbols.

    So do the characters that override the direction of text, which can disguise a name.

    Example:
        >>> escape("a & b")
        'a &amp; b'
    """
    text = re.sub(r"\r\n?", "\n", text)
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", lambda match: chr(0x2400 + ord(match[0])), text)
    text = text.replace("\x7f", "\u2421")
    return html.escape(
        re.sub(r"[\x80-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", text)
    )
