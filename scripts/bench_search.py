"""Time the simulation and the search, and compare with published times of FlexFlow and PaSE.

    python scripts/bench_search.py [--json results.json] [--moves 100000] [--parts 1 3] [--quick]

AlexNet at 224 pixels, 1000 classes, fp32, on the hand-written clusters of conf/cluster, in one
process with one thread.

    1  time of a move by full simulation (lower the plan, visit its program) and by delta simulation.
       Both reuse costs of parts computed before, as FlexFlow does. FlexFlow's table 4 (Jia et al.
       2019) has the seconds of whole searches with either
    2  equality of both to the last bit on many random moves; exit code 1 if they differ
    3  seconds until the exact search has its certificate, including pipelines and passes. PaSE
       (Elango 2021, table 3) took 0.226 s for 4 and 0.475 s for 64 devices, without a proof for a
       timeline with overlap; FlexFlow took 2.54 s and 257 s
    4  the same for VGG-16 and ResNet-18, within the default time limit of 60 s
    5  result of FlexFlow's Markov chain after some seconds, compared with the optimum

The clusters are used without the loading of images, which does not depend on the plan.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from random_moves import random_moves

from parallel.cluster import Cluster
from parallel.cluster.files import read_cluster
from parallel.config import ModelConfig
from parallel.graph import Graph
from parallel.graph.configured import model_graph
from parallel.models.alexnet import AlexNetConfig
from parallel.models.resnet import ResNet18Config
from parallel.models.vgg import VGG16Config
from parallel.plans import Layout, Plan, make_plan
from parallel.search import SearchConfig, search
from parallel.simulator import CostModel
from parallel.simulator.delta import DeltaSimulation, full_step_s

ROOT = Path(__file__).resolve().parent.parent
FLEXFLOW_SIMULATION = {4: (0.11, 0.04), 8: (0.40, 0.13), 16: (1.4, 0.48), 32: (5.3, 1.8), 64: (18.0, 5.9)}
"""Seconds of a search for AlexNet with full and with delta simulation, by devices: Jia et al. 2019,
table 4."""
FLEXFLOW_SEARCH, PASE_SEARCH = {4: 2.54, 64: 257.0}, {4: 0.226, 64: 0.475}
"""Seconds of a search for AlexNet, by devices: Elango 2021."""
IMAGES = 32
"""Samples per worker; 8 from 256 workers on."""


def alexnet() -> Graph:
    """Return the graph of AlexNet for ImageNet."""
    return model_graph(AlexNetConfig(image_size=224), 1000)


def cluster_named(name: str, workers: int) -> Cluster:
    """Return a cluster of conf/cluster with enough nodes for `workers`, without loading of
    images."""
    cluster = read_cluster((ROOT / "conf" / "cluster" / f"{name}.yaml").read_text(encoding="utf-8"))
    return dataclasses.replace(cluster.resized(workers), data_s_per_image=0.0)


def batch_of(workers: int) -> int:
    return workers * (IMAGES if workers < 256 else 8)


def beginning(graph: Graph, workers: int) -> tuple[Plan, Plan]:
    """Return the plans that a search starts from: data parallel and one weird trick."""
    everyone = tuple(range(workers))
    data = {graph.ops[0].name: Layout(everyone, n=workers)}
    return make_plan(graph, workers, data), make_plan(
        graph, workers, {**data, "fc6": Layout(everyone, c=workers)}
    )


def simulation_times(graph: Graph, workers: int, moves: int) -> dict[str, float]:
    """Return the milliseconds of a move by full and delta simulation, as medians over a random
    walk."""
    cost_model = CostModel(graph, batch_of(workers), cluster_named("h100_infiniband", workers), "fp32")
    first = graph.ops[0].name
    delta = DeltaSimulation(cost_model, workers, {first: Layout(tuple(range(workers)), n=workers)})
    drawn = random_moves(graph, workers, cost_model.batch_size, seed=0)
    full_ms, delta_ms = [], []
    for _ in range(moves):
        move = next(drawn)
        delta.propose(*move)  # computes the costs of new parts, for both
        begin = time.perf_counter()
        step_s = delta.propose(*move)
        delta_ms.append(1e3 * (time.perf_counter() - begin))
        delta.accept()
        plan = delta.plan()
        begin = time.perf_counter()
        full_s = full_step_s(plan, cost_model, memoised=True)
        full_ms.append(1e3 * (time.perf_counter() - begin))
        require_equal(full_s, step_s, workers)
    return {
        "workers": workers,
        "full_ms": statistics.median(full_ms),
        "delta_ms": statistics.median(delta_ms),
        "ratio": statistics.median(full_ms) / statistics.median(delta_ms),
    }


def require_equal(full_s: float, delta_s: float, workers: int) -> None:
    """Exit with an error unless both results have the same bits."""
    if full_s != delta_s:
        sys.exit(
            f"error: at {workers} workers {full_s!r} by full simulation, {delta_s!r} by delta simulation"
        )


def equal_moves(graph: Graph, moves: int) -> int:
    """Compare full and delta simulation on random moves; return their number, or exit at a
    difference."""
    for workers in (4, 8):
        cost_model = CostModel(graph, batch_of(workers), cluster_named("k20", workers), "fp32")
        delta = DeltaSimulation(
            cost_model, workers, {graph.ops[0].name: Layout(tuple(range(workers)), n=workers)}
        )
        for move in itertools.islice(
            random_moves(graph, workers, cost_model.batch_size, seed=workers), moves // 2
        ):
            step_s = delta.propose(*move)
            delta.accept()
            require_equal(full_step_s(delta.plan(), cost_model, memoised=True), step_s, workers)
    return moves // 2 * 2


def search_times(graph: Graph, name: str, workers: int, repeats: int) -> dict[str, object]:
    """Return the seconds of the exact search until its certificate, and its result."""
    cluster, batch, seconds = cluster_named(name, workers), batch_of(workers), []
    start = beginning(graph, workers)
    for _ in range(repeats):
        begin = time.perf_counter()
        found = search(graph, batch, workers, cluster, "fp32", SearchConfig(time_limit_s=600), start=start)
        seconds.append(time.perf_counter() - begin)
    cost_model = CostModel(graph, batch, cluster, "fp32")
    data, trick = (full_step_s(plan, cost_model, memoised=True) for plan in start)
    return {
        "cluster": name,
        "workers": workers,
        "batch": batch,
        "seconds": statistics.median(seconds),
        "step_ms": 1e3 * found.step_s,
        "data_parallel_ms": 1e3 * data,
        "one_weird_trick_ms": 1e3 * trick,
        "gap": found.gap,
        "certificate": found.certificate,
        "looked_at": dict(found.looked_at),
    }


def other_network(
    name: str, options: ModelConfig, samples: int, cluster_name: str, workers: int
) -> dict[str, object]:
    """Return the seconds of the exact search for another network, with its default time limit."""
    graph, cluster = model_graph(options, 1000), cluster_named(cluster_name, workers)
    begin = time.perf_counter()
    found = search(graph, samples * workers, workers, cluster, "fp32")
    return {
        "model": name,
        "cluster": cluster_name,
        "workers": workers,
        "batch": samples * workers,
        "seconds": time.perf_counter() - begin,
        "step_ms": 1e3 * found.step_s,
        "gap": found.gap,
        "certificate": found.certificate,
        "looked_at": dict(found.looked_at),
    }


def chain_against_optimum(graph: Graph, name: str, workers: int, budget_s: float) -> dict[str, object]:
    """Return the best plan of the Markov chain and the optimum of the same space, with their
    times."""
    cluster, batch = cluster_named(name, workers), batch_of(workers)
    start = beginning(graph, workers)
    optimum = search(graph, batch, workers, cluster, "fp32", SearchConfig(pipelines=False), start=start)
    chain = search(
        graph, batch, workers, cluster, "fp32", SearchConfig("mcmc", time_limit_s=budget_s), start=start[:1]
    )
    return {
        "cluster": name,
        "workers": workers,
        "optimum_ms": 1e3 * optimum.step_s,
        "exact_s": optimum.seconds,
        "mcmc_ms": 1e3 * chain.step_s,
        "mcmc_s": chain.seconds,
        "moves": chain.looked_at["space"],
        "excess": abs(round(chain.step_s / optimum.step_s - 1, 9)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all numbers to this file, too")
    parser.add_argument(
        "--quick", action="store_true", help="few moves and at most 64 workers, as a test of this script"
    )
    parser.add_argument(
        "--moves", type=int, default=100_000, help="moves of part 2; the default takes 15 minutes"
    )
    parser.add_argument(
        "--parts",
        type=int,
        nargs="+",
        choices=range(1, 6),
        default=range(1, 6),
        help="numbers of the parts above; all if not given",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    graph, quick = alexnet(), options.quick
    results: dict[str, list[dict[str, object]]] = {
        "simulation": [],
        "search": [],
        "networks": [],
        "chain": [],
    }

    if 1 in options.parts:
        print("1  a move, by full and by delta simulation      FlexFlow: a search")
        print("   workers   full ms  delta ms  ratio            full s  delta s  ratio")
        for workers, (full_s, delta_s) in FLEXFLOW_SIMULATION.items():
            row = simulation_times(graph, workers, 60 if quick else 600)
            results["simulation"].append(dict(row))
            print(
                f"   {workers:7} {row['full_ms']:9.3f} {row['delta_ms']:9.3f} {row['ratio']:5.1f}×           "
                f"{full_s:7.2f} {delta_s:8.2f} {full_s / delta_s:5.1f}×",
                flush=True,
            )

    if 2 in options.parts:
        count = equal_moves(graph, 400 if quick else options.moves)
        results["equal"] = [{"moves": count}]
        print(
            f"\n2  {count:,} random moves: full and delta simulation are equal to the last bit\n", flush=True
        )

    if 3 in options.parts:
        print("3  exact search, to its certificate                                       published seconds")
        print("   cluster          workers  seconds   step ms  data par.  1 w. trick    gap   PaSE  FlexFlow")
        sizes = (4, 8, 16, 64) if quick else (4, 8, 16, 64, 256, 1024)
        for name in ("k20", "ethernet_10g", "h100_infiniband"):
            for workers in sizes:
                found = search_times(graph, name, workers, 1 if quick or workers > 64 else 5)
                results["search"].append(found)
                pase, flexflow = (
                    f"{published[workers]:g}" if workers in published else "-"
                    for published in (PASE_SEARCH, FLEXFLOW_SEARCH)
                )
                print(
                    f"   {name:16} {workers:7} {found['seconds']:8.3f} {found['step_ms']:9.3f} "
                    f"{found['data_parallel_ms']:10.3f} {found['one_weird_trick_ms']:11.3f} {found['gap']:6.1%} "
                    f"{pase:>6} {flexflow:>9}",
                    flush=True,
                )

    if 4 in options.parts:
        print("\n4  exact search for other networks")
        print("   network  cluster          workers   batch  seconds   step ms    gap   labels  exchanges")
        networks = (
            ("vgg16", VGG16Config(image_size=224), 16),
            ("resnet18", ResNet18Config(image_size=224), 32),
        )
        for (name, config, samples), cluster_name, workers in itertools.product(
            networks, ("k20", "h100_infiniband"), (4,) if quick else (4, 16, 64)
        ):
            found = other_network(name, config, samples, cluster_name, workers)
            results["networks"].append(found)
            looked_at = found["looked_at"]
            assert isinstance(looked_at, dict)
            print(
                f"   {name:8} {cluster_name:16} {workers:7} {found['batch']:7} {found['seconds']:8.2f} "
                f"{found['step_ms']:9.3f} {found['gap']:6.1%} {looked_at['space']:8,} {looked_at['exchanges']:10,}",
                flush=True,
            )

    if 5 in options.parts:
        print("\n5  Markov chain against the optimum of the same space")
        print("   cluster          workers  optimum ms   in s   chain ms   in s    moves  excess")
        for name, workers in (("k20", 4), ("ethernet_10g", 8), ("h100_infiniband", 16), ("k20", 64)):
            chain = chain_against_optimum(graph, name, workers, 2 if quick else 30)
            results["chain"].append(chain)
            print(
                f"   {name:16} {workers:7} {chain['optimum_ms']:11.3f} {chain['exact_s']:6.2f} "
                f"{chain['mcmc_ms']:10.3f} "
                f"{chain['mcmc_s']:6.1f} {chain['moves']:8} {chain['excess']:7.2%}",
                flush=True,
            )

    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
