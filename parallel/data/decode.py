"""Decode an image file to a square of pixels. Does not import torch, so that decoder processes
start fast."""

from __future__ import annotations

import io
import struct

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

# Errors that Pillow's readers raise on damaged files; they do not share one class.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    struct.error,
    ZeroDivisionError,
    Image.DecompressionBombError,
)


class BrokenImageError(ValueError):
    """Raised for a file that is not an image or cannot be decoded to its end."""


def decode(data: bytes, size: int) -> np.ndarray:
    """Return the centre square of an image, resized with antialiasing: uint8 [size, size, 3], RGB.

    This equals resizing the shorter side to `size` and cropping the centre, in one step. Grey
    images become RGB. simplejpeg decodes valid JPEG; Pillow decodes PNG, CMYK and JPEG with
    recoverable errors (some files of ImageNet and PetImages). A truncated file counts as broken:
    half of an image would be noise in the training set. Raises `BrokenImageError`.
    """
    try:
        image = Image.fromarray(_decode_jpeg(data, size))
    except ValueError:
        image = _decode_any(data)
    width, height = image.size
    side = min(width, height)
    if (width, height) != (size, size):
        left, top = (width - side) / 2, (height - side) / 2
        image = image.resize(
            (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
    return np.asarray(image)


def _decode_jpeg(data: bytes, size: int) -> np.ndarray:
    """Decode to uint8 [h, w, 3]. Raises `ValueError` for anything but a valid grey or RGB JPEG."""
    if simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK"):
        raise ValueError("CMYK: turbojpeg converts it to RGB only approximately")
    # The decoder shrinks a large JPEG to no less than twice the requested size, so that the
    # antialiased resize still determines the result.
    image: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", min_height=2 * size, min_width=2 * size)
    return image


def _decode_any(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise BrokenImageError(f"its {len(data)} bytes have no known image format") from error
    except DAMAGED as error:
        raise BrokenImageError(str(error) or type(error).__name__) from error
