"""A bucket whose gradients are summed within each host, then between hosts (`program.levels`).

    start_sync       send the parts of the gradient to the workers of this host that sum them
    continue_sync    add what they sent, and send the sums to the workers of other hosts
    finish_sync      add what other hosts sent to the shard
    start_gather     send the updated shard to other hosts, and receive theirs in place
    continue_gather  give the parts that are now up to date to the workers of this host
    finish_gather    wait for theirs

Where the workers of a host share memory, their weights are common: what other hosts send is received
into it once, and the last level only announces it. It is not written too early: a worker receives
into it when its shard is updated, hence when all workers of its host have sent their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from parallel.graph.box import Span
from parallel.program.levels import Levels
from parallel.runtime.communication.transport import Message, Receive, Transport
from parallel.runtime.execution.held_bucket import HeldBucket
from parallel.runtime.instrumentation.clock import MessageKey


class BucketInLevels(HeldBucket):
    """One bucket on one worker."""

    _within: Sequence[Message] = ()
    """Messages of the level within the host that have not been waited for."""
    _flat_sum: Tensor | None = None
    """The bucket's gradient while it is being summed."""

    @property
    def _levels(self) -> Levels:
        if self.bucket.levels is None:
            raise RuntimeError(f"bucket {self.bucket.index} is not summed in levels")
        return self.bucket.levels

    def _sharing(self) -> Sequence[int]:
        return sorted((self._rank, *self._levels.local(self._rank)))

    def start_sync(self, transport: Transport) -> None:
        levels, flat = self._levels, self._flat_gradient()
        self.gradient, self._flat_sum = flat[slice(*levels.shard(self._rank))], flat
        within = []
        for key, own, theirs in self._parts("sum"):
            sends = [(peer, flat[slice(*span)]) for peer, span in theirs]
            receives = [Receive(peer, (own[1] - own[0],), flat.dtype) for peer in levels.local(self._rank)]
            within.append(transport.start(key, sends, receives if _nonempty(own) else ()))
        self._within = within

    def continue_sync(self, transport: Transport) -> None:
        levels, flat = self._levels, self._flat_sum
        if flat is None:
            raise RuntimeError(f"the sum of bucket {self.bucket.index} has not started")
        for message, (_, own, _) in zip(self._within, self._parts("sum"), strict=True):
            for received in transport.wait(message):
                flat[slice(*own)].add_(received)
            transport.release(message)
        self._within, self._flat_sum = (), None
        sends = [(peer, flat[slice(*span)]) for peer, span in levels.outgoing(self._rank)]
        receives = [
            Receive(peer, (stop - start,), flat.dtype) for peer, (start, stop) in levels.incoming(self._rank)
        ]
        self._message = transport.start(("sum", self.bucket.index, "between"), sends, receives)

    def finish_sync(self, transport: Transport) -> None:
        if self._message is None or self.gradient is None:
            return
        first, _ = self._levels.shard(self._rank)
        incoming = self._levels.incoming(self._rank)
        with transport.messaging():
            for received, (_, (start, stop)) in zip(transport.wait(self._message), incoming, strict=True):
                self.gradient[start - first : stop - first].add_(received)
            transport.release(self._message)
        self._message = None

    def start_gather(self, transport: Transport) -> None:
        levels = self._levels
        sends = [(peer, self._flat[slice(*span)]) for peer, span in levels.incoming(self._rank)]
        receives = [self._in_place(peer, span) for peer, span in levels.outgoing(self._rank)]
        self._gather = transport.start(("gather", self.bucket.index, "between"), sends, receives)

    def continue_gather(self, transport: Transport) -> None:
        if self._gather is None:
            return
        super().finish_gather(transport)
        within = []
        for key, own, theirs in self._parts("gather"):
            local, part = self._levels.local(self._rank), self._flat[slice(*own)]
            if self._common:
                within.append(transport.announce(key, local, part))
                continue
            sends = [(peer, part) for peer in local] if _nonempty(own) else []
            within.append(transport.start(key, sends, [self._in_place(*one) for one in theirs]))
        self._within = within

    def finish_gather(self, transport: Transport) -> None:
        with transport.messaging():
            self.continue_gather(transport)
            for message in self._within:
                transport.wait(message)
                transport.release(message)
        self._within = ()

    def _parts(self, purpose: str) -> list[tuple[MessageKey, Span, list[tuple[int, Span]]]]:
        """Return the messages within the host: key, own span, and those of the other workers, not empty."""
        levels = self._levels
        local = levels.local(self._rank)
        if not local:
            return []
        theirs = [(peer, levels.part(peer)) for peer in local]
        return [
            (
                (purpose, self.bucket.index, "within", n),
                own,
                [(peer, spans[n]) for peer, spans in theirs if _nonempty(spans[n])],
            )
            for n, own in enumerate(levels.part(self._rank))
        ]

    def _in_place(self, peer: int, span: Span) -> Receive:
        place = self._flat[slice(*span)]
        return Receive(peer, tuple(place.shape), place.dtype, place)


def _nonempty(span: Span) -> bool:
    return span[0] < span[1]
