"""Batches of a data set: read and copied to the device by a thread (`copies`), then cropped, flipped and
normalised there.

A worker loads the positions of the global batch that it needs. The sample at a position depends
only on the seed, the epoch and the step (`order.py`), so every strategy trains on the same images
in the same order, however it splits the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from parallel.config import Config, require
from parallel.data.copies import Arriving, Uploads, open_uploads, start, take
from parallel.data.dataset import DataSet, Images, Triple
from parallel.data.order import Draws, draw, permutation
from parallel.data.prefetch import Prefetch

PADDING = -1
"""Label of a position that the last validation batch does not fill; its image repeats another."""


@dataclass(frozen=True)
class Batch:
    """One worker's part of a global batch."""

    images: Tensor
    """[len(image_positions), 3, image_size, image_size], normalised, on the device"""
    labels: Tensor
    """int64 [len(label_positions)], on the device; -1 where a validation batch has no image"""


@dataclass(frozen=True)
class LoaderOptions:
    """Options of batches, equal on every worker."""

    batch_size: int
    """Global."""
    image_size: int
    """Side of the images in the batches, in pixels."""
    mean: Triple
    """Per channel, of pixels in [0, 1]."""
    std: Triple
    seed: int
    """Chooses the order of the images, the crops and the flips."""
    crop: bool
    """Crop training images at random; otherwise take the centre."""
    flip: bool
    """Flip half of the training images from left to right."""
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    prefetch: int = 2
    """Batches that the thread reads ahead."""

    @staticmethod
    def from_config(config: Config, data: DataSet, dtype: torch.dtype) -> LoaderOptions:
        """Return the configured options."""
        trainer = config.trainer
        return LoaderOptions(
            batch_size=trainer.batch_size,
            image_size=config.model.image_size,
            mean=data.mean,
            std=data.std,
            seed=trainer.seed,
            crop=config.data.crop,
            flip=config.data.flip,
            dtype=dtype,
            channels_last=trainer.channels_last,
        )


