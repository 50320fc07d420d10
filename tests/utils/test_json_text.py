"""JSON files hold finite numbers only."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cubediff.utils.files import read_json_lines, write_json
from cubediff.utils.json_text import parse_json


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400"])
@pytest.mark.parametrize("kind", [str, str.encode], ids=["text", "bytes"])
def test_a_number_that_is_not_finite_is_refused_with_its_line(literal: str, kind: type[str] | type[bytes]) -> None:
    text = '{"name": "NaN or Infinity",\n "fov": [95.0,\n' + literal + "]}"
    with pytest.raises(ValueError, match=f"line 3: {literal} is not a finite number"):
        parse_json(kind(text))


def test_text_may_say_nan() -> None:
    assert parse_json('["NaN", "Infinity", "-Infinity"]') == ["NaN", "Infinity", "-Infinity"]


def test_a_line_of_json_lines_is_named() -> None:
    with pytest.raises(ValueError, match="line 2: not JSON"):
        list(read_json_lines('{"a": 1}\n{"a": NaN}\n'))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text(st.characters(codec="utf-8")), lambda inner: st.lists(inner) | st.dictionaries(
                        st.text(st.characters(codec="utf-8")), inner)))  # fmt: skip
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    file: Path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(file, value)
    assert parse_json(file.read_bytes()) == value


def test_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"loss": math.nan})
