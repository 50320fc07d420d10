"""HTML templates and escaping."""

import html
import re
from collections.abc import Mapping
from importlib import resources


def read_template(package: str, name: str) -> str:
    """The text of a template file inside a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """A template with every `{{key}}` replaced by `values[key]`, which must be escaped already.

    The template is filled in one pass: a value that contains `{{key}}` is not filled again.

    Raises:
        KeyError: If the template names a key that is not in `values`.
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def escape(text: str) -> str:
    """Text from users, safe inside HTML elements and attributes; control characters become visible symbols."""
    text = re.sub(r"\r\n?", "\n", text)
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", lambda match: chr(0x2400 + ord(match[0])), text)
    text = text.replace("\x7f", "\u2421")
    return html.escape(re.sub(r"[\x80-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", text))
