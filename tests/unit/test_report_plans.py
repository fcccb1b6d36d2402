"""Plans are drawn from their text as the layouts that the text states."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from parallel.graph.box import Cut
from parallel.plans import Plan
from parallel.results.report.plan_grid import DIMS, grid, letters, parse
from tests.support.small_models import graph_of, plans


def weights(by: Cut) -> tuple[int, ...]:
    return by if isinstance(by, tuple) else (1,) * by


@settings(max_examples=60, deadline=None)
@given(plans(graph_of("towers")))
def test_any_plan_is_read_as_it_is(drawn: tuple[Plan, int]) -> None:
    plan, _ = drawn
    read = parse(str(plan))
    assert read is not None and read.workers == plan.workers and list(read.layouts) == list(plan.layouts)
    for name, layout in plan.layouts.items():
        found = read.layouts[name]
        cuts = {dim: weights(by) for dim, by in zip(DIMS, layout.cuts, strict=True) if by != 1}
        assert (found.cuts, found.on) == (cuts, layout.on)
        for worker in layout.on:
            part = found.part(worker)
            assert part is not None
            assert {dim: i for dim, (i, _) in part.items()} == {
                dim: layout.index(worker)[dim] for dim in cuts
            }


def test_parts_lie_where_the_layout_puts_them() -> None:
    plan = parse(
        "workers: 4\nmicro_batches: 2\nscheme: a\npipeline: 1f1b\nupdate: step\nops:\n"
        "  conv1: {n: 2, c: 2, on: [3, 2, 1, 0]}\n  fc6: {c: [3, 1], on: [0, 2]}\n  loss: {on: [1]}\n"
    )
    assert plan is not None and (plan.workers, plan.micro_batches) == (4, 2)
    conv = plan.layouts["conv1"]
    assert conv.part(2) == {"n": (0, (0.0, 0.5)), "c": (1, (0.5, 1.0))}, "parts are numbered row-major"
    assert plan.layouts["fc6"].part(2) == {"c": (1, (0.75, 1.0))} and plan.layouts["fc6"].part(1) is None
    assert [letters(layout, 4) for layout in plan.layouts.values()] == ["SP", "OP", "O"]
    drawn = grid(plan)
    assert "n 1/2 c 2/2" in drawn and "c 75 %" in drawn and drawn.count(">all</td>") == 1
    assert "--x:100%;--y:0%;--w:50%;--h:50%" in drawn, (
        "worker 1: second half of the samples, first of the channels"
    )


@pytest.mark.parametrize(
    "text",
    [
        "plan of single",
        "",
        "workers: 2\nops:\n  conv1: {n: 2, on: [0]}\n",
        "workers: 2\nops:\n  conv1: {n: 0, on: [0]}\n",
        "workers: 2\nops:\n  conv1: {n: [0, 1], on: [0, 1]}\n",
        "workers: 2\nops:\n  conv1: {n: 99999, on: [0, 1]}\n",
        f"workers: {'9' * 5000}\nops:\n  conv1: {{on: [0]}}\n",
        "workers: 2\nops:\n  conv1: {n: 2}\n",
        "ops:\n  conv1: {on: [0]}\n",
    ],
)
def test_other_texts_are_not_drawn(text: str) -> None:
    assert parse(text) is None


def test_names_of_ops_are_escaped_and_large_plans_cut() -> None:
    plan = parse("workers: 20\nops:\n  <script>: {n: 20, on: [" + ", ".join(map(str, range(20))) + "]}\n")
    assert plan is not None
    drawn = grid(plan)
    assert "&lt;script&gt;" in drawn and "<script>" not in drawn and "Not drawn: workers 16 to 19" in drawn
