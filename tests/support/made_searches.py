"""What the tests of the searches share: small spaces with real or random prices, and the time of every plan in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random

from parallel.cluster import Cluster
from parallel.graph import Graph
from parallel.graph.ops import Op
from parallel.plans import Layout
from parallel.program.lowering import lower
from parallel.search.cost_table import Ground
from parallel.search.objective import Goal
from parallel.search.op_bounds import Bounds, LinkBounds, NoBounds
from parallel.search.space import space_of
from parallel.simulator import CostModel, Sync, Traffic
from parallel.simulator.delta import DeltaSimulation
from parallel.simulator.simulate import simulate
from tests.support.made_clusters import Rates, link, made_cluster

BATCH = 6


class RandomCosts(CostModel):
    """Random costs that depend only on op and layout."""

    def __init__(self, graph: Graph, batch_size: int, cluster: Cluster, seed: int) -> None:
        super().__init__(graph, batch_size, cluster, "fp32")
        self._seed = seed

    def _draw(self, *of: object) -> Random:
        return Random(f"{self._seed} {of}")

    def compute(self, op: Op, layout: Layout, samples: int) -> tuple[float, float]:
        random = self._draw("compute", op.name, layout.degrees)
        return random.random(), random.choice([0.0, 1.0, 2.0]) * random.random()

    def part_seconds(self, op, layout, rows):  # type: ignore[no-untyped-def]
        forward_s, backward_s = self.compute(op, layout, sum(rows))
        return super().part_seconds(op, layout, rows) * 0 + [[forward_s, backward_s]]

    def traffic(self, producer: Op, layout: Layout, consumer: Op, consumer_layout: Layout, which: int, samples: int,
                ) -> Traffic:
        random = self._draw("traffic", producer.name, layout.degrees, consumer.name, consumer_layout.degrees, which)
        if random.random() < 0.4:
            return Traffic(0.0, 0.0, ())
        return Traffic(random.random(), random.random(), tuple(sorted({*layout.on, *consumer_layout.on})))

    def sync(self, op: Op, layout: Layout) -> Sync:
        random = self._draw("sync", op.name, layout.degrees)
        moves = random.choice([0.0, 0.3, 3.0]) * (layout.n * layout.h * layout.w > 1)
        return Sync(moves * random.random(), 0.3 * random.random(), moves * random.random())

    def memory(self, op: Op, layout: Layout, samples: int) -> int:
        return self._draw("memory", op.name, layout.degrees).randrange(100)


def cluster_of(workers: int, **numbers: object) -> Cluster:
    """Two nodes, unless it is one worker; links of rates near those of computing. With `shared_cores`, they contend."""
    per_node = max(1, -(-workers // 2))
    if numbers.pop("shared_cores", False):
        numbers["core_contention"] = tuple(0.9 + 0.4 * i for i in range(per_node))
    settings: dict[str, object] = {"inside": link(3e6, 1e-4), "between": link(1e6, 3e-4), "overlap_slowdown": 0.3,
                                   "compute": Rates(per_add_s=1e-7, per_copy_s=5e-8), **numbers}
    return made_cluster(per_node, 2, **settings)


@dataclass
class Case:
    """A small space, its prices and bounds."""

    ground: Ground
    bounds: Bounds
    goal: Goal
    cost_model: CostModel
    cluster: Cluster

    def timeline_s(self, chosen: dict[str, int]) -> float:
        """Of a plan, lowered and simulated."""
        space = self.ground.space
        program = lower(space.graph, space.plan(chosen), space.batch_size)
        return simulate(program, self.cluster, self.cost_model.precision, self.cost_model).end_s

    def plans(self) -> Iterator[dict[str, int]]:
        """Every plan of the space."""
        candidates = self.ground.space.candidates
        for indices in itertools.product(*(range(len(found)) for found in candidates.values())):
            yield dict(zip(candidates, indices, strict=True))

    def some_plan(self, random: Random) -> dict[str, int]:
        """A plan at random."""
        return {name: random.randrange(len(found)) for name, found in self.ground.space.candidates.items()}


def case(graph: Graph, workers: int, *, dims: str = "nckhw", sizes: tuple[int, ...] | None = None,
         seed: int | None = None, batch_size: int = BATCH, **numbers: object) -> Case:
    """A space with the cluster's prices, or with random ones if a seed is given."""
    cluster = cluster_of(workers, **numbers)
    space = space_of(graph, batch_size, workers, cluster, dims, sizes)
    cost_model = (CostModel(graph, batch_size, cluster, "fp32") if seed is None
                  else RandomCosts(graph, batch_size, cluster, seed))
    ground = Ground(space, cost_model, cluster.overlap_slowdown)
    bounds: Bounds = LinkBounds(space, cluster, "fp32") if seed is None else NoBounds(space)
    made = Case(ground, bounds, None, cost_model, cluster)  # type: ignore[arg-type]
    def timeline_s(chosen: Mapping[str, int]) -> float:
        layouts = {name: space.layout(name, index) for name, index in chosen.items()}
        return DeltaSimulation(cost_model, workers, layouts).step_s - cluster.step_overhead_s

    return replace(made, goal=Goal(space, cluster, timeline_s))
