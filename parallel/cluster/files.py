"""Cluster files: YAML in which every number has a unit, and should have a source.

    name: pair
    nodes: 1
    workers_per_node: 2
    memory: {value: 16 GB, source: data sheet}
    inside:                       # `between` has the same form; null: one node
      shared: true
      latency: {value: 20 us, source: measured}
      bandwidth: {value: 12 GB/s, source: measured}
      # or by load: {points: {4 kB: 1 GB/s, 1 MB: 12 GB/s}, source: measured}
    compute:
      roofline:                   # or measured, as parallel.calibrate writes it
        peak: {fp32: {value: 9.3 TFLOP/s, source: data sheet}}
        efficiency: {Conv2d: {value: 45 %, source: estimate}}
        memory_bandwidth: {value: 732 GB/s, source: data sheet}
        op_overhead: {value: 5 us, source: estimate}
    step_overhead: {value: 1 ms, source: estimate}
    overlap_slowdown: {value: 5 %, source: estimate}
    core_contention: {workers: {1: 100 %, 2: 190 %}, source: measured}     # optional
    speeds: {workers: [100 %, 50 %], source: measured}     # optional: by worker, relative to compute
    shared_memory: true           # optional, default false
    all_reduce: {latency: 1 ms, bandwidth: {points: {1 MB: 1 GB/s}}, overlap_slowdown: 50 %}    # optional
    data: {per_image: {value: 3 ms/image, source: estimate}, shared: true, overlaps: true}

Where nodes have different numbers of workers, `workers_per_node` lists them: [2, 1].

The keys are the fields of `cluster.Cluster` and `roofline.Roofline`. A number that is missing,
negative or has no unit is rejected with its name, its value and the rule.
`read_cluster(write_cluster(c)) == c`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from parallel.cluster.cluster import AllReduce, Cluster, Compute, Link
from parallel.cluster.fields import Fields, written
from parallel.cluster.measured import Measured
from parallel.cluster.roofline import Roofline
from parallel.cluster.table import read_table, write_table
from parallel.cluster.units import quantity, text
from parallel.config import require
from parallel.config.checks import shortened
from parallel.config.documents import from_yaml

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""PyYAML's dumper in C where available: a calibrated file has thousands of lines."""


def read_cluster(text_form: str) -> Cluster:
    """Return the cluster in the text of a cluster file or of a file in conf/cluster/."""
    try:
        data = from_yaml(text_form)
    except ValueError as error:
        raise ValueError(f"the cluster is {error}") from None
    if not isinstance(data, Mapping):
        raise ValueError("the cluster file must be a mapping with the keys name, nodes, inside, compute …")
    hardware = data.get("hardware")
    return cluster_of(hardware if isinstance(hardware, Mapping) else data)


def cluster_of(source: Mapping[str, Any]) -> Cluster:
    """Return the cluster in a mapping. `ValueError` names cluster, field, value and rule."""
    top = Fields(source, "")
    require(
        "crowding" not in source,
        "crowding",
        source.get("crowding"),
        "is now called core_contention: in a calibrated file, run parallel.calibrate again with "
        "calibrate.fresh=true; elsewhere, rename the key",
    )
    top.known(
        "name",
        "nodes",
        "workers_per_node",
        "memory",
        "inside",
        "between",
        "compute",
        "step_overhead",
        "overlap_slowdown",
        "core_contention",
        "speeds",
        "shared_memory",
        "all_reduce",
        "data",
        "machine",
    )
    require(isinstance(source.get("name"), str), top.name("name"), source.get("name"), "must be a word")
    data = top.inner("data")
    data.known("per_image", "shared", "overlaps")
    machine = top.inner("machine").data if source.get("machine") is not None else {}
    try:
        return Cluster(
            name=source["name"],
            nodes=top.count("nodes"),
            **_read_node_workers(top),
            memory_bytes=round(top.number("memory", "size")),
            inside=_read_link(top.inner("inside")),
            between=None if source.get("between") is None else _read_link(top.inner("between")),
            compute=_read_compute(top.inner("compute")),
            step_overhead_s=top.number("step_overhead", "time"),
            overlap_slowdown=top.number("overlap_slowdown", "share"),
            core_contention=_read_core_contention(top) if "core_contention" in source else (),
            speeds=_read_speeds(top) if "speeds" in source else (),
            shared_memory="shared_memory" in source and top.flag("shared_memory"),
            all_reduce=None
            if source.get("all_reduce") is None
            else _read_all_reduce(top.inner("all_reduce")),
            data_s_per_image=data.number("per_image", "time per image"),
            data_shared=data.flag("shared"),
            data_overlaps=data.flag("overlaps"),
            machine={str(key): str(value) for key, value in machine.items()},
            sources=top.sources,
        )
    except ValueError as error:
        raise ValueError(f"cluster {shortened(source['name'])}: {error}") from error


