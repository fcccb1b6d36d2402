import shutil
from pathlib import Path

import numpy as np
import pytest

from parallel.config import DataConfig, ImageFilesConfig
from parallel.data import ON_DISK, DataSet, open_data
from scripts.write_image_layouts import LAYOUTS, Variety, digit_pictures

DATA_SET = {
    "tiny_imagenet": "tiny_imagenet",
    "imagenet": "imagenet",
    "dogs_vs_cats": "dogs_vs_cats",
    "petimages": "dogs_vs_cats",
}
IMAGES, VAL_IMAGES, BROKEN = 210, 30, 2


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write each layout as real files: some grey, one PNG and one CMYK, two broken."""
    pictures = digit_pictures()
    root = tmp_path_factory.mktemp("layouts")
    for name, write in LAYOUTS.items():
        write(root / name, pictures, IMAGES, VAL_IMAGES, Variety(odd=2, broken=BROKEN))
    return {name: root / name for name in LAYOUTS}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def opened(layout: str, root: Path, cache: str) -> DataSet:
    return open_data(
        ImageFilesConfig(name=DATA_SET[layout], root=str(root), cache=cache, decoders=2), 64, seed=0
    )


def recognised(data: DataSet) -> float:
    """Return the share of images whose label is that of the nearest digit in the source.

    With labels shifted against their images, it would be a tenth for ten classes, half for two.
    """
    digits = open_data(DataConfig("digits"), image_size=64, seed=0)

    def features(images: np.ndarray) -> np.ndarray:
        flat = images[:, 4::8, 4::8, 0].reshape(len(images), -1).astype(np.float32)
        return flat

    reference = features(digits.train.read(np.arange(len(digits.train))))
    right = total = 0
    for images in (data.train, data.val):
        found = features(images.read(np.arange(len(images))))
        nearest = ((found[:, None] - reference[None]) ** 2).sum(axis=2).argmin(axis=1)
        right += (digits.train.labels[nearest] % data.num_classes == images.labels).sum()
        total += len(images)
    return right / total


@pytest.mark.parametrize("layout", ["tiny_imagenet", "imagenet"])
def test_images_carry_their_labels(layout: str, roots: dict[str, Path], cache: str) -> None:
    data = opened(layout, roots[layout], cache)
    assert (len(data.train), len(data.val), data.num_classes) == (IMAGES - BROKEN, VAL_IMAGES, 10)
    assert data.class_names == tuple(f"n{label:08d}" for label in range(10))
    assert recognised(data) > 0.85  # the writer squeezes digits to random shapes, so not all are recognised


@pytest.mark.parametrize("layout", ["dogs_vs_cats", "petimages"])
def test_cats_and_dogs(layout: str, roots: dict[str, Path], cache: str) -> None:
    data = opened(layout, roots[layout], cache)
    every = len(data.train) + len(data.val)
    assert every == IMAGES + VAL_IMAGES - BROKEN and data.class_names == ("cat", "dog")
    assert abs(len(data.val) / every - 0.1) < 0.02
    assert recognised(data) > 0.85


def test_tiny_imagenet_classes_are_in_the_order_of_wnids(
    roots: dict[str, Path], cache: str, tmp_path: Path
) -> None:
    shutil.copytree(roots["tiny_imagenet"], tmp_path / "tiny-imagenet-200")
    wnids = tmp_path / "tiny-imagenet-200" / "wnids.txt"
    wnids.write_text("\n".join(reversed(wnids.read_text().split())))
    straight = opened("tiny_imagenet", roots["tiny_imagenet"], cache)
    turned = opened("tiny_imagenet", tmp_path, cache)  # also: the folder above is accepted
    assert turned.class_names == straight.class_names[::-1]
    assert (turned.val.labels == 9 - straight.val.labels).all()
    assert (turned.val.read(np.arange(5)) == straight.val.read(np.arange(5))).all()
    assert (np.bincount(turned.train.labels) == np.bincount(straight.train.labels)[::-1]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_recognised_as_itself_only(layout: str, roots: dict[str, Path]) -> None:
    assert [name for name, known in ON_DISK.items() if known.find(roots[layout])] == [DATA_SET[layout]]


def test_another_layout(roots: dict[str, Path], cache: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"data.root=.* has another layout: looked for train/<wnid>/\*.JPEG and .*; "
        "it looks like data=dogs_vs_cats",
    ):
        opened("imagenet", roots["petimages"], cache)
    with pytest.raises(ValueError, match="looked for wnids.txt.* it looks like data=imagenet"):
        opened("tiny_imagenet", roots["imagenet"], cache)
    with pytest.raises(ValueError, match=r"has another layout: looked for train/cat.N.jpg [^;]*$"):
        opened("dogs_vs_cats", roots["imagenet"].parent, cache)


@pytest.mark.parametrize(
    ("layout", "gets"),
    [
        ("tiny_imagenet", "gets it into data/tiny_imagenet"),
        ("imagenet", "says where to get it"),
        ("dogs_vs_cats", "gets it into data/dogs_vs_cats"),
    ],
)
def test_no_root_missing_root_empty_root(layout: str, gets: str, cache: str, tmp_path: Path) -> None:
    script = f".*; `python scripts/get_data.py {layout}` {gets}$"
    with pytest.raises(ValueError, match=f"data.root=None must be the folder of data={layout}{script}"):
        open_data(ImageFilesConfig(name=layout, cache=cache), 64, 0)
    with pytest.raises(ValueError, match=f"data.root=.*nowhere is not a folder; looked for{script}"):
        opened(layout, tmp_path / "nowhere", cache)
    with pytest.raises(ValueError, match=f"data.root=.* is an empty folder; looked for{script}"):
        opened(layout, tmp_path, cache)


def test_incomplete_tiny_imagenet(roots: dict[str, Path], cache: str, tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    shutil.copytree(roots["tiny_imagenet"], root)
    (root / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(ValueError, match="data.root=.* lacks the file val/images/val_3.JPEG"):
        opened("tiny_imagenet", root, cache)
    annotations = root / "val" / "val_annotations.txt"
    whole = annotations.read_text()
    annotations.write_text(whole + "val_0.JPEG\tn99\t0\t0\t1\t1\n")
    with pytest.raises(
        ValueError, match="line 31 of val/val_annotations.txt names no class of wnids.txt: 'val_0.JPEG"
    ):
        opened("tiny_imagenet", root, cache)
    annotations.write_text("")
    with pytest.raises(ValueError, match="val_annotations.txt is empty"):
        opened("tiny_imagenet", root, cache)
    annotations.write_text(whole)
    shutil.rmtree(root / "train" / "n00000004")
    with pytest.raises(
        ValueError, match="no images in train/n00000004/images, though wnids.txt names the class"
    ):
        opened("tiny_imagenet", root, cache)


def test_incomplete_imagenet_and_cats_without_dogs(
    roots: dict[str, Path], cache: str, tmp_path: Path
) -> None:
    root = tmp_path / "imagenet"
    shutil.copytree(roots["imagenet"], root)
    (root / "val" / "n00000099").mkdir()
    with pytest.raises(ValueError, match="has the class n00000099 in val/ but not in train/"):
        opened("imagenet", root, cache)
    cats = tmp_path / "cats"
    shutil.copytree(roots["dogs_vs_cats"], cats, ignore=shutil.ignore_patterns("dog.*"))
    with pytest.raises(ValueError, match="data.root=.* has no images of class dog"):
        opened("dogs_vs_cats", cats, cache)


def test_writer_checks_its_input() -> None:
    with pytest.raises(ValueError, match="grey=2"):
        Variety(grey=2)
    with pytest.raises(ValueError, match="sides="):
        Variety(sides=(9, 3))
