"""Write labelled images as JPEG files in the folder layouts of data sets that cannot be shipped.

    python scripts/write_image_layouts.py --layout tiny_imagenet --out /tmp/tiny --images 200 --val-images 50
    python -m parallel.train data=tiny_imagenet data.root=/tmp/tiny

The images are scikit-learn's handwritten digits or, with `--source DIR`, those of class folders.
They get various sizes, some become grey, and on request some are broken, or PNG or CMYK with a JPEG
name, as in the real data sets. So all reading code runs on real files, and a model can learn
something from them. A file stand_in.txt beside the classes says that these are not the images of the
data set: runs record their data as `tiny_imagenet (digits)`.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from parallel.data import ON_DISK
from parallel.data.layout import find_root, mark_stand_in

Picture = tuple[Image.Image, int]
"""An image and its label."""


@dataclass(frozen=True)
class Variety:
    """Variation among the files."""

    sides: tuple[int, int] = (48, 160)
    """Smallest and largest width and height in pixels."""
    grey: float = 0.1
    """Share of the files written as grey JPEG."""
    odd: int = 0
    """Number of training files that are PNG or CMYK (in turn) with a JPEG name."""
    broken: int = 0
    """Number of broken training files: truncated, empty, not an image (in turn)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.sides[0] <= self.sides[1]:
            raise ValueError(f"sides={self.sides} must be two positive numbers, the smaller first")
        if not 0 <= self.grey <= 1:
            raise ValueError(f"grey={self.grey} must be a share between 0 and 1")
        if self.odd < 0 or self.broken < 0:
            raise ValueError(f"odd={self.odd} and broken={self.broken} must not be negative")


def digit_pictures() -> list[Picture]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return [
        (Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)), int(label))
        for image, label in zip(digits.images, digits.target, strict=True)
    ]


