"""A worker's parameters, in buckets whose gradient sums and updates are sharded.

For a bucket that K workers hold, each worker

    1. reduce-scatter: sends every other worker that worker's shard of the gradient and adds received
       shards to its own;
    2. update: updates its shard, keeping momentum for that shard only;
    3. all-gather: sends its updated shard to the others.

This moves the bytes of a ring all-reduce, 2(K−1)/K of the bucket, and divides the work of the
update by K (Krizhevsky 2014, section 4.1, on weight synchronisation). Step 1 starts as soon as
backward has the gradient; the next forward waits for step 3 when it needs the parameter.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from parallel.checkpoints.piece import Piece, ReadTensor, pieces_of_span
from parallel.graph.box import Box
from parallel.program import Bucket, Program
from parallel.runtime.communication.exchange import Format
from parallel.runtime.communication.transport import Message, Receive, Transport
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions

ParameterName = tuple[str, str]
"""Op and parameter."""


class HeldBucket:
    """One bucket on one worker."""

    def __init__(
        self,
        bucket: Bucket,
        weights: Mapping[ParameterName, Tensor],
        form: Format,
        world: World,
        transport: Transport,
    ) -> None:
        self.bucket = bucket
        self._form = form
        self._rank = world.rank
        self.ready = 0
        """Number of parameters whose gradient of the last pass is complete."""
        self.syncing = False
        common = transport.share(
            ("weights", bucket.index), world.rank, bucket.workers, bucket.size, form.dtype
        )
        self._common = common is not None
        """Whether the workers' weights are common memory."""
        if common is None:
            self._flat = torch.empty(bucket.size, dtype=form.dtype, device=form.device)
        else:
            self._flat = common
        self.parameters: dict[ParameterName, Tensor] = {}
        offset = 0
        for name, box in zip(bucket.parameters, bucket.boxes, strict=True):
            shape = form.memory_shape(box.shape)
            view = form.in_logical_order(self._flat[offset : offset + box.volume].view(shape))
            view.copy_(weights[name][box.within(Box.whole(tuple(weights[name].shape)))])
            self.parameters[name] = view.requires_grad_()
            offset += box.volume
        start, stop = bucket.shard(world.rank)
        self.shard = self._flat[start:stop]
        self.momentum = torch.zeros_like(self.shard)
        self.gradient: Tensor | None = None
        """Gradient of the shard, after the sync summed over the workers."""
        self._message: Message | None = None
        self._gather: Message | None = None

    @property
    def shared(self) -> bool:
        return len(self.bucket.workers) > 1

    def _flat_gradient(self) -> Tensor:
        flats = []
        for parameter in self.parameters.values():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            flats.append(self._form.in_memory_order(gradient).reshape(-1))
        return flats[0] if len(flats) == 1 else torch.cat(flats)

    def start_sync(self, transport: Transport) -> None:
        """Start sending the gradient's shards to the workers that update them."""
        flat, (start, stop) = self._flat_gradient(), self.bucket.shard(self._rank)
        self.gradient = flat[start:stop]
        if not self.shared:
            return
        peers = [worker for worker in self.bucket.workers if worker != self._rank]
        sends = [(peer, flat[slice(*self.bucket.shard(peer))]) for peer in peers]
        receives = [Receive(peer, tuple(self.gradient.shape), flat.dtype) for peer in peers]
        self._message = transport.start(("sum", self.bucket.index), sends, receives)

    def finish_sync(self, transport: Transport) -> None:
        """Wait for the other workers' gradients and add them."""
        if self._message is None or self.gradient is None:
            return
        for received in transport.wait(self._message):
            self.gradient.add_(received)
        transport.release(self._message)
        self._message = None

    def start_gather(self, transport: Transport) -> None:
        """Start sending the updated shard to the others and receiving theirs in place."""
        if not self.shared:
            return
        peers = [worker for worker in self.bucket.workers if worker != self._rank]
        if self._common:
            self._gather = transport.announce(("gather", self.bucket.index), peers, self.shard)
            return
        shards = []
        for peer in peers:
            place = self._flat[slice(*self.bucket.shard(peer))]
            shards.append(Receive(peer, tuple(place.shape), place.dtype, place))
        sends = [(peer, self.shard) for peer in peers]
        self._gather = transport.start(("gather", self.bucket.index), sends, shards)

    def finish_gather(self, transport: Transport) -> None:
        """Wait until the whole bucket is up to date."""
        if self._gather is not None:
            transport.wait(self._gather)
            transport.release(self._gather)
            self._gather = None

    def clear(self) -> None:
        """Drop the gradients of backward."""
        for parameter in self.parameters.values():
            parameter.grad = None


