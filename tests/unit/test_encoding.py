"""Messages between workers: every value arrives as it was sent, and no bytes do anything but make a
value of the closed set or raise `ValueError`."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parallel.config import printable
from parallel.runtime.communication.encoding import decode, encode

ARRAYS = st.sampled_from(["?", "u1", "i8", "f4", "f8"]).flatmap(
    lambda dtype: st.lists(st.integers(0, 3), max_size=3).map(
        lambda shape: np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    )
)
TENSORS = ARRAYS.map(torch.from_numpy) | st.sampled_from(
    [torch.ones(2, 3, dtype=torch.bfloat16), torch.arange(6).reshape(2, 3).t(), torch.tensor(0.5)]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner), max_leaves=4)
VALUES = st.recursive(
    SCALARS | ARRAYS | TENSORS | st.just("\udc80"),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Return whether two values have the same types, shapes and contents."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return (
            len(one) == len(other) and all(map(same, one, other)) and all(same(one[k], other[k]) for k in one)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@given(VALUES)
def test_every_value_arrives_as_it_was_sent(value: Any) -> None:
    assert same(decode(encode(value)), value)


def test_numpy_scalars_arrive_as_pythons_and_nan_as_nan() -> None:
    assert same(decode(encode([np.float64(1.5), np.int64(3), np.bool_(True)])), [1.5, 3, True])
    assert math.isnan(decode(encode(math.nan)))


def test_what_arrives_is_writable() -> None:
    array, tensor = decode(encode((np.zeros(2), torch.zeros(2))))
    array[0], tensor[0] = 1.0, 1.0


class Other:
    """A class of the program."""


@pytest.mark.parametrize("value", [Other(), Other, print, {1, 2}, np.array([None]), 1j, ValueError("x")])
def test_values_of_other_types_are_not_sent(value: object) -> None:
    with pytest.raises(TypeError, match="can't be sent to other workers"):
        encode([value])


class Opens:
    """Its pickle writes a file when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('executed')",)


def message(header: str, buffers: bytes = b"") -> bytes:
    """Return a message with any header."""
    return len(header.encode()).to_bytes(4, "little") + header.encode() + buffers


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(Opens()), "a header of"),
        (message("null", pickle.dumps(Opens())), "bytes more than the header states"),
        (b"", "a header of 0 bytes in a message of 0"),
        (b"\xff\xff\xff\xff{}", "a header of 4,294,967,295 bytes in a message of 6"),
        (message("{"), "not JSON"),
        (message("é"), "not ASCII"),
        (message("[" * 10**5 + "]" * 10**5), "nested too deep"),
        (message('{"py/object": "os.system"}'), "an object with the keys ['py/object']"),
        (message('{"tuple": [], "dict": []}'), "an object with the keys ['tuple', 'dict']"),
        (message('{"tuple": [], "tuple": []}'), "an object with the keys"),
        (message('{"\\u001b[2J": 1}'), r"\x1b"),
        (message("{}"), "an object with the keys []"),
        (message('{"dict": [[1, 2], [3]]}'), "2 keys and 1 values"),
        (message('{"dict": [[[1]], [3]]}'), "a key of a dictionary"),
        (message('{"dict": 3}'), "an object with the keys ['dict']"),
        (message('{"bytes": 5}', b"abc"), "contents of 5 bytes, of which 3 are there"),
        (message('{"bytes": -1}', b"abc"), "contents of -1 bytes"),
        (message('{"bytes": true}', b"a"), "an object with the keys ['bytes']"),
        (message('{"array": ["|O", 1]}', b"12345678"), "is not a dtype"),
        (message('{"array": ["<f8", 2]}', b"12345678"), "contents of 16 bytes, of which 8 are there"),
        (message('{"array": []}'), "None is not a dtype"),
        (message('{"array": [["<f8"], 1]}'), "is not a dtype"),
        (message('{"array": ["<f8", -1]}'), "[-1] is not a shape"),
        (message('{"array": ["<f8", true]}', b"12345678"), "[True] is not a shape"),
        (message('{"tensor": ["float32", 0, 4611686018427387904, 16]}'), "too large a shape"),
        (message(f'{{"tensor": ["float32", {"1, " * 99} 1]}}', b"1234"), "too large a shape"),
        (message('{"tensor": ["quint8", 1]}', b"1"), "is not a dtype"),
        (message("9" * 5000), "digits"),
    ],
)
def test_bytes_that_are_no_message_are_refused_with_a_sentence(content: bytes, words: str) -> None:
    with pytest.raises(ValueError) as error:
        decode(content)
    assert words in str(error.value)
    assert printable(str(error.value)) == str(error.value) and len(str(error.value)) < 2000


SENT = encode(
    {
        ("conv1", 0): np.arange(3.0),
        "x": (1, 2.5, None, True, "text"),
        "t": torch.arange(4, dtype=torch.int16),
        "b": [b"abc"],
    }
)


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.integers(0, len(SENT) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.data()
)
def test_mutated_bytes_make_a_value_of_the_closed_set_or_a_sentence(
    changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    mutated = bytearray(SENT)
    for place, byte in changes:
        mutated[place] = byte
    cut = data.draw(st.integers(0, len(mutated)))
    for content in (mutated, mutated[:cut], mutated[cut:]):
        try:
            value = decode(bytes(content))
        except ValueError as error:
            assert len(str(error)) < 2000
        else:
            encode(value)


@settings(max_examples=200)
@given(st.binary(max_size=60))
@example(b"")
def test_random_bytes(content: bytes) -> None:
    try:
        encode(decode(content))
    except ValueError as error:
        assert str(error)
