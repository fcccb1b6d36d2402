"""Record the results of planning, lowering, simulation and search, and check them later.

    python -m scripts.golden record [--out tests/data/golden.json]
    python -m scripts.golden check [--only plans/alexnet] [--file tests/data/golden.json]

The file holds one entry per line, `path: value`, sorted by path:

    plans/MODEL/WORKERS/PLAN/…        plan fingerprint, hash of all steps, and per worker: parameters
                                      held and updated, bytes sent (total=forward+backward+sums+gathers),
                                      multiply-adds, memory (total=parts); or the error message
    simulator/MODEL/WORKERS/PLAN/…    per cluster: step_s, step_s with image loading, hash of the split
    search/MODEL/WORKERS/CLUSTER/…    plan, step_s, bound_s and certificate of the exact search

Floats are compared to the last bit. `check` prints one line per difference and exits with code 1 if
there is any; `--only` takes a prefix of paths. After an intended change, record again and review
the diff of the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from parallel.cli.compose import compose_config
from parallel.cluster import Cluster
from parallel.cluster.files import read_cluster
from parallel.config import StrategyConfig
from parallel.graph import Graph
from parallel.graph.configured import graph_of
from parallel.program import Program
from parallel.program.listing import step_rows
from parallel.program.lowering import lower
from parallel.program.required_memory import memory_of
from parallel.search.search import SearchConfig, search
from parallel.simulator.cost_model import CostModel
from parallel.simulator.simulate import simulate
from parallel.strategies import build_plan
from parallel.strategies.named import named_plans

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "tests" / "data" / "golden.json"
CLUSTERS = ("dgx1", "ethernet_10g", "ethernet_1g", "h100", "h100_infiniband", "k20", "two_p100")
BATCH = 128
ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp64": 8}
"""Bytes per activation. Repeated here, so that an error in the package's table is found."""
SEARCH_LIMIT_S = 3600.0
"""Far longer than any search here takes, so that results do not depend on the machine's speed."""

Entries = dict[str, object]
"""JSON values by path."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A model at a precision, and the numbers of workers to plan it for."""

    name: str
    model: tuple[str, ...]
    """Overrides."""
    workers: tuple[int, ...]
    precision: str = "fp32"


CASES = (
    Case("alexnet", ("model=alexnet", "model.variant=owt"), tuple(range(1, 9))),
    Case("alexnet_bf16", ("model=alexnet", "model.variant=owt"), (2, 3), "bf16"),
    Case("alexnet_fp64", ("model=alexnet", "model.variant=owt"), (2, 3), "fp64"),
    Case("alexnet_original", ("model=alexnet", "model.variant=original"), (2, 4)),
    Case("vgg16", ("model=vgg16",), (1, 2, 3, 4, 8)),
    Case("resnet18", ("model=resnet18",), (1, 2, 3, 4, 8)),
)

PLANS: Mapping[str, tuple[str, ...]] = {
    "single": ("strategy=single",),
    "data_parallel": ("strategy=data_parallel",),
    "layers": ("strategy=model_parallel",),
    "layers_4_1f1b": ("strategy=model_parallel", "strategy.micro_batches=4"),
    "layers_4_fill_drain": (
        "strategy=model_parallel",
        "strategy.micro_batches=4",
        "strategy.pipeline=fill_drain",
    ),
    "tensor": ("strategy=model_parallel", "strategy.scheme=tensor"),
    **{
        f"one_weird_trick_{scheme}_{update}": (
            "strategy=one_weird_trick",
            f"strategy.scheme={scheme}",
            f"strategy.update={update}",
        )
        for scheme, update in itertools.product("abc", ("step", "pass"))
    },
}
"""Overrides by label."""


@dataclasses.dataclass(frozen=True)
class SearchCase:
    """A search: a model at 224 pixels on a cluster."""

    model: str
    workers: int
    cluster: str
    samples: int
    """Per worker."""
    memory_bytes: int | None = None
    """Memory of a worker, instead of the cluster's."""

    @property
    def path(self) -> str:
        limit = "" if self.memory_bytes is None else f"_{self.memory_bytes}_bytes"
        return f"search/{self.model}/{self.workers}/{self.cluster}/{self.samples}_samples{limit}"


SEARCHES = (
    *(
        SearchCase("alexnet", workers, cluster, samples)
        for samples, workers, cluster in itertools.product(
            (32, 128), (4, 16, 64), ("k20", "ethernet_10g", "h100_infiniband")
        )
    ),
    # The fastest plans do not fit: covers the search under a memory limit.
    SearchCase("alexnet", 4, "k20", 32, 800_000_000),
    SearchCase("vgg16", 4, "k20", 16),
)


