"""Records that do not belong into a comparison: each is said in a sentence, and none makes a wrong
row."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parallel.compare import main
from parallel.results.comparison_export import as_csv
from parallel.results.record_checks import LONGEST_COMMAND, LONGEST_HOST, LONGEST_TEXT
from parallel.results.record_files import read_record, write_record
from tests.support.made_records import ENVIRONMENT, WORKLOAD, made_hosts, made_record


def compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], str]:
    """Return the comparisons of a folder as JSON, and what else was said."""
    assert main([str(folder), "--json", "-", "--no-report"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def altered(key: str, value: object) -> Callable[[Path], None]:
    """Return a function that changes a value of a record file."""

    def alter(run: Path) -> None:
        file = run / "record.json"
        values = json.loads(file.read_text())
        file.write_text(json.dumps({**values, key: value}))

    return alter


def workload(**changes: object) -> Callable[[Path], None]:
    """Return a function that changes values of the workload in a record file."""

    def alter(run: Path) -> None:
        values = json.loads((run / "record.json").read_text())["workload"]
        altered("workload", {**values, **changes})(run)

    return alter


def later_epochs(run: Path) -> None:
    """Change a time in epochs.csv."""
    file = run / "epochs.csv"
    file.write_text(file.read_text().replace("5.0", "1.0", 1))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (altered("format", 4), "format=4 must be 1 or 2 or 3 to be read here"),
        (altered("format", "3"), "format=3 must be 1 or 2 or 3 to be read here"),
        (altered("workers", 0), "workers=0 must be at least 1"),
        (altered("threads", "two"), "threads='two' must be a whole number"),
        (altered("speedup", 9.9), "speedup"),
        (altered("load", {"processes": -1}), "load.processes=-1"),
        (altered("load", {"clock_mhz": 1e99}), "load.clock_mhz=1e+99 must be"),
        (altered("weights_changed", "yes"), "weights_changed='yes' must be true or false"),
        (altered("transport", 1), "transport=1 must be text"),
        (workload(batch_size=4096), "workload.batch_size=4096 must be that of the configuration, trainer."),
        (workload(precision="bf16"), "workload.precision=bf16 must be that of the configuration"),
        (workload(model="vgg16"), "workload.model=vgg16 must be that of the configuration"),
        (workload(variant="original"), "workload.variant=original must be that of the configuration"),
        (workload(image_size=224), "workload.image_size=224 must be that of the configuration"),
        (workload(data="imagenet"), "workload.data=imagenet must be that of the configuration, data.name"),
        (altered("baseline", True), "workers=2 must be 1 in a baseline"),
        (altered("label", "x" * 4097), "must have at most 4,096 characters; it has 4,097"),
        (altered("name", "x" * 4097), "must have at most 4,096 characters; it has 4,097"),
        (altered("config", {"trainer": {"x" * 5000: 1}}), "must have at most 4,096 characters; it has 5,000"),
        (altered("config", {"trainer": {"x": ["y" * 5000]}}), "config.trainer.x=yyy"),
        (later_epochs, "altered or truncated: its checksum is not the one in record.json"),
    ],
)
def test_an_altered_record_is_left_out_with_a_sentence(
    damage: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a", made_record("single", (10.0, 10.0)))
    write_record(tmp_path / "b", made_record("ddp", (5.0, 5.0)))
    damage(tmp_path / "b")
    (comparison,), err = compared(tmp_path, capsys)
    assert [row["strategy"] for row in comparison["rows"]] == ["single"]
    (line,) = [line for line in err.splitlines() if line.startswith("warning: left out: ")]
    assert str(tmp_path / "b") in line and said in line


@pytest.mark.parametrize(("images", "read"), [(1000, True), (991, True), (989, False), (1001, False)])
def test_images_that_cannot_be_decoded_are_no_alteration(images: int, read: bool, tmp_path: Path) -> None:
    record = made_record(workload=dataclasses.replace(WORKLOAD, train_images=1000))
    write_record(tmp_path, record)
    workload(train_images=images)(tmp_path)
    if read:
        assert read_record(tmp_path).workload.train_images == images
    else:
        with pytest.raises(ValueError, match=f"workload.train_images={images} must be that of the conf"):
            read_record(tmp_path)


def test_what_neither_states_is_no_contradiction(tmp_path: Path) -> None:
    """As in records of published times, and of data sets where other images stand in."""
    write_record(tmp_path / "a", dataclasses.replace(made_record(), config={}))
    write_record(tmp_path / "b", made_record(workload=dataclasses.replace(WORKLOAD, batch_size=None)))
    write_record(tmp_path / "c", made_record(workload=dataclasses.replace(WORKLOAD, data="digits (others)")))
    assert [read_record(tmp_path / name).workload.batch_size for name in "abc"] == [32, None, 32]


def test_long_texts_that_are_only_shown_are_cut(tmp_path: Path) -> None:
    """The page reads the command as a shell does, in a time with the square of its length."""
    long = "x" * 3_000_000
    environment = {**ENVIRONMENT, "host": long, "variables": {"OMP_NAME": long}}
    hosts = tuple(dataclasses.replace(host, name=long) for host in made_hosts(1))
    record = made_record(command=f"python {long}", environment=environment, hosts=hosts, plan=long)
    write_record(tmp_path, record)
    found = read_record(tmp_path)
    assert len(found.command) == LONGEST_COMMAND
    assert found.command.startswith("python xxx") and found.command.endswith("x… (3,000,007 characters)")
    shown = [found.environment["host"], found.hosts[0].name, found.environment["variables"]["OMP_NAME"]]
    assert [len(text) for text in shown] == [LONGEST_HOST, LONGEST_HOST, LONGEST_TEXT]
    assert found.plan == long, "its fingerprint is that of the whole plan"


@pytest.mark.parametrize(
    ("other", "hardware"),
    [
        ({"cpu": "Another CPU"}, "cpu: Another CPU, 2 cores"),
        ({"machine_cpus": 64}, "cpu: Some CPU, 64 cores"),
        ({"cpu_count": 64}, "cpu: Some CPU, 64 cores"),
        ({"memory_bytes": 16 * 10**9}, "cpu: Some CPU, 2 cores, 16 GB"),
    ],
)
def test_another_machine_has_a_table_of_its_own(
    other: dict[str, Any], hardware: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a", made_record("single", (10.0, 10.0)))
    environment = {**ENVIRONMENT, **other}
    write_record(tmp_path / "b", made_record("ddp", (5.0, 5.0), environment=environment))
    comparisons, _ = compared(tmp_path, capsys)
    assert [(c["hardware"], len(c["rows"])) for c in comparisons] == [
        ("cpu: Some CPU, 2 cores", 1),
        (hardware, 1),
    ]
    assert comparisons[1]["rows"][0]["speedup"] is None
    assert comparisons[1]["notes"][0].startswith("No speedup for ddp: there is no single of this workload")


def test_values_that_no_machine_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "a", made_record("single", (10.0, 10.0)))
    for name in ("cpu_count", "machine_cpus", "memory_bytes"):
        write_record(tmp_path / name, made_record("ddp", (5.0, 5.0)))
        altered("environment", {**ENVIRONMENT, name: 0})(tmp_path / name)
    (comparison,), err = compared(tmp_path, capsys)
    assert len(comparison["rows"]) == 1
    for name in ("cpu_count", "machine_cpus", "memory_bytes"):
        assert f"{name}=0 must be at least 1" in err


def test_a_copy_is_no_repetition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "a", made_record("ddp", (5.0, 5.0)))
    shutil.copytree(tmp_path / "a", tmp_path / "z")
    (comparison,), _ = compared(tmp_path, capsys)
    assert comparison["rows"][0]["runs"] == 1
    said = f"Left out: ddp (ddp) in {tmp_path / 'z'}, a copy of another record, no repetition"
    assert said in comparison["notes"]


HOSTILE = '<script>alert(1)</script>\x1b[2J\u202e{{7*7}}${x}=cmd|" \n'


def test_hostile_settings_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names and values of settings become headings and cells."""
    for name, value in (("a", HOSTILE), ("b", "plain"), ("c", {"deep": [1, HOSTILE]})):
        record = made_record("ddp", (5.0, 5.0), name=name)
        config = {**record.config, "trainer": {**record.config["trainer"], HOSTILE: value}}
        write_record(tmp_path / name, dataclasses.replace(record, config=config))
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert all(char.isprintable() or char == "\n" for char in out + err)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    for flag in ("--csv", "--markdown", "--latex"):
        assert main([str(tmp_path), flag, "-", "--no-report"]) == 0
        text = capsys.readouterr().out
        assert all(char.isprintable() or char == "\n" for char in text), flag
        if flag == "--csv":
            assert len(list(csv.DictReader(io.StringIO(text)))) == 3
    assert main([str(tmp_path), "--json", "-", "--no-report"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["rows"]) == 3


def test_text_is_no_formula_of_a_spreadsheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formula = "=1+cmd|' /C calc'!A0"
    for number, name in enumerate(("+1", "-1", "@A1", formula, "a=1")):
        record = made_record("ddp", (5.0, 5.0), name=name, trainer={formula: name})
        write_record(tmp_path / str(number), record)
    assert main([str(tmp_path), "--csv", "-", "--no-report"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row[f"'{formula}"] for row in rows} == {"'+1", "'-1", "'@A1", f"'{formula}", "a=1"}
    assert not [c for row in rows for pair in row.items() for c in pair if c.startswith(("=", "+", "-", "@"))]


def test_negative_numbers_stay_numbers() -> None:
    (row,) = csv.DictReader(
        io.StringIO(as_csv([{"workload": {"batch": -2}, "rows": [{**EMPTY_ROW, "settings": {"lr": -0.5}}]}]))
    )
    assert (row["batch"], row["lr"]) == ("-2", "-0.5")


EMPTY_ROW: dict[str, Any] = {"epoch_s": {}, "time_split": None}


def test_values_of_different_types_in_one_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, value in enumerate((1, "1", None, [1, 2], 0.5)):
        write_record(tmp_path / str(number), made_record("ddp", name=str(number), trainer={"x": value}))
    (comparison,), _ = compared(tmp_path, capsys)
    assert len(comparison["rows"]) == 5, "a number and its text are different, too"
