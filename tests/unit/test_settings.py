"""What separates the rows of a comparison, and what does not."""

from __future__ import annotations

import copy
import dataclasses
import shlex
from typing import Any

import pytest

from parallel.config import Config, DataConfig, StrategyConfig
from parallel.models.alexnet import AlexNetConfig
from parallel.results.comparison import compare
from parallel.results.comparison_table import RESULTS, WHO, cells
from parallel.results.notes import notes
from parallel.results.records import Attempt, Record
from parallel.results.result import Result
from parallel.results.settings import (
    NEITHER,
    SPEED_NEUTRAL,
    SPEED_ZERO,
    STATED,
    flat,
    known_headings,
    settings_of,
    short_names,
)
from tests.support.made_records import made_hosts, made_record


def rows_of(*records: Record) -> list[Result]:
    (comparison,) = compare(records)
    return list(comparison.results)


def with_option(record: Record, option: str, value: Any) -> Record:
    """Return a record with an option of its configuration."""
    config = copy.deepcopy(record.config)
    *groups, name = option.split(".")
    within = config
    for group in groups:
        within = within[group]
    within[name] = value
    return dataclasses.replace(record, config=config)


def column(rows: list[Result], name: str) -> list[str]:
    names, lines = cells(rows, WHO + RESULTS)
    return [line[names.index(name)] for line in lines]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0.1),
        ("schedule", "step"),
        ("gamma", 0.5),
        ("lr_scaling", "sqrt"),
        ("momentum", 0.5),
        ("weight_decay", 0.0),
        ("channels_last", False),
        ("compile", True),
        ("graphs", True),
        ("check_finite", True),
        ("option_of_a_later_version", 7),
    ],
)
def test_what_changes_learning_or_speed_is_a_row_of_its_own(option: str, value: Any) -> None:
    one = made_record("data_parallel", name="a")
    rows = rows_of(one, made_record("data_parallel", name="b", trainer={option: value}))
    assert len(rows) == 2 and len({row.label for row in rows}) == 2
    assert set(column(rows, option)) == {
        str(found).lower() if isinstance(found, bool) else str(found)
        for found in (one.config["trainer"].get(option, "-"), value)
    }


@pytest.mark.parametrize(
    ("option", "value", "heading"),
    [
        ("trainer.epochs", 9, "trainer.epochs"),
        ("trainer.warmup_steps", 0, "warmup_steps"),
        ("trainer.checkpoint.every", "10 steps", "checkpoint.every"),
        ("data.root", "/fast", "root"),
        ("data.cache", "/fast", "cache"),
        ("data.decoders", 8, "decoders"),
        ("resume", "runs/first", "resume"),
    ],
)
def test_every_option_is_a_row_of_its_own(option: str, value: Any, heading: str) -> None:
    rows = rows_of(made_record("ddp", name="a"), with_option(made_record("ddp", name="b"), option, value))
    assert len(rows) == 2 and str(value) in column(rows, heading)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("trainer.seed", 3),
        ("trainer.trace", True),
        *(("trainer.checkpoint.keep", 5), ("trainer.checkpoint.best", True)),
        ("trainer.checkpoint.final", False),
        *(("sweep", "other"), ("repeat", 2), ("repeats", 3)),
        *(("resume", "never"), ("tracker.name", "none"), ("cluster.timeout_s", 5.0)),
    ],
)
def test_repetitions_and_what_is_beside_the_training_pool(option: str, value: Any) -> None:
    (row,) = rows_of(made_record("ddp", name="a"), with_option(made_record("ddp", name="b"), option, value))
    assert len(row.records) == 2 and row.label == "ddp"


def test_a_run_that_continued_from_its_own_checkpoint_pools_with_its_repetitions() -> None:
    """As after a requeue by Slurm: with resume=auto it goes on in its folder."""

    def begun(step: int) -> Attempt:
        return Attempt(step=step, started="2026-01-02T03:04:05Z", label="ddp", workers=2, plan=None)

    requeued = made_record("ddp", name="b", attempts=(begun(0), begun(40)), restarts=1)
    (row,) = rows_of(made_record("ddp", name="a", attempts=(begun(0),)), requeued)
    assert len(row.records) == 2
    old = made_record("ddp", name="c")
    del old.config["resume"]
    (row,) = rows_of(requeued, old)
    assert len(row.records) == 2, "records of earlier versions have no such option"


@pytest.mark.parametrize(
    ("option", "value", "speedup"),
    [
        ("trainer.epochs", 9, True),
        ("resume", "runs/first", True),
        ("trainer.warmup_steps", 0, False),
        ("trainer.checkpoint.every", "10 steps", False),
        *(("data.root", "/fast", False), ("data.decoders", 8, False)),
    ],
)
def test_the_baseline_differs_in_nothing_that_changes_its_speed(
    option: str, value: Any, speedup: bool
) -> None:
    ours = with_option(made_record("ddp"), option, value)
    (comparison,) = compare([made_record(), ours])
    assert (comparison.results[1].speedup is not None) is speedup
    commands = [note for note in notes(comparison) if note.startswith("No speedup for ddp")]
    assert [f"{option}={value}" in shlex.split(command) for command in commands] == [True] * (not speedup)