class Loader:
    """Iterates over the batches of an epoch. Workers' loaders agree without communication."""

    def __init__(
        self,
        images: Images,
        options: LoaderOptions,
        *,
        train: bool,
        image_positions: Sequence[int],
        label_positions: Sequence[int],
        device: torch.device,
        arrived: Callable[[], None] = lambda: None,
        uploads: Uploads | None = None,
    ) -> None:
        """Positions are those that this worker needs, in its order, from 0 to batch_size - 1. On a GPU
        `arrived` is called for each batch when the copies that its first kernel needs are enqueued.

        With `train`, the loader shuffles, crops, flips, and drops the last partial batch. Otherwise
        it keeps the order of the set, takes the centre, and pads the last batch. `uploads` copies to the
        device; None: as `open_uploads` of it. Raises
        `ValueError` if the set is smaller than one training batch, the images are smaller than
        `image_size`, or a position is outside the batch.
        """
        batch_size, image_size = options.batch_size, options.image_size
        require(batch_size >= 1, "trainer.batch_size", batch_size, "must be at least 1")
        require(
            not train or len(images) >= batch_size,
            "trainer.batch_size",
            batch_size,
            f"is more than the {len(images)} training images",
        )
        require(
            images.size >= image_size,
            "model.image_size",
            image_size,
            f"is more than the {images.size} pixels of the stored images",
        )
        require(options.prefetch >= 1, "prefetch", options.prefetch, "must be at least 1")
        self._images, self._batch_size, self._image_size = images, batch_size, image_size
        self._image_positions = _positions("image_positions", image_positions, batch_size)
        self._label_positions = _positions("label_positions", label_positions, batch_size)
        self._options, self._train, self._device = options, train, _with_index(device)
        self._arrived = arrived
        self._uploads = open_uploads(self._device) if uploads is None else uploads
        # One row of an image, [image_size × 3]: see `normalise`. Pixels are 0 to 255, mean and std
        # of [0, 1].
        wide = torch.promote_types(options.dtype, torch.float32)
        mean = torch.tensor(options.mean, dtype=torch.float64) * 255
        std = torch.tensor(options.std, dtype=torch.float64) * 255
        self._mean = mean.repeat(image_size).to(self._device, wide)
        self._scale = std.reciprocal().repeat(image_size).to(self._device, wide)

    def __len__(self) -> int:
        """Batches per epoch."""
        full, rest = divmod(len(self._images), self._batch_size)
        return full if self._train else full + (rest > 0)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from number `first` on.

        Closing the iterator early ends its thread; an error while reading surfaces here.
        """
        reader = Prefetch(self._read(epoch, first), self._options.prefetch, self._uploads.enter_thread)
        try:
            for arriving in reader:
                yield self._finish(arriving)
        finally:
            reader.close()

    def _read(self, epoch: int, first: int) -> Iterator[Arriving]:
        count, batch = len(self._images), self._batch_size
        seed = self._options.seed
        order = permutation(seed, epoch, count) if self._train else np.arange(count)
        crop, flip = self._options.crop and self._train, self._options.flip and self._train
        room = self._images.size - self._image_size
        for step in range(first, len(self)):
            indices = order[step * batch : (step + 1) * batch]
            labels = np.full(batch, PADDING, dtype=np.int64)
            labels[: len(indices)] = self._images.labels[indices]
            padded = np.resize(indices, batch)  # repeats images; training batches are full already
            draws = draw(seed, epoch, step, batch, room, crop, flip)
            own = draws.take(self._image_positions)
            arrays = (
                self._read_pixels(padded[self._image_positions]),
                labels[self._label_positions],
                crop_rows(own, self._images.size, self._image_size),
                np.flatnonzero(own.flip),
            )
            yield start(self._uploads, arrays)

    def _read_pixels(self, indices: np.ndarray) -> np.ndarray:
        if len(indices) == 0:
            return np.empty((0, self._images.size, self._images.size, 3), dtype=np.uint8)
        return self._images.read(indices)

    def _finish(self, arriving: Arriving) -> Batch:
        pixels, labels, rows, flipped = take(self._uploads, arriving)
        if self._device.type == "cuda":
            self._arrived()
        cropped = augment(pixels, rows, flipped, self._image_size)
        images = normalise(cropped, self._mean, self._scale).to(self._options.dtype)
        if not self._options.channels_last:
            images = images.contiguous()
        return Batch(images=images, labels=labels)


def crop_rows(draws: Draws, stored: int, size: int) -> np.ndarray:
    """Return where each row of each crop begins, in pixels from the batch's first: int64 [k, size].

    Empty if the images are stored in the size of the crop.
    """
    if stored == size:
        return np.empty((0, size), dtype=np.int64)
    begin = (np.arange(len(draws.top)) * stored + draws.top) * stored + draws.left  # [k]
    return np.asarray(begin[:, None] + np.arange(size) * stored)


def augment(pixels: Tensor, rows: Tensor, flipped: Tensor, size: int) -> Tensor:
    """Crop each image at its `crop_rows`, and flip those numbered `flipped`: uint8 [k, stored, stored, 3]
    to [k, size, size, 3].

    A crop is a gather of rows: seen as one long line of pixels, the batch has a window of `size`
    pixels at every pixel, and the crop of an image is the `size` windows that begin one image width
    apart. Gathering whole rows is some fifty times faster on a CPU than indexing by row and column.
    """
    count, stored = pixels.shape[:2]
    if count and stored != size:
        flat = pixels.contiguous().view(-1)
        windows = flat.as_strided((count * stored * stored - size + 1, 3 * size), (3, 1))
        pixels = windows.index_select(0, rows.view(-1)).view(count, size, size, 3)
    elif stored != size:
        pixels = pixels[:, :size, :size]
    if len(flipped):
        pixels = pixels.index_copy(0, flipped, pixels.index_select(0, flipped).flip(2))
    return pixels


def normalise(pixels: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return (pixels - mean) × scale: uint8 [k, h, w, 3] to [k, 3, h, w] in channels_last memory.

    `mean` and `scale` are [w × 3], a row of an image, so that the innermost loop is a row and not
    three channels: eight times faster on a CPU at 224 pixels. Subtraction and multiplication are
    separate on purpose: fused, the last bit would depend on where in a vector a pixel falls, and so
    on how the batch is split.
    """
    count, height, width, channels = pixels.shape
    out = torch.empty_like(pixels, dtype=mean.dtype, memory_format=torch.contiguous_format)
    out.copy_(pixels)
    out.view(count, height, width * channels).sub_(mean).mul_(scale)
    return out.permute(0, 3, 1, 2)


def _positions(name: str, positions: Sequence[int], batch_size: int) -> np.ndarray:
    array = np.asarray(positions, dtype=np.int64)
    for position in array[(array < 0) | (array >= batch_size)]:
        raise ValueError(f"{name} holds {position}, which is outside the global batch of {batch_size}")
    return array


def _with_index(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
