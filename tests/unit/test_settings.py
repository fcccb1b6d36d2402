"""What separates the rows of a comparison, and what does not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from parallel.config import Config, DataConfig, StrategyConfig
from parallel.models.alexnet import AlexNetConfig
from parallel.results.comparison import compare
from parallel.results.comparison_table import RESULTS, WHO, cells
from parallel.results.notes import notes
from parallel.results.records import Record
from parallel.results.result import Result
from parallel.results.settings import NEITHER, STATED, flat, settings_of, short_names
from tests.support.made_records import made_hosts, made_record


def rows_of(*records: Record) -> list[Result]:
    (comparison,) = compare(records)
    return list(comparison.results)


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
    "trainer", [{"seed": 3}, {"epochs": 9}, {"checkpoint": {"keep": 5}}, {"warmup_steps": 0}, {"trace": True}]
)
def test_seeds_and_what_is_beside_the_training_pool(trainer: dict[str, Any]) -> None:
    (row,) = rows_of(made_record("ddp", name="a"), made_record("ddp", name="b", trainer=trainer))
    assert len(row.records) == 2 and row.label == "ddp"


def test_the_cosine_schedule_depends_on_the_number_of_epochs() -> None:
    cosine = [made_record("ddp", name=str(n), trainer={"schedule": "cosine", "epochs": n}) for n in (3, 9)]
    rows = rows_of(*cosine)
    assert column(rows, "trainer.epochs") == ["3", "9"] and [r.scheme for r in rows] == [
        "trainer.epochs=3",
        "trainer.epochs=9",
    ]


def test_options_of_all_groups_are_known() -> None:
    """An option that is forgotten in the lists separates rows; a name in them that no option has is a
    slip."""
    options = flat(
        dataclasses.asdict(Config(AlexNetConfig(), DataConfig("digits"), StrategyConfig("single")))
    )
    of_files = {"data.root", "data.cache", "data.decoders", "data.num_classes"}
    assert (NEITHER | STATED) - set(options) - of_files <= {"repeat", "repeats"}
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
