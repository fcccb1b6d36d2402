import dataclasses
from typing import Any

import numpy as np
import pytest

from parallel.config import DataConfig, ImageFilesConfig
from parallel.data import DATA_SETS, Source, dogs_vs_cats, host_memory, known_classes, known_images, open_data
from parallel.data.dataset import ArrayImages, DataSet, stored_side, stratified_split, subset
from parallel.data.synthetic import SyntheticConfig


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_default_options_are_of_that_name_and_fit_the_default_model(name: str) -> None:
    options = DATA_SETS[name].options
    assert options.name == name
    assert stored_side(options, 64) >= 64


@pytest.mark.parametrize("name", ["digits", "tiny_imagenet", "dogs_vs_cats", "imagenet", "synthetic"])
def test_published_sets_state_their_numbers(name: str) -> None:
    options = DATA_SETS[name].options
    assert known_classes(options) >= 2 and known_images(options) >= 1


def test_numbers_that_a_set_does_not_state_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ImageFilesConfig("listed")
    monkeypatch.setitem(
        DATA_SETS,
        "listed",
        dataclasses.replace(DATA_SETS["digits"], options=listed, num_classes=None, train_images=None),
    )
    for key, known in (("model.num_classes", known_classes), ("data.train_images", known_images)):
        with pytest.raises(ValueError, match=f"^{key}=None must be the number of .* of data=listed$"):
            known(listed)


def test_digits() -> None:
    digits = open_data(DataConfig("digits"), image_size=64, seed=0)
    assert (len(digits.train), len(digits.val), digits.num_classes) == (1438, 359, 10)
    assert digits.class_names == tuple("0123456789")
    image = digits.train.read(np.array([0]))
    assert image.shape == (1, 64, 64, 3) and image.dtype == np.uint8
    assert (image == image[..., :1]).all() and image.max() > 200 and image.min() == 0
    every = digits.train.read(np.arange(len(digits.train))) / 255
    assert digits.mean == pytest.approx(every.mean(axis=(0, 1, 2)), rel=1e-6)
    assert digits.std == pytest.approx(every.std(axis=(0, 1, 2)), rel=1e-6)


def test_digits_are_split_by_class_without_overlap_and_always_alike() -> None:
    one, other = (open_data(DataConfig("digits"), image_size=64, seed=seed) for seed in (0, 1))
    share = np.bincount(one.train.labels) / (np.bincount(one.train.labels) + np.bincount(one.val.labels))
    assert np.abs(share - 0.8).max() < 0.004
    assert (one.train.read(np.arange(9)) == other.train.read(np.arange(9))).all()
    train = {row.tobytes() for row in one.train.read(np.arange(len(one.train)))}
    assert not any(row.tobytes() in train for row in one.val.read(np.arange(len(one.val))))


