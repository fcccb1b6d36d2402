"""ImageNet (ILSVRC 2012) as everyone unpacks it: a folder per class, for training and for validation.

1,281,167 and 50,000 images of 1000 classes. A few are PNG or CMYK under the name of a JPEG. Any other set of
photographs in class folders is read just as well.
"""

from __future__ import annotations

from pathlib import Path

from parallel.data.layout import Layout, Listing, folders, images_in, labelled


def find(root: Path) -> Path | None:
    """The first class of each part must hold images itself: in Tiny ImageNet they lie one folder deeper."""
    for part in ("train", "val"):
        classes = folders(root / part)
        if not classes or not images_in(root / part / classes[0]):
            return None
    return root


def listing(root: Path) -> Listing:
    """Classes: the folders of train/, sorted."""
    names = folders(root / "train")
    unknown = sorted(set(folders(root / "val")) - set(names))
    if unknown:
        raise ValueError(f"data.root={root} has the class {unknown[0]} in val/ and not in train/")
    train, val = ([[f"{part}/{name}/{file}" for file in images_in(root / part / name)] for name in names]
                  for part in ("train", "val"))
    for name, files in zip(names, train, strict=True):
        if not files:
            raise ValueError(f"data.root={root} has no images in train/{name}")
    return Listing(tuple(names), labelled(root, train), labelled(root, val))


LAYOUT = Layout(text="train/<wnid>/*.JPEG and val/<wnid>/*.JPEG", find=find, listing=listing)
