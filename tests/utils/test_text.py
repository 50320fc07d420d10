"""Secrets are redacted and control characters escaped, and nothing else changes."""

import pytest

from cubediff.utils.text import error_line, printable, redact, redact_values

SECRET = "s3cr3tT0ken"


@pytest.mark.parametrize(
    "text",
    [
        f"https://me:{SECRET}@host/shards",
        f"https://{SECRET}@host/shards",
        f"s3://{SECRET}:{SECRET}@bucket/shards",
        f"https://host/train-{{000..041}}.tar?X-Amz-Signature={SECRET}&X-Amz-Expires=60",
        f"https://host/a.tar?{SECRET}",
        f"ClientError: 403, url='https://host/a.tar?sig={SECRET}'",
        f"pipe:curl -s -H 'Authorization: Bearer {SECRET}' https://host/a.tar",
        f"pipe:curl -u me:{SECRET} https://host/a.tar",
        f"pipe:curl --user={SECRET} https://host/a.tar",
        f"pipe:AWS_SECRET_ACCESS_KEY=x API_KEY={SECRET} aws s3 cp s3://b/a.tar -",
        f"pipe:HF_TOKEN={SECRET} fetch a.tar",
        f"pipe:fetch --password={SECRET} a.tar",
        f"hf_{SECRET}abcdef",
        f"pipe:fetch ghp_{SECRET} a.tar",
    ],
)
def test_secrets_are_redacted(text: str) -> None:
    assert SECRET not in redact(text)
    assert "***" in redact(text)
    assert redact(redact(text)) == redact(text)
    assert SECRET not in str(redact_values({"data": {"path": [text, (text,)]}}))


@pytest.mark.parametrize(
    "text",
    [
        "/data/shards",
        "s3://bucket/shards",
        "https://host/train-{000..041}.tar",
        "hf://datasets/me/panoramas@main/shards",
        "pipe:cat /data/train-{000..041}.tar",
        "model.tokenizer: x, max_new_tokens: 77, seed=0",
        "a dewy meadow? yes: basic lighting",
        "",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text
    assert redact_values({"a": [text, 1, None, 2.5, True]}) == {"a": [text, 1, None, 2.5, True]}


@pytest.mark.parametrize(
    "character", ["\x00", "\x07", "\x1b", "\r", "\n", "\x7f", "\x9b", "\u202e", "\u2066", "\udcff"]
)
def test_what_a_terminal_obeys_is_escaped(character: str) -> None:
    shown = printable(f"a{character}b")
    assert character not in shown
    assert shown.startswith("a\\")
    assert shown.isprintable()


def test_other_characters_stay() -> None:
    text = "größer 永 🌍👩‍🚀 שלום نص é"
    assert printable(text) == text
    assert printable("a\n\tb", keep="\n\t") == "a\n\tb"


def test_an_error_keeps_its_lines_only() -> None:
    assert error_line("two\nlines.jpg", keep="") == "error: two\\x0alines.jpg"
    assert error_line("a\n  b\x1b[2J\r https://u:p@h") == "error: a\n  b\\x1b[2J\\x0d https://***@h"


def test_an_error_of_a_file_is_printed_without_its_number() -> None:
    assert error_line(IsADirectoryError(21, "Is a directory", "jobs")) == "error: jobs: Is a directory"
