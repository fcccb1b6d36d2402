"""What all sections of the check share: their setting, their page, and how they end."""

from __future__ import annotations

import enum
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


class Ending(enum.Enum):
    """How a section ended."""

    PASSED = "passed"
    MISSED = "target missed"
    FAILED = "failed"
    TIME_OUT = "time out"
    SKIPPED = "not run: no time left"

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for ran and was right. Missing a target of speed is no error."""
        return self in (Ending.PASSED, Ending.MISSED)


MISSED_CODE = 3
"""Exit code of a section's process whose measurements missed a target."""


def ending_of(code: int) -> Ending:
    """Return the ending that an exit code stands for."""
    return {0: Ending.PASSED, MISSED_CODE: Ending.MISSED}.get(code, Ending.FAILED)


@dataclass(frozen=True)
class Setting:
    """Where a section runs, how long, and where it writes."""

    device: str
    """cuda, or cpu: the same code with tiny sizes, which shows only that it runs."""
    page: Path
    """File to which the section appends Markdown, piece by piece: what is there is kept."""
    folder: Path
    """Empty folder for files."""
    limit_s: float
    """Time until the process is ended."""
    begin: float

    @property
    def tiny(self) -> bool:
        """Whether this only tries the code, on a CPU."""
        return self.device == "cpu"

    @property
    def left_s(self) -> float:
        """Time that is left."""
        return self.limit_s - (time.monotonic() - self.begin)

    def write(self, *lines: str) -> None:
        """Append lines to the page."""
        with open(self.page, "a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))


Run = Callable[[Setting], Ending]


def markdown_row(cells: Sequence[str]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def table_head(names: Sequence[str]) -> list[str]:
    """Return the first two lines of a table: names, and the line below them."""
    return [markdown_row(names), "|" + "---|" * len(names)]


def run_command(setting: Setting, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in the project's folder, write the command to the page, and return its output.

    Each line also goes to the log at once: a section that is ended at its limit shows how far it came.
    """
    setting.write(f"`python {' '.join(arguments)}`", "")
    command = [sys.executable, *arguments]
    lines = list[str]()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "160", "PYTHONUNBUFFERED": "1"},
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    return subprocess.CompletedProcess(command, process.returncode, "".join(lines))


def code_block(text: str, most_lines: int = 60) -> list[str]:
    """Return text as a block of code, without its first lines if there are too many."""
    lines = text.rstrip().splitlines()
    left_out = [f"… {len(lines) - most_lines} lines before"] if len(lines) > most_lines else []
    return ["```text", *left_out, *(line.replace("```", "'''") for line in lines[-most_lines:]), "```", ""]


ROOT = Path(__file__).resolve().parent.parent.parent
