"""`search`: its results, its errors, and its reports of progress, with all methods."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace
from random import Random

import pytest

from parallel.graph import Graph
from parallel.plans import Layout, Plan, make_plan
from parallel.program.lowering import lower
from parallel.program.required_memory import memory_of
from parallel.search import Found, SearchConfig, search
from parallel.search.mcmc import ChainOptions, mcmc
from parallel.search.objective import Score
from parallel.search.result import UNKNOWN, Limits, Result
from parallel.simulator.simulate import simulate
from parallel.strategies import DataParallel
from parallel.strategies.data_parallel import data_parallel
from parallel.strategies.named import named_plans
from tests.support.made_clusters import Rates, link, made_cluster
from tests.support.made_searches import case, cluster_of
from tests.support.small_models import graph_of

BATCH = 8
NEAR = 1e-9


def step_s(graph: Graph, plan: Plan, batch: int = BATCH, **numbers: object) -> float:
    cluster = cluster_of(plan.workers, **numbers)
    return simulate(lower(graph, plan, batch), cluster, "fp32").loaded_step_s


def found(
    graph: Graph,
    workers: int,
    config: SearchConfig | None = None,
    start: tuple[Plan, ...] = (),
    **numbers: object,
) -> Found:
    return search(graph, BATCH, workers, cluster_of(workers, **numbers), "fp32", config, start=start)


@pytest.mark.parametrize(("name", "workers"), [("tower", 2), ("tower", 4), ("towers", 3), ("residual", 2)])
def test_the_optimum_is_what_it_says(name: str, workers: int) -> None:
    graph = graph_of(name)
    best = found(graph, workers)
    assert best.stopped is None and best.gap == pytest.approx(0, abs=NEAR)
    assert best.certificate.startswith("optimal: no plan is faster among ")
    assert best.step_s == pytest.approx(step_s(graph, best.plan), rel=NEAR)
    assert best.looked_at["space"] > 0 and best.seconds > 0
    for plan in named_plans(graph, workers, BATCH).values():
        assert best.step_s <= step_s(graph, plan) * (1 + NEAR)


@pytest.mark.parametrize(
    "numbers",
    [
        {"inside": link(1e9), "between": link(1e9)},
        {"inside": link(3e5, 1e-4), "between": link(1e5, 3e-4)},
        {"inside": link(1e6, 1e-5), "between": link(1e6, 1e-5), "compute": Rates(3e-6)},
        {"data_s_per_image": 1e-2, "data_overlaps": True},
        {"uneven": True},
        {"uneven": True, "inside": link(1e9), "between": link(1e9), "compute": Rates(3e-6)},
    ],
)
def test_exact_equals_exhaustive_with_pipelines_and_passes(numbers: dict[str, object]) -> None:
    graph = graph_of("weightless")
    exact, exhaustive = (
        found(graph, 2, SearchConfig(method=method, dims="nc"), **numbers)
        for method in ("exact", "exhaustive")
    )
    assert exact.step_s == pytest.approx(exhaustive.step_s, rel=NEAR)
    assert exact.bound_s == pytest.approx(exhaustive.bound_s, rel=NEAR)
    assert exhaustive.looked_at["simulated"] > 2 * exact.looked_at["simulated"]


def test_unequal_workers_get_unequal_parts() -> None:
    """Workers with speeds of 1 and ½ take two thirds of the time that equal parts take."""
    graph, batch = graph_of("tower"), 60
    cluster = made_cluster(2, inside=link(1e9), compute=Rates(1e-5), speeds=(1.0, 0.5))
    best = search(graph, batch, 2, cluster, "fp32")
    even = search(graph, batch, 2, replace(cluster, speeds=()), "fp32").plan
    even_s = simulate(lower(graph, even, batch), cluster, "fp32").loaded_step_s
    assert best.stopped is None and best.bound_s == pytest.approx(best.step_s)
    assert "cut evenly or by what the workers compute" in best.certificate
    assert best.plan["conv1"].samples_by_index(batch) == (40, 20) and best.plan["conv1"].on == (0, 1)
    assert even_s / best.step_s == pytest.approx(1.5, rel=0.05)


def test_a_pipeline_wins_where_it_should() -> None:
    """Messages are expensive, and few features cross between the two ops that take time."""
    graph = graph_of("tower")
    numbers = {
        "inside": link(2e5),
        "between": link(2e5),
        "overlap_slowdown": 0.0,
        "compute": Rates(0.0, of_op={"conv1": 1e-3, "fc4": 1e-3}),
    }
    inside = found(graph, 2, SearchConfig(pipelines=False), **numbers)
    best = found(graph, 2, **numbers)
    assert best.step_s < inside.step_s
    assert best.plan.micro_batches > 1
    assert best.step_s == pytest.approx(step_s(graph, best.plan, **numbers), rel=NEAR)


def test_it_is_never_worse_than_what_it_begins_with() -> None:
    """Also for a start plan outside the space, with alternating blocks side by side."""
    graph = graph_of("tower")
    odd = make_plan(graph, 2, {"conv1": Layout((1, 0), n=2)})
    config = SearchConfig(dims="c", pipelines=False)
    alone, with_start = found(graph, 2, config), found(graph, 2, config, start=(odd,))
    assert step_s(graph, odd) < alone.step_s
    assert str(with_start.plan) == str(odd) and with_start.step_s == pytest.approx(
        step_s(graph, odd), rel=NEAR
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "guess"}, "search.method=guess is not known; it must be one of exact, mcmc, exhaustive"),
        ({"time_limit_s": 0}, "search.time_limit_s=0 must be positive"),
        ({"dims": "q"}, "search.dims=q must be some of the dims nckhw"),
        ({"sizes": (7,)}, "search.sizes=7 must be from 1 to workers=2"),
        ({"sizes": (2,), "dims": "h"}, "search: no layout of fc3 is left by sizes=[2], dims=h"),
    ],
)
def test_what_cannot_be_searched(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        found(graph_of("tower"), 2, SearchConfig(**config))  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def needs(graph: Graph, plan: Plan) -> int:
    program = lower(graph, plan, BATCH)
    return max(memory_of(program, worker, "fp32").total for worker in range(plan.workers))


def test_memory_is_a_limit() -> None:
    """If the optimum does not fit, another plan is found; if none fits, an error says so."""
    graph = graph_of("tower")
    free = found(graph, 2)
    need = needs(graph, free.plan)
    tight = found(graph, 2, memory_bytes=need - 1)
    assert needs(graph, tight.plan) < need
    assert tight.step_s >= free.step_s
    assert found(graph, 2, memory_bytes=need).plan == free.plan
    with pytest.raises(ValueError) as error:
        found(graph, 2, memory_bytes=1000)
    assert str(error.value).startswith("memory=0.00 GB a worker of cluster made is too little for every plan")


def test_a_time_limit_gives_the_best_so_far_and_a_bound() -> None:
    graph = graph_of("tower")
    best, early = found(graph, 4), found(graph, 4, SearchConfig(time_limit_s=1e-9))
    assert early.stopped == "the time limit of 1e-09 s"
    assert "ended by the time limit" in early.certificate
    assert early.bound_s <= best.step_s * (1 + NEAR) <= early.step_s * (1 + 2 * NEAR)


def test_an_interrupt_gives_the_best_so_far() -> None:
    heard: list[str] = []

    def hear(text: str) -> None:
        heard.append(text)
        if len(heard) == 2:
            raise KeyboardInterrupt

    graph = graph_of("tower")
    config = SearchConfig(method="mcmc", time_limit_s=60)
    early = search(
        graph,
        BATCH,
        2,
        cluster_of(2),
        "fp32",
        config,
        progress=hear,
        start=(data_parallel(graph, 2, DataParallel()),),
    )
    assert early.stopped == "interrupted"
    assert early.step_s <= step_s(graph, make_plan(graph, 2, {"conv1": Layout((0, 1), n=2)})) * (1 + NEAR)
    assert "proposals: best " in heard[0]


def test_mcmc_follows_its_seed() -> None:
    made = case(graph_of("tower"), 3)
    runs = [
        mcmc(made.space, made.objective, made.cost_model, [], ChainOptions(seed, 1e9, 150))
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert all(run.looked_at == 150 for run in runs)


def test_mcmc_improves_what_it_begins_with() -> None:
    made, random = case(graph_of("tower"), 2), Random(8)
    start = made.some_plan(random)
    run = mcmc(made.space, made.objective, made.cost_model, [start], ChainOptions(0, 1e9, 400))
    assert run.chosen is not None and run.score.total_s < 0.9 * made.timeline_s(start)
    assert run.score.total_s == pytest.approx(made.timeline_s(dict(run.chosen)), rel=NEAR)


def test_mcmc_stops_when_half_of_the_time_brought_nothing() -> None:
    """The clock advances by one second per reading; a chain reads it twice per proposal."""
    made = case(graph_of("weightless"), 1)
    clock = itertools.count()
    run = mcmc(
        made.space, made.objective, made.cost_model, [], ChainOptions(0, 100, now=lambda: float(next(clock)))
    )
    assert 20 <= run.looked_at <= 30


def test_mcmc_accepts_by_the_current_plan() -> None:
    """A chain leaves a local optimum: it accepts a worse plan sometimes, and compares with that one."""
    made = case(graph_of("weightless"), 2, seed=5)
    optimum = min(made.objective.simulate(plan) for plan in made.plans())
    worst = max(made.plans(), key=lambda plan: made.objective.simulate(plan))
    run = mcmc(made.space, made.objective, made.cost_model, [worst], ChainOptions(3, 1e9, 2000))
    assert run.score.total_s == pytest.approx(optimum, rel=NEAR)


def test_mcmc_keeps_to_the_memory() -> None:
    made, random = case(graph_of("weightless"), 2, dims="nc", seed=4), Random(0)
    limit = sorted(made.memory(made.some_plan(random)) for _ in range(20))[5]
    run = mcmc(
        made.space, made.objective, made.cost_model, [], ChainOptions(0, 1e9, 400), Limits(memory_bytes=limit)
    )
    assert run.chosen is not None and made.memory(run.chosen) <= limit


def test_a_search_that_ends_without_a_plan_does_not_blame_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = Result(None, UNKNOWN, Score(0.0, 0.0), 0, "the time limit of 1 s")
    monkeypatch.setattr(
        importlib.import_module("parallel.search.search"), "exact", lambda *arguments: stopped
    )
    with pytest.raises(
        ValueError, match="no plan that fits was found before .* ended by the time limit of 1 s"
    ):
        found(graph_of("tower"), 2, SearchConfig(pipelines=False))


def test_found_knows_its_gap() -> None:
    best = found(graph_of("weightless"), 2)
    assert replace(best, bound_s=best.step_s / 1.5).gap == pytest.approx(0.5)
    assert replace(best, bound_s=0.0).gap == float("inf")


def test_few_exchanges_are_worked_out() -> None:
    """The space has about 10^10 plans; bounds leave about a thousand exchanges whose exact costs are needed."""
    graph = graph_of("tower")
    best = found(graph, 4)
    assert 0 < best.looked_at["exchanges"] < 3000
    assert best.looked_at["space"] < 500