def write_cluster(cluster: Cluster) -> str:
    """Return the cluster as YAML."""
    s = cluster.sources
    data = {
        "name": cluster.name,
        "nodes": cluster.nodes,
        "workers_per_node": list(cluster.node_workers) or cluster.workers_per_node,
        "memory": written(cluster.memory_bytes, "size", "memory", s),
        "inside": _write_link(cluster.inside, "inside", s),
        "between": None if cluster.between is None else _write_link(cluster.between, "between", s),
        "step_overhead": written(cluster.step_overhead_s, "time", "step_overhead", s),
        "overlap_slowdown": written(cluster.overlap_slowdown, "share", "overlap_slowdown", s),
        **({"core_contention": _write_core_contention(cluster)} if cluster.core_contention else {}),
        **({"speeds": _write_speeds(cluster)} if cluster.speeds else {}),
        **({"shared_memory": True} if cluster.shared_memory else {}),
        **({} if cluster.all_reduce is None else {"all_reduce": _write_all_reduce(cluster.all_reduce, s)}),
        "data": {
            "per_image": written(cluster.data_s_per_image, "time per image", "data.per_image", s),
            "shared": cluster.data_shared,
            "overlaps": cluster.data_overlaps,
        },
        **({"machine": dict(cluster.machine)} if cluster.machine else {}),
        "compute": _write_compute(cluster.compute, s),
    }
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def _read_node_workers(top: Fields) -> dict[str, Any]:
    """Return the fields of `Cluster` that say how many workers each node has."""
    counts = top.data.get("workers_per_node")
    if not isinstance(counts, list):
        return {"workers_per_node": top.count("workers_per_node")}
    listed = Fields({f"[{i}]": count for i, count in enumerate(counts)}, top.name("workers_per_node"))
    node_workers = tuple(listed.count(key) for key in listed.data)
    require(len(node_workers) > 0, top.name("workers_per_node"), counts, "must list the workers of each node")
    return {"workers_per_node": max(node_workers), "node_workers": node_workers}


def _read_speeds(top: Fields) -> tuple[float, ...]:
    fields = top.inner("speeds")
    fields.known("workers", "source")
    top.source("speeds", fields.data)
    shares = fields.data.get("workers")
    if not isinstance(shares, list):
        raise ValueError(
            f"{fields.name('workers')}={shortened(str(shares))} must list a share for each worker"
        )
    return tuple(quantity(share, "share", fields.name(f"workers[{i}]")) for i, share in enumerate(shares))


def _write_speeds(cluster: Cluster) -> dict[str, Any]:
    shares = [text(speed, "share") for speed in cluster.speeds]
    source = cluster.sources.get("speeds")
    return {"workers": shares} if source is None else {"workers": shares, "source": source}


def _read_core_contention(top: Fields) -> tuple[float, ...]:
    fields = top.inner("core_contention")
    fields.known("workers", "source")
    top.source("core_contention", fields.data)
    shares = fields.inner("workers")
    counts = [str(key) for key in shares.data]
    require(
        counts == [str(i + 1) for i in range(len(counts))], shares.where, counts, "must be counts from 1 on"
    )
    return tuple(quantity(value, "share", shares.name(str(key))) for key, value in shares.data.items())


def _write_core_contention(cluster: Cluster) -> dict[str, Any]:
    shares = {i: text(share, "share") for i, share in enumerate(cluster.core_contention, start=1)}
    source = cluster.sources.get("core_contention")
    return {"workers": shares} if source is None else {"workers": shares, "source": source}


