"""Values as bytes and back, for messages between workers.

pickle, which torch's `all_gather_object` uses, executes what the sender chooses. This encoding is
closed: None, truth values, numbers, text, bytes, lists, tuples, dictionaries, NumPy arrays and
tensors, and nothing else.

    message   length of the header (4 bytes, little-endian), header, buffers
    header    JSON; what JSON lacks is an object with one key, its type:
              {"tuple": […]}, {"dict": [[keys], [values]]}, {"bytes": length},
              {"array": [dtype, size, size, …]}, {"tensor": [dtype, size, size, …]}
    buffers   contents of the bytes, arrays and tensors, in the order of the header
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from parallel.config.checks import printable, shortened

MOST_HEADER_BYTES = 2**28
"""256 MB: names and times of all messages of an epoch have some MB."""
MOST_MESSAGE_BYTES = 2**34
"""16 GiB: verification gathers the weights and momentum of a whole model."""
MOST_DIMENSIONS = 32
_LENGTH_BYTES = 4
_SCALARS = frozenset({type(None), bool, int, float, str})
_ARRAY_DTYPES = {
    np.dtype(kind).str: np.dtype(kind) for kind in ("?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
}
_TENSOR_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
    )
}


def encode(value: object) -> bytes:
    """Return a value as bytes. NumPy's scalars become Python's; tensors are copied to the CPU.

    Raises `TypeError` for a value of another type than those above.
    """
    buffers: list[bytes | memoryview] = []
    header = json.dumps(_plain(value, buffers), separators=(",", ":")).encode("ascii")
    return b"".join((len(header).to_bytes(_LENGTH_BYTES, "little"), header, *buffers))


def _plain(value: Any, buffers: list[bytes | memoryview]) -> Any:
    """Return what JSON has for a value, and append the contents that it lacks to `buffers`."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is list:
        return [_plain(item, buffers) for item in value]
    if kind is tuple:
        return {"tuple": [_plain(item, buffers) for item in value]}
    if kind is dict:
        keys = [_plain(key, buffers) for key in value]
        return {"dict": [keys, [_plain(item, buffers) for item in value.values()]]}
    if kind is bytes:
        buffers.append(value)
        return {"bytes": len(value)}
    if isinstance(value, np.ndarray) and value.dtype.str in _ARRAY_DTYPES:
        buffers.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return {"array": [value.dtype.str, *value.shape]}
    if isinstance(value, torch.Tensor) and str(value.dtype).removeprefix("torch.") in _TENSOR_DTYPES:
        flat = value.detach().cpu().contiguous().reshape(-1)
        if flat.numel():  # torch can't view an empty tensor as bytes
            buffers.append(flat.view(torch.uint8).numpy().data)
        return {"tensor": [str(value.dtype).removeprefix("torch."), *value.shape]}
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        return value.item()
    raise TypeError(f"a value of type {kind.__module__}.{kind.__qualname__} can't be sent to other workers")


def decode(message: bytes | bytearray | memoryview) -> Any:
    """Return the value that `encode` made the bytes of.

    Arrays and tensors are writable and own their memory. Raises `ValueError` for bytes that no
    value has.
    """
    view = memoryview(message)
    start = _LENGTH_BYTES + int.from_bytes(view[:_LENGTH_BYTES], "little")
    if not _LENGTH_BYTES < start <= min(len(view), MOST_HEADER_BYTES):
        raise ValueError(f"a header of {start - _LENGTH_BYTES:,} bytes in a message of {len(view):,}")
    reader = _Reader(view[start:])
    try:
        value = json.loads(bytes(view[_LENGTH_BYTES:start]).decode("ascii"), object_pairs_hook=reader.value)
    except RecursionError:
        raise ValueError("the header is nested too deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the header is not JSON: {error}") from None
    except UnicodeDecodeError:
        raise ValueError("the header is not ASCII") from None
    reader.end()
    return value


class _Reader:
    """Makes the values that JSON lacks, and takes their contents from the buffers in order."""

    def __init__(self, buffers: memoryview) -> None:
        self._buffers = buffers
        self._read = 0

    def value(self, pairs: list[tuple[str, Any]]) -> Any:
        """Return the value that an object of the header stands for."""
        kind, content = pairs[0] if len(pairs) == 1 else ("", None)
        if kind == "tuple" and type(content) is list:
            return tuple(content)
        if kind == "dict" and type(content) is list:
            return _dictionary(content)
        if kind == "bytes" and type(content) is int:
            return bytes(self._take(content))
        if kind == "array" and type(content) is list:
            dtype, shape, elements = _typed(content, _ARRAY_DTYPES)
            taken = self._take(elements * dtype.itemsize)
            return np.frombuffer(bytearray(taken), dtype).reshape(shape)
        if kind == "tensor" and type(content) is list:
            dtype, shape, elements = _typed(content, _TENSOR_DTYPES)
            if elements == 0:  # torch.frombuffer takes no empty buffer
                return torch.empty(shape, dtype=dtype)
            taken = self._take(elements * dtype.itemsize)
            return torch.frombuffer(bytearray(taken), dtype=dtype).reshape(shape)
        raise ValueError(f"the header has an object with the keys {_words([key for key, _ in pairs])}")

    def end(self) -> None:
        """Raise `ValueError` if contents are left."""
        if self._read != len(self._buffers):
            raise ValueError(f"{len(self._buffers) - self._read:,} bytes more than the header states")

    def _take(self, nbytes: int) -> memoryview:
        end = self._read + nbytes
        if not self._read <= end <= len(self._buffers):
            raise ValueError(
                f"contents of {nbytes:,} bytes, of which {len(self._buffers) - self._read:,} are there"
            )
        taken = self._buffers[self._read : end]
        self._read = end
        return taken


def _dictionary(content: list[Any]) -> dict[Any, Any]:
    if len(content) != 2 or not all(type(part) is list for part in content):
        raise ValueError("a dictionary is not a list of keys and a list of values")
    keys, values = content
    if len(keys) != len(values):
        raise ValueError(f"a dictionary has {len(keys)} keys and {len(values)} values")
    try:
        return dict(zip(keys, values, strict=True))
    except TypeError:
        raise ValueError("a key of a dictionary is a list, a dictionary or an array") from None


def _typed(content: list[Any], dtypes: dict[str, Any]) -> tuple[Any, list[int], int]:
    """Return the dtype, the shape and the number of elements that `[dtype, size, size, …]` states."""
    name, *shape = content or [None]
    if type(name) is not str or name not in dtypes:
        raise ValueError(f"{_words(name)} is not a dtype of messages; they are {', '.join(dtypes)}")
    elements = bound = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise ValueError(f"{_words(shape)} is not a shape")
        elements *= size
        bound *= size or 1  # the libraries multiply the sizes of an empty tensor, too
    if bound > MOST_MESSAGE_BYTES or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{_words(shape)} is too large a shape")
    return dtypes[name], shape, elements


def _words(value: object) -> str:
    return shortened(printable(str(value)))
