"""Common parts of commands: arguments, errors, exit codes, warnings, tables."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from parallel.cli.command import Command, Given
from parallel.cli.tables import plain_table, print_lines

COMMAND = Command("What it does.\n", flags=("--all",), files=("--svg",), keys=("epoch_s",), width=77)


def test_arguments_are_sorted(tmp_path: Path) -> None:
    file = str(tmp_path / "a.svg")
    given = COMMAND.read(["workers=2", "--all", "--svg", file, "epoch_s=3", "+x=1"])
    assert (given.flags, given.files, given.keys) == (
        frozenset({"--all"}),
        {"--svg": Path(file)},
        {"epoch_s": "3"},
    )
    assert given.rest == ("workers=2", "+x=1")
    assert COMMAND.read([f"--svg={file}"]).files == given.files


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--every"], "flag=--every is not known; there are --all, --svg, --help, -h"),
        (["--svg"], "--svg= must name the file to write"),
        (["--svg", "--all"], "--svg=--all must name the file to write"),
        (["--svg", "nowhere/a.svg"], "--svg=nowhere/a.svg lies in a folder that does not exist"),
        (["epoch_s=1", "epoch_s=2"], "epoch_s=2 is given twice; the first was 1"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMAND.run(lambda given, console: 0, arguments) == 2
    assert capsys.readouterr() == ("", f"error: {sentence}\n")


def test_help_is_printed_and_nothing_run(capsys: pytest.CaptureFixture[str]) -> None:
    def body(given: Given, console: Console) -> int:
        raise AssertionError("not to be called")

    assert COMMAND.run(body, ["-h"]) == 0
    assert capsys.readouterr().out == "What it does.\n"


@pytest.mark.parametrize(
    "error, code, err",
    [
        (ValueError("two\n lines"), 2, "error: two lines\n"),
        (
            FileNotFoundError(2, "No such file or directory", "a.svg"),
            2,
            "error: a.svg: No such file or directory\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors(error: BaseException, code: int, err: str, capsys: pytest.CaptureFixture[str]) -> None:
    def body(given: Given, console: Console) -> int:
        raise error

    assert COMMAND.run(body, []) == code
    assert capsys.readouterr() == ("", err)


def test_other_errors_keep_their_traceback() -> None:
    def body(given: Given, console: Console) -> int:
        raise OSError("no file is to blame")

    with pytest.raises(OSError, match="no file is to blame"):
        COMMAND.run(body, [])


def test_the_body_decides_the_code_and_a_warning_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    def body(given: Given, console: Console) -> int:
        for _ in range(2):
            warnings.warn("mind this", stacklevel=1)
        return console.width

    assert COMMAND.run(body, []) == 77
    assert capsys.readouterr().err == "warning: mind this\n"


def test_tables_and_lines_are_plain_text() -> None:
    console = Console(file=io.StringIO(), width=20)
    console.print(plain_table(["box", "n"], words=["box"], rows=[["[0:2, 1:3]", "7"], ["all", "12"]]))
    print_lines(console, "[bold] is longer than twenty columns")
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines == [
        "box         n",
        "[0:2, 1:3]  7",
        "all        12",
        "[bold] is longer than twenty columns",
    ]
