"""The load of machines, from counters of the kernel, and what it means for a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from parallel.results.disturbance import noise, too_few_cores
from parallel.results.load import Load
from parallel.results.record_files import read_record, write_record
from parallel.runtime.instrumentation.load import LoadPart, load_of, parse_clock, parse_stat
from tests.support.made_records import made_hosts, made_record

STAT = """cpu  500 0 100 900 20 0 10 70 0 0
cpu0 100 50 25 300 5 5 20 30 7 0
cpu1 400 0 75 600 15 0 10 40 0 0
intr 1234
"""


def test_the_counters_of_the_cores_that_a_process_may_use() -> None:
    both, first = parse_stat(STAT, (0, 1), 100.0), parse_stat(STAT, (0,), 100.0)
    assert both is not None and (both.busy_s, both.steal_s) == (6.85, 0.7)
    assert first is not None and (first.busy_s, first.steal_s) == (2.0, 0.3)


@pytest.mark.parametrize("text", ["", "cpu0 1 2 3\n", "cpu0 0 0 0 0 0 0 0 0 0 0\n", "cpu1 1 1 1 1 1 1 1 1\n"])
def test_a_system_that_does_not_count(text: str) -> None:
    assert parse_stat(text, (0,), 100.0) is None


def test_the_clock_is_a_mean() -> None:
    assert parse_clock("cpu MHz\t\t: 2000.5\nmodel\t: x\ncpu MHz\t\t: 3000.5\n") == 2500.5
    assert parse_clock("Hardware\t: board\n") is None


def part(cores: tuple[int, ...] = (0, 1), **values: Any) -> LoadPart:
    return LoadPart(cores, **{"seconds": 10.0, **values})


def test_what_the_workers_of_a_host_did_not_use_others_did() -> None:
    quiet = [part(own_s=9.0, busy_s=18.5), part(own_s=9.0, busy_s=18.5)]
    busy = [part((0,), own_s=6.0, busy_s=10.0, steal_s=1.0, clocks=[2000.0, 1000.0])]
    assert load_of([quiet]) == Load(processes=0.05, steal=0.0, clock_mhz=None)
    assert load_of([quiet, busy]) == Load(processes=0.4, steal=0.1, clock_mhz=1500.0)
    bound = [part((0,), own_s=9.0, busy_s=10.0), part((1,), own_s=7.0, busy_s=8.0)]
    assert load_of([bound]) == Load(processes=0.2, steal=0.0)


def test_short_or_uncounted_epochs_tell_nothing() -> None:
    assert load_of([[part(seconds=0.5)]]) is None
    assert load_of([[part(()), part()]]) is None


@pytest.mark.parametrize(
    ("load", "changes", "said"),
    [
        (None, {}, ""),
        (Load(processes=0.15, steal=0.01), {}, ""),
        (Load(processes=0.5), {}, "ran while other processes used 0.5 of its cores"),
        (Load(processes=0.5), {"workers": 1}, ""),  # of two cores, one is free
        (Load(processes=1.5), {"workers": 1}, "ran while other processes used 1.5 of its cores"),
        (Load(steal=0.2), {}, "ran while the hypervisor took 20 % of its cores' time"),
        (
            Load(processes=1.0, steal=0.2),
            {"hosts": made_hosts(1, 1), "threads": 2},
            "ran while the hypervisor took 20 % of its cores' time",
        ),
    ],
)
def test_a_noisy_run(load: Load | None, changes: dict[str, Any], said: str) -> None:
    assert noise(made_record("ddp", load=load, **changes)) == said


def test_more_threads_than_cores() -> None:
    assert too_few_cores(made_record("ddp")) == ""
    assert too_few_cores(made_record("ddp", workers=3)) == "has 3 threads on 2 cores"
    assert too_few_cores(made_record("ddp", workers=4, hosts=made_hosts(1, 3))) == "has 3 threads on 2 cores"
    assert too_few_cores(made_record("ddp", workers=2, threads=8, device="cuda")) == ""
    assert too_few_cores(made_record("ddp", environment={})) == ""


def test_a_load_is_read_as_written(tmp_path: Any) -> None:
    record = made_record(load=Load(processes=0.1, clock_mhz=2400.0))
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    with pytest.raises(ValueError, match=r"load.steal=1.5 must be a fraction"):
        dataclasses.replace(record, load=Load(steal=1.5))
