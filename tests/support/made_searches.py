"""Small spaces with real or random costs for the tests of the searches, and the time of every plan in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from parallel.cluster import Cluster
from parallel.graph import Graph
from parallel.graph.box import Cut
from parallel.graph.ops import Op
from parallel.plans import Layout
from parallel.program.lowering import lower
from parallel.search.cost_table import CostTable, plan_memory
from parallel.search.labels import Labels
from parallel.search.objective import Objective
from parallel.search.space import Space, space_of
from parallel.simulator import CostModel, Sync, Traffic
from parallel.simulator.communication_cost import SyncSeconds
from parallel.simulator.delta import DeltaSimulation
from parallel.simulator.partition import Floats, Grids, Ints
from parallel.simulator.simulate import simulate
from tests.support.made_clusters import Rates, link, made_cluster

BATCH = 6


class RandomCosts(CostModel):
    """Random costs that depend only on op and layout, without useful lower bounds."""

    def __init__(self, graph: Graph, batch_size: int, cluster: Cluster, seed: int) -> None:
        super().__init__(graph, batch_size, cluster, "fp32")
        self._seed = seed

    def _draw(self, *of: object) -> Random:
        return Random(f"{self._seed} {of}")

    def compute(self, op: Op, layout: Layout, samples: int) -> tuple[float, float]:
        random = self._draw("compute", op.name, layout.cuts)
        return random.random(), random.choice([0.0, 1.0, 2.0]) * random.random()

    def part_seconds(self, op, layout, rows):  # type: ignore[no-untyped-def]
        forward_s, backward_s = self.compute(op, layout, sum(rows))
        return super().part_seconds(op, layout, rows) * 0 + [[forward_s, backward_s]]

    def traffic(
        self, producer: Op, layout: Layout, consumer: Op, consumer_layout: Layout, which: int, samples: int
    ) -> Traffic:
        random = self._draw("traffic", producer.name, layout.cuts, consumer.name, consumer_layout.cuts, which)
        if random.random() < 0.4:
            return Traffic(0.0, 0.0, ())
        return Traffic(random.random(), random.random(), tuple(sorted({*layout.on, *consumer_layout.on})))

    def sync(self, op: Op, layout: Layout) -> Sync:
        random = self._draw("sync", op.name, layout.cuts)
        moves = random.choice([0.0, 0.3, 3.0]) * (layout.parameter_holders > 1)
        return Sync(moves * random.random(), 0.3 * random.random(), moves * random.random())

    def least_compute_s(self, op: Op, cuts: Sequence[Cut], samples: int) -> tuple[float, float]:
        return 0.0, 0.0

    def syncs(self, op: Op, grids: Grids, workers: Ints) -> SyncSeconds:
        return SyncSeconds(*np.zeros((3, len(grids.degrees))))

    def exchanges(
        self,
        producer: Op,
        producers: Grids,
        consumer: Op,  # type: ignore[override]
        consumers: Grids,
        which: int,
        samples: int,
    ) -> RandomExchanges:
        return RandomExchanges(self, producer, producers, consumer, consumers, which)

    def memory(self, op: Op, layout: Layout, samples: int) -> int:
        return self._draw("memory", op.name, layout.cuts).randrange(100)


@dataclass
class RandomExchanges:
    """Exchanges as `CostModel.exchanges` returns them, with random costs."""

    cost_model: RandomCosts
    producer: Op
    producers: Grids
    consumer: Op
    consumers: Grids
    which: int

    def seconds(
        self, producers: Ints, consumers: Ints, workers: Ints, complete: bool
    ) -> tuple[Floats, Floats, None]:
        pairs = np.broadcast(producers, consumers)
        seconds = np.zeros((2, pairs.size))
        for i, (p, c) in enumerate(pairs if complete else ()):
            one, other = layout_of(self.producers, p), layout_of(self.consumers, c)
            traffic = self.cost_model.traffic(self.producer, one, self.consumer, other, self.which, 0)
            seconds[:, i] = traffic.forward_s, traffic.backward_s
        return seconds[0].reshape(pairs.shape), seconds[1].reshape(pairs.shape), None


def layout_of(grids: Grids, index: int) -> Layout:
    on = np.argsort(np.where(grids.parts[index] < 0, np.inf, grids.parts[index]))
    cuts = map(grids.cut_of, grids.codes[index].tolist())
    return Layout(tuple(on[: grids.degrees[index].prod()].tolist()), *cuts)


def cluster_of(workers: int, **numbers: object) -> Cluster:
    """Return a cluster of two nodes, or of one worker. With `shared_cores`, workers contend for cores.

    With `uneven`, one node has one worker, and workers have different speeds.
    """
    per_node = max(1, -(-workers // 2))
    if numbers.pop("uneven", False):
        per_node = max(1, workers - 1)
        numbers["node_workers"] = (1, per_node)
        numbers["speeds"] = tuple((0.5, 1.0, 0.8)[i % 3] for i in range(1 + per_node))
    if numbers.pop("shared_cores", False):
        numbers["core_contention"] = tuple(0.9 + 0.4 * i for i in range(per_node))
    settings: dict[str, object] = {
        "inside": link(3e6, 1e-4),
        "between": link(1e6, 3e-4),
        "overlap_slowdown": 0.3,
        "compute": Rates(per_add_s=1e-7, per_copy_s=5e-8),
        **numbers,
    }
    return made_cluster(per_node, 2, **settings)


@dataclass
class Case:
    """A small space and its costs."""

    space: Space
    objective: Objective
    cost_model: CostModel

    def table(self) -> CostTable:
        """Return a new table of the space, which has only the bounds of its ops."""
        return CostTable(self.space, self.cost_model)

    def timeline_s(self, chosen: Mapping[str, int]) -> float:
        """Return the timeline of a plan, lowered and simulated."""
        space, cost_model = self.space, self.cost_model
        program = lower(space.graph, space.plan(chosen), space.batch_size)
        return simulate(program, cost_model.cluster, cost_model.precision, cost_model).end_s

    def memory(self, chosen: Mapping[str, int]) -> int:
        """Return the bytes of a plan, op by op."""
        return plan_memory(self.space, self.cost_model, chosen)

    def plans(self) -> Iterator[dict[str, int]]:
        """Yield every plan of the space."""
        candidates = self.space.candidates
        for indices in itertools.product(*(range(len(found)) for found in candidates.values())):
            yield dict(zip(candidates, indices, strict=True))

    def some_plan(self, random: Random) -> dict[str, int]:
        """Return a plan drawn at random."""
        return {name: random.randrange(len(found)) for name, found in self.space.candidates.items()}


def case(
    graph: Graph,
    workers: int,
    *,
    dims: str = "nckhw",
    sizes: tuple[int, ...] | None = None,
    seed: int | None = None,
    batch_size: int = BATCH,
    **numbers: object,
) -> Case:
    """Return a space with the cluster's costs, or with random ones if a seed is given."""
    cluster = cluster_of(workers, **numbers)
    space = space_of(graph, batch_size, workers, cluster, dims, sizes)
    cost_model = (
        CostModel(graph, batch_size, cluster, "fp32")
        if seed is None
        else RandomCosts(graph, batch_size, cluster, seed)
    )

    def timeline_s(chosen: Mapping[str, int]) -> float:
        layouts = {name: space.layout(name, index) for name, index in chosen.items()}
        return DeltaSimulation(cost_model, workers, layouts).step_s - cluster.step_overhead_s

    return Case(space, Objective(space, cluster, timeline_s), cost_model)


def label_of(table: CostTable, plans: Sequence[Mapping[str, int]], first: int = 0) -> Labels:
    """Return the labels of plans' ops from number `first` on."""
    labels = Labels.empty().take(np.zeros(len(plans), dtype=np.int64))
    chosen = {name: np.array([plan[name] for plan in plans]) for name in table.space.decided}
    if not table.edges:
        table.bound_edges(table.everyone[:1, :1])
    for op in reversed(range(first, len(table.leaders))):
        at = chosen[table.leaders[op]]
        into = {
            edge: table.exact_edge(edge, chosen[table.leaders[edge.producer]], at) for edge in table.into[op]
        }
        labels.prepend(op, table.exact_op(op, at), table.slowdown, into)
        labels.memory = labels.memory + table.memory(op, at)
    return labels
