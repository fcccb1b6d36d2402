import dataclasses
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from parallel.data import ArrayImages
from parallel.data.loader import Batch, Loader, LoaderOptions
from parallel.data.order import draw, permutation
from tests.support.gpu import needs_gpu

STORED, SIZE, BATCH = 12, 8, 6
MEAN, STD = (0.1, 0.5, 0.7), (0.3, 0.2, 0.6)


def make_images(count: int = 40) -> ArrayImages:
    rng = np.random.default_rng(3)
    return ArrayImages(rng.integers(0, 256, (count, STORED, STORED, 3), dtype=np.uint8), np.arange(count))


class Watched:
    """Images that count reads, and can fail."""

    def __init__(self, count: int = 40, fail_at: int | None = None) -> None:
        self._images, self.reads, self._fail_at = make_images(count), 0, fail_at
        self.labels, self.size = self._images.labels, self._images.size

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: np.ndarray) -> np.ndarray:
        self.reads += 1
        if self.reads == self._fail_at:
            raise OSError("the disk is gone")
        return self._images.read(indices)


def make(images: Any = None, positions: Sequence[int] = range(BATCH), **changes: Any) -> Loader:
    worker: dict[str, Any] = dict(
        image_positions=positions, label_positions=positions, train=True, device=torch.device("cpu")
    )
    worker |= {"arrived": changes.pop("arrived")} if "arrived" in changes else {}
    worker |= {name: changes.pop(name) for name in worker.keys() & changes.keys()}
    options: dict[str, Any] = dict(
        batch_size=BATCH, image_size=SIZE, mean=MEAN, std=STD, seed=5, crop=True, flip=True
    )
    return Loader(make_images() if images is None else images, LoaderOptions(**(options | changes)), **worker)


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def slowly(pixels: np.ndarray, top: int, left: int, flip: bool) -> np.ndarray:
    """Return one image, computed naively: float64 [3, SIZE, SIZE]."""
    image = pixels[top : top + SIZE, left : left + SIZE]
    if flip:
        image = image[:, ::-1]
    return ((image / 255 - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_images_are_cropped_flipped_and_normalised_as_drawn(
    crop: bool, flip: bool, channels_last: bool
) -> None:
    images = make_images()
    for step, batch in enumerate(make(images, crop=crop, flip=flip, channels_last=channels_last).epoch(2)):
        rows = permutation(5, 2, len(images))[step * BATCH : (step + 1) * BATCH]
        draws = draw(5, 2, step, BATCH, STORED - SIZE, crop, flip)
        assert batch.labels.tolist() == rows.tolist()
        assert batch.images.is_contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        for position, row in enumerate(rows):
            expected = slowly(
                images.pixels[row], draws.top[position], draws.left[position], draws.flip[position]
            )
            assert np.allclose(batch.images[position].numpy(), expected, atol=1e-5)


def test_draws_use_the_whole_range_and_the_centre_without_crop() -> None:
    draws = draw(seed=0, epoch=0, step=0, batch=2000, room=4, crop=True, flip=True)
    assert set(draws.top) == set(draws.left) == set(range(5))
    assert 0.45 < draws.flip.mean() < 0.55 and abs(np.corrcoef(draws.top, draws.left)[0, 1]) < 0.1
    still = draw(seed=0, epoch=0, step=0, batch=9, room=4, crop=False, flip=False)
    assert set(still.top) == set(still.left) == {2} and not still.flip.any()


def test_every_seed_epoch_and_step_has_its_own_draws() -> None:
    seen = {
        draw(seed, epoch, step, 64, 20, True, True).top.tobytes()
        for seed in (0, 1)
        for epoch in (0, 1)
        for step in (0, 1)
    }
    seen |= {permutation(seed, epoch, 64).tobytes() for seed in (0, 1) for epoch in (0, 1)}
    assert len(seen) == 12
    assert sorted(permutation(0, 1, 64)) == list(range(64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "parts", [[[0, 1, 2], [3, 4, 5]], [[5, 0], [3], [], [1, 2, 4]], [[3, 3, 0]]], ids=str
)
def test_what_is_at_a_position_does_not_depend_on_who_loads_it(
    parts: list[list[int]], dtype: torch.dtype
) -> None:
    whole = list(make(dtype=dtype).epoch(1))
    for positions in parts:
        part = list(make(positions=positions, dtype=dtype).epoch(1))
        assert len(part) == len(whole)
        for mine, all_of_it in zip(part, whole, strict=True):
            assert mine.images.dtype == dtype and mine.images.shape == (len(positions), 3, SIZE, SIZE)
            assert torch.equal(mine.images, all_of_it.images[positions])  # to the last bit
            assert torch.equal(mine.labels, all_of_it.labels[positions])


def test_an_epoch_can_be_had_again_and_the_next_is_another() -> None:
    loader = make()
    first, again, other = (next(loader.epoch(epoch)).images for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, next(make(seed=6).epoch(0)).images)


def test_training_drops_the_last_partial_batch_and_repeats_nothing() -> None:
    loader = make()
    labels = torch.cat([batch.labels for batch in loader.epoch(0)]).tolist()
    assert len(loader) == 40 // BATCH and len(labels) == len(set(labels)) == 36


def test_validation_is_in_order_centred_and_padded() -> None:
    images = make_images()
    loader = make(images, train=False)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 7
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    assert labels == [*range(40), -1, -1]
    everything = torch.cat([batch.images for batch in batches])
    for row in range(40):
        assert np.allclose(everything[row].numpy(), slowly(images.pixels[row], 2, 2, flip=False), atol=1e-5)
    assert torch.isfinite(everything).all() and everything.shape[0] == 42
    assert len(make(images, train=False, batch_size=8, positions=[7])) == 5
    assert next(make(make_images(3), train=False).epoch(0)).labels.tolist() == [0, 1, 2, -1, -1, -1]


def test_images_and_labels_can_be_at_different_places() -> None:
    images = Watched()
    labels_only = list(make(images, image_positions=[], label_positions=range(BATCH)).epoch(0))
    assert images.reads == 0 and labels_only[0].images.shape == (0, 3, SIZE, SIZE)
    images_only = list(make(image_positions=[2, 0], label_positions=[]).epoch(0))
    assert images_only[0].labels.shape == (0,) and images_only[0].labels.dtype == torch.int64
    whole = list(make().epoch(0))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(labels_only, whole, strict=True))
    assert all(torch.equal(a.images, b.images[[2, 0]]) for a, b in zip(images_only, whole, strict=True))


def test_reads_ahead_but_no_further_than_asked() -> None:
    images = Watched(count=BATCH * 20)
    batches = make(images, prefetch=3).epoch(0)
    next(batches)
    deadline = time.monotonic() + 10
    while images.reads < 1 + 3 + 1 and time.monotonic() < deadline:  # taken, waiting, and one in hand
        time.sleep(0.001)
    time.sleep(0.05)
    assert images.reads == 5
    assert len(list(batches)) == 19


def test_the_thread_ends_with_the_iterator() -> None:
    before = len(prefetch_threads())
    for _ in make(Watched(count=BATCH * 20)).epoch(0):
        assert len(prefetch_threads()) == before + 1
        break
    assert len(prefetch_threads()) == before
    with pytest.raises(KeyError):
        for _ in make(Watched(count=BATCH * 20)).epoch(0):
            raise KeyError
    assert len(prefetch_threads()) == before
    assert len(list(make().epoch(0))) == 6 and len(prefetch_threads()) == before


def test_an_error_while_reading_surfaces_after_the_batches_before_it() -> None:
    batches = make(Watched(fail_at=3)).epoch(0)
    received: list[Batch] = []
    with pytest.raises(OSError, match="the disk is gone"):
        for batch in batches:
            received.append(batch)
    assert len(received) == 2 and not prefetch_threads()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 41}, "trainer.batch_size=41 is more than the 40 training images"),
        ({"batch_size": 0, "positions": []}, "trainer.batch_size=0 must be at least 1"),
        ({"image_size": 13}, "model.image_size=13 is more than the 12 pixels of the stored images"),
        ({"image_positions": [0, 6]}, "image_positions holds 6, which is outside the global batch of 6"),
        ({"label_positions": [-1]}, "label_positions holds -1, which is outside the global batch of 6"),
        ({"prefetch": 0}, "prefetch=0 must be at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(**changes)


def test_grey_images_in_memory_are_read_as_rgb() -> None:
    images = make_images()
    grey = dataclasses.replace(images, pixels=images.pixels[..., :1])
    assert (grey.read(np.array([4, 1])) == images.pixels[[4, 1]][..., :1]).all()
    assert next(make(grey).epoch(0)).images.shape == (BATCH, 3, SIZE, SIZE)


def test_on_a_cpu_cropping_is_part_of_loading() -> None:
    assert list(make(arrived=lambda: pytest.fail("the batch is not ready yet")).epoch(0))


@needs_gpu
def test_on_a_gpu_the_batches_are_the_same() -> None:
    arrivals: list[None] = []
    loader = make(device=torch.device("cuda"), arrived=lambda: arrivals.append(None))
    for i, (there, here) in enumerate(zip(loader.epoch(0), make().epoch(0), strict=True), start=1):
        assert len(arrivals) == i
        assert there.images.device.type == there.labels.device.type == "cuda"
        assert torch.equal(there.images.cpu(), here.images) and torch.equal(there.labels.cpu(), here.labels)
