"""Training steps as replays of one captured step: `trainer.graphs`.

A step of small kernels takes the host longer to launch than the device to run. A CUDA graph holds the
launches of a whole step, forward, backward and update, and the host starts all of them with one call.

A graph repeats its kernels with the addresses and numbers that it was captured with. So everything that
changes from step to step is in memory that the graph reads: the batch, which is copied to it; the learning
rate, a float32 as torch's fused SGD takes it; and the key of the dropout masks (`Runtime`). Weights,
momentum and running statistics are updated in place. The graph's tensors have a memory pool of their own,
and each replay overwrites them.

The first step runs as it is, so that libraries choose their algorithms and the masks' kernel is compiled.
The second is captured, which runs nothing, and then replayed like all that follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from parallel.config import require
from parallel.program import Program

Body = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images, labels, learning rate) → loss of a step."""


class Recording(Protocol):
    """A sequence of kernels that runs again with the same memory."""

    def warm_up(self, body: Callable[[], None]) -> None:
        """Run the body once as it will be captured."""

    def capture(self, body: Callable[[], None]) -> None:
        """Record the kernels of the body without running them."""

    def replay(self) -> None:
        """Run the recorded kernels."""


class DeviceGraph:
    """A CUDA graph."""

    def __init__(self, device: torch.device) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._device = device

    def warm_up(self, body: Callable[[], None]) -> None:
        current, side = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):  # a graph is captured on a side stream, too
            body()
        current.wait_stream(side)

    def capture(self, body: Callable[[], None]) -> None:
        # thread_local: the thread that prefetches batches may go on allocating and copying.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            body()

    def replay(self) -> None:
        self._graph.replay()


class GraphedStep:
    """Runs a step's body, first as it is and then as a recording."""

    def __init__(self, recording: Recording, body: Body, device: torch.device) -> None:
        self._recording, self._body = recording, body
        self._lr = torch.zeros((), dtype=torch.float32, device=device)
        self._batch: tuple[Tensor, Tensor] | None = None
        self._loss: Tensor | None = None
        self._captured = False

    def run(self, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        """Run a step and return its loss. Raises `ValueError` if a batch differs in shape from the
        first."""
        if self._batch is None:
            self._batch = torch.empty_like(images), torch.empty_like(labels)
        for name, given, own in zip(("images", "labels"), (images, labels), self._batch, strict=True):
            if given.shape != own.shape or given.dtype != own.dtype:
                raise ValueError(
                    f"{name} of shape {tuple(given.shape)} and type {given.dtype} do not fit the step that was "
                    f"captured with {tuple(own.shape)} and {own.dtype}"
                )
            own.copy_(given)
        self._lr.fill_(lr)
        if self._loss is None:
            self._recording.warm_up(self._run)
        else:
            if not self._captured:
                self._recording.capture(self._run)
                self._captured = True
            self._recording.replay()
        if self._loss is None:
            raise RuntimeError("the step left no loss")
        return self._loss.clone()  # the next replay overwrites it

    def _run(self) -> None:
        if self._batch is None:
            raise RuntimeError("a step without a batch")
        self._loss = self._body(*self._batch, self._lr)


def open_graph(program: Program, device: torch.device) -> DeviceGraph:
    """Return a graph for a worker's steps. Raises `ValueError` if they cannot be captured."""
    workers = program.plan.workers
    require(
        workers == 1,
        "trainer.graphs",
        True,
        f"captures steps without messages, and this plan has {workers} workers; use workers=1 or false",
    )
    require(
        device.type == "cuda",
        "trainer.graphs",
        True,
        f"needs a GPU, and this worker's device is {device.type}; use false",
    )
    return DeviceGraph(device)
