"""Tiny ImageNet: 200 classes, 100,000 training and 10,000 validation images of 64×64, some of them
grey.

Source: `tiny-imagenet-200.zip` of Stanford's CS231n. Its test images have no labels and are not
used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from parallel.data.cache import ImageFiles
from parallel.data.layout import Layout, Listing, images_in, labelled


def find(root: Path) -> Path | None:
    """Return the folder with wnids.txt and the labels of val/."""
    for folder in (root, root / "tiny-imagenet-200"):
        if (folder / "wnids.txt").is_file() and (folder / "val" / "val_annotations.txt").is_file():
            return folder
    return None


def listing(root: Path) -> Listing:
    """List the images. Classes are ordered as in wnids.txt; val_annotations.txt labels the
    validation images."""
    wnids = (root / "wnids.txt").read_text().split()
    classes = []
    for wnid in wnids:
        folder = f"train/{wnid}/images"
        classes.append([f"{folder}/{name}" for name in images_in(root / folder)])
        if not classes[-1]:
            raise ValueError(f"data.root={root} has no images in {folder}, though wnids.txt names the class")
    return Listing(
        tuple(wnids), labelled(root, classes), _val(root, {wnid: label for label, wnid in enumerate(wnids)})
    )


def _val(root: Path, label_of: dict[str, int]) -> ImageFiles:
    """Read val_annotations.txt. A line has a file name, a wnid and a bounding box, separated by
    tabs."""
    files, labels = [], []
    for number, line in enumerate((root / "val" / "val_annotations.txt").read_text().splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in label_of:
            raise ValueError(
                f"data.root={root}: line {number} of val/val_annotations.txt names no class of wnids.txt: "
                f"{line!r}"
            )
        files.append(f"val/images/{fields[0]}")
        labels.append(label_of[fields[1]])
    if not files:
        raise ValueError(f"data.root={root}: val/val_annotations.txt is empty")
    return ImageFiles(root, tuple(files), np.array(labels, dtype=np.int64))


LAYOUT = Layout(
    text="wnids.txt, train/<wnid>/images/*.JPEG, val/val_annotations.txt and val/images/*.JPEG",
    find=find,
    listing=listing,
)
