"""Tables for papers and notes: LaTeX (booktabs) and Markdown.

Names in records are any text, so everything that the formats give a meaning is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parallel.config import printable
from parallel.results.comparison import Comparison, describe
from parallel.results.comparison_table import RESULTS, TIMES, WHO, WORDS, cells, marks
from parallel.results.notes import notes
from parallel.results.scaling import Scaling
from parallel.results.scaling_table import WORDS as SCALING_WORDS
from parallel.results.scaling_table import heading, scaling_notes, scaling_table, title

COLUMNS = WHO + TIMES + RESULTS
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "×": r"$\times$",
    "÷": r"$\div$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "−": r"$-$",
    "–": "--",
    "…": r"\ldots{}",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "✗": r"$\ast$",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}
"""Characters that LaTeX gives a meaning, or that its fonts lack, and how they are written."""
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!&])")
"""Characters that Markdown, or the HTML in it, gives a meaning."""


@dataclass(frozen=True)
class TitledTable:
    """A table with what stands around it."""

    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str]
    """Columns of text; the others are numbers."""
    notes: Sequence[str]


def comparison_tables(comparisons: Sequence[Comparison]) -> list[TitledTable]:
    """Return the table of each comparison."""
    return [
        TitledTable(
            describe(comparison.workload),
            f"{comparison.hardware}. Epoch times in seconds.",
            *cells(comparison.results, COLUMNS),
            WORDS,
            notes(comparison),
        )
        for comparison in comparisons
    ]


def scaling_tables(scalings: Sequence[Scaling]) -> list[TitledTable]:
    """Return the table of each scaling."""
    return [
        TitledTable(
            title(scaling),
            f"{heading(scaling)}. Epoch times in seconds.",
            *scaling_table(scaling),
            SCALING_WORDS,
            scaling_notes(scaling),
        )
        for scaling in scalings
    ]


def as_latex(tables: Sequence[TitledTable]) -> str:
    """Return the tables for a document that uses the package booktabs."""
    parts = [r"% needs \usepackage{booktabs}, and \usepackage[T1]{fontenc} for quotation marks"]
    for table in tables:
        columns = "".join("l" if name in table.words else "r" for name in table.columns)
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(table.title)}; {latex(table.about)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _latex_line(table.columns),
            r"\midrule",
            *map(_latex_line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            *_latex_marks(table),
            *(f"% {_ascii(note)}" for note in table.notes),
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


def as_markdown(tables: Sequence[TitledTable]) -> str:
    """Return a heading, a table (GitHub's) and the notes of each."""
    parts = []
    for table in tables:
        parts += [
            f"## {markdown(table.title)}",
            "",
            markdown(table.about),
            "",
            _row(table.columns, markdown),
            _row(["---" if name in table.words else "---:" for name in table.columns], str),
            *(_row(line, markdown) for line in table.rows),
            "",
            *(f"- {markdown(note)}" for note in table.notes),
            "",
        ]
    return "\n".join(parts)


def latex(text: str) -> str:
    """Return text as LaTeX that typesets it. Characters outside of Latin-1 that it has no command for
    become their code points."""
    return "".join(
        LATEX.get(char, char if ord(char) < 256 else f"U+{ord(char):04X}") for char in printable(text)
    )


def markdown(text: str) -> str:
    """Return text as Markdown that shows it."""
    return MARKDOWN.sub(r"\\\1", printable(text))


def _latex_line(line: Sequence[str]) -> str:
    return " & ".join(map(latex, line)) + r" \\"


def _latex_marks(table: TitledTable) -> list[str]:
    """Return a line below the table that explains its marks; none if it has none."""
    found = [f"{mark} {meaning}" for mark, meaning in marks(table.columns, table.rows).items()]
    return [rf"\par\footnotesize {latex('; '.join(found))}"] if found else []


def _row(line: Sequence[str], escape: Callable[[str], str]) -> str:
    return f"| {' | '.join(map(escape, line))} |"


def _ascii(note: str) -> str:
    """Return a note as a comment of LaTeX: one line that any encoding has."""
    return printable(note).encode("ascii", "backslashreplace").decode()
