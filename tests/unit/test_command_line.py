"""The command in a record is what was typed."""

from __future__ import annotations

import pytest

from parallel.results.command_line import COMMAND, recorded_command, script_module, typed_command


@pytest.mark.parametrize(
    "arguments, typed",
    [
        (["/usr/bin/python3.11", "-m", "parallel.train", "a=1 2"], "python3.11 -m parallel.train 'a=1 2'"),
        (["/venv/bin/python", "/venv/bin/parallel-train", "a=1"], "parallel-train a=1"),
        (["/venv/bin/python", "parallel/train.py", "a=1"], "python parallel/train.py a=1"),
        (["/opt/pypy", "-m", "parallel.train"], "/opt/pypy -m parallel.train"),
    ],
)
def test_what_was_typed(arguments: list[str], typed: str) -> None:
    assert typed_command(arguments) == typed
    assert recorded_command({}, arguments) == typed
    assert recorded_command({COMMAND: "what started torchrun"}, arguments) == "what started torchrun"


def test_scripts_are_known_by_their_names() -> None:
    assert script_module("/venv/bin/parallel-train") == "parallel.train"
    assert script_module("parallel-compare.exe") == "parallel.compare"
    assert script_module("/home/me/parallel-things/train.py") is None
