"""Gradient sums in levels: within each host, between hosts, and back.

The workers of a host share memory or fast links, and one interface to the network. A tensor of B
elements that K workers on hosts h = 1 … H hold, m_h of them on host h, is cut as follows. With
M = gcd of all m_h, it has M columns; a column has a slice for each host; and a slice is cut among
the m_h / M workers of host h that serve the column:

    S(c, g)     = cut(cut(B, M, c), H, g)                       slice of column c that host g updates
    P(h, i, g)  = cut(S(c, g), m_h / M, i mod m_h / M)          with c = i div (m_h / M)
    part(h, i)  = P(h, i, 1) ∪ … ∪ P(h, i, H)                   what worker i of host h sums for its host
    shard(h, i) = P(h, i, h)                                    what it updates

    1. sum within      (h, i) receives part(h, i) from the other workers of its host
    2. sum between     (h, i) sends part(h, i) ∩ shard(g, j) to every worker (g, j) of other hosts
    3. gather between  (h, i) sends shard(h, i) ∩ part(g, j) to every worker (g, j) of other hosts
    4. gather within   (h, i) sends part(h, i) to the other workers of its host

A host sends (H − 1) / H · B in each of steps 2 and 3. If every worker sent its shards to all others
(flat), a host would send m_h · (K − m_h) / K · B: with m workers on every host, m times more. With
equal hosts a part is one span, and worker i exchanges messages only with workers i of other hosts.

The rule (`in_levels`): in levels if the workers are on several hosts and some host has several of
them, and the bucket has at least `lowering.BUCKET_BYTES`. In a smaller bucket, the second message
costs more time than the saved bytes. The cost model treats every tensor as its share of a full
bucket, so for the cost model the size does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

from parallel.graph.box import Span, cut

Hosts = tuple[tuple[int, ...], ...]
"""Workers by host."""


def by_host(workers: Sequence[int], hosts: Sequence[int]) -> Hosts:
    """Group workers by host; `hosts` is the host of every worker. Without hosts, all are on one."""
    groups: dict[int, list[int]] = {}
    for worker in workers:
        groups.setdefault(hosts[worker] if hosts else 0, []).append(worker)
    return tuple(map(tuple, groups.values()))


def in_levels(hosts: Hosts) -> bool:
    """Return whether a full bucket of these workers is summed in levels."""
    return len(hosts) > 1 and max(map(len, hosts)) > 1


@dataclass(frozen=True)
class Levels:
    """The spans of a tensor that its workers sum, update and gather in levels."""

    size: int
    """Elements of the tensor."""
    hosts: Hosts

    @cached_property
    def _host(self) -> dict[int, int]:
        return {worker: host for host, workers in enumerate(self.hosts) for worker in workers}

    @cached_property
    def _columns(self) -> int:
        return gcd(*map(len, self.hosts))

    @cached_property
    def _pieces(self) -> dict[int, tuple[Span, ...]]:
        """P of every worker, by host."""
        columns, pieces = self._columns, dict[int, tuple[Span, ...]]()
        for workers in self.hosts:
            serving = len(workers) // columns
            for i, worker in enumerate(workers):
                column = cut(self.size, columns, i // serving)
                slices = [_cut(column, len(self.hosts), host) for host in range(len(self.hosts))]
                pieces[worker] = tuple(_cut(own, serving, i % serving) for own in slices)
        return pieces

    def shard(self, worker: int) -> Span:
        """Return the span that `worker` updates."""
        return self._pieces[worker][self._host[worker]]

    def part(self, worker: int) -> tuple[Span, ...]:
        """Return the spans that `worker` sums for its host; all workers of a host have as many."""
        pieces = self._pieces[worker]
        if len({len(workers) for workers in self.hosts}) == 1:
            return ((pieces[0][0], pieces[-1][1]),)
        return pieces

    def local(self, worker: int) -> tuple[int, ...]:
        """Return the other workers of the worker's host."""
        return tuple(other for other in self.hosts[self._host[worker]] if other != worker)

    def outgoing(self, worker: int) -> tuple[tuple[int, Span], ...]:
        """Return (worker of another host, span) that `worker` sends to sum, and receives to gather."""
        return tuple(
            (other, span)
            for other in self._others(worker)
            for part in self.part(worker)
            if (span := _common(part, self.shard(other)))
        )

    def incoming(self, worker: int) -> tuple[tuple[int, Span], ...]:
        """Return (worker of another host, span) that `worker` receives to sum, and sends to gather."""
        return tuple(
            (other, span)
            for other in self._others(worker)
            for part in self.part(other)
            if (span := _common(part, self.shard(worker)))
        )

    def sums(self, worker: int) -> tuple[int, int]:
        """Return the elements that `worker` sends and receives to sum; to gather, it is the reverse."""
        local = self.local(worker)
        within = sum(_length(span) for other in local for span in self.part(other))
        own = len(local) * sum(map(_length, self.part(worker)))
        return within + self.between(worker), own + sum(_length(span) for _, span in self.incoming(worker))

    def between(self, worker: int) -> int:
        """Return the elements that `worker` sends to other hosts to sum."""
        return sum(_length(span) for _, span in self.outgoing(worker))

    def _others(self, worker: int) -> list[int]:
        """Return the workers of other hosts with which `worker` may have elements in common."""
        serving = [len(workers) // self._columns for workers in self.hosts]
        own = self._host[worker]
        column = self.hosts[own].index(worker) // serving[own]
        return [
            other
            for host, workers in enumerate(self.hosts)
            if host != own
            for other in workers[column * serving[host] : (column + 1) * serving[host]]
        ]


def _cut(span: Span, degree: int, index: int) -> Span:
    start, stop = cut(span[1] - span[0], degree, index)
    return span[0] + start, span[0] + stop


def _common(one: Span, other: Span) -> Span | None:
    """Return the intersection of two spans, or None if it is empty."""
    start, stop = max(one[0], other[0]), min(one[1], other[1])
    return (start, stop) if start < stop else None


def _length(span: Span) -> int:
    return span[1] - span[0]
