"""What the searches ask about plans of a space: exact costs of ops and exchanges by candidate, memoised, and the
timeline of a whole plan as a fold of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from parallel.graph import Edge, Graph
from parallel.graph.ops import Op
from parallel.plans import Layout
from parallel.search.labels import START, Label, Work, prepend
from parallel.search.space import Space
from parallel.simulator.cost_model import Sync, Traffic


class CostModel(Protocol):
    """What the searches need of `parallel.simulator.Prices`."""

    def compute(self, op: Op, layout: Layout, samples: int) -> tuple[float, float]: ...

    def traffic(self, producer: Op, layout: Layout, consumer: Op, consumer_layout: Layout, which: int, samples: int,
                ) -> Traffic: ...

    def sync(self, op: Op, layout: Layout) -> Sync: ...

    def memory(self, op: Op, layout: Layout, samples: int) -> int: ...


@dataclass(frozen=True)
class Run:
    """Ops one after the other that follow the same decided op."""

    leader: str
    ops: tuple[str, ...]
    """In the graph's order."""


class Ground:
    """A space with its prices. Candidates are named by op and index, ops that follow by that of their leader."""

    def __init__(self, space: Space, cost_model: CostModel, slowdown: float) -> None:
        self.space, self.cost_model, self.slowdown = space, cost_model, slowdown
        self.graph: Graph = space.graph
        self.runs = runs_of(space)
        names = self.graph.names
        self.next_of = dict(zip(names, names[1:], strict=False))
        self.ahead: dict[str, Edge] = {}
        """By op: the edge to the op that comes next, if that reads it."""
        self.aside: dict[str, list[Edge]] = {name: [] for name in names}
        """By op: its edges to others than the next."""
        for edge in self.graph.edges:
            if self.next_of[edge.producer] == edge.consumer:
                self.ahead[edge.producer] = edge
            else:
                self.aside[edge.producer].append(edge)
        self._works: dict[tuple[str, int], Work] = {}
        self._traffic: dict[tuple[Edge, int, int], tuple[float, float] | None] = {}
        self.asked = 0
        """How many prices of exchanges were worked out."""

    def work(self, op: str, index: int) -> Work:
        """Of an op under the candidate `index` of its leader."""
        found = self._works.get((op, index))
        if found is None:
            node, layout, samples = self.graph[op], self.space.layout(op, index), self.space.batch_size
            forward_s, backward_s = self.cost_model.compute(node, layout, samples)
            sync = self.cost_model.sync(node, layout) if node.parameters else Sync(0.0, 0.0, 0.0)
            found = self._works[op, index] = Work(
                forward_s, backward_s, bool(node.parameters), layout.n * layout.h * layout.w > 1, sync.sum_s,
                sync.update_s, sync.gather_s)
        return found

    def nbytes(self, op: str, index: int) -> int:
        """That an op needs on the worker with most, under the candidate `index` of its leader."""
        return self.cost_model.memory(self.graph[op], self.space.layout(op, index), self.space.batch_size)

    def memory(self, chosen: Mapping[str, int]) -> int:
        """Bytes of a plan, op by op on the worker with most of it."""
        leaders = self.space.leaders
        return sum(self.nbytes(name, chosen[leaders[name]]) for name in self.graph.names)

    def exchange(self, edge: Edge, producer: int, consumer: int) -> tuple[float, float] | None:
        """Forward and backward seconds of an exchange; None where nothing moves."""
        key = edge, producer, consumer
        if key not in self._traffic:
            self.asked += 1
            space, graph = self.space, self.graph
            found = self.cost_model.traffic(graph[edge.producer], space.layout(edge.producer, producer),
                                        graph[edge.consumer], space.layout(edge.consumer, consumer), edge.which,
                                        space.batch_size)
            self._traffic[key] = (found.forward_s, found.backward_s) if found.workers else None
        return self._traffic[key]

    def known(self, edge: Edge, producer: int, consumer: int) -> bool:
        """Whether the price of an exchange was worked out before."""
        return (edge, producer, consumer) in self._traffic

    def extend(self, label: Label, run: Run, chosen: Mapping[str, int], memory: bool = True) -> Label:
        """The label with the ops of a run in front. `chosen` has the candidates of the run's leader and of all that
        its ops feed. Without `memory`, that is not counted."""
        index, leaders = chosen[run.leader], self.space.leaders
        for name in reversed(run.ops):
            edge = self.ahead.get(name)
            exchange = None if edge is None else self.exchange(edge, index, chosen[leaders[edge.consumer]])
            nbytes = self.nbytes(name, index) if memory else 0
            label = prepend(label, self.work(name, index), exchange, self.slowdown, nbytes)
            for aside in self.aside[name]:
                if self.exchange(aside, index, chosen[leaders[aside.consumer]]) is not None:
                    label = label._replace(odd=True)
        return label

    def label(self, chosen: Mapping[str, int], memory: bool = True) -> Label:
        """Of a whole plan."""
        label = START
        for run in reversed(self.runs):
            label = self.extend(label, run, chosen, memory)
        return label


def runs_of(space: Space) -> tuple[Run, ...]:
    """The graph's ops, divided where the leader changes."""
    runs: list[tuple[str, list[str]]] = []
    for name in space.graph.names:
        leader = space.leaders[name]
        if runs and runs[-1][0] == leader:
            runs[-1][1].append(name)
        else:
            runs.append((leader, [name]))
    return tuple(Run(leader, tuple(ops)) for leader, ops in runs)
