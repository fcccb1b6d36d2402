"""JSON and YAML of plain values: what is read as what, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from parallel.cli.compose import CONF
from parallel.config import documents
from parallel.config.documents import from_json, from_yaml, read_bytes, read_text


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=str)
def test_shipped_files_are_read_as_pyyaml_reads_them(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert from_yaml(text) == yaml.safe_load(text)


@given(
    st.from_regex(r"[-+0-9.eE_:xoab~nulltrufasyoinf]{1,12}", fullmatch=True)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none()
)
def test_what_pyyaml_writes_is_read_as_the_same(value: Any) -> None:
    found = from_yaml(yaml.safe_dump({"x": value}))["x"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("010", "010"),
        ("0xff", "0xff"),
        ("1:30", "1:30"),
        ("2026-99-99", "2026-99-99"),
        ("1e5", "1e5"),
        ("[1, -2, 1.5, .5, 1.0e-3, '1', true, null, ~]", [1, -2, 1.5, 0.5, 1e-3, "1", True, None, None]),
        ("{on: [0], <<: 1}", {"on": [0], "<<": 1}),
        ("", None),
    ],
)
def test_plain_words(text: str, value: Any) -> None:
    assert from_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested more than 32 levels deep"),
        ("".join(" " * i + "a:\n" for i in range(300)), "nested more than 32 levels deep"),
        ("a: &x [1]\nb: *x", "the anchor or alias x is not allowed"),
        ("*x", "the anchor or alias x is not allowed"),
        ("!!bool maybe", "the tag .* is not allowed"),
        ("{a: 1, a: 2}", "a is given twice"),
        ("? [1]\n: 2", "not allowed as a key"),
        ("a: 1\n---\nb: 2", "2 documents instead of one"),
        ("a: [.inf]", r"a\.0=inf must be a finite number"),
        ("a: .nan", "a=nan must be a finite number"),
        ("a: 9223372036854775808", "a=9223372036854775808 must be a whole number of at most 64 bits"),
        ("a: " + "9" * 5000, "a number of 5000 digits is too long"),
        ("a: [", "not valid YAML: .*line [12]"),
        ("a: \x01", "not valid YAML: "),
    ],
)
def test_yaml_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_yaml(text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "nested more than 32 levels deep"),
        (b"[" * 40 + b"]" * 40, "nested more than 32 levels deep"),
        (b'{"a": 1, "a": 2}', "a is given twice"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": 1e999}', "a=inf must be a finite number"),
        (b'{"a": 1' + b"0" * 400 + b"}", "at most 64 bits"),
        (b"9" * 5000, "a number of 5000 digits is too long"),
        (b"\xff", "truncated or not JSON"),
        (b"", "truncated or not JSON"),
    ],
)
def test_json_that_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_json(content)


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_FILE_BYTES", 10)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert read_text(path) == "x" * 10
    path.write_bytes(b"x" * 11)
    with pytest.raises(ValueError, match="file is too large: it must have at most 10 bytes"):
        read_bytes(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="file can't be read: it is not text in UTF-8"):
        read_text(path)
    with pytest.raises(ValueError, match="can't be read: Is a directory"):
        read_text(tmp_path)
