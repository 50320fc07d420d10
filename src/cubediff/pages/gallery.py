"""The gallery: an HTML page beside generated panoramas that shows them and links to their viewers."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from cubediff.pages.html import escape, fill_template, read_template
from cubediff.utils.files import write_atomic


class Item(NamedTuple):
    """A panorama of the gallery.

    Attributes:
        name: Its folder, below that of the page.
        file: The image's file in that folder, beside `viewer.html`.
        prompt: Its text; may be empty.
        details: What else to show, such as the seed.
    """

    name: str
    file: str
    prompt: str
    details: str


def write_gallery(path: Path, items: Sequence[Item], title: str = "cubediff panoramas") -> Path:
    """Writes the page atomically; it refers to the panoramas by relative links.

    Args:
        path: The page to write. Its folder is created.
        items: The panoramas, in the order of the page.
        title: Title of the page.

    Returns:
        `path`.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    page = fill_template(
        read_template("cubediff.pages", "gallery.html"),
        {"title": escape(title), "count": str(len(items)), "figures": "\n".join(map(_figure, items))},
    )
    write_atomic(path, page)
    return path


def _figure(item: Item) -> str:
    folder, name = quote(item.name), escape(item.name)
    image = f'<img src="{folder}/{quote(item.file)}" alt="{name}" loading="lazy">'
    prompt = f"<p>{escape(item.prompt)}</p>" if item.prompt.strip() else ""
    return (
        f'<figure><a href="{folder}/viewer.html">{image}</a>'
        f"<figcaption><b>{name}</b> <small>{escape(item.details)}</small>{prompt}</figcaption></figure>"
    )
