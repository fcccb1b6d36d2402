"""Data sets on disk: recognise, list and open a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parallel.config import ImageFilesConfig, require
from parallel.data.cache import ImageFiles, open_images
from parallel.data.dataset import PHOTO_MEAN, PHOTO_STD, DataSet, Images, Triple, stored_side, subset
from parallel.data.download.published_sets import PUBLISHED_SETS, WITH_ACCOUNT

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
STAND_IN_FILE = "stand_in.txt"
"""File in the folder that `find` returns. It says that other images stand in for those of the data
set, and names them."""
STAND_IN = re.compile(r"[a-z][a-z ]{0,31}")


@dataclass(frozen=True)
class Listing:
    """Files of a data set."""

    class_names: tuple[str, ...]
    train: ImageFiles
    val: ImageFiles


@dataclass(frozen=True)
class Layout:
    """Layout of a data set on disk."""

    text: str
    """Description of the layout, for error messages."""
    find: Callable[[Path], Path | None]
    """Return the folder with this layout: the given one or one just below it; None if there is
    none."""
    listing: Callable[[Path], Listing]
    """List a folder that `find` returned. Raises `ValueError` if something is missing."""
    mean: Triple = PHOTO_MEAN
    std: Triple = PHOTO_STD


def open_layout(
    name: str, layouts: Mapping[str, Layout], data: ImageFilesConfig, image_size: int, verbose: bool
) -> DataSet:
    """Open the data set `name` under `data.root`, decoding images that are not in the cache.

    If other images stand in for it, its name says so: `tiny_imagenet (digits)`. Raises `ValueError`
    if the folder is missing, is empty, or has another layout.
    """
    layout = layouts[name]
    root = find_root(name, layouts, data.root)
    listing, other = layout.listing(root), stand_in(root)
    side = stored_side(data, image_size)

    def images(split: str, files: ImageFiles, wanted: int | None) -> Images:
        used = files.take(subset(split, files.labels, wanted))
        return open_images(f"{name}-{split}-{side}", used, side, data, verbose)

    return DataSet(
        name=f"{name} ({other})" if other else name,
        num_classes=len(listing.class_names),
        class_names=listing.class_names,
        train=images("train", listing.train, data.train_images),
        val=images("val", listing.val, data.val_images),
        mean=layout.mean,
        std=layout.std,
    )


def find_root(name: str, layouts: Mapping[str, Layout], given: str | None) -> Path:
    """Return the folder with the layout of `name`. Raises `ValueError` that names the expected layout,
    and the script that gets a published data set."""
    layout = layouts[name]
    wanted = f"{layout.text}{_how_to_get(name)}"
    require(given is not None, "data.root", given, f"must be the folder of data={name}: {wanted}")
    root = Path(given or "").expanduser()
    require(root.is_dir(), "data.root", given, f"is not a folder; looked for {wanted}")
    found = layout.find(root)
    if found is not None:
        return found
    require(any(root.iterdir()), "data.root", given, f"is an empty folder; looked for {wanted}")
    others = [other for other, its in layouts.items() if its.find(root) is not None]
    hint = f"; it looks like data={others[0]}" if others else ""
    raise ValueError(f"data.root={given} has another layout: looked for {layout.text}{hint}")


def _how_to_get(name: str) -> str:
    """Return the rest of a sentence: how to get a published data set. "" for others."""
    command = f"python scripts/get_data.py {name}"
    if name in PUBLISHED_SETS:
        return f"; `{command}` gets it into data/{name}"
    return f"; `{command}` says where to get it" if name in WITH_ACCOUNT else ""


def stand_in(root: Path) -> str | None:
    """Return what the images in a folder with a known layout are, if they stand in for those of the
    data set. Raises `ValueError` for a file that does not say it in a few words."""
    path = root / STAND_IN_FILE
    if not path.exists():
        return None
    words = path.read_text(encoding="utf-8", errors="replace")[:100].strip()
    require(STAND_IN.fullmatch(words) is not None, str(path), words, "must be up to 32 letters and spaces")
    return words


def mark_stand_in(root: Path, words: str) -> None:
    """Say that the images in `root` stand in for those of the data set; `words` names them."""
    require(STAND_IN.fullmatch(words) is not None, "stand-in", words, "must be up to 32 letters and spaces")
    (root / STAND_IN_FILE).write_text(f"{words}\n", encoding="utf-8")


def folders(path: Path) -> list[str]:
    """Return the sorted names of the folders in `path`; none if `path` is not a folder."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def images_in(path: Path) -> list[str]:
    """Return the sorted names of the image files in `path`; none if `path` is not a folder."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith(".")
        )


def labelled(root: Path, classes: list[list[str]]) -> ImageFiles:
    """Label the files of each class, given relative to `root`."""
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(files) for files in classes])
    return ImageFiles(root, tuple(file for files in classes for file in files), labels)
