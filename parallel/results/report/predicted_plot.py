"""Measured epoch times beside the predictions that the runs made of themselves."""

from __future__ import annotations

from collections.abc import Sequence

from parallel.results.formatting import seconds
from parallel.results.report.lanes import HEIGHT, Lane, block, lanes, upright
from parallel.results.report.svg import Scale, titled
from parallel.results.result import Result


def predicted_bars(results: Sequence[Result]) -> str:
    """Return bars of the measured median epoch of results that predicted themselves, with a line at the
    prediction and a band of its interval."""
    shown = [(result, check) for result in results if (check := result.predicted) is not None]
    of = {result.key: check for result, check in shown}
    x = Scale(0.0, 1.03 * max(max(c.measured_s, c.predicted_s * (1 + c.error)) for _, c in shown), 0, 100)

    def draw(result: Result) -> Lane:
        check = of[result.key]
        predicted, error = check.predicted_s, check.error
        measured = titled(f"{result.label}: measured {seconds(check.measured_s)} s")
        band = titled(f"within {error:.0%} of the prediction")
        marks = (
            block(x, 0, check.measured_s, "bar", measured),
            block(x, max(0.0, predicted * (1 - error)), predicted * (1 + error), "band", band, height=30),
            upright(x, predicted, HEIGHT / 2, "ink", titled(f"predicted {seconds(predicted)} s")),
        )
        outside = " !" if check.outside else ""
        return Lane("".join(marks), f"{check.ratio:.2f}×{outside}", f"predicted {seconds(predicted)} s")

    return lanes([result for result, _ in shown], x, " s", draw, "Measured and predicted epoch time")
