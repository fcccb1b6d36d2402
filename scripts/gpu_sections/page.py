"""The page of the check: a summary, then what each section wrote, and the end of the log of those that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_sections.section import Ending, code_block, markdown_row, table_head

TITLES = {
    "machine": "Machine",
    "tests": "Tests that need a GPU",
    "parity": "Parity with plain PyTorch",
    "speed": "Speed of one worker",
    "prediction": "Calibration and prediction",
    "profile": "Profile of a step",
}
LOG_LINES = 40


@dataclass(frozen=True)
class Outcome:
    """One section that has ended."""

    section: str
    ending: Ending
    seconds: float
    limit_s: float
    text: str
    """What it wrote, as Markdown."""
    log: str = ""
    """Output of its process."""


def page(command: str, device: str, started: str, outcomes: Sequence[Outcome]) -> str:
    """Return the page as Markdown."""
    tiny = (
        ["**On a CPU, with tiny sizes: this shows only that the check itself runs.**", ""]
        if device == "cpu"
        else []
    )
    lines = ["# GPU check", "", *tiny, f"`{command}`, {started}", "", *summary(outcomes), ""]
    for outcome in outcomes:
        lines += [f"## {TITLES[outcome.section]}", "", outcome.text.rstrip(), ""]
        if not outcome.ending.ok and outcome.log:
            lines += ["End of the log:", "", *code_block(outcome.log, LOG_LINES)]
    return "\n".join(lines).rstrip() + "\n"


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a table with a row for each section."""
    rows = [
        markdown_row((TITLES[o.section], o.ending.value, f"{o.seconds:.0f} s", f"{o.limit_s:.0f} s"))
        for o in outcomes
    ]
    return [*table_head(("section", "result", "took", "limit")), *rows]
