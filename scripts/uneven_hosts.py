"""Measure the plan for unequal workers beside the one for equal workers, with one worker held back.

    python -m parallel.torchrun --nproc-per-node 2 -m parallel.calibrate workers=2 model.image_size=64 \\
        cluster.file=/tmp/pair.yaml
    python -m parallel.torchrun --nproc-per-node 2 scripts/uneven_hosts.py --share 50 model.image_size=64 \\
        cluster.file=/tmp/pair.yaml

The last worker gets a share of a core (`hold`), and that speed in the calibrated cluster. Searched and
timed in turns, in the same processes: the best plan for equal workers, as if nobody knew; the best one
for workers with these speeds; data parallelism. Printed are the predicted and the measured step.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
from dataclasses import dataclass

from hold import hold

from parallel.cli.ranked import config_of_world, run_ranked
from parallel.cli.ranks import Ranks
from parallel.cluster import Cluster, open_cluster
from parallel.config import Config
from parallel.data.random_batch import random_batch
from parallel.graph import Graph, trace
from parallel.graph.configured import classes_of
from parallel.models import build_model
from parallel.plans import Plan, read_plan
from parallel.plans.text import compact
from parallel.program.lowering import lower
from parallel.program.precision import DTYPES
from parallel.runtime.communication.device import choose_device
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World
from parallel.search import Found, search
from parallel.simulator.simulate import lower_on, simulate
from parallel.strategies.named import named_plans
from parallel.validation.measure import Measurement
from parallel.validation.options import ValidationOptions


@dataclass(frozen=True)
class Compared:
    """A plan with its predicted step."""

    name: str
    plan: Plan
    predicted_s: float


def plans_of(config: Config, graph: Graph, cluster: Cluster) -> list[Compared]:
    """Return the plans to compare; `cluster` has the workers' speeds."""
    batch, precision = config.trainer.batch_size, config.trainer.precision
    named = named_plans(graph, cluster.workers, batch)

    def found(known: Cluster) -> Found:
        return search(graph, batch, known.workers, known, precision, start=tuple(named.values()))

    even, uneven = found(dataclasses.replace(cluster, speeds=())), found(cluster)
    print(f"for these speeds: {uneven.certificate}", flush=True)
    plans = {"equal workers": even.plan, "these speeds": uneven.plan, "data parallel": named["data_parallel"]}
    return [
        Compared(name, plan, simulate(lower_on(cluster, graph, plan, batch), cluster, precision).step_s)
        for name, plan in plans.items()
    ]


def compare(config: Config, options: argparse.Namespace, world: World) -> None:
    """Measure the plans, and print them on worker 0."""
    trainer, shape = config.trainer, (3, config.model.image_size, config.model.image_size)
    model = build_model(config.model, classes_of(config), seed=0)
    graph = trace(model, shape)

    def predicted() -> list[tuple[str, str, float]]:
        cluster = open_cluster(config.cluster, world.size, world.node_workers)
        speeds = (*[1.0] * (world.size - 1), options.share / 100)
        cluster = dataclasses.replace(cluster, speeds=cluster.speeds or speeds, data_s_per_image=0.0)
        return [(own.name, str(own.plan), own.predicted_s) for own in plans_of(config, graph, cluster)]

    plans = [
        Compared(name, read_plan(text, graph, world.size), seconds)
        for name, text, seconds in world.from_first(predicted)
    ]
    batch = random_batch(
        trainer.batch_size, shape, classes_of(config), seed=trainer.seed, dtype=DTYPES[trainer.precision]
    )
    settings = ValidationOptions(steps=options.steps)
    measurement = Measurement(model, batch, trainer.precision, settings, world)
    batch_size = trainer.batch_size
    programs = [
        lower(graph, compared.plan, batch_size, world.host_of, collectives=world.collectives)
        for compared in plans
    ]
    seconds: list[list[float]] = [[] for _ in plans]
    order = random.Random(0)
    world.started()
    for _ in range(options.blocks):
        for i in order.sample(range(len(plans)), len(plans)):
            seconds[i].append(measurement.turn(programs[i]).step_s)
    if world.rank > 0:
        return
    medians = [statistics.median(own) for own in seconds]
    for compared, own, median in zip(plans, seconds, medians, strict=True):
        low, _, high = statistics.quantiles(own, n=4)
        print(
            f"{compared.name}: predicted {1000 * compared.predicted_s:.0f} ms, measured {1000 * median:.0f} ms "
            f"({1000 * low:.0f} … {1000 * high:.0f}), error {compared.predicted_s / median - 1:+.1%}, "
            f"{medians[0] / median:.2f} × as fast as the plan for equal workers"
        )
        for names, layout in compact(compared.plan):
            print(f"    {names}: {layout}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--share", type=float, default=50, help="of a core for the last worker, in per cent")
    parser.add_argument("--blocks", type=int, default=7, help="measurements of each plan")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each measurement")
    options, overrides = parser.parse_known_args()

    def run(ranks: Ranks) -> None:
        config = config_of_world(ranks, overrides, "scripts/uneven_hosts.py")
        if ranks.rank == ranks.world - 1 and options.share < 100:
            hold(options.share)
        choose_device(config.cluster)
        with open_world(config.cluster, precision=config.trainer.precision) as world:
            compare(config, options, world)

    run_ranked(run)


if __name__ == "__main__":
    main()