def test_digits_labels_fit_their_images() -> None:
    """Nearest neighbours classify 98 % of the test images, the known value for this data set."""
    digits = open_data(DataConfig("digits"), image_size=64, seed=0)
    train, val = (
        images.read(np.arange(len(images)))[:, 4::8, 4::8, 0].reshape(len(images), -1).astype(np.float32)
        for images in (digits.train, digits.val)
    )
    nearest = ((val[:, None] - train[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert (digits.train.labels[nearest] == digits.val.labels).mean() > 0.95


def test_synthetic_follows_its_seed_and_its_counts() -> None:
    data = SyntheticConfig(train_images=1000, val_images=30, num_classes=7)
    one, same, other = (open_data(data, image_size=64, seed=seed) for seed in (0, 0, 1))
    assert (len(one.train), len(one.val), one.num_classes) == (1000, 30, 7)
    assert set(one.train.labels) == set(range(7)) and one.train.labels.dtype == np.int64
    rows = np.array([999, 0, 256])
    assert one.train.read(rows).shape == (3, 64, 64, 3)
    assert (one.train.read(rows) == same.train.read(rows)).all()
    assert (one.train.read(rows) != other.train.read(rows)).any()


def test_subset_is_drawn_from_everywhere_and_refuses_more_than_there_is() -> None:
    rows = subset("train", np.zeros(1000, dtype=np.int64), 100)
    assert len(set(rows)) == 100 and (np.diff(rows) > 0).all() and rows[0] < 100 and rows[-1] > 900
    assert (rows == subset("train", np.zeros(1000, dtype=np.int64), 100)).all()
    assert len(open_data(DataConfig("digits", train_images=64, val_images=32), 64, 0).train) == 64
    with pytest.raises(ValueError, match="data.val_images=360 is more than the 359"):
        open_data(DataConfig("digits", val_images=360), 64, 0)


@pytest.mark.parametrize(
    ("name", "images", "said"),
    [
        ("digits", None, "name=digits of the data set must be data.name=mine"),
        ("mine", 8, "data.train_images=8 must be the number of training images that data=mine returns"),
    ],
)
def test_a_data_set_is_what_its_options_state(
    name: str, images: int | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record states both, and one that contradicts itself is not read."""

    def opened(data: DataConfig, size: int, seed: int) -> DataSet:
        return dataclasses.replace(open_data(DataConfig("digits"), size, seed), name=name)

    monkeypatch.setitem(DATA_SETS, "mine", Source(DataConfig("mine"), opened))
    with pytest.raises(ValueError, match=said):
        open_data(DataConfig("mine", train_images=images), 20, 0)


@pytest.mark.parametrize("wanted", [0, 1, 17, 2000, 7000, 22_500])
def test_each_class_keeps_its_share_of_a_subset(wanted: int) -> None:
    labels = np.random.default_rng(1).choice(5, 22_500, p=[0.5, 0.2, 0.2, 0.0999, 0.0001])
    rows = subset("train", labels, wanted)
    assert len(set(rows)) == wanted
    exact = np.bincount(labels, minlength=5) * wanted / len(labels)
    assert (abs(np.bincount(labels[rows], minlength=5) - exact) < 1).all()
    assert set(rows) <= set(subset("train", labels, min(22_500, wanted + 5_000)))


def test_the_published_subset_of_dogs_and_cats() -> None:
    """2,000 training and 800 validation images, half of them cats, and none in both."""
    images = np.repeat([0, 1], 12_500)
    train, val = stratified_split(images, dogs_vs_cats.TRAIN_SHARE, dogs_vs_cats.SPLIT_SEED)
    kept = train[subset("train", images[train], 2_000)], val[subset("val", images[val], 800)]
    assert [np.bincount(images[rows]).tolist() for rows in kept] == [[1_000, 1_000], [400, 400]]
    assert not set(kept[0]) & set(kept[1])


def test_stored_side() -> None:
    assert stored_side(DataConfig("digits"), 224) == 224
    assert stored_side(DataConfig("digits", crop=True), 224) == 256
    assert stored_side(DataConfig("digits", stored_size=300), 224) == 300
    with pytest.raises(ValueError, match="data.stored_size=64 must be at least model.image_size=224"):
        stored_side(DataConfig("digits", stored_size=64), 224)
    with pytest.raises(ValueError, match="data.stored_size=224 leaves no room for data.crop"):
        stored_side(DataConfig("digits", stored_size=224, crop=True), 224)


def test_array_images_checks_its_arrays() -> None:
    pixels, labels = np.zeros((3, 8, 8, 3), dtype=np.uint8), np.zeros(3, dtype=np.int64)
    with pytest.raises(ValueError, match="labels.shape"):
        ArrayImages(pixels, labels[:2])
    with pytest.raises(ValueError, match="pixels.shape"):
        ArrayImages(pixels[:, :4], labels)
    with pytest.raises(ValueError, match="pixels.dtype"):
        ArrayImages(pixels.astype(np.float32), labels)


@pytest.mark.parametrize(
    ("name", "options", "size", "words"),
    [
        (
            "synthetic",
            {},
            32768,
            "model.image_size=32768 needs 824.6 GB of memory for the data set, and 8.0 GB",
        ),
        ("synthetic", {"train_images": 10**10}, 64, "data.train_images=10000000000 needs 240.0 GB of memory"),
        ("synthetic", {"val_images": 10**10}, 64, "data.val_images=10000000000 needs 240.0 GB of memory"),
        ("digits", {}, 32768, "model.image_size=32768 needs 1,929.5 GB of memory"),
        (
            "digits",
            {"train_images": 10, "val_images": 6},
            32768,
            "model.image_size=32768 needs 17.2 GB of memory",
        ),
    ],
)
def test_a_set_that_does_not_fit_into_memory_is_refused(
    name: str, options: dict[str, Any], size: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "host_memory", lambda: 8_000_000_000)
    data = dataclasses.replace(DATA_SETS[name].options, **options)
    with pytest.raises(ValueError, match=words):
        open_data(data, size, seed=0)