@functools.cache
def graph_for(*overrides: str) -> Graph:
    """Return the traced graph of a configured model with 200 classes, or 1000 at 224 pixels."""
    return graph_of(compose_config(overrides))


@functools.cache
def program_for(case: Case, workers: int, label: str) -> Program | str:
    """Return the program of a named plan, or the error message if the plan is not possible."""
    try:
        graph = graph_for(*case.model, "model.image_size=64", "model.num_classes=200")
        plan = build_plan(graph, workers, strategy_for(label))
        return lower(graph, plan, BATCH)
    except ValueError as error:
        return str(error)


@functools.cache
def strategy_for(label: str) -> StrategyConfig:
    """Return the configuration of a named plan."""
    return compose_config(PLANS[label]).strategy


@functools.cache
def cluster_for(name: str) -> Cluster:
    """Return a cluster of conf/cluster as it is shipped."""
    return read_cluster((ROOT / "conf" / "cluster" / f"{name}.yaml").read_text(encoding="utf-8"))


def wanted(path: str, only: str) -> bool:
    """Return whether entries below `path` may begin with the prefix `only`."""
    return f"{path}/".startswith(only) or only.startswith(f"{path}/")


def plan_entries(only: str) -> Iterator[tuple[str, object]]:
    """Yield the entries of plans and programs."""
    for case, workers, label in _planned():
        path = f"plans/{case.name}/{workers}/{label}"
        if not wanted(path, only):
            continue
        program = program_for(case, workers, label)
        if isinstance(program, str):
            yield f"{path}/refused", program
            continue
        item_bytes = ITEM_BYTES[case.precision]
        sent = [dataclasses.astuple(program.sent(w, item_bytes)) for w in range(workers)]
        memories = [memory_of(program, w, case.precision) for w in range(workers)]
        held = [program.parameters_held(w) for w in range(workers)]
        updated = [program.parameters_updated(w) for w in range(workers)]
        yield f"{path}/fingerprint", program.plan.fingerprint
        yield f"{path}/steps", digest(step_lines(program, item_bytes))
        yield f"{path}/sent", per_worker(_sum_text(sum(parts), parts) for parts in sent)
        yield f"{path}/memory", per_worker(_sum_text(m.total, dataclasses.astuple(m)) for m in memories)
        yield f"{path}/parameters", per_worker(map(str, held))
        yield f"{path}/updated", per_worker(map(str, updated))
        yield f"{path}/multiply_adds", per_worker(str(program.multiply_adds(w)) for w in range(workers))


def simulator_entries(only: str) -> Iterator[tuple[str, object]]:
    """Yield the entries of simulated steps."""
    cost_models: dict[tuple[str, int, str], CostModel] = {}
    for case, workers, label in _planned():
        path = f"simulator/{case.name}/{workers}/{label}"
        if case.precision != "fp32" or not wanted(path, only):
            continue
        program = program_for(case, workers, label)
        if isinstance(program, str):
            continue
        for name in CLUSTERS:
            if workers > cluster_for(name).workers:
                continue
            cluster, key = cluster_for(name).resized(workers), (case.name, workers, name)
            if key not in cost_models:
                cost_models[key] = CostModel(program.graph, BATCH, cluster, case.precision)
            line = simulate(program, cluster, case.precision, cost_models[key])
            split = [repr(seconds.tolist()) for seconds in vars(line.split).values()]
            yield f"{path}/{name}", [line.step_s, line.loaded_step_s, digest(split)]


def search_entries(only: str) -> Iterator[tuple[str, object]]:
    """Yield the entries of exact searches from the named plans, without image loading."""
    for case in SEARCHES:
        path, workers = case.path, case.workers
        if not wanted(path, only):
            continue
        graph = graph_for(f"model={case.model}", "model.image_size=224", "model.num_classes=1000")
        cluster = cluster_for(case.cluster).resized(workers)
        memory_bytes = case.memory_bytes or cluster.memory_bytes
        cluster = dataclasses.replace(cluster, data_s_per_image=0.0, memory_bytes=memory_bytes)
        batch = case.samples * workers
        start = tuple(named_plans(graph, workers, batch).values())
        try:
            found = search(
                graph, batch, workers, cluster, "fp32", SearchConfig(time_limit_s=SEARCH_LIMIT_S), start=start
            )
        except ValueError as error:
            yield f"{path}/refused", str(error)
            continue
        yield f"{path}/plan", [short_ranks(line) for line in str(found.plan).splitlines()]
        yield f"{path}/step_s", [found.step_s]
        yield f"{path}/bound_s", [found.bound_s]
        yield f"{path}/certificate", found.certificate


SECTIONS = {"plans": plan_entries, "simulator": simulator_entries, "search": search_entries}


