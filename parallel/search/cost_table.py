"""Cost table: costs of ops by candidate, and of exchanges by pair of candidates.

An entry starts as a lower bound, from one part of an op or from some of the workers, and becomes
exact when it is needed (`exact_op`, `exact_edge`). Candidates that no better plan has are removed
(`among`): positions count the candidates that are left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from parallel.graph import INPUT
from parallel.search.space import Space
from parallel.simulator import CostModel
from parallel.simulator.communication_cost import Exchanges
from parallel.simulator.communication_volume import by_node
from parallel.simulator.partition import Bools, Floats, Grids, Ints

PAIRS = 1 << 16
"""Pairs of candidates, times workers, times workers of a node, per array operation: arrays fit the cache."""
ALMOST = 1 - 1e-9
"""Factor of lower bounds. They add up the same terms in another order than the simulation, and rounding
must not raise one above its time."""


@dataclass(frozen=True)
class Dependency:
    """Op number `producer` computes input `which` of op number `consumer`."""

    producer: int
    consumer: int
    which: int


@dataclass(frozen=True)
class Run:
    """Consecutive ops with the same leader."""

    leader: str
    ops: tuple[int, ...]
    """Positions of the ops in the graph."""


@dataclass(frozen=True, eq=False)
class OpCosts:
    """Seconds of an op by candidate of its leader [l].

    Sum and gather are 0 where no two workers hold the same parameters.
    """

    forward_s: Floats
    backward_s: Floats
    sum_s: Floats
    update_s: Floats
    gather_s: Floats
    shared: Bools
    """Whether several workers hold the same parameters [l]."""
    has_parameters: bool
    exact: Bools

    @property
    def beside_s(self) -> Floats:
        """Seconds of a gather that count as hidden: at most those of the update (`clocks`) [l]."""
        return np.minimum(self.gather_s, self.update_s)

    def take(self, rows: Ints | Bools) -> OpCosts:
        """Return the costs of some of the candidates."""
        return OpCosts(
            self.forward_s[rows],
            self.backward_s[rows],
            self.sum_s[rows],
            self.update_s[rows],
            self.gather_s[rows],
            self.shared[rows],
            self.has_parameters,
            self.exact[rows],
        )


@dataclass(frozen=True, eq=False)
class EdgeCosts:
    """Seconds of an exchange by candidates of its two ends [p, q], or of their common leader [l].

    0: nothing moves.
    """

    forward_s: Floats
    backward_s: Floats
    exact: Bools


class CostTable:
    """The costs of a space's candidates."""

    def __init__(self, space: Space, cost_model: CostModel) -> None:
        self.space, self.cost_model = space, cost_model
        self.slowdown = cost_model.cluster.overlap_slowdown
        names = space.graph.names
        self.leaders = [space.leaders[name] for name in names]
        self.runs = runs_of(self.leaders)
        number = {name: i for i, name in enumerate(names)}
        self.into = [
            tuple(
                Dependency(number[producer], i, which)
                for which, producer in enumerate(op.inputs)
                if producer != INPUT
            )
            for i, op in enumerate(space.graph)
        ]
        self.everyone = by_node(space.workers, cost_model.cluster)
        self.kept: dict[str, Ints] = {name: np.arange(len(found)) for name, found in space.candidates.items()}
        """The candidates that are left, by leader, as indices into the space's."""
        self.ops = [self._op_bounds(i) for i in range(len(names))]
        self.edges: dict[Dependency, EdgeCosts] = {}
        self._exchanges: dict[Dependency, Exchanges] = {}
        self._grids: dict[int, Grids] = {}
        self._memory: dict[int, Ints] = {}
        self._exact_exchanges = Counter[Dependency]()

    def among(self, masks: Mapping[str, Bools]) -> CostTable:
        """Return a table of some of the candidates, by leader.

        It shares no costs with this one, but counts exact exchanges together with it.
        """
        table = object.__new__(CostTable)
        table.__dict__.update(self.__dict__)
        table.kept = {name: kept[masks[name]] for name, kept in self.kept.items()}
        table.ops = [costs.take(masks[leader]) for costs, leader in zip(self.ops, self.leaders, strict=True)]
        table._memory, table.edges = {}, {}
        for edge, known in self.edges.items():
            masks_of = [masks[self.leaders[edge.producer]], masks[self.leaders[edge.consumer]]][
                : known.exact.ndim
            ]
            rows = np.ix_(*masks_of)
            table.edges[edge] = EdgeCosts(known.forward_s[rows], known.backward_s[rows], known.exact[rows])
        return table

    @property
    def exact_exchanges(self) -> int:
        """How many exact costs of exchanges were worked out, with those of tables made by `among`."""
        return self._exact_exchanges.total()

    def grids(self, op: int) -> Grids:
        """Return the layouts of an op for all candidates of its leader."""
        if op not in self._grids:
            name = self.space.graph.names[op]
            self._grids[op] = self._nested(name)
        return self._grids[op]

    def _nested(self, name: str) -> Grids:
        return Grids.nested(self.space.cuts[name], int(self.everyone.max()) + 1, self.space.order)

    def _op_bounds(self, op: int) -> OpCosts:
        space, model = self.space, self.cost_model
        node = space.graph.ops[op]
        cuts, samples = space.cuts[node.name], space.batch_size
        if model.cluster.speeds:  # what is slowest depends on which worker computes which part
            layouts = [space.layout(node.name, i) for i in range(len(cuts))]
            seconds = [model.compute(node, layout, samples) for layout in layouts]
        else:
            seconds = [model.least_compute_s(node, row, samples) for row in cuts]
        forward_s, backward_s = np.array(seconds).T
        grids = self._nested(node.name)
        sync = model.syncs(node, grids, self.everyone[:1])
        return OpCosts(
            forward_s,
            backward_s,
            sync.sum_s,
            sync.update_s,
            sync.gather_s,
            grids.holders > 1,
            bool(node.parameters),
            np.zeros(len(cuts), dtype=bool),
        )

    def exact_op(self, op: int, positions: Ints) -> OpCosts:
        """Return the exact costs of an op for candidates at these positions [l]."""
        costs, node, space, model = self.ops[op], self.space.graph.ops[op], self.space, self.cost_model
        for at in np.unique(positions[~costs.exact[positions]]).tolist():
            layout = space.layout(node.name, int(self.kept[self.leaders[op]][at]))
            costs.forward_s[at], costs.backward_s[at] = model.compute(node, layout, space.batch_size)
            if node.parameters:
                sync = model.sync(node, layout)
                costs.sum_s[at], costs.update_s[at], costs.gather_s[at] = (
                    sync.sum_s,
                    sync.update_s,
                    sync.gather_s,
                )
            costs.exact[at] = True
        return costs.take(positions)

    def bound_edges(self, workers: Ints) -> None:
        """Bound all exchanges from below by those of workers [m, v], each row of one node."""
        for edge in (edge for edges in self.into for edge in edges):
            producers, consumers = (len(self.kept[self.leaders[op]]) for op in (edge.producer, edge.consumer))
            alike = self.leaders[edge.producer] == self.leaders[edge.consumer]
            shape = (producers,) if alike else (producers, consumers)
            self.edges[edge] = EdgeCosts(np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=bool))
            for rows in _blocks(shape, workers.size * self.everyone.shape[1]):
                at = np.arange(producers)[rows]
                places = (at,) if len(shape) == 1 else (at[:, None], np.arange(consumers)[None])
                self._tighten(edge, places, workers)

    def tighten_edge(self, edge: Dependency, pairs: Ints, workers: Ints) -> None:
        """Bound the exchanges of pairs of positions [1 or 2, p] by those of some workers.

        With all workers the costs become exact.
        """
        for rows in _blocks(pairs.shape[1:], workers.size * self.everyone.shape[1]):
            self._tighten(edge, tuple(pairs[:, rows]), workers)

    def exact_edge(self, edge: Dependency, producers: Ints, consumers: Ints) -> tuple[Floats, Floats]:
        """Return exact forward and backward seconds between candidates at these positions [l]."""
        costs, places = self.edges[edge], self.places(edge, producers, consumers)
        loose = np.zeros_like(costs.exact)
        loose[places] = True
        self.tighten_edge(edge, np.stack((loose & ~costs.exact).nonzero()), self.everyone)
        return costs.forward_s[places], costs.backward_s[places]

    def places(self, edge: Dependency, producers: Ints, consumers: Ints) -> tuple[Ints, ...]:
        """Return the indices of these positions in the edge's costs."""
        return (producers, consumers) if self.edges[edge].exact.ndim == 2 else (producers,)

    def _tighten(self, edge: Dependency, places: tuple[Ints, ...], workers: Ints) -> None:
        if edge not in self._exchanges:
            graph = self.space.graph
            self._exchanges[edge] = self.cost_model.exchanges(
                graph.ops[edge.producer],
                self.grids(edge.producer),
                graph.ops[edge.consumer],
                self.grids(edge.consumer),
                edge.which,
                self.space.batch_size,
            )
        producers, consumers = (self.kept[self.leaders[op]] for op in (edge.producer, edge.consumer))
        costs, complete = self.edges[edge], workers.size == self.everyone.size
        forward_s, backward_s, _ = self._exchanges[edge].seconds(
            producers[places[0]], consumers[places[-1]], workers, complete
        )
        if not complete:
            forward_s = np.maximum(forward_s * ALMOST, costs.forward_s[places])
            backward_s = np.maximum(backward_s * ALMOST, costs.backward_s[places])
        costs.forward_s[places], costs.backward_s[places] = forward_s, backward_s
        costs.exact[places] = complete
        self._exact_exchanges[edge] += complete * forward_s.size

    def memory(self, op: int, positions: Ints) -> Ints:
        """Return the bytes of an op on the worker that needs most, for these positions [l]."""
        if op not in self._memory:
            node = self.space.graph.ops[op]
            self._memory[op] = np.array(
                [
                    op_memory(self.space, self.cost_model, node.name, int(index))
                    for index in self.kept[self.leaders[op]]
                ]
            )
        return self._memory[op][positions]


def _blocks(shape: Sequence[int], workers: int) -> list[slice]:
    """Divide the first axis into blocks of at most PAIRS."""
    step = max(1, PAIRS // (workers * int(np.prod(shape[1:], dtype=np.int64))))
    return [slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step)]


def runs_of(leaders: Sequence[str]) -> tuple[Run, ...]:
    """Divide the ops into runs, where the leader changes."""
    runs: list[tuple[str, list[int]]] = []
    for op, leader in enumerate(leaders):
        if runs and runs[-1][0] == leader:
            runs[-1][1].append(op)
        else:
            runs.append((leader, [op]))
    return tuple(Run(leader, tuple(ops)) for leader, ops in runs)


def op_memory(space: Space, cost_model: CostModel, op: str, index: int) -> int:
    """Return the bytes of an op on the worker that needs most, for a candidate of its leader."""
    return cost_model.memory(space.graph[op], space.layout(op, index), space.batch_size)


def plan_memory(space: Space, cost_model: CostModel, chosen: Mapping[str, int]) -> int:
    """Return the bytes of a plan: the sum over ops of the worker that needs most."""
    return sum(op_memory(space, cost_model, name, chosen[space.leaders[name]]) for name in space.graph.names)
