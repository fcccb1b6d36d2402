"""The results of a calibration as text: links and overheads, and the accuracy of the regression."""

from __future__ import annotations

from collections.abc import Sequence

from parallel.calibration.speeds import speeds_text
from parallel.cluster import Cluster, Link
from parallel.cluster.regression import Accuracy
from parallel.cluster.units import text

ACCURACY_COLUMNS = ("op", "times", "median", "mean", "largest", "of the time")


def cluster_lines(cluster: Cluster) -> list[str]:
    """Return lines with all numbers of the cluster except the times of ops."""
    lines = [
        f"{name}: {link_line(link)}"
        for name, link in (("inside", cluster.inside), ("between", cluster.between))
        if link is not None
    ]
    lines.append(
        f"messages slow computing down by {cluster.overlap_slowdown:.0%} of their time; "
        f"step overhead {text(cluster.step_overhead_s, 'time')}; "
        f"loading {text(cluster.data_s_per_image, 'time')} per image"
    )
    if cluster.all_reduce is not None:
        lines.append(
            f"all-reduce of the backend: {times_text(cluster.all_reduce.link)}; slows computing down by "
            f"{cluster.all_reduce.overlap_slowdown:.0%} of its time"
        )
    if cluster.core_contention:
        factors = ", ".join(f"{share:.0%}" for share in cluster.core_contention)
        lines.append(
            f"core contention: while 1, 2, … workers of a node compute, ops take {factors} of their time"
        )
    if cluster.node_workers:
        lines.append(f"nodes with {' + '.join(map(str, cluster.node_workers))} workers")
    if cluster.speeds:
        lines.append(f"speeds of the workers: {speeds_text(cluster.speeds)}")
    return lines


def link_line(link: Link) -> str:
    """Return a link's latency, its sharing and the times of three message sizes."""
    sharing = "shared by the workers of a node" if link.shared else "for each worker"
    return f"latency {link.latency_s * 1e6:.0f} us, {sharing}; {times_text(link)}"


def times_text(link: Link) -> str:
    """Return the times of three message sizes."""
    return ", ".join(
        f"{link.seconds(size) * 1e3:.3g} ms for {text(size, 'size')}" for size in (4e3, 1e6, 1e8)
    )


def accuracy_rows(rows: Sequence[Accuracy]) -> list[list[str]]:
    """Return rows under `ACCURACY_COLUMNS`: cross-validated relative errors by kind of op."""
    return [
        [
            row.kind,
            str(row.samples),
            *(f"{value:.1%}" for value in (row.median, row.mean, row.largest, row.of_time)),
        ]
        for row in rows
    ]