def _planned() -> Iterator[tuple[Case, int, str]]:
    for case in CASES:
        for workers in case.workers:
            for label in PLANS:
                if workers == 1 or label != "single":
                    yield case, workers, label


def step_lines(program: Program, item_bytes: int) -> list[str]:
    """Return the segments, every step of every worker, and the buckets, a line each."""
    lines = [f"{' '.join(s.ops)} on {sorted(s.workers)} {s.merged}" for s in program.segments]
    for worker in range(program.plan.workers):
        lines.append(f"worker {worker}")
        for step, row in zip(program.steps[worker], step_rows(program, worker, item_bytes), strict=True):
            lines.append(f"{row.step} {getattr(step, 'sync', '')} {row.box} {row.sent} {row.received}")
    for bucket in program.buckets:
        names = " ".join(map(".".join, bucket.parameters))
        lines.append(f"{names} {' '.join(map(str, bucket.boxes))} on {bucket.workers}")
    return lines


def digest(lines: Iterable[str]) -> str:
    """Return 16 hexadecimal digits of a text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def per_worker(texts: Iterable[str]) -> str:
    """Return the values of workers 0, 1, …; equal neighbours are written once, with a count."""
    runs = [(text, len(list(group))) for text, group in itertools.groupby(texts)]
    return "; ".join(text if count == 1 else f"{text} (x{count})" for text, count in runs)


def _sum_text(total: int, parts: Iterable[int]) -> str:
    return f"{total}={'+'.join(map(str, parts))}"


def short_ranks(line: str) -> str:
    """Return a line with every list of consecutive workers, as [0, 1, 2, 3], written [0..3]."""

    def shorten(match: re.Match[str]) -> str:
        ranks = json.loads(match[0])
        return f"[{ranks[0]}..{ranks[-1]}]" if ranks == list(range(ranks[0], ranks[-1] + 1)) else match[0]

    return re.sub(r"\[\d+(, \d+)+\]", shorten, line)


def measure(only: str = "") -> Entries:
    """Return the current entries below the prefix `only`; print the seconds per section."""
    entries: Entries = {}
    for section, entries_of in SECTIONS.items():
        if not wanted(section, only):
            continue
        begin = time.perf_counter()
        entries.update((path, value) for path, value in entries_of(only) if path.startswith(only))
        print(f"{section}: {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    return entries


def text_of(entries: Entries) -> str:
    """Return the file: a JSON object with one entry per line, sorted."""
    lines = [
        f"{json.dumps(path)}: {json.dumps(value, ensure_ascii=False)}"
        for path, value in sorted(entries.items())
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def differences(recorded: Entries, now: Entries) -> list[str]:
    """Return one line per entry that differs."""
    lines = []
    for path in sorted(recorded.keys() | now.keys()):
        before, after = (json.loads(json.dumps(entries.get(path, "nothing"))) for entries in (recorded, now))
        if before != after:
            lines.append(f"{path}: recorded {_part(before, after)}, now {_part(after, before)}")
    return lines


def _part(value: object, other: object) -> str:
    """Return the part of a value to show; for lists of equal length, the items that differ."""
    if isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
        return ", ".join(str(item) for item, beside in zip(value, other, strict=True) if item != beside)
    return str(value)


def check(only: str = "", file: Path = FILE) -> list[str]:
    """Return one line per difference between the file and now, below the prefix `only`."""
    recorded: Entries = json.loads(file.read_text(encoding="utf-8"))
    chosen = {path: value for path, value in recorded.items() if path.startswith(only)}
    if not chosen:
        return [f"--only={only} matches no recorded entry; sections are {', '.join(SECTIONS)}"]
    return differences(chosen, measure(only))


def require_own_package() -> None:
    """Exit if `parallel` is imported from another checkout, as the installed one may be."""
    imported = Path(sys.modules["parallel"].__file__ or "").resolve().parent.parent
    if imported != ROOT:
        sys.exit(
            f"error: parallel is imported from {imported}, not {ROOT}: run python -m scripts.golden in {ROOT}"
        )


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recorder, checker = commands.add_parser("record"), commands.add_parser("check")
    recorder.add_argument("--out", type=Path, default=FILE)
    checker.add_argument("--only", default="", help="a section, or any prefix of paths")
    checker.add_argument("--file", type=Path, default=FILE)
    arguments = parser.parse_args()
    require_own_package()
    if arguments.command == "record":
        entries = measure()
        arguments.out.write_text(text_of(entries), encoding="utf-8")
        print(f"{arguments.out}: {len(entries):,} entries")
        return 0
    lines = check(arguments.only, arguments.file)
    print("\n".join(lines) or "no difference")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