def _read_link(fields: Fields) -> Link:
    fields.known("shared", "latency", "bandwidth")
    return _link_of(fields, fields.flag("shared"))


def _link_of(fields: Fields, shared: bool) -> Link:
    entry = fields.data.get("bandwidth")
    if isinstance(entry, Mapping) and "points" in entry:
        inner = fields.inner("bandwidth")
        inner.known("points", "source")
        fields.source("bandwidth", entry)
        points = tuple(
            (
                quantity(size, "size", fields.name("bandwidth")),
                quantity(speed, "bandwidth", f"{fields.name('bandwidth')}.points.{size}"),
            )
            for size, speed in inner.inner("points").data.items()
        )
    else:
        points = ((1.0, fields.number("bandwidth", "bandwidth")),)
    try:
        return Link(latency_s=fields.number("latency", "time"), bandwidth=points, shared=shared)
    except ValueError as error:
        text_of = str(error)
        raise ValueError(
            text_of if text_of.startswith(fields.where) else f"{fields.where}.{text_of}"
        ) from error


def _write_link(link: Link, name: str, sources: Mapping[str, str]) -> dict[str, Any]:
    return {"shared": link.shared, **_write_times(link, name, sources)}


def _write_times(link: Link, name: str, sources: Mapping[str, str]) -> dict[str, Any]:
    where = f"{name}.bandwidth"
    if link.bandwidth[0][0] == 1.0 and len(link.bandwidth) == 1:
        bandwidth = written(link.bandwidth[0][1], "bandwidth", where, sources)
    else:
        bandwidth = {
            "points": {text(size, "size"): text(speed, "bandwidth") for size, speed in link.bandwidth}
        }
        bandwidth |= {"source": sources[where]} if where in sources else {}
    return {"latency": written(link.latency_s, "time", f"{name}.latency", sources), "bandwidth": bandwidth}


def _read_all_reduce(fields: Fields) -> AllReduce:
    fields.known("latency", "bandwidth", "overlap_slowdown")
    return AllReduce(_link_of(fields, shared=False), fields.number("overlap_slowdown", "share"))


def _write_all_reduce(all_reduce: AllReduce, sources: Mapping[str, str]) -> dict[str, Any]:
    name = "all_reduce.overlap_slowdown"
    return {
        **_write_times(all_reduce.link, "all_reduce", sources),
        "overlap_slowdown": written(all_reduce.overlap_slowdown, "share", name, sources),
    }


def _read_compute(fields: Fields) -> Compute:
    fields.known("roofline", "measured")
    require(
        len(fields.data) == 1, fields.where, list(fields.data), "must have one of the keys roofline, measured"
    )
    if "measured" in fields.data:
        return Measured(read_table(fields.inner("measured")))
    inner = fields.inner("roofline")
    inner.known("peak", "efficiency", "memory_bandwidth", "op_overhead")
    peak, efficiency = inner.inner("peak"), inner.inner("efficiency")
    return Roofline(
        peak={key: peak.number(key, "speed") for key in peak.data},
        efficiency={key: efficiency.number(key, "share") for key in efficiency.data},
        memory_bandwidth=inner.number("memory_bandwidth", "bandwidth"),
        op_overhead_s=inner.number("op_overhead", "time"),
    )


def _write_compute(compute: Compute, sources: Mapping[str, str]) -> dict[str, Any]:
    if isinstance(compute, Measured):
        return {"measured": write_table(compute.table)}
    if not isinstance(compute, Roofline):
        raise TypeError(f"compute={type(compute).__name__} has no form in a cluster file")
    where = "compute.roofline"
    return {
        "roofline": {
            "peak": {
                key: written(value, "speed", f"{where}.peak.{key}", sources)
                for key, value in compute.peak.items()
            },
            "efficiency": {
                key: written(value, "share", f"{where}.efficiency.{key}", sources)
                for key, value in compute.efficiency.items()
            },
            "memory_bandwidth": written(
                compute.memory_bandwidth, "bandwidth", f"{where}.memory_bandwidth", sources
            ),
            "op_overhead": written(compute.op_overhead_s, "time", f"{where}.op_overhead", sources),
        }
    }
