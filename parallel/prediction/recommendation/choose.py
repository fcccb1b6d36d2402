"""Choose among the predicted options of each cluster.

Workers of different clusters are not comparable, so each cluster has its own recommendation.

    with a target epoch time   enough     fewest workers within the target; of these the fastest
                               closest    shortest epoch, if no option reaches the target
    without a target           fastest    shortest epoch
                               cheapest   smallest workers · seconds of an epoch

Epochs that differ by less than `TIE` count as equal, since predictions are not that exact. Ties go
to fewer workers, then to the option listed first: named plans come before searched ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parallel.prediction.recommendation.options import Option

TIE = 0.01
"""Relative difference of epoch times. Predictions are off by 3 to 5 % (docs/predictions.md)."""


@dataclass(frozen=True, eq=False)
class Choice:
    """A recommended option."""

    option: Option
    mark: str
    """enough, closest, fastest or cheapest."""


def choose(found: Sequence[Option], target_s: float | None) -> list[Choice]:
    """Return the recommendations for each cluster; none for a cluster without a possible option."""
    choices = []
    for cluster in dict.fromkeys(option.cluster for option in found):
        possible = [option for option in found if option.cluster == cluster and option.possible]
        if not possible:
            continue
        if target_s is None:
            choices += [Choice(_fastest(possible), "fastest"), Choice(_cheapest(possible), "cheapest")]
            continue
        reaching = [option for option in possible if option.epoch_s <= target_s]
        fewest = min((option.workers for option in reaching), default=0)
        choices.append(
            Choice(_fastest([option for option in reaching if option.workers == fewest]), "enough")
            if reaching
            else Choice(_fastest(possible), "closest")
        )
    return choices


def best_of_each(found: Sequence[Option]) -> list[Option]:
    """Return the fastest possible option for each cluster, number of workers and batch."""
    groups: dict[tuple[str, int, int], list[Option]] = {}
    for option in found:
        if option.possible:
            groups.setdefault((option.cluster, option.workers, option.batch_size), []).append(option)
    return [_fastest(group) for group in groups.values()]


def _fastest(possible: Sequence[Option]) -> Option:
    return _least(possible, lambda option: option.epoch_s)


def _cheapest(possible: Sequence[Option]) -> Option:
    return _least(possible, lambda option: option.workers * option.epoch_s)


def _least(possible: Sequence[Option], cost: Callable[[Option], float]) -> Option:
    """Return the option with the fewest workers among those whose cost ties with the least."""
    least = min(map(cost, possible))
    return min(
        (option for option in possible if cost(option) <= least * (1 + TIE)),
        key=lambda option: option.workers,
    )
