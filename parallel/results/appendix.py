"""Every epoch of measured runs beside the published ones of the same experiment.

A record without a start comes from a publication (`scripts/import_epoch_times.py`). It belongs to the
measured runs of its model on its data set; `tiny_imagenet (digits)`, where other images stand in,
belongs to `tiny_imagenet`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from parallel.results.comparison import Comparison, describe
from parallel.results.formatting import seconds
from parallel.results.predicted import Predicted
from parallel.results.result import Result

EPOCH, PUBLISHED, MEASURED = "epoch", "published", "measured"


@dataclass(frozen=True)
class Appendix:
    """The results of one measured workload, and the published ones of its data set."""

    published: Comparison
    measured: Comparison

    @property
    def title(self) -> str:
        """The measured workload."""
        return describe(self.measured.workload)

    @property
    def about(self) -> str:
        """Both kinds of hardware, and the source of the published times."""
        source = self.published.results[0].records[0].command
        return f"measured on {self.measured.hardware}; published: {source}"

    @property
    def notes(self) -> list[str]:
        """What a reader must know to compare the two."""
        found = []
        stands_in = self.measured.workload.data != self.published.workload.data
        if stands_in:
            found.append(
                f"the images are not those of {self.published.workload.data}: {self.measured.workload.data}"
            )
        clusters = sorted({p.cluster for result in self.published.results for p in _predictions(result)})
        if clusters:
            found.append(f"predicted below published: on {', '.join(clusters)}")
        if any(_predictions(result) for result in self.measured.results):
            found.append("predicted below measured: on the machine of the run")
        return found

    @property
    def strategies(self) -> dict[str, list[tuple[str, Result]]]:
        """By strategy its columns, each a name and a result: the published times, then the measured
        ones."""
        found: dict[str, list[tuple[str, Result]]] = {}
        for result in self.published.results:
            found.setdefault(result.key.strategy, []).append((PUBLISHED, result))
        for result in self.measured.results:
            if result.role != "machine":
                found.setdefault(result.key.strategy, []).append(
                    (f"{MEASURED} {result.scheme}".strip(), result)
                )
        return found

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the names of the columns of all strategies, and the rows: each epoch, then mean,
        median, speedup and prediction."""
        columns = [column for of in self.strategies.values() for column in of]
        results = [result for _, result in columns]
        times = [epoch_seconds(result) for result in results]
        last = max(max(of, default=0) for of in times)
        rows = [
            [str(epoch), *(seconds(of[epoch]) if epoch in of else "-" for of in times)]
            for epoch in range(1, last + 1)
        ]
        rows += [
            ["mean", *(seconds(result.epoch_s.mean) for result in results)],
            ["median", *(seconds(result.epoch_s.median) for result in results)],
            ["speedup", *(f"{r.speedup.ratio:.2f}×" if r.speedup else "-" for r in results)],
        ]
        predicted = [_predictions(result) for result in results]
        if any(predicted):
            means = [seconds(fmean(p.epoch_s for p in of)) if of else "-" for of in predicted]
            rows.append(["predicted", *means])
        return [EPOCH, *(name for name, _ in columns)], rows


def appendices(comparisons: Iterable[Comparison]) -> list[Appendix]:
    """Return an appendix for every measured workload of which there are published times."""
    comparisons = tuple(comparisons)
    published = [comparison for comparison in comparisons if _is_published(comparison)]
    return [
        Appendix(theirs, ours)
        for ours in comparisons
        if not _is_published(ours)
        for theirs in published
        if ours.workload.model == theirs.workload.model and data_set(ours) == data_set(theirs)
    ]


def data_set(comparison: Comparison) -> str:
    """Return the data set without what stands in for its images."""
    return comparison.workload.data.partition(" (")[0]


def epoch_seconds(result: Result) -> dict[int, float]:
    """Return the seconds of each timed epoch by its number, as means over the pooled runs."""
    found: dict[int, list[float]] = {}
    for epoch in (e for record in result.records for e in record.epochs if e.timed):
        found.setdefault(epoch.epoch, []).append(epoch.seconds)
    return {number: fmean(of) for number, of in sorted(found.items())}


def _is_published(comparison: Comparison) -> bool:
    return all(record.started is None for result in comparison.results for record in result.records)


def _predictions(result: Result) -> list[Predicted]:
    return [record.predicted for record in result.records if record.predicted is not None]
