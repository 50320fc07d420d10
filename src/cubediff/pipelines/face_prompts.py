"""The prompts of one panorama in one form: six texts. Loads no library, so that commands check them at once."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from cubediff.geometry.faces import FACES
from cubediff.utils.text import is_unicode, printable

Prompt: TypeAlias = str | Sequence[str] | Mapping[str, str]  # of one panorama

_NO_TEXT = "a prompt is of type {}: pass a text"


def six_prompts(prompt: object, allow_empty: bool = False) -> list[str]:
    """One prompt per face, in the order of `FACES`.

    Args:
        prompt: One text for all faces, six texts, or a dict from face name to text.
        allow_empty: Whether texts may be empty.

    Raises:
        ValueError: If there are not six texts, or one is empty or no Unicode text.

    Example:
        >>> six_prompts("a meadow")
        ['a meadow', 'a meadow', 'a meadow', 'a meadow', 'a meadow', 'a meadow']
    """
    if isinstance(prompt, str):
        texts = [prompt] * 6
    elif isinstance(prompt, Mapping):
        if set(prompt) != set(FACES):
            faces = sorted(map(str, prompt))
            raise ValueError(f"prompts for the faces {faces}: pass one for each of {', '.join(FACES)}")
        texts = [prompt[face] for face in FACES]
    elif isinstance(prompt, Sequence):
        texts = list(prompt)
        if len(texts) != 6:
            raise ValueError(f"{len(texts)} prompts for one panorama: pass one, or six ({', '.join(FACES)})")
    else:
        raise ValueError(_NO_TEXT.format(type(prompt).__name__))
    if others := [type(text).__name__ for text in texts if not isinstance(text, str)]:
        raise ValueError(_NO_TEXT.format(others[0]))
    if not allow_empty and any(not text.strip() for text in texts):
        raise ValueError("a prompt is empty: describe the panorama, or set prompt=None for no text")
    for text in texts:
        if not is_unicode(text):
            raise ValueError(f"the prompt {printable(text)!r} is no valid Unicode text: type it in UTF-8")
    return texts