class Parameters(Mapping[str, Mapping[str, Tensor]]):
    """All parameters of one worker, by op and name."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[ParameterName, Tensor],
        world: World,
        transport: Transport,
        form: Format,
        options: EngineOptions,
        *,
        keep_gradients: bool = False,
    ) -> None:
        self._transport, self._form = transport, form
        self._graph, self._rank = program.graph, world.rank
        self._keep_gradients = keep_gradients
        self._momentum, self._weight_decay = options.momentum, options.weight_decay
        self.buckets = {
            b.index: HeldBucket(b, weights, form, world, transport)
            for b in program.buckets
            if world.rank in b.workers
        }
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
        reference, transport = weakref.ref(held), self._transport

        def hook(_: Tensor) -> None:
            own = reference()
            if own is not None and own.syncing:
                own.ready += 1
                if own.ready == len(own.parameters):
                    own.start_sync(transport)

        return hook

    def __getitem__(self, op: str) -> Mapping[str, Tensor]:
        """Wait for updated weights and return the parameters of an op."""
        for held in self._buckets_of_op[op]:
            held.finish_gather(self._transport)
        return self._of_op[op]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of_op)

    def __len__(self) -> int:
        return len(self._of_op)

    def expect(self, buckets: Sequence[int]) -> None:
        """Sum each of these buckets as soon as the backward that follows completes it."""
        for index in buckets:
            held = self.buckets[index]
            held.syncing, held.ready, held.gradient = True, 0, None

    def update(self, index: int, lr: float) -> None:
        """Wait for the summed gradient, update this worker's shard, and start the all-gather."""
        held = self.buckets[index]
        if held.gradient is None:
            held.start_sync(self._transport)
        held.finish_sync(self._transport)
        held.syncing = False
        gradient = held.gradient
        if gradient is None:
            raise RuntimeError(f"bucket {index} has no gradient to update with")
        with torch.no_grad():
            sgd(
                [held.shard],
                [gradient],
                [held.momentum],
                fused=True,
                lr=lr,
                momentum=self._momentum,
                weight_decay=self._weight_decay,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
            held.start_gather(self._transport)
        held.clear()
        if not self._keep_gradients:
            held.gradient = None

    def forget_momentum(self) -> None:
        for held in self.buckets.values():
            held.momentum.zero_()

    def wait_for_weights(self) -> None:
        """Wait until all parameters of this worker are up to date."""
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
                pieces += pieces_of_span(kind, self._tensors(held), span, values, self._form.channels_last)
        return pieces

    @torch.no_grad()
    def load(self, read: ReadTensor) -> None:
        """Replace weights and momentum by those that `read` returns."""
        self.wait_for_weights()
        for held in self.buckets.values():
            momentum = []
            for (name, shape, box), view in zip(self._tensors(held), held.parameters.values(), strict=True):
                part = box.within(Box.whole(shape))
                view.copy_(read("weights", name)[part])
                in_order = self._form.in_memory_order(read("momentum", name)[part])
                momentum.append(in_order.reshape(-1))
            held.momentum.copy_(torch.cat(momentum)[slice(*held.bucket.shard(self._rank))])

    def _tensors(self, held: HeldBucket) -> list[tuple[str, tuple[int, ...], Box]]:
        """Return name, whole shape and box of each parameter of a bucket."""
        bucket = held.bucket
        return [
            (f"{op}.{name}", self._graph[op].parameters[name], box)
            for (op, name), box in zip(bucket.parameters, bucket.boxes, strict=True)
        ]