def folder_pictures(folder: Path) -> list[Picture]:
    """Return the images of class folders, interleaved by class; labels follow the sorted folder
    names."""
    classes = [
        sorted(file for file in sub.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
        for sub in sorted(folder.iterdir())
        if sub.is_dir()
    ]
    if not any(classes):
        raise ValueError(f"--source {folder} holds no folders with images")
    return [
        (Image.open(files[row]), label)
        for row in range(max(map(len, classes)))
        for label, files in enumerate(classes)
        if row < len(files)
    ]


def encode(picture: Image.Image, variety: Variety, rng: np.random.Generator) -> bytes:
    """Return a JPEG of random size, grey with the given probability."""
    width, height = (int(side) for side in rng.integers(variety.sides[0], variety.sides[1] + 1, 2))
    mode = "L" if rng.random() < variety.grey else "RGB"
    return _bytes(picture.convert(mode).resize((width, height), Image.Resampling.BILINEAR), "JPEG")


def encode_train(pictures: Sequence[Picture], count: int, variety: Variety) -> Iterator[tuple[bytes, int]]:
    """Return `count` files with labels, cycling through the images; broken ones first, then unusual
    ones."""
    rng = np.random.default_rng((variety.seed, 0))
    for row in range(count):
        picture, label = pictures[row % len(pictures)]
        data = encode(picture, variety, rng)
        if row < variety.broken:
            data = (data[: len(data) // 2], b"", b"no image at all")[row % 3]
        elif row < variety.broken + variety.odd:
            image = Image.open(io.BytesIO(data))
            data = _bytes(image, "PNG") if row % 2 else _bytes(image.convert("RGB").convert("CMYK"), "JPEG")
        yield data, label


def encode_val(pictures: Sequence[Picture], count: int, variety: Variety) -> Iterator[tuple[bytes, int]]:
    """Return `count` intact files with labels, taken from the end of the images."""
    rng = np.random.default_rng((variety.seed, 1))
    for row in range(count):
        picture, label = pictures[-1 - row % len(pictures)]
        yield encode(picture, variety, rng), label


def write_tiny_imagenet(
    out: Path, pictures: Sequence[Picture], images: int, val_images: int, variety: Variety
) -> None:
    """Write wnids.txt, train/<wnid>/images/<wnid>_N.JPEG with bounding boxes, val/images and
    val_annotations.txt."""
    wnids = _wnids(pictures)
    _write(out / "wnids.txt", "".join(f"{wnid}\n" for wnid in wnids).encode())
    boxes: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    for data, label in encode_train(pictures, images, variety):
        wnid = wnids[label]
        name = f"{wnid}_{len(boxes[wnid])}.JPEG"
        _write(out / "train" / wnid / "images" / name, data)
        boxes[wnid].append(f"{name}\t0\t0\t63\t63\n")
    for wnid, lines in boxes.items():
        _write(out / "train" / wnid / f"{wnid}_boxes.txt", "".join(lines).encode())
    annotations = []
    for row, (data, label) in enumerate(encode_val(pictures, val_images, variety)):
        _write(out / "val" / "images" / f"val_{row}.JPEG", data)
        annotations.append(f"val_{row}.JPEG\t{wnids[label]}\t0\t0\t63\t63\n")
    _write(out / "val" / "val_annotations.txt", "".join(annotations).encode())


def write_imagenet(
    out: Path, pictures: Sequence[Picture], images: int, val_images: int, variety: Variety
) -> None:
    """Write train/<wnid>/<wnid>_N.JPEG and val/<wnid>/ILSVRC2012_val_N.JPEG."""
    wnids = _wnids(pictures)
    for row, (data, label) in enumerate(encode_train(pictures, images, variety)):
        _write(out / "train" / wnids[label] / f"{wnids[label]}_{row}.JPEG", data)
    for row, (data, label) in enumerate(encode_val(pictures, val_images, variety), 1):
        _write(out / "val" / wnids[label] / f"ILSVRC2012_val_{row:08d}.JPEG", data)


def write_kaggle(
    out: Path, pictures: Sequence[Picture], images: int, val_images: int, variety: Variety
) -> None:
    """Write train/cat.N.jpg and dog.N.jpg, even labels as cats; validation images are added to the
    training images."""
    count = [0, 0]
    for data, label in encode_train(pictures, images + val_images, variety):
        animal = label % 2
        _write(out / "train" / f"{('cat', 'dog')[animal]}.{count[animal]}.jpg", data)
        count[animal] += 1


def write_petimages(
    out: Path, pictures: Sequence[Picture], images: int, val_images: int, variety: Variety
) -> None:
    """Write PetImages/Cat/N.jpg and Dog/N.jpg, with the Thumbs.db of the real folders; labels as in
    Kaggle's layout."""
    count = [0, 0]
    for data, label in encode_train(pictures, images + val_images, variety):
        animal = label % 2
        _write(out / "PetImages" / ("Cat", "Dog")[animal] / f"{count[animal]}.jpg", data)
        count[animal] += 1
    for name in ("Cat", "Dog"):
        _write(out / "PetImages" / name / "Thumbs.db", b"\xd0\xcf\x11\xe0")


LAYOUTS: dict[str, Callable[[Path, Sequence[Picture], int, int, Variety], None]] = {
    "tiny_imagenet": write_tiny_imagenet,
    "imagenet": write_imagenet,
    "dogs_vs_cats": write_kaggle,
    "petimages": write_petimages,
}

DIGITS, OTHERS = "digits", "other images"
"""What stand_in.txt says."""


def write_stand_in(
    layout: str,
    out: Path,
    pictures: Sequence[Picture],
    images: int,
    val_images: int,
    variety: Variety,
    words: str = DIGITS,
) -> None:
    """Write a layout and the file that says what stands in for its images."""
    LAYOUTS[layout](out, pictures, images, val_images, variety)
    name = "dogs_vs_cats" if layout == "petimages" else layout
    mark_stand_in(find_root(name, ON_DISK, str(out)), words)


def _wnids(pictures: Sequence[Picture]) -> list[str]:
    return [f"n{label:08d}" for label in range(max(label for _, label in pictures) + 1)]


def _bytes(image: Image.Image, file_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--layout", required=True, choices=LAYOUTS, help="dogs_vs_cats is Kaggle's, petimages the other"
    )
    parser.add_argument(
        "--out", required=True, type=Path, help="folder to write into; must be empty or not exist"
    )
    parser.add_argument("--source", type=Path, help="folder per class to take images from (default: digits)")
    parser.add_argument("--images", type=int, default=200, help="training images")
    parser.add_argument("--val-images", type=int, default=50)
    parser.add_argument(
        "--sides", type=int, nargs=2, default=(48, 160), metavar=("MIN", "MAX"), help="in pixels"
    )
    parser.add_argument("--grey", type=float, default=0.1, help="share of grey images")
    parser.add_argument(
        "--odd", type=int, default=0, help="training files that are PNG or CMYK under a JPEG's name"
    )
    parser.add_argument("--broken", type=int, default=0, help="training files that are broken")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"--out {args.out} is not empty")
    try:
        variety = Variety(
            sides=tuple(args.sides), grey=args.grey, odd=args.odd, broken=args.broken, seed=args.seed
        )
        pictures = folder_pictures(args.source) if args.source else digit_pictures()
    except (ValueError, NotADirectoryError, FileNotFoundError) as error:
        parser.error(str(error))
    words = OTHERS if args.source else DIGITS
    write_stand_in(args.layout, args.out, pictures, args.images, args.val_images, variety, words)
    print(f"wrote {args.images} training and {args.val_images} validation images in {args.out}")


if __name__ == "__main__":
    main()