def test_options_of_all_groups_are_known() -> None:
    """An option that is forgotten in the lists separates rows; a name in them that no option has is a
    slip."""
    options = flat(
        dataclasses.asdict(Config(AlexNetConfig(), DataConfig("digits"), StrategyConfig("single")))
    )
    assert (NEITHER | STATED) - set(options) == {"data.num_classes"}, "which a synthetic set has"
    assert {*SPEED_NEUTRAL, *SPEED_ZERO} <= set(options)
    names = [name for name, _ in settings_of(made_record())]
    assert "trainer.lr" in names and "model.dropout" in names and "cluster.flows" not in names


def test_the_baseline_has_the_settings_of_its_row() -> None:
    def single(lr: float, seconds: float, **trainer: Any) -> Record:
        return made_record("single", (seconds,) * 3, name=f"{lr}", trainer={"lr": lr, **trainer})

    ours = [made_record("ddp", (5.0,) * 3, name=f"d{lr}", trainer={"lr": lr}) for lr in (0.1, 0.2, 0.3)]
    compiled = made_record("ddp", (5.0,) * 3, name="c", trainer={"lr": 0.1, "compile": True})
    (comparison,) = compare([single(0.1, 10.0), single(0.2, 20.0), *ours, compiled])
    found = {row.scheme: row.speedup and row.speedup.ratio for row in comparison.results[2:]}
    assert found == {
        "lr=0.1 compile=false": 2.0,
        "lr=0.2 compile=false": 4.0,
        "lr=0.3 compile=false": 2.0,
        "lr=0.1 compile=true": None,
    }
    said = notes(comparison)
    assert [note for note in said if note.startswith("The baseline of")] == [
        "The baseline of ddp lr=0.3 compile=false has trainer.lr=0.1: no single has its own values, which "
        "change no speed"
    ]
    assert any("no single of this workload with 1 thread(s) and compile=true; run" in note for note in said)


def test_a_setting_that_is_absent_from_some_runs_is_a_difference() -> None:
    old = made_record("ddp", name="old")
    del old.config["trainer"]["channels_last"]
    assert sorted(column(rows_of(old, made_record("ddp")), "channels_last")) == ["-", "true"]


def test_headings_are_short_unless_two_share_them() -> None:
    assert short_names(["trainer.lr", "model.init", "data.init"]) == {
        "trainer.lr": "lr",
        "model.init": "model.init",
        "data.init": "data.init",
    }
    assert short_names(["resume", "trainer.checkpoint.every", "trainer.epochs"]) == {
        "resume": "resume",
        "trainer.checkpoint.every": "checkpoint.every",
        "trainer.epochs": "trainer.epochs",
    }


def test_every_heading_is_known() -> None:
    """By those a table can be sorted, also while it does not have them."""
    names = ["resume", "trainer.checkpoint.every", "trainer.lr", "model.init", "data.init"]
    assert known_headings(names) >= {*names, *short_names(names).values()}


class TestTransport:
    """The same strategy through shared memory, through the loopback and between hosts is three rows."""

    def record(self, shared: bool = True, **changes: Any) -> Record:
        record = made_record("data_parallel", **{"hosts": made_hosts(2), **changes})
        record.config["cluster"]["shared_memory"] = shared
        return record

    def test_rows(self) -> None:
        apart = made_hosts(1, 1, bandwidth=125e6)
        rows = rows_of(made_record(), self.record(), self.record(False), self.record(hosts=apart))
        assert column(rows, "transport") == ["-", "loopback", "shared memory", "-"]
        assert column(rows, "hosts") == ["-", "1", "1", "2 × 1"]
        assert all(row.speedup for row in rows)

    def test_what_the_run_states_counts(self) -> None:
        rows = rows_of(self.record(transport="loopback"), self.record())
        assert len(rows) == 2 and column(rows, "transport") == ["loopback", "shared memory"]

    def test_ddp_uses_the_loopback_whatever_the_option(self) -> None:
        def ddp(shared: bool) -> Record:
            return dataclasses.replace(self.record(shared), strategy="ddp", plan=None)

        (row,) = rows_of(ddp(True), ddp(False))
        assert len(row.records) == 2

    def test_interfaces(self) -> None:
        def between(interface: str) -> Record:
            hosts = made_hosts(1, 1, bandwidth=125e6)
            return self.record(hosts=tuple(dataclasses.replace(h, interface=interface) for h in hosts))

        assert column(rows_of(between("eth0"), between("ib0")), "interface") == ["eth0", "ib0"]
