"""The loader copies batches in its thread, and what computes waits for the copies."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from parallel.data import ArrayImages
from parallel.data.copies import Arriving, open_uploads, start, take
from parallel.data.loader import Batch, Loader, LoaderOptions
from tests.support.gpu import needs_gpu

STORED, SIZE, BATCH, COUNT = 12, 8, 6, 40


class LateUploads:
    """Imitation of a GPU's copies: they happen when the stream that computes waits for them."""

    def __init__(self) -> None:
        self._copies: list[tuple[Tensor, np.ndarray]] = []
        self._done = 0
        self._lock = threading.Lock()
        self.threads: set[str] = set()
        self.kept: set[int] = set()
        self.uploaded: list[int] = []

    def enter_thread(self) -> None:
        self._thread = threading.current_thread()

    def upload(self, array: np.ndarray) -> Tensor:
        assert threading.current_thread() is self._thread
        self.threads.add(threading.current_thread().name)
        place = torch.zeros(array.shape, dtype=torch.from_numpy(array).dtype)
        with self._lock:
            self._copies.append((place, array))
            self.uploaded.append(id(place))
        return place

    def mark(self) -> int:
        assert threading.current_thread() is self._thread
        return len(self._copies)

    def wait(self, mark: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        with self._lock:
            for place, array in self._copies[self._done : mark]:
                place.copy_(torch.from_numpy(array))
            self._done = max(self._done, mark)

    def keep(self, tensor: Tensor) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.kept.add(id(tensor))


def batches(uploads: LateUploads | None, crop: bool = True) -> list[Batch]:
    pixels = np.random.default_rng(3).integers(0, 256, (COUNT, STORED, STORED, 3), dtype=np.uint8)
    options = LoaderOptions(
        batch_size=BATCH,
        image_size=SIZE if crop else STORED,
        mean=(0.1, 0.5, 0.7),
        std=(0.3, 0.2, 0.6),
        seed=5,
        crop=crop,
        flip=True,
    )
    loader = Loader(
        ArrayImages(pixels, np.arange(COUNT)),
        options,
        train=True,
        image_positions=range(BATCH),
        label_positions=range(BATCH),
        device=torch.device("cpu"),
        uploads=uploads,
    )
    return list(loader.epoch(0))


def equal(one: list[Batch], other: list[Batch]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs)


@pytest.mark.parametrize("crop", [True, False])
def test_batches_are_copied_by_the_thread_and_waited_for_before_they_are_read(crop: bool) -> None:
    uploads = LateUploads()
    assert equal(batches(uploads, crop), batches(None, crop))
    assert uploads.threads == {"prefetch"}
    assert uploads.kept == set(uploads.uploaded), "all memory is kept until it has been read"


@pytest.mark.parametrize("forget", [lambda uploads: setattr(uploads, "wait", lambda mark: None)])
def test_a_loader_that_does_not_wait_reads_other_batches(forget: Callable[[LateUploads], None]) -> None:
    uploads = LateUploads()
    forget(uploads)
    assert not equal(batches(uploads), batches(None))


@needs_gpu
def test_on_a_gpu_copies_run_on_a_stream_of_their_own() -> None:
    device = torch.device("cuda", 0)
    uploads = open_uploads(device)
    arrays = (np.arange(1 << 20), np.ones(3, dtype=np.float32))
    arrived: list[Arriving] = []

    def work() -> None:
        uploads.enter_thread()
        arrived.append(start(uploads, arrays))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensors = take(uploads, arrived[0])
        doubled = [tensor * 2 for tensor in tensors]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for tensor, array in zip(doubled, arrays, strict=True):
        assert np.array_equal(tensor.cpu().numpy(), array * 2)
