"""ImageNet (ILSVRC 2012) in class folders: 1,281,167 training and 50,000 validation images of 1000
classes.

A few are PNG or CMYK despite their JPEG names. Other images in class folders can be read in the
same way.
"""

from __future__ import annotations

from pathlib import Path

from parallel.data.layout import Layout, Listing, folders, images_in, labelled


def find(root: Path) -> Path | None:
    """Return `root` if its class folders contain images; in Tiny ImageNet they are one level
    deeper."""
    for part in ("train", "val"):
        classes = folders(root / part)
        if not classes or not images_in(root / part / classes[0]):
            return None
    return root


def listing(root: Path) -> Listing:
    """List the images; the classes are the sorted folders of train/."""
    names = folders(root / "train")
    unknown = sorted(set(folders(root / "val")) - set(names))
    if unknown:
        raise ValueError(f"data.root={root} has the class {unknown[0]} in val/ but not in train/")
    train, val = (
        [[f"{part}/{name}/{file}" for file in images_in(root / part / name)] for name in names]
        for part in ("train", "val")
    )
    for name, files in zip(names, train, strict=True):
        if not files:
            raise ValueError(f"data.root={root} has no images in train/{name}")
    return Listing(tuple(names), labelled(root, train), labelled(root, val))


LAYOUT = Layout(text="train/<wnid>/*.JPEG and val/<wnid>/*.JPEG", find=find, listing=listing)
