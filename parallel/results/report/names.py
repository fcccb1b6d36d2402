"""Names of results in plots and lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from parallel.results.result import Key, Result, workers_and_threads


def names_of(results: Sequence[Result]) -> dict[Key, str]:
    """Return the label of each result; those that share one have their workers, too."""
    labels = Counter(result.label for result in results)
    return {
        result.key: result.label
        if labels[result.label] == 1
        else f"{result.label}, {workers_and_threads(result)}"
        for result in results
    }
