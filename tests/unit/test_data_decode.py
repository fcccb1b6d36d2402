import io

import numpy as np
import pytest
from PIL import Image

from parallel.data.decode import BrokenImageError, decode

WIDTH, HEIGHT = 200, 120
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
# Smooth: JPEG keeps it.
PICTURE = Image.fromarray(np.stack([ROWS * 2, COLUMNS, 255 - ROWS], axis=-1).astype(np.uint8))


def encoded(picture: Image.Image, file_format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=file_format, **({"quality": 95} if file_format == "JPEG" else {}))
    return buffer.getvalue()


def expected(picture: Image.Image, size: int) -> np.ndarray:
    """Return the result of both steps: resize the shorter side to `size`, then crop the centre."""
    scaled = picture.resize((round(WIDTH * size / HEIGHT), size), Image.Resampling.BILINEAR)
    left = (scaled.width - size) / 2
    return np.asarray(scaled.crop((round(left), 0, round(left) + size, size))).astype(int)


def insert_garbage(data: bytes) -> bytes:
    """Insert bytes between two segments, where a JPEG decoder may skip them, as in some files of
    PetImages."""
    return data[:20] + b"\x00" * 8 + data[20:]


@pytest.mark.parametrize("size", [24, 48, 120, 240])
def test_is_the_centre_of_the_resized_picture(size: int) -> None:
    image = decode(encoded(PICTURE), size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert np.abs(image - expected(PICTURE, size)).mean() < 2


@pytest.mark.parametrize("name", ["png", "palette", "cmyk", "alpha", "garbage"])
def test_what_simplejpeg_can_not_decode_goes_through_pillow(name: str) -> None:
    data = {
        "png": lambda: encoded(PICTURE, "PNG"),
        "palette": lambda: encoded(PICTURE.quantize(256), "PNG"),
        "cmyk": lambda: encoded(PICTURE.convert("CMYK")),
        "alpha": lambda: encoded(PICTURE.convert("RGBA"), "PNG"),
        "garbage": lambda: insert_garbage(encoded(PICTURE)),
    }[name]()
    assert np.abs(decode(data, 48) - expected(PICTURE, 48)).mean() < (6 if name == "palette" else 2)


def test_grey_becomes_rgb() -> None:
    image = decode(encoded(PICTURE.convert("L")), 48)
    assert image.shape == (48, 48, 3)
    assert (image == image[:, :, :1]).all()
    assert np.abs(image[:, :, 0] - expected(PICTURE.convert("L"), 48)).mean() < 2


def test_resizing_is_antialiased() -> None:
    fine = np.zeros((128, 128, 3), dtype=np.uint8)
    fine[:, ::2] = 255  # columns of one pixel: without antialiasing they come out black or white, not grey
    image = decode(encoded(Image.fromarray(fine), "PNG"), 16)
    assert np.abs(image.astype(int) - 127).max() < 20


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        encoded(PICTURE)[:2000],
        encoded(PICTURE)[:100],
        encoded(PICTURE, "PNG")[:200],
        encoded(PICTURE, "PNG")[:40] + b"\xff" * 400,
    ],
    ids=["empty", "text", "half", "header", "half png", "garbled png"],
)
def test_broken(data: bytes) -> None:
    with pytest.raises(BrokenImageError):
        decode(data, 48)


def test_the_decoder_shrinks_no_further_than_keeps_the_detail() -> None:
    rows, columns = np.mgrid[0:640, 0:640]
    board = Image.fromarray(np.where((rows // 10 + columns // 10) % 2, 220, 30).astype(np.uint8)).convert(
        "RGB"
    )
    reference = np.asarray(board.resize((128, 128), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode(encoded(board), 128) - reference).mean() < 4
