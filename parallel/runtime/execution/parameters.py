"""A worker's parameters, in buckets whose gradient sums and updates are sharded (`held_bucket`).

A sum starts as soon as backward has all gradients of the bucket, and those of the buckets before it: all
workers start their sums in the order of the buckets, whatever is complete first. Sums that a backward
instruction leaves, since some parameter had no gradient, start at its end. The next forward waits for the
updated weights when it needs them.

The messages between hosts of a bucket that is summed in levels start when its sum within the host is
complete: right before the sum of the worker's next bucket starts, or at the end of the backward
instruction.

Where there is a side stream (`side_stream`), the shard of a bucket that is summed by a collective is updated
and gathered there, right behind its sum and hidden behind the rest of backward. Its update instruction then
has nothing left to do.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from parallel.checkpoints.piece import Piece, ReadTensor, pieces_of_span
from parallel.graph.box import Box
from parallel.program import Bucket, Program, Step, Update
from parallel.runtime.communication.exchange import Format
from parallel.runtime.communication.transport import Transport
from parallel.runtime.communication.world import World
from parallel.runtime.execution.bucket_in_levels import BucketInLevels
from parallel.runtime.execution.collective_bucket import CollectiveBucket
from parallel.runtime.execution.held_bucket import HeldBucket, ParameterName
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.side_stream import open_side_stream


class Parameters(Mapping[str, Mapping[str, Tensor]]):
    """All parameters of one worker, by op and name."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[ParameterName, Tensor],
        world: World,
        transport: Transport,
        form: Format,
        activations: torch.dtype,
        options: EngineOptions,
        *,
        keep_gradients: bool = False,
    ) -> None:
        """`form` is that of the weights that are updated; activations have `activations` as dtype."""
        self._transport, self._form = transport, form
        self._graph, self._rank = program.graph, world.rank
        self._keep_gradients = keep_gradients
        self._momentum, self._weight_decay = options.momentum, options.weight_decay
        self.buckets = {
            b.index: _kind(b)(b, weights, form, activations, world, transport)
            for b in program.buckets
            if world.rank in b.workers
        }
        self._due: deque[HeldBucket] = deque()
        """The buckets whose sums the current backward instruction has to start, in order."""
        self._side = open_side_stream(world.device)
        self._updated: set[int] = set()
        """Buckets that were updated before their update instruction."""
        self._lr: float | Tensor = 0.0
        self._within: HeldBucket | None = None
        """The bucket whose sum started last and has not been continued."""
        self._of_op: dict[str, dict[str, Tensor]] = {op.name: {} for op in program.graph}
        self._buckets_of_op: dict[str, list[HeldBucket]] = {op.name: [] for op in program.graph}
        for held in self.buckets.values():
            for (op, name), tensor in held.parameters.items():
                self._of_op[op][name] = tensor
                if held.shared and held not in self._buckets_of_op[op]:
                    self._buckets_of_op[op].append(held)
                if held.shared:
                    tensor.register_post_accumulate_grad_hook(self._on_gradient(held))

    def _on_gradient(self, held: HeldBucket) -> Callable[[Tensor], None]:
        # A strong reference would form a cycle through the parameter that is invisible to the
        # garbage collector: the weights would never be freed.
        bucket, parameters = weakref.ref(held), weakref.ref(self)

        def hook(_: Tensor) -> None:
            own, all_own = bucket(), parameters()
            if own is not None and all_own is not None and own.syncing:
                own.ready += 1
                all_own._start_ready()

        return hook

    def _start_ready(self) -> None:
        """Start the sums of the next buckets, up to the first with a gradient that is not complete."""
        while self._due and self._due[0].ready == len(self._due[0].parameters):
            self._start_sync(self._due.popleft())

    def _start_sync(self, held: HeldBucket) -> None:
        self._continue_sync()
        with self._transport.messaging():
            held.start_sync(self._transport)
        self._within = held
        if self._side is not None and isinstance(held, CollectiveBucket):
            self._updated.add(held.bucket.index)
            self._side.run(partial(self._update_beside, held, self._lr))

    def _update_beside(self, held: CollectiveBucket, lr: float | Tensor) -> None:
        """Update and gather a bucket whose sum has just started, on the current stream."""
        held.finish_sync_on_stream(self._transport)
        self._update([held], [self._gradient(held)], lr)
        self._gather([held])  # no time of the compute stream's

    def complete_sums(self) -> None:
        """Start what the backward instruction has not started of its sums."""
        while self._due:
            self._start_sync(self._due.popleft())
        self._continue_sync()

    def _continue_sync(self) -> None:
        """Start the messages between hosts of the last bucket."""
        if self._within is not None:
            with self._transport.messaging():
                self._within.continue_sync(self._transport)
            self._within = None

    def __getitem__(self, op: str) -> Mapping[str, Tensor]:
        """Wait for updated weights and return the parameters of an op."""
        for held in self._buckets_of_op[op]:
            held.finish_gather(self._transport)
        return self._of_op[op]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of_op)

    def __len__(self) -> int:
        return len(self._of_op)

    def expect(self, buckets: Sequence[int], lr: float | Tensor) -> None:
        """Sum each of these buckets as soon as the backward that follows completes it."""
        self._lr = lr
        for index in buckets:
            held = self.buckets[index]
            held.syncing, held.ready, held.gradient = True, 0, None
            if held.shared:
                self._due.append(held)

    def together(self, steps: Sequence[Step]) -> list[tuple[Step, ...]]:
        """Group the updates that one call of `update` can run: neighbours that send nothing.

        Other updates stay alone, so that the gather of one starts before the sum of the next is awaited.
        """
        groups: list[tuple[Step, ...]] = []
        for step in steps:
            before = groups[-1][-1] if groups else None
            if self._sends_nothing(step) and self._sends_nothing(before):
                groups[-1] = (*groups[-1], step)
            else:
                groups.append((step,))
        return groups

    def _sends_nothing(self, step: Step | None) -> bool:
        return isinstance(step, Update) and not self.buckets[step.bucket].shared

    def update(self, indices: Sequence[int], lr: float | Tensor) -> None:
        """Wait for the summed gradients of buckets, update this worker's shards with one kernel, and
        start the all-gathers. A tensor `lr` is float32 and is read by the device."""
        buckets = [self.buckets[index] for index in indices if index not in self._updated]
        self._updated.difference_update(indices)
        if buckets:
            self._update(buckets, [self._summed_gradient(held) for held in buckets], lr)
            with self._transport.messaging():
                self._gather(buckets)

    @torch.no_grad()
    def _update(self, buckets: Sequence[HeldBucket], gradients: list[Tensor], lr: float | Tensor) -> None:
        sgd(
            [held.shard for held in buckets],
            gradients,
            [held.momentum for held in buckets],
            fused=True,
            lr=lr,  # type: ignore[arg-type]  # a tensor is as good
            momentum=self._momentum,
            weight_decay=self._weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for held in buckets:
            held.round()

    def _gather(self, buckets: Sequence[HeldBucket]) -> None:
        """Start the all-gathers of updated buckets."""
        for held in buckets:
            held.start_gather(self._transport)
            held.syncing = False
            held.clear()
            if not self._keep_gradients:
                held.gradient = None

    def _summed_gradient(self, held: HeldBucket) -> Tensor:
        """Return the gradient of this worker's shard, summed over the workers."""
        if held.gradient is None:  # no other worker holds it
            held.start_sync(self._transport)
        held.finish_sync(self._transport)
        return self._gradient(held)

    def _gradient(self, held: HeldBucket) -> Tensor:
        if held.gradient is None:
            raise RuntimeError(f"bucket {held.bucket.index} has no gradient to update with")
        return held.gradient

    def forget_momentum(self) -> None:
        self.wait_for_weights()  # an update may be under way beside the compute stream
        for held in self.buckets.values():
            held.momentum.zero_()

    def wait_for_weights(self) -> None:
        """Wait until all parameters of this worker are up to date."""
        for held in self.buckets.values():  # before any waits for a worker that waits for this one
            held.continue_gather(self._transport)
        for held in self.buckets.values():
            held.finish_gather(self._transport)

    def pieces(self, kind: str) -> list[Piece]:
        """Return this worker's shards of the weights, the momentum, or the summed gradients of the
        last step: views, not copies."""
        self.wait_for_weights()
        pieces: list[Piece] = []
        for held in self.buckets.values():
            values = {"weights": held.shard.detach(), "momentum": held.momentum, "gradients": held.gradient}[
                kind
            ]
            if values is not None:
                span = held.bucket.shard(self._rank)
                pieces += pieces_of_span(
                    kind, self._tensors(held), held.bucket.offsets, span, values, self._form.channels_last
                )
        return pieces

    @torch.no_grad()
    def load(self, read: ReadTensor) -> None:
        """Replace weights and momentum by those that `read` returns."""
        self.wait_for_weights()
        for held in self.buckets.values():
            flat = torch.zeros(held.bucket.padded, dtype=self._form.dtype)
            tensors = [(name, box.within(Box.whole(shape))) for name, shape, box in self._tensors(held)]
            held.fill(read("weights", name)[part] for name, part in tensors)
            for (name, part), momentum in zip(tensors, held.views(flat), strict=True):
                momentum.copy_(read("momentum", name)[part])
            held.momentum.copy_(flat[slice(*held.bucket.shard(self._rank))])

    def _tensors(self, held: HeldBucket) -> list[tuple[str, tuple[int, ...], Box]]:
        """Return name, whole shape and box of each parameter of a bucket."""
        bucket = held.bucket
        return [
            (f"{op}.{name}", self._graph[op].parameters[name], box)
            for (op, name), box in zip(bucket.parameters, bucket.boxes, strict=True)
        ]


def _kind(bucket: Bucket) -> type[HeldBucket]:
    if bucket.collective:
        return CollectiveBucket
    return BucketInLevels if bucket.levels else HeldBucket
