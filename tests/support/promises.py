"""Sentences of the documentation that tests prove: a sentence cannot change without its test."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def promised(page: str, *sentences: str) -> None:
    """Fails if a page of the checkout does not have the sentences; line breaks do not matter."""
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    for sentence in sentences:
        assert " ".join(sentence.split()) in text, "update the test together with the sentence"
