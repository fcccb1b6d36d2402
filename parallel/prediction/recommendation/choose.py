"""The choice among what can be had, for each cluster by itself: workers of different clusters are not alike.

    with a time to reach     enough     the fewest workers whose epoch is that short; of these the fastest
    without                  fastest    the shortest epoch
                             cheapest   the least workers · seconds of an epoch
    if nothing reaches it    closest    the shortest epoch

Epochs that differ by less than `ALIKE` are equally short, for no prediction is that exact; then fewer workers win, then
what was named first: plans that have a name before those that were searched for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallel.prediction.recommendation.options import Option

ALIKE = 0.01


@dataclass(frozen=True, eq=False)
class Choice:
    """An option that is recommended."""

    option: Option
    mark: str
    """enough, fastest, cheapest or closest."""


def choose(found: Sequence[Option], target_s: float | None) -> list[Choice]:
    """What is recommended, cluster by cluster; nothing for a cluster on which nothing can be."""
    choices = []
    for cluster in dict.fromkeys(option.cluster for option in found):
        able = [option for option in found if option.cluster == cluster and option.possible]
        if not able:
            continue
        if target_s is None:
            choices += [Choice(_fastest(able), "fastest"), Choice(_cheapest(able), "cheapest")]
            continue
        reaching = [option for option in able if option.epoch_s <= target_s]
        fewest = min((option.workers for option in reaching), default=0)
        choices.append(Choice(_fastest([option for option in reaching if option.workers == fewest]), "enough")
                       if reaching else Choice(_fastest(able), "closest"))
    return choices


def best_of_each(found: Sequence[Option]) -> list[Option]:
    """The fastest option for each cluster, number of workers and batch that is possible at all."""
    groups: dict[tuple[str, int, int], list[Option]] = {}
    for option in found:
        if option.possible:
            groups.setdefault((option.cluster, option.workers, option.batch_size), []).append(option)
    return [_fastest(group) for group in groups.values()]


def _fastest(able: Sequence[Option]) -> Option:
    least = min(option.epoch_s for option in able)
    return min((option for option in able if option.epoch_s <= least * (1 + ALIKE)), key=lambda option: option.workers)


def _cheapest(able: Sequence[Option]) -> Option:
    least = min(option.workers * option.epoch_s for option in able)
    return min((option for option in able if option.workers * option.epoch_s <= least * (1 + ALIKE)),
               key=lambda option: option.workers)
