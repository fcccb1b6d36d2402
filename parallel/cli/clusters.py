"""Clusters as commands name them: files of conf/cluster/ by name, or cluster files by path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from parallel.cli.compose import CONF, compose_config, quote
from parallel.config import Config, require


def shipped_clusters() -> list[str]:
    """Return the names in conf/cluster/ that describe hardware: all but `local`."""
    read = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in (CONF / "cluster").glob("*.yaml")
    }
    return sorted(name for name, values in read.items() if values.get("hardware"))


def configs_by_cluster(clusters: Sequence[str], overrides: Sequence[str]) -> dict[str, Config]:
    """Return the configuration that the overrides describe on each cluster, by the cluster's name.

    Raises `ValueError` for a cluster that does not exist, and for two of the same name.
    """
    configs = {}
    for cluster in clusters:
        file = cluster.endswith((".yaml", ".yml"))
        require(not file or Path(cluster).is_file(), "clusters", cluster, "is not a file")
        override = f"cluster.file={quote(cluster)}" if file else f"cluster={cluster}"
        configs[Path(cluster).stem if file else cluster] = compose_config([*overrides, override])
    require(len(configs) == len(clusters), "clusters", ",".join(clusters), "has the same name twice")
    return configs
