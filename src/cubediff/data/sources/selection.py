"""Sources of which a part is used: the panoramas whose names match globs, or all without their captions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from cubediff.data.sources.base import Entry, Listing, PanoramaJpeg, Source
from cubediff.data.sources.names import normal_form
from cubediff.images.limits import MAX_WIDTH, QUALITY
from cubediff.utils.errors import DataError

NO_CAPTIONS = Path("none")  # --captions none

_LINE = re.compile(r".*:\d+")  # a rejected line of a captions file


@dataclass(frozen=True)
class Selected:
    """The panoramas of a source whose names match globs.

    Args:
        source: The source.
        include: Globs of which a name must match one; () for all names.
        exclude: Globs of which a name must match none.
    """

    source: Source
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        options = f"include={self.include!r}, exclude={self.exclude!r}"
        return f"{type(self).__qualname__}(source={self.source.identity}, {options})"

    @property
    def captioned(self) -> bool:
        """Whether panoramas without a caption are rejected."""
        return is_captioned(self.source)

    def entries(self) -> Listing:
        entries, rejected = self.source.entries()
        kept = [entry for entry in entries if is_selected(entry.file, self.include, self.exclude)]
        if entries and not kept:
            globs = " ".join([f"--include {g}" for g in self.include] + [f"--exclude {g}" for g in self.exclude])
            raise DataError(f"{globs} leaves none of the {len(entries)} panoramas, such as {entries[0].file}")
        return kept, [
            rejection
            for rejection in rejected
            if is_selected(rejection.file, self.include, self.exclude) or _LINE.fullmatch(rejection.file)
        ]

    def files(self, entry: Entry) -> list[Path]:
        return self.source.files(entry)

    def load(self, entry: Entry, max_width: int = MAX_WIDTH, quality: int = QUALITY) -> PanoramaJpeg:
        return self.source.load(entry, max_width, quality)


@dataclass(frozen=True)
class Uncaptioned:
    """A source without its captions, for training that is conditioned on images alone.

    Args:
        source: The source; scenes and metadata stay.
    """

    source: Source

    @property
    def identity(self) -> str:
        return f"{type(self).__qualname__}(source={self.source.identity})"

    @property
    def captioned(self) -> bool:
        """False: panoramas without a caption are used."""
        return False

    def entries(self) -> Listing:
        entries, rejected = self.source.entries()
        return [replace(entry, caption="", faces=None) for entry in entries], rejected

    def files(self, entry: Entry) -> list[Path]:
        return self.source.files(entry)

    def load(self, entry: Entry, max_width: int = MAX_WIDTH, quality: int = QUALITY) -> PanoramaJpeg:
        return self.source.load(entry, max_width, quality)


def is_captioned(source: Source) -> bool:
    """Whether a source rejects panoramas without a caption."""
    return bool(getattr(source, "captioned", True))


def is_selected(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a name matches one of `include`, or that is empty, and none of `exclude`.

    `*` and `?` match within a part of the name, `**` across parts, `[…]` one of several characters. A glob without a
    slash matches in any folder. A glob that matches a folder matches all that is in it.

    >>> is_selected("indoor/a.jpg", ["indoor"], ["*_small.jpg"])
    True
    >>> is_selected("indoor/a_small.jpg", ["indoor"], ["*_small.jpg"])
    False
    """
    name = normal_form(name)
    if include and not any(_compile(glob).fullmatch(name) for glob in include):
        return False
    return not any(_compile(glob).fullmatch(name) for glob in exclude)


@lru_cache
def _compile(glob: str) -> re.Pattern[str]:
    pattern = normal_form(glob).removeprefix("./").rstrip("/")
    anchored = "/" in pattern
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[[!^]?\]?[^\]]*\]|.", pattern.lstrip("/"), re.DOTALL)
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    text = "".join(wild.get(token) or (_set_of(token) if len(token) > 1 else re.escape(token)) for token in tokens)
    return re.compile(f"{'' if anchored else '(?:.*/)?'}{text}(?:/.*)?", re.DOTALL)


def _set_of(part: str) -> str:
    """The regular expression of a glob's […]."""
    negated = part[1] in "!^"
    characters = re.sub(r"([\\\[\]&~|^])", r"\\\1", part[1 + negated : -1])
    return f"[{'^' if negated else ''}{characters}]"
