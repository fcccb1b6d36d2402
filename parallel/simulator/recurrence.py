"""The timeline of a plan with one micro-batch, as a recurrence that can restart at any stage.

With the workers' clocks C and N (`clocks`), ops o = 1 … n in graph order, and edges e:

    forward   o = 1 … n   F_o  = compute(workers of o, max A_e over e into o, f_o)
                          A_e  = message(X_e, F_o, x_e)             for e out of o;  F_o if nothing moves
    backward  o = n … 1   B_o  = compute(workers of o, max A'_e over e out of o, b_o)
                          S_o  = message(workers of o, B_o, s_o)    B_o if the gradients are not summed
                          A'_e = message(X_e, B_o, x'_e)            for e into o
    update    o = n … 1   U_o  = compute(workers of o, S_o, u_o);  message(workers of o, U_o, g_o), beside u_o
    end = max(C, N)

X_e are the workers that take part in the exchange of e; f, b, s, u, g and x are durations from the
cost model. The 3n stages are the tasks that `simulate` visits for such a program, in the same
order, so both give identical floats. A stage depends on earlier ones only through the clocks, A, A'
and S. An evaluation keeps the clocks before every stage, so the next one can start at the first
stage with a changed duration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallel.graph import Edge, Graph
from parallel.simulator.clocks import Clocks, WorkerGroup
from parallel.simulator.cost_model import Sync


@dataclass(frozen=True, eq=False)
class OpCost:
    """Durations of an op under one layout, in seconds."""

    group: WorkerGroup
    forward_s: float
    backward_s: float
    sync: Sync | None
    """None for an op without parameters."""
    shared: bool
    """Whether several workers hold the same parameters, so that gradients are summed."""


@dataclass(frozen=True, eq=False)
class ExchangeCost:
    """Durations of an exchange between two layouts, in seconds."""

    group: WorkerGroup | None
    """The workers that take part; None if nothing moves."""
    forward_s: float
    backward_s: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of evaluating the recurrence, with the state that a restart needs."""

    end_s: float
    clocks: tuple[tuple[list[float], list[float]], ...]
    """Compute and network clocks before each stage."""
    arrived: Sequence[float]
    """A by edge number: when the forward exchange has ended."""
    returned: Sequence[float]
    """A' by edge number: when the backward exchange has ended."""
    summed: Sequence[float]
    """S by op number: when the gradients are summed."""


class Recurrence:
    """The stages of one graph on a number of workers."""

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
        """Return the numbers of the edges into an op and out of it."""
        i = self.index[name]
        return [*self._into[i], *self._out_of[i]]

    def evaluate(
        self,
        ops: Mapping[str, OpCost],
        edges: Sequence[ExchangeCost],
        before: Evaluation | None = None,
        first: int = 0,
    ) -> Evaluation:
        """Evaluate the stages from `first` on; earlier durations must equal those of `before`."""
        clocks, count = Clocks(self.workers, self.slowdown), len(self.names)
        if before is None:
            nothing = [0.0] * len(self.edges)
            before = Evaluation(0.0, ((clocks.compute, clocks.network),), nothing, nothing, [0.0] * count)
        compute, network = before.clocks[first]
        clocks.compute, clocks.network = compute[:], network[:]
        kept = list(before.clocks[:first])
        arrived, returned, summed = list(before.arrived), list(before.returned), list(before.summed)
        costs = [ops[name] for name in self.names]
        for stage in range(first, 3 * count):
            kept.append((clocks.compute[:], clocks.network[:]))
            i = stage if stage < count else count - 1 - stage % count
            op = costs[i]
            if stage < count:  # forward
                end = clocks.work(
                    op.group, max([arrived[e] for e in self._into[i]], default=0.0), op.forward_s
                )
                for e in self._out_of[i]:
                    edge = edges[e]
                    arrived[e] = end
                    if edge.group is not None:
                        arrived[e] = clocks.message(edge.group, end, edge.forward_s)
            elif stage < 2 * count:  # backward
                end = clocks.work(
                    op.group, max([returned[e] for e in self._out_of[i]], default=0.0), op.backward_s
                )
                if op.sync is not None:
                    summed[i] = clocks.message(op.group, end, op.sync.sum_s) if op.shared else end
                for e in self._into[i]:
                    edge = edges[e]
                    returned[e] = end
                    if edge.group is not None:
                        returned[e] = clocks.message(edge.group, end, edge.backward_s)
            elif op.sync is not None:  # update
                end = clocks.work(op.group, summed[i], op.sync.update_s)
                if op.shared:
                    clocks.message(op.group, end, op.sync.gather_s, op.sync.update_s)
        return Evaluation(clocks.end, tuple(kept), arrived, returned, summed)
