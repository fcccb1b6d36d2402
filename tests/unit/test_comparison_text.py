"""Comparisons for papers and notes, in any order, with names that mean something to the formats."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from parallel.compare import main
from parallel.results.comparison import compare
from parallel.results.comparison_text import as_latex, as_markdown, comparison_tables, latex, markdown
from parallel.results.order import sorted_by
from parallel.results.predicted import Predicted
from parallel.results.record_files import write_record
from parallel.results.records import Record
from tests.support.made_records import ENVIRONMENT, WORKLOAD, made_record

HOSTILE = "a|b\\input{/etc/passwd}%&$#_^~{}<script>*[x](y)`!\x1b[2J\r\n\\end{table}"


def records(name: str = "mine") -> list[Record]:
    base = made_record("single", (10.0, 11.0, 12.0))
    workload = dataclasses.replace(WORKLOAD, model=name)
    environment = {**ENVIRONMENT, "cpu": name}
    mine = dataclasses.replace(made_record("ddp", (5.0, 5.5, 6.0)), strategy=name, label=name, name=name)
    return [dataclasses.replace(r, workload=workload, environment=environment) for r in (base, mine)]


def test_latex_has_a_row_for_each_result() -> None:
    lines = as_latex(comparison_tables(compare(records()))).splitlines()
    rows = [line for line in lines if line.endswith(r"\\")]
    assert rows[0].startswith("strategy & ") and rows[2].startswith("mine & ")
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    assert r"2.00$\times$" in rows[2] and r"\toprule" in lines


def latex_of(*records: Record) -> list[str]:
    return as_latex(comparison_tables(compare(records))).splitlines()


def test_latex_explains_the_marks_of_its_table() -> None:
    """In the document: comments stay in the file."""
    base = made_record("single", (10.0,) * 10)
    plain = latex_of(made_record("single", (10.0,) * 3), made_record("ddp", (9.0,) * 3))
    assert not any(line.startswith(r"\par") for line in plain)
    rough = Predicted(
        epoch_s=5.0,
        step_s=0.1,
        compute_s=4.0,
        communication_s=0.5,
        idle_s=0.3,
        data_wait_s=0.2,
        cluster="c",
        calibrated=False,
    )
    found = latex_of(
        base,
        made_record("ddp", (4.0,) * 10, predicted=rough),
        made_record("fsdp2", (9.0,) * 10, weights_changed=False),
    )
    end = found.index(r"\end{tabular}")
    assert found[end + 1] == (
        r"\par\footnotesize $\dagger$ covers the variation within a run only; ! disturbed by others, above "
        r"linear speedup, or outside the error of the prediction; \textasciitilde{} predicted without a "
        r"calibration for these runs; $\ast$ did not learn"
    )


def test_latex_has_the_mark_of_a_shared_gpu() -> None:
    shared = made_record("ddp", (5.0,) * 3, device="cuda")
    shared.config["cluster"]["share_gpu"] = True
    text = "\n".join(latex_of(shared))
    assert r"& $\ddagger$ &" in text and "U+2021" not in text
    assert r"\par\footnotesize $\ddagger$ workers shared a GPU, so that there is no speedup" in text


def test_names_with_a_mark_are_not_explained() -> None:
    assert not any(line.startswith(r"\par") for line in latex_of(*records("what!†")))


def test_latex_of_hostile_names_only_typesets_them() -> None:
    text = as_latex(comparison_tables(compare(records(HOSTILE))))
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert code.count(r"\end{table}") == 1, "not that of the name"
    for command in set(re.findall(r"\\([a-z]+)", code)) - {"begin", "end"}:
        assert command in (
            *("centering", "caption", "toprule", "midrule", "bottomrule", "cdot", "times", "textbackslash"),
            *("textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"),
        )
    assert latex("}{") == r"\}\{"
    assert latex("100 % – 2×") == r"100 \% -- 2$\times$" and latex("深") == "U+6DF1"


def test_markdown_of_hostile_names_keeps_the_table() -> None:
    text = as_markdown(comparison_tables(compare(records(HOSTILE))))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1 and len(table) == 4
    assert "<script>" not in re.sub(r"\\.", "", text) and "\x1b" not in text
    assert markdown("a_b|c") == r"a\_b\|c"


def strategies(columns: str) -> list[str]:
    rows = [
        made_record("single", (10.0,) * 3),
        made_record("ddp", (4.0,) * 3),
        made_record("data_parallel", (12.0,) * 3, workers=3),
        made_record("one_weird_trick", (6.0,) * 3, threads=2),
    ]
    (comparison,) = sorted_by(compare(rows), columns)
    return [row.key.strategy for row in comparison.results]


@pytest.mark.parametrize(
    ("columns", "order"),
    [
        ("median", ["ddp", "one_weird_trick", "single", "data_parallel"]),
        ("-workers,median", ["data_parallel", "ddp", "one_weird_trick", "single"]),
        ("strategy", ["data_parallel", "ddp", "one_weird_trick", "single"]),
        ("speedup", ["data_parallel", "single", "ddp", "one_weird_trick"]),  # the last has none
        ("-speedup", ["ddp", "single", "data_parallel", "one_weird_trick"]),
    ],
)
def test_rows_in_the_order_of_columns(columns: str, order: list[str]) -> None:
    assert strategies(columns) == order


def test_settings_are_ordered_as_numbers() -> None:
    lrs = (0.2, 0.0001, 10.0)
    rows = [made_record("ddp", name=str(lr), trainer={"lr": lr}) for lr in lrs]
    (comparison,) = sorted_by(compare(rows), "-lr")
    assert [dict(row.settings)["lr"] for row in comparison.results] == [10.0, 0.2, 0.0001]


@pytest.mark.parametrize("columns", ["network", "-momentum", "trainer.momentum", "transport,median"])
def test_a_column_that_the_table_lacks_changes_nothing(
    columns: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a", made_record("single"))
    tables = []
    for order in ([], ["--sort", columns]):
        assert main([str(tmp_path), "--no-report", *order]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sort", "speed"], "--sort=speed is not known; it must be one of strategy, scheme, workers"),
        (["--sort", "median,-momentun"], "--sort=momentun is not known"),
        (["--sort", "batch_size"], "--sort=batch_size is not known"),
        (["--sort"], "--sort= must be a value"),
        (["--latex", "-", "--markdown", "-"], "--markdown=- takes standard output, as does --latex"),
        (["--report", "-"], "--report=- must be a file"),
    ],
)
def test_what_cannot_be_is_said(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a", made_record("single"))
    assert main([str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    write_record(tmp_path / "a", made_record("single"))
    assert main([str(tmp_path), "--markdown", "-", "--no-report"]) == 0
    assert capsys.readouterr().out.startswith("## alexnet owt · digits, 1,437 images")
