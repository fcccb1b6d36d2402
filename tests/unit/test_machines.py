"""Which machines a comparison keeps apart, and what it says of those that it does not."""

from __future__ import annotations

from typing import Any

import pytest

from parallel.results.baselines import hardware
from parallel.results.comparison import compare
from parallel.results.environment import collect_environment, nominal_gb
from parallel.results.load import Load
from parallel.results.notes import notes
from parallel.results.records import Record
from tests.support.made_records import ENVIRONMENT, made_record

SEVERAL, CLOCKS = "These runs were made on several machines: ", "Clocks that differ by more than 10 %"


def said(start: str, *records: Record) -> list[str]:
    (comparison,) = compare(records)
    return [note for note in notes(comparison) if note.startswith(start)]


def on(host: str, strategy: str = "ddp", seconds: float = 5.0, **changes: Any) -> Record:
    return made_record(strategy, (seconds,) * 3, environment={**ENVIRONMENT, "host": host}, **changes)


def at(mhz: float | None, strategy: str, seconds: float = 5.0) -> Record:
    return made_record(strategy, (seconds,) * 3, name=f"{strategy} {mhz}", load=Load(clock_mhz=mhz))


@pytest.mark.parametrize(
    ("gib", "expected"),
    [(7.6, 8), (11.7, 12), (15.5, 16), (23.5, 24), (31, 32), (62.8, 64), (503, 512), (0.49, 0.5)],
)
def test_memory_is_that_of_the_data_sheet(gib: float, expected: float) -> None:
    assert nominal_gb(int(gib * 2**30)) == expected


def test_nodes_with_a_little_more_memory_are_alike() -> None:
    seen = [{**ENVIRONMENT, "memory_bytes": 33_500_000_000}, {**ENVIRONMENT, "memory_bytes": 33_480_000_000}]
    assert {hardware(made_record(environment=each)) for each in seen} == {"cpu: Some CPU, 2 cores, 32 GB"}


def test_the_cores_are_those_of_the_machine_and_not_of_the_job() -> None:
    """Under Slurm, and side by side, a run of one worker may use fewer cores than one of two."""
    jobs = [{**ENVIRONMENT, "machine_cpus": 64, "cpu_count": cores} for cores in (1, 2)]
    assert {hardware(made_record(environment=each)) for each in jobs} == {"cpu: Some CPU, 64 cores"}
    old = [{**ENVIRONMENT, "side_by_side": 2, "cpu_count": cores} for cores in (1, 2)]
    assert {hardware(made_record(environment=e)) for e in old} == {"cpu: Some CPU, 2 jobs side by side"}


def test_a_record_without_cores_and_memory_is_of_its_processor() -> None:
    old = {name: value for name, value in ENVIRONMENT.items() if name != "cpu_count"}
    assert hardware(made_record(environment=old)) == "cpu: Some CPU"


def test_an_environment_has_what_tells_machines_apart() -> None:
    found = collect_environment()
    assert found["machine_cpus"] >= found["cpu_count"] >= 1 and found["memory_bytes"] > 2**20


def test_gpus_are_told_by_their_names() -> None:
    gpu = {**ENVIRONMENT, "gpus": ["Some GPU"], "memory_bytes": 2**40}
    assert hardware(made_record(device="cuda", environment=gpu)) == "cuda: Some GPU"


def test_a_row_of_several_machines_is_said() -> None:
    assert said(SEVERAL, on("a", "single"), on("a", name="1"), on("b", name="2")) == [
        f"{SEVERAL}ddp on a, b, its baseline on a"
    ]


def test_a_baseline_of_another_machine_is_said() -> None:
    assert said(SEVERAL, on("a", "single"), on("b"), on("a", "one_weird_trick")) == [
        f"{SEVERAL}ddp on b, its baseline on a"
    ]


def test_one_machine_or_none_that_is_known_is_not_said() -> None:
    unknown = {name: value for name, value in ENVIRONMENT.items() if name != "host"}
    assert not said(SEVERAL, on("a", "single"), on("a"), made_record("fsdp2", environment=unknown))


def test_many_machines_are_counted() -> None:
    runs = [on(f"node{i}", name=str(i)) for i in range(10)]
    (note,) = said(SEVERAL, *runs)
    assert note.endswith("ddp on node0, node1, node2, node3, node4, node5, node6, node7, 2 more")


def test_other_clocks_are_said() -> None:
    base = at(1200.0, "single", 10.0)
    assert said(CLOCKS, base, at(3600.0, "ddp"), at(1310.0, "one_weird_trick")) == [
        f"{CLOCKS}, as means over all cores, also idle ones: ddp at 3,600 MHz, its baseline at 1,200 MHz; "
        "these speedups may be those of the clock"
    ]
    assert not said(CLOCKS, base, at(1310.0, "ddp"), at(None, "one_weird_trick"))
