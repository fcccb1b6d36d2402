"""Plans drawn as a grid of ops × workers: each cell shows the part of the op that the worker holds.

Letters are those of FlexFlow's space (Jia et al. 2019): S a split in samples (n), A in an attribute (height
or width, h and w), P in a parameter dim (output channels, c), O different workers for different ops. R
is a split in the reduction dim (input channels, k), which FlexFlow does not have.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from itertools import groupby

DIMS = "nckhw"
"""Order in which parts are numbered."""
LETTERS = {"n": "S", "c": "P", "k": "R", "h": "A", "w": "A"}
WORDS = {"S": "sample", "O": "operator", "A": "attribute", "P": "parameter", "R": "reduction"}
MOST_WORKERS = 16
"""Columns of a grid."""
MOST_ROWS = 40

_OP = re.compile(r"  (\S+): \{(.*)\}")
_CUT = re.compile(r"\b([nckhw]): (\d{1,5}|\[\d{1,7}(?:, \d{1,7})*\])")
_ON = re.compile(r"\bon: \[(\d{1,7}(?:, \d{1,7})*)\]")
_HEAD = re.compile(r"(workers|micro_batches): (\d{1,7})")

Fraction = tuple[float, float]
"""Start and end, from 0 to 1."""


@dataclass(frozen=True)
class OpLayout:
    """The cuts of an op, by dim as weights of the parts, and the worker of each part."""

    cuts: Mapping[str, tuple[int, ...]]
    on: tuple[int, ...]

    def part(self, worker: int) -> dict[str, tuple[int, Fraction]] | None:
        """Return index and fraction along each dim of the worker's part; None without one."""
        if worker not in self.on:
            return None
        spaces = itertools.product(*(range(len(self.cuts[dim])) for dim in self.cuts))
        index = next(itertools.islice(spaces, self.on.index(worker), None))
        found = {}
        for (dim, weights), i in zip(self.cuts.items(), index, strict=True):
            total = sum(weights)
            found[dim] = (i, (sum(weights[:i]) / total, sum(weights[: i + 1]) / total))
        return found


@dataclass(frozen=True)
class PlanText:
    """A plan as its text states it."""

    workers: int
    micro_batches: int
    scheme: str
    layouts: Mapping[str, OpLayout]


def parse(text: str) -> PlanText | None:
    """Return the plan of the text that `str(plan)` makes, or None for any other text."""
    head: dict[str, int] = {}
    scheme = "a"
    layouts: dict[str, OpLayout] = {}
    for line in text.splitlines():
        if op := _OP.fullmatch(line):
            layout = _layout(op[2])
            if layout is None:
                return None
            layouts[op[1]] = layout
        elif setting := _HEAD.fullmatch(line):
            head[setting[1]] = int(setting[2])
        elif line.startswith("scheme: "):
            scheme = line.removeprefix("scheme: ")
    if not layouts or "workers" not in head:
        return None
    return PlanText(head["workers"], head.get("micro_batches", 1), scheme, layouts)


def letters(layout: OpLayout, workers: int) -> str:
    """Return the letters of a layout in the order S O A P R; empty: one worker holds all of the
    op."""
    found = {LETTERS[dim] for dim in layout.cuts}
    if workers > 1 and len(layout.on) < workers:
        found.add("O")
    return "".join(letter for letter in WORDS if letter in found)


def grid(plan: PlanText) -> str:
    """Return the plan as an HTML table. Consecutive ops with the same layout are one row."""
    runs = _runs(plan)
    columns = range(min(plan.workers, MOST_WORKERS))
    head = "".join(f"<th>{worker}</th>" for worker in columns)
    rows = "".join(
        f'<tr><td class="word">{escape(names)}</td><td class="soap">{_tags(layout, plan.workers)}</td>'
        f"{''.join(_cell(layout, worker) for worker in columns)}</tr>"
        for names, layout in runs[:MOST_ROWS]
    )
    left_out = [
        f"{len(runs) - MOST_ROWS} more rows" if len(runs) > MOST_ROWS else "",
        f"workers {MOST_WORKERS} to {plan.workers - 1}" if plan.workers > MOST_WORKERS else "",
    ]
    more = " and ".join(filter(None, left_out))
    note = f"<small>Not drawn: {more}.</small>" if more else ""
    return (
        '<table class="plan"><thead><tr><th class="word">ops</th><th></th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table>{note}"
    )


def settings(plan: PlanText) -> str:
    """Return what a plan states besides layouts, as far as it is not the default."""
    parts = (
        f"{plan.micro_batches} micro-batches" if plan.micro_batches > 1 else "",
        f"exchanges in scheme {plan.scheme}" if plan.scheme != "a" else "",
    )
    return ", ".join(filter(None, parts))


def _layout(text: str) -> OpLayout | None:
    cuts, on = dict(_CUT.findall(text)), _ON.search(text)
    if on is None:
        return None
    workers = tuple(map(int, on[1].split(",")))
    weights = {dim: _weights(cuts[dim]) for dim in DIMS if dim in cuts}
    valid = all(min(by) > 0 for by in weights.values())
    if not valid or math.prod(map(len, weights.values())) != len(workers):
        return None
    return OpLayout(weights, workers)


def _runs(plan: PlanText) -> list[tuple[str, OpLayout]]:
    runs = groupby(plan.layouts.items(), key=lambda item: item[1])
    named = [([name for name, _ in items], layout) for layout, items in runs]
    return [(names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}", layout) for names, layout in named]


def _weights(by: str) -> tuple[int, ...]:
    if by.startswith("["):
        return tuple(map(int, by[1:-1].split(",")))
    return (1,) * int(by) or (0,)


def _tags(layout: OpLayout, workers: int) -> str:
    return "".join(f'<b class="{letter}">{letter}</b>' for letter in letters(layout, workers))


def _cell(layout: OpLayout, worker: int) -> str:
    part = layout.part(worker)
    if part is None:
        return "<td></td>"
    across, down = (0.0, 1.0), (0.0, 1.0)
    for dim, (_, (start, end)) in part.items():
        # Samples run from left to right, all other dims from top to bottom, one within the other.
        low, high = across if dim == "n" else down
        inner = (low + start * (high - low), low + end * (high - low))
        across, down = (inner, down) if dim == "n" else (across, inner)
    text = " ".join(_fraction(dim, i, layout.cuts[dim]) for dim, (i, _) in part.items()) or "all"
    css = LETTERS[next((dim for dim in part if dim != "n"), "n")] if part else "W"
    place = ";".join(f"--{name}:{_position(*span)}" for name, span in (("x", across), ("y", down)))
    extent = f"--w:{100 * (across[1] - across[0]):.4g}%;--h:{100 * (down[1] - down[0]):.4g}%"
    return f'<td class="part {css}" style="{place};{extent}">{text}</td>'


def _position(start: float, end: float) -> str:
    """Return the CSS position of a background from `start` to `end`: the share of the free space
    that lies before it."""
    free = 1 - (end - start)
    return "0" if free <= 1e-9 else f"{100 * start / free:.4g}%"


def _fraction(dim: str, i: int, weights: tuple[int, ...]) -> str:
    if len(set(weights)) == 1:
        return f"{dim} {i + 1}/{len(weights)}"
    return f"{dim} {100 * weights[i] / sum(weights):.3g} %"
