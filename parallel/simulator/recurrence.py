"""The timeline of a plan with one micro-batch as a fold over its ops, from any op on.

With C and N the workers' clocks (`clocks`), ops o = 1 … n in the graph's order, and edges e:

    forward    o = 1 … n     F_o = compute(workers of o, max A_e, f_o)
                             A_e = message(X_e, F_o, x_e)                     for e out of o;  F_o where nothing moves
    backward   o = n … 1     B_o = compute(workers of o, max A'_e, b_o)       e out of o
                             S_o = message(workers of o, B_o, s_o)            B_o unless its gradients are summed
                             A'_e = message(X_e, B_o, x'_e)                   for e into o
    update     o = n … 1     U_o = compute(workers of o, S_o, u_o);  message(workers of o, U_o, g_o)
    end = max(C, N)

These 3n stages are what `simulate` does for such a program, operation by operation: both give the same bits. A stage
depends on those before it through the clocks, A, A' and S alone, so that a fold which keeps the clocks before every
stage can begin where the first price has changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallel.graph import Edge, Graph
from parallel.simulator.clocks import Clocks, WorkerGroup
from parallel.simulator.cost_model import Sync


@dataclass(frozen=True, eq=False)
class OpCost:
    """What an op costs under one layout."""

    group: WorkerGroup
    forward_s: float
    backward_s: float
    sync: Sync | None
    """None: it has no parameters."""
    shared: bool
    """Several workers hold the same parameters."""


@dataclass(frozen=True, eq=False)
class ExchangeCost:
    """What an exchange costs between two layouts."""

    group: WorkerGroup | None
    """None: nothing moves."""
    forward_s: float
    backward_s: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A timeline, and what is needed to fold it again from the middle."""

    end_s: float
    clocks: tuple[tuple[list[float], list[float]], ...]
    """Before every stage, compute and network."""
    arrived: Sequence[float]
    """By edge, forward."""
    returned: Sequence[float]
    """By edge, backward."""
    summed: Sequence[float]
    """By op."""


class Recurrence:
    """The stages of one graph on so many workers."""

    def __init__(self, graph: Graph, workers: int, slowdown: float) -> None:
        self.workers, self.slowdown = workers, slowdown
        self.names = graph.names
        self.index = {name: i for i, name in enumerate(graph.names)}
        self.edges: tuple[Edge, ...] = graph.edges
        self._into: list[list[int]] = [[] for _ in graph.names]
        self._out_of: list[list[int]] = [[] for _ in graph.names]
        for e, edge in enumerate(self.edges):
            self._into[self.index[edge.consumer]].append(e)
            self._out_of[self.index[edge.producer]].append(e)

    def edges_at(self, name: str) -> list[int]:
        """Numbers of the edges into an op and out of it."""
        i = self.index[name]
        return [*self._into[i], *self._out_of[i]]

    def evaluate(self, ops: Mapping[str, OpCost], edges: Sequence[ExchangeCost], before: Evaluation | None = None,
            first: int = 0) -> Evaluation:
        """Recurrence all stages; or those from `first`, up to which `before` had the same prices."""
        clocks, count = Clocks(self.workers, self.slowdown), len(self.names)
        if before is None:
            nothing = [0.0] * len(self.edges)
            before = Evaluation(0.0, ((clocks.compute, clocks.network),), nothing, nothing, [0.0] * count)
        compute, network = before.clocks[first]
        clocks.compute, clocks.network = compute[:], network[:]
        kept = list(before.clocks[:first])
        arrived, returned, summed = list(before.arrived), list(before.returned), list(before.summed)
        priced = [ops[name] for name in self.names]
        for stage in range(first, 3 * count):
            kept.append((clocks.compute[:], clocks.network[:]))
            i = stage if stage < count else count - 1 - stage % count
            op = priced[i]
            if stage < count:
                end = clocks.work(op.group, max([arrived[e] for e in self._into[i]], default=0.0), op.forward_s)
                for e in self._out_of[i]:
                    edge = edges[e]
                    arrived[e] = end if edge.group is None else clocks.message(edge.group, end, edge.forward_s)
            elif stage < 2 * count:
                end = clocks.work(op.group, max([returned[e] for e in self._out_of[i]], default=0.0), op.backward_s)
                if op.sync is not None:
                    summed[i] = clocks.message(op.group, end, op.sync.sum_s) if op.shared else end
                for e in self._into[i]:
                    edge = edges[e]
                    returned[e] = end if edge.group is None else clocks.message(edge.group, end, edge.backward_s)
            elif op.sync is not None:
                end = clocks.work(op.group, summed[i], op.sync.update_s)
                if op.shared:
                    clocks.message(op.group, end, op.sync.gather_s)
        return Evaluation(clocks.end, tuple(kept), arrived, returned, summed)
