"""How long simulating and searching take, beside what other planners print for AlexNet.

    python scripts/bench_search.py [--moves 100000] [--workers 4,8,16,32,64,256,1024] [--json FILE]

Delta simulation is compared with full simulation over random moves, to the bit (`parallel.simulator.race` says what is
timed), and the exact search is timed on hand-written clusters, FlexFlow's method beside it. One process, one thread;
nothing is calibrated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from parallel.cluster import Cluster, read_cluster
from parallel.config import ModelConfig
from parallel.graph import Graph, trace
from parallel.lower import lower
from parallel.models import build_model
from parallel.plan import Plan
from parallel.search import SearchConfig, search
from parallel.simulator.prices import Prices
from parallel.simulator.race import race
from parallel.simulator.simulate import simulate
from parallel.strategies.named import named_plans
from parallel.strategies.strategy import Setting

CLUSTERS = Path(__file__).resolve().parents[1] / "conf" / "cluster"
FLEXFLOW = {4: (0.11, 0.04), 8: (0.40, 0.13), 16: (1.4, 0.48), 32: (5.3, 1.8), 64: (18.0, 5.9)}
"""Jia et al. 2019, table 4: seconds of a search for AlexNet with full and with delta simulation, by GPUs."""
PASE = {4: (0.226, 2.54), 64: (0.475, 257.0)}
"""Elango et al. 2021: seconds of PaSE's search for AlexNet, and of FlexFlow's in the same study."""
SAMPLES = 128
"""Of a worker: the global batch grows with the workers, as in FlexFlow's experiments."""


def alexnet(image_size: int) -> Graph:
    """AlexNet with 1000 classes."""
    with torch.device("meta"):
        return trace(build_model(ModelConfig(image_size=image_size), 1000, seed=0), (3, image_size, image_size))


def cluster_for(name: str, workers: int) -> Cluster:
    """A shipped cluster with as many workers."""
    return read_cluster((CLUSTERS / f"{name}.yaml").read_text(encoding="utf-8")).resized(workers)


def simulations(graph: Graph, name: str, counts: list[int], moves: int) -> list[dict[str, Any]]:
    """Delta against full simulation; all moves are compared at the fewest workers, one in ten elsewhere."""
    print(f"simulating one move of AlexNet, milliseconds, on {name}; FlexFlow's figures are seconds of a whole search")
    print(f"{'workers':>8}{'moves':>9}{'compared':>10}{'different':>11}{'full':>9}{'memoised':>10}{'delta':>8}"
          f"{'full/delta':>12}{'memo/delta':>12}   FlexFlow: full, delta, ratio")
    rows = []
    for i, workers in enumerate(counts):
        prices = Prices(graph, SAMPLES * workers, cluster_for(name, workers), "fp32")
        own = moves if i == 0 else max(1, moves // 50)
        r = race(prices, workers, own, seed=0, every=1 if i == 0 else 10, full_every=100 if i == 0 else 10)
        full, delta = FLEXFLOW.get(workers, (None, None))
        theirs = f"{full:g} s, {delta:g} s, {full / delta:.1f}×" if full and delta else ""
        print(f"{workers:8}{r.moves:9,}{r.compared:10,}{r.different:11}{1e3 * r.full_s:9.2f}{1e3 * r.memoised_s:10.2f}"
              f"{1e3 * r.delta_s:8.3f}{r.full_s / r.delta_s:11.1f}×{r.memoised_s / r.delta_s:11.1f}×   {theirs}",
              flush=True)
        rows.append({"workers": workers, **vars(r)})
    return rows


def searches(graph: Graph, name: str, counts: list[int], limit_s: float) -> list[dict[str, Any]]:
    """The exact search, and the Markov chain with as long a time as it needs or a second."""
    print(f"\nsearching the fastest plan of AlexNet on {name}, {SAMPLES} samples a worker, seconds")
    print(f"{'workers':>8}{'exact':>9}{'step ms':>10}{'bound ms':>10}{'best named':>12}{'mcmc, 2 s':>11}"
          "   PaSE, FlexFlow; certificate")
    rows = []
    for workers in counts:
        batch, cluster = SAMPLES * workers, cluster_for(name, workers)
        named = tuple(named_plans(graph, workers, Setting(batch)).values())
        found = search(graph, batch, workers, cluster, "fp32", SearchConfig(time_limit_s=limit_s), start=named)
        alone = search(graph, batch, workers, cluster, "fp32",
                       SearchConfig(method="mcmc", time_limit_s=2.0, families=False), start=named[:1])
        best = min(search_step_s(graph, batch, cluster, plan) for plan in named)
        theirs = ", ".join(f"{s:g} s" for s in PASE[workers]) if workers in PASE else "-"
        print(f"{workers:8}{found.seconds:9.3f}{1e3 * found.step_s:10.3f}{1e3 * found.bound_s:10.3f}{1e3 * best:12.3f}"
              f"{1e3 * alone.step_s:11.3f}   {theirs}; {found.certificate}", flush=True)
        rows.append({"workers": workers, "seconds": found.seconds, "step_s": found.step_s, "bound_s": found.bound_s,
                     "best_named_s": best, "mcmc_step_s": alone.step_s, "certificate": found.certificate,
                     "plan": str(found.plan)})
    return rows


def search_step_s(graph: Graph, batch_size: int, cluster: Cluster, plan: Plan) -> float:
    """Predicted seconds of a step of the plan, as the search counts them."""

    return simulate(lower(graph, plan, batch_size), cluster, "fp32").loaded_step_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--cluster", default="h100_infiniband", help="a name of conf/cluster/")
    parser.add_argument("--workers", default="4,8,16,32,64,256,1024")
    parser.add_argument("--moves", type=int, default=100_000)
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds of each exact search")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    graph, counts = alexnet(arguments.image_size), [int(n) for n in arguments.workers.split(",")]
    # Searches come first: memory that a race leaves behind makes what follows slower.
    found = searches(graph, arguments.cluster, counts, arguments.time_limit)
    print()
    raced = simulations(graph, arguments.cluster, [n for n in counts if n <= 64], arguments.moves)
    if arguments.json:
        arguments.json.write_text(json.dumps({"searches": found, "simulations": raced}, indent=2) + "\n",
                                  encoding="utf-8")


if __name__ == "__main__":
    main()
