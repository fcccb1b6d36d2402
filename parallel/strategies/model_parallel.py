"""Model parallelism: workers hold different layers (scheme layers) or parts of every layer
(tensor)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallel.config import PIPELINES, StrategyConfig, require, require_number, require_one_of
from parallel.config.checks import MOST_MICRO_BATCHES
from parallel.graph import Graph, whole_part
from parallel.plans import Layout, Plan, make_plan
from parallel.strategies.strategy import weighted


@dataclass(frozen=True)
class ModelParallel(StrategyConfig):
    """The division of the weights, and the pipeline of micro-batches."""

    name: str = "model_parallel"
    scheme: str = "layers"
    """layers: consecutive ops on different workers; tensor: every weighted op split in c."""
    micro_batches: int = 1
    """Number of micro-batches; 1: no pipeline."""
    pipeline: str = "1f1b"
    """Order of the micro-batches: fill_drain or 1f1b."""

    def __post_init__(self) -> None:
        require_one_of("strategy.scheme", self.scheme, ("layers", "tensor"))
        require_one_of("strategy.pipeline", self.pipeline, PIPELINES)
        require_number("strategy.micro_batches", self.micro_batches, 1, MOST_MICRO_BATCHES)


def model_parallel(graph: Graph, workers: int, options: ModelParallel) -> Plan:
    """Return the plan of the scheme."""
    layouts = _layers(graph, workers) if options.scheme == "layers" else _tensor(graph, workers)
    return make_plan(graph, workers, layouts, micro_batches=options.micro_batches, pipeline=options.pipeline)


def _tensor(graph: Graph, workers: int) -> dict[str, Layout]:
    """Split every op with weights in c; the ops between them follow."""
    return {op.name: Layout(on=tuple(range(workers)), c=workers) for op in weighted(graph)}


def _layers(graph: Graph, workers: int) -> dict[str, Layout]:
    """Place consecutive ops on consecutive workers so that the largest load is minimal.

    A stage begins at an op with multiply-adds.
    """
    # A batch norm stays with its conv.
    stages = [op for op in weighted(graph) if op.multiply_adds(whole_part(op, 1))]
    require(
        workers <= len(stages),
        "workers",
        workers,
        f"are more than the {len(stages)} layers with weights that scheme layers can place",
    )
    starts = balance([cost_of(graph, op.name) for op in stages], workers)
    firsts = {stages[start].name: worker for worker, start in enumerate(starts)}
    placed = {}
    worker = 0
    for op in graph:  # name every op: on a branch, an op would follow its producer to an earlier worker
        worker = max(worker, firsts.get(op.name, 0))
        placed[op.name] = Layout(on=(worker,))
    return placed


UPDATE_MULTIPLY_ADDS = 40
"""Cost of updating one weight, in multiply-adds of the same worker. An update moves 20 bytes
(weight, gradient and momentum read, weight and momentum written): 0.89 ns on one core, where a
multiply-add of fc6 takes 0.023 ns.
"""


def cost_of(graph: Graph, name: str, samples: int = 32) -> int:
    """Return the relative cost of an op with weights: forward, twice that for backward, and the
    update."""
    op = graph[name]
    return 3 * op.multiply_adds(whole_part(op, samples)) + UPDATE_MULTIPLY_ADDS * op.parameter_count


def balance(costs: Sequence[int], workers: int) -> list[int]:
    """Cut a chain into `workers` non-empty runs with minimal largest sum; return the first item of
    each."""
    best: dict[tuple[int, int], tuple[int, list[int]]] = {}

    def solve(first: int, runs: int) -> tuple[int, list[int]]:
        if runs == 1:
            return sum(costs[first:]), [first]
        if (first, runs) not in best:
            candidates = []
            for end in range(first + 1, len(costs) - runs + 2):
                rest, starts = solve(end, runs - 1)
                candidates.append((max(sum(costs[first:end]), rest), [first, *starts]))
            best[first, runs] = min(candidates)
        return best[first, runs]

    return solve(0, workers)[1]
