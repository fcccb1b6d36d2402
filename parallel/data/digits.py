"""The 1,797 handwritten digits that ship with scikit-learn (8×8 scans): no download, real accuracy.

Source: UCI "Optical Recognition of Handwritten Digits", test part, as
`sklearn.datasets.load_digits`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from parallel.config import DataConfig
from parallel.data.dataset import ArrayImages, DataSet, stored_side, stratified_split, subset
from parallel.data.host_memory import require_memory

TRAIN_SHARE = 0.8
SPLIT_SEED = 0  # the split is part of the data set: it must not change with trainer.seed
WHITE = 16.0  # the largest value of a pixel in the source


def open_digits(data: DataConfig, image_size: int, seed: int) -> DataSet:
    """Open the digits with a fixed, stratified 80/20 split, resized bilinearly from 8×8 to the
    stored size.

    Images stay in memory, one byte per pixel: 90 MB at 224 pixels.
    """
    # Imported here because scikit-learn takes a second to import and only this data set needs it.
    from sklearn.datasets import load_digits

    source = load_digits()
    labels = source.target.astype(np.int64)
    train_rows, val_rows = stratified_split(labels, TRAIN_SHARE, SPLIT_SEED)
    train_rows = train_rows[subset("train", labels[train_rows], data.train_images)]
    val_rows = val_rows[subset("val", labels[val_rows], data.val_images)]
    side = stored_side(data, image_size)
    require_memory("model.image_size", image_size, (len(train_rows) + len(val_rows)) * side * side)
    train = ArrayImages(enlarge(source.images[train_rows], side), labels[train_rows])
    mean, std = float(train.pixels.mean()) / 255, float(train.pixels.std()) / 255
    return DataSet(
        name="digits",
        num_classes=10,
        class_names=tuple("0123456789"),
        train=train,
        val=ArrayImages(enlarge(source.images[val_rows], side), labels[val_rows]),
        mean=(mean,) * 3,
        std=(std,) * 3,
    )


def enlarge(images: np.ndarray, size: int) -> np.ndarray:
    """Resize float [n, 8, 8] in 0 … 16 to uint8 [n, size, size, 1] in 0 … 255."""
    pixels = np.empty((len(images), size, size, 1), dtype=np.uint8)
    for row, image in enumerate(images):
        scaled = Image.fromarray((image * (255 / WHITE)).astype(np.float32))
        pixels[row, :, :, 0] = np.rint(np.asarray(scaled.resize((size, size), Image.Resampling.BILINEAR)))
    return pixels
