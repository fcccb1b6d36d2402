"""Dogs vs. Cats: 25,000 photographs of two classes, with sizes up to a thousand pixels.

There are two distributions: Kaggle's competition folder (`train/cat.0.jpg`, `train/dog.0.jpg`) and
Microsoft's download (`PetImages/Cat/0.jpg`, `PetImages/Dog/0.jpg`), which contains broken files.
The layout is detected. Neither has a labelled validation split: a tenth of each class, drawn with a
fixed seed, is used for validation.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from parallel.data.dataset import stratified_split
from parallel.data.layout import Layout, Listing, images_in, labelled

CLASSES = ("cat", "dog")
KAGGLE_NAME = re.compile(r"(cat|dog)\.\d+\.jpg")
TRAIN_SHARE = 0.9
SPLIT_SEED = 0  # the split is part of the data set: it must not change with trainer.seed


def find(root: Path) -> Path | None:
    """Return the folder with either layout."""
    for folder, is_there in (
        (root, _is_petimages),
        (root / "PetImages", _is_petimages),
        (root, _is_kaggle),
        (root / "train", _is_kaggle),
    ):
        if is_there(folder):
            return folder
    return None


def _is_petimages(folder: Path) -> bool:
    return (folder / "Cat").is_dir() and (folder / "Dog").is_dir()


def _is_kaggle(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(KAGGLE_NAME.fullmatch(entry.name) for entry in entries)


def listing(root: Path) -> Listing:
    """List the images; label 0 is cat, 1 is dog."""
    if _is_petimages(root):
        classes = [[f"{name}/{file}" for file in images_in(root / name)] for name in ("Cat", "Dog")]
    else:
        found = [name for name in images_in(root) if KAGGLE_NAME.fullmatch(name)]
        classes = [[name for name in found if name.startswith(f"{label}.")] for label in CLASSES]
    for label, files in zip(CLASSES, classes, strict=True):
        if not files:
            raise ValueError(f"data.root={root} has no images of class {label}")
    every = labelled(root, classes)
    train, val = stratified_split(every.labels, TRAIN_SHARE, SPLIT_SEED)
    return Listing(CLASSES, every.take(train), every.take(val))


LAYOUT = Layout(
    text="train/cat.N.jpg and train/dog.N.jpg, or PetImages/Cat/*.jpg and PetImages/Dog/*.jpg",
    find=find,
    listing=listing,
)
