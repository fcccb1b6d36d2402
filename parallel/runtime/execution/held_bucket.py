"""A bucket of parameters on one worker: its weights, gradient sum, update and gather.

Of a bucket that K workers hold, each worker

    1. reduce-scatter: sends every other worker that worker's shard of the gradient and adds received
       shards to its own;
    2. update: updates its shard, keeping momentum for that shard only;
    3. all-gather: sends its updated shard to the others.

This moves the bytes of a ring all-reduce, 2(K−1)/K of the bucket, and divides the work of the
update by K (Krizhevsky 2014, section 4.1, on weight synchronisation). `bucket_in_levels` does 1 and 3
in levels, and `collective_bucket` by the backend's collectives.

With `trainer.precision=bf16`, convolutions and matrix products read their weights in bf16. A bucket of such
weights (`Bucket.rounded`) that several workers hold is in bf16: it is gathered so, with half the bytes. Each
worker keeps the fp32 weights of its own shard, which it updates, and rounds them after the update. Rounding
before the gather gives the bits of rounding after it. Gradients are accumulated and summed in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from parallel.graph.box import Box
from parallel.program import Bucket
from parallel.runtime.communication.exchange import Format
from parallel.runtime.communication.transport import Message, Receive, Transport
from parallel.runtime.communication.world import World

ParameterName = tuple[str, str]
"""Op and parameter."""


class HeldBucket:
    """One bucket on one worker."""

    def __init__(
        self,
        bucket: Bucket,
        weights: Mapping[ParameterName, Tensor],
        form: Format,
        activations: torch.dtype,
        world: World,
        transport: Transport,
    ) -> None:
        """`form` is that of the weights that are updated; activations have `activations` as dtype."""
        self.bucket = bucket
        self._form = form
        self._rank = world.rank
        self.rounded = bucket.rounded and self.shared and activations != form.dtype
        """Whether the weights that workers hold and gather are rounded to the dtype of activations."""
        self._dtype = activations if self.rounded else form.dtype
        """Data type in which the weights are held, read and gathered."""
        self.ready = 0
        """Number of parameters whose gradient of the last pass is complete."""
        self.syncing = False
        common = self._common_memory(transport)
        self._common = common is not None
        """Whether the weights of `_sharing` are common memory."""
        self._flat = self._memory(self._dtype) if common is None else common
        self._own = self._flat[slice(*bucket.shard(world.rank))]
        """This worker's shard of the weights as they are read and gathered."""
        self.shard = torch.empty_like(self._own, dtype=form.dtype) if self.rounded else self._own
        """This worker's shard of the weights as they are updated and saved."""
        self.fill(
            weights[name][box.within(Box.whole(tuple(weights[name].shape)))]
            for name, box in zip(bucket.parameters, bucket.boxes, strict=True)
        )
        self.parameters: dict[ParameterName, Tensor] = {}
        for name, view in zip(bucket.parameters, self.views(self._flat), strict=True):
            self.parameters[name] = view.requires_grad_()
            if self.rounded:
                view.grad_dtype = form.dtype  # in which micro-batches add up
        self.momentum = torch.zeros_like(self.shard)
        self.gradient: Tensor | None = None
        """Gradient of the shard, after the sync summed over the workers."""
        self._message: Message | None = None
        self._gather: Message | None = None

    def _memory(self, dtype: torch.dtype) -> Tensor:
        """Return memory for the flattened bucket."""
        return torch.zeros(self.bucket.padded, dtype=dtype, device=self._form.device)

    def _common_memory(self, transport: Transport) -> Tensor | None:
        key = "weights", self.bucket.index
        return transport.share(key, self._rank, self._sharing(), self.bucket.size, self._dtype)

    @torch.no_grad()
    def fill(self, values: Iterable[Tensor]) -> None:
        """Replace the weights; `values` are the boxes of the parameters, in their order."""
        whole = self._memory(self._form.dtype) if self.rounded else self._flat
        for view, value in zip(self.views(whole), values, strict=True):
            view.copy_(value)
        if self.rounded:
            self._flat.copy_(whole)
            self.shard.copy_(whole[slice(*self.bucket.shard(self._rank))])

    def round(self) -> None:
        """Bring the updated shard to where it is read and gathered."""
        if self.rounded:
            self._own.copy_(self.shard)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the parameters' boxes in a flattened bucket."""
        form, views = self._form, []
        for box, offset in zip(self.bucket.boxes, self.bucket.offsets, strict=True):
            part = flat[offset : offset + box.volume].view(form.memory_shape(box.shape))
            views.append(form.in_logical_order(part))
        return views

    def _sharing(self) -> Sequence[int]:
        """Return the workers whose weights may be common memory."""
        return self.bucket.workers

    @property
    def shared(self) -> bool:
        return len(self.bucket.workers) > 1

    def _flat_gradient(self) -> Tensor:
        flats = []
        for parameter in self.parameters.values():
            ordered = self._form.in_memory_order(self._gradient_of(parameter))
            flats.append(ordered if ordered.dim() == 1 else ordered.reshape(-1))
        return flats[0] if len(flats) == 1 else torch.cat(flats)

    def _gradient_of(self, parameter: Tensor) -> Tensor:
        if parameter.grad is None:
            return torch.zeros_like(parameter, dtype=self._form.dtype)
        return parameter.grad

    def start_sync(self, transport: Transport) -> None:
        """Start sending the gradient's shards to the workers that update them."""
        flat = self._flat_gradient()
        if not self.shared:
            self.gradient = flat
            return
        self.gradient = flat[slice(*self.bucket.shard(self._rank))]
        peers = [worker for worker in self.bucket.workers if worker != self._rank]
        sends = [(peer, flat[slice(*self.bucket.shard(peer))]) for peer in peers]
        receives = [Receive(peer, tuple(self.gradient.shape), flat.dtype) for peer in peers]
        self._message = transport.start(("sum", self.bucket.index), sends, receives)

    def continue_sync(self, transport: Transport) -> None:
        """Start what follows in the sum when another one is complete."""

    def finish_sync(self, transport: Transport) -> None:
        """Wait for the other workers' gradients and add them."""
        if self._message is None or self.gradient is None:
            return
        with transport.messaging():
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
            self._gather = transport.announce(("gather", self.bucket.index), peers, self._own)
            return
        shards = []
        for peer in peers:
            place = self._flat[slice(*self.bucket.shard(peer))]
            shards.append(Receive(peer, tuple(place.shape), place.dtype, place))
        sends = [(peer, self._own) for peer in peers]
        self._gather = transport.start(("gather", self.bucket.index), sends, shards)

    def continue_gather(self, transport: Transport) -> None:
        """Start what follows in the gather when another one is complete."""

    def finish_gather(self, transport: Transport) -> None:
        """Wait until the whole bucket is up to date."""
        if self._gather is not None:
            with transport.messaging():
                transport.wait(self._gather)
                transport.release(self._gather)
            self._gather = None

    def clear(self) -> None:
        """Drop the gradients of backward."""
        for parameter in self.parameters.values():
            parameter.grad = None
