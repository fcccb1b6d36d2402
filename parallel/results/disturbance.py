"""What makes a run less than it seems: times that others disturbed, and trainings that did not learn."""

from __future__ import annotations

import math

from parallel.results.formatting import count, percent
from parallel.results.records import Record

FEW_PROCESSES = 0.2
"""Cores' worth of other processes that every machine runs: system services, the run's launcher."""
LITTLE_STEAL = 0.02
"""Fraction of stolen CPU time that is less than the differences that comparisons are to find."""


def noise(record: Record) -> str:
    """Return what disturbed a run, as a predicate ("ran while …"); empty if nothing is known to.

    Other processes disturb a run if they and its threads need more cores than there are.
    """
    load = record.load
    if load is None:
        return ""
    found = []
    others = load.processes or 0.0
    if others > FEW_PROCESSES and any(threads + others > cores for threads, cores in _hosts(record)):
        found.append(f"other processes used {others:.1f} of its cores")
    if (load.steal or 0.0) > LITTLE_STEAL:
        found.append(f"the hypervisor took {percent(load.steal, 0)} of its cores' time")
    return f"ran while {' and '.join(found)}" if found else ""


def too_few_cores(record: Record) -> str:
    """Return a predicate about a run that has more threads than a host has cores; else empty."""
    for threads, cores in _hosts(record):
        if threads > cores:
            return f"has {count(threads, 'thread')} on {count(cores, 'core')}"
    return ""


def not_trained(record: Record) -> str:
    """Return why a run has not learned anything, as a predicate; empty if it has, or nothing is known.

    The loss of a network that knows nothing is ln(classes) at best. A run has learned if the loss
    after its last epoch, or during it, is lower.
    """
    if record.weights_changed is False:
        return "did not train: its weights are those of the start"
    last = record.epochs[-1]
    losses = [loss for loss in (last.train_loss, last.val_loss) if loss is not None]
    classes = record.workload.num_classes
    if not losses or classes is None:
        return ""
    chance = math.log(classes)
    if any(loss < chance for loss in losses):
        return ""
    if not any(map(math.isfinite, losses)):
        return f"diverged: its loss is {losses[0]}"
    lowest = min(loss for loss in losses if math.isfinite(loss))
    return f"did not learn: its loss of {lowest:.2f} is not below chance, ln({classes}) = {chance:.2f}"


def _hosts(record: Record) -> list[tuple[int, int]]:
    """Return the threads of all workers, and the cores, of each host of which both are known.

    GPUs do the work of workers that have them, which only keep one core busy each.
    """
    cpu = record.device == "cpu"
    parts = [(len(host.workers), host.threads, host.cores) for host in record.hosts]
    if not parts:
        parts = [(record.workers, record.threads, record.environment.get("cpu_count"))]
    return [
        (workers * (threads if cpu else 1), cores)
        for workers, threads, cores in parts
        if threads is not None and isinstance(cores, int)
    ]
