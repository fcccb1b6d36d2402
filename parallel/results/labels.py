"""What a result is called where configurations are alike: schemes, settings, networks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from statistics import median
from typing import Any

from parallel.results.formatting import rate
from parallel.results.result import Key
from parallel.results.settings import Settings, varying

OTHER_NETWORK = 1.25
"""Ratio of measured bandwidths from which two networks are different."""


def network_names(bandwidths: Iterable[float]) -> dict[float, str]:
    """Return a name for each measured bandwidth, the same for those of one network.

    Measurements of one network differ a little: a new one begins at a gap of `OTHER_NETWORK`.
    """
    networks: list[list[float]] = []
    for bandwidth in sorted(bandwidths):
        if networks and bandwidth < OTHER_NETWORK * networks[-1][-1]:
            networks[-1].append(bandwidth)
        else:
            networks.append([bandwidth])
    return {bandwidth: rate(median(network)) for network in networks for bandwidth in network}


def shown_settings(settings: Settings, names: Mapping[str, str]) -> Settings:
    """Return the settings that have a short name, with it."""
    return tuple((names[name], value) for name, value in settings if name in names)


def schemes_of(keys: Iterable[Key], names: Mapping[str, str]) -> dict[Key, str]:
    """Return the label of each configuration, without its strategy and settings."""
    schemes = {key: key.label.removeprefix(key.strategy).strip() for key in keys}
    shown = {
        key: (
            key.label,
            key.workers,
            key.threads,
            key.hosts,
            key.network,
            shown_settings(key.settings, names),
        )
        for key in schemes
    }
    times = Counter(shown.values())
    return {
        key: f"{scheme} plan {key.plan}".strip()
        if times[shown[key]] > 1 and key.plan and key.plan not in scheme
        else scheme
        for key, scheme in schemes.items()
    }


def telling_settings(keys: Collection[Key], names: Mapping[str, str]) -> dict[Key, Settings]:
    """Return the settings that tell each result from others with its label, workers and threads."""
    alike: dict[tuple[Any, ...], list[Settings]] = defaultdict(list)
    for key in keys:
        alike[key.label, key.workers, key.threads].append(key.settings)
    differ = {group: set(varying(settings)) for group, settings in alike.items()}
    return {
        key: shown_settings(
            key.settings, {n: s for n, s in names.items() if n in differ[key.label, key.workers, key.threads]}
        )
        for key in keys
    }
