"""Measure all parameters of this machine's cluster description.

The time budget goes to messages (a fifth), loading (3 %) and ops (the rest); all-reduces, core
contention and the speeds of the workers come on top.
"""

from __future__ import annotations

import dataclasses

from parallel.calibration.compute_table import LOADING_SHARE, measure_compute
from parallel.calibration.contention import measure_core_contention
from parallel.calibration.links import Links, measure_all_reduce, measure_links
from parallel.calibration.loading import measure_loading
from parallel.calibration.op_times import OpTimer
from parallel.calibration.progress import expected_s
from parallel.calibration.samples import rounded
from parallel.calibration.setup import Setup
from parallel.calibration.speeds import changed_speeds, measure_speeds
from parallel.calibration.step_overhead import IsolatedStep, sum_of_parts_s
from parallel.cluster import Cluster, Measured
from parallel.cluster.machine import machine_of, memory_format
from parallel.config import require
from parallel.results.environment import memory_bytes
from parallel.runtime.execution.available_memory import available_memory

SLOWER = 1.2
"""Ratio of the sum of a step's parts to the step from which the times of ops are doubted: on a quiet
machine it was 0.99."""


def measure_cluster(setup: Setup) -> Cluster:
    """Measure what the earlier calibration lacks, and return the cluster.

    Every worker calls this at the same time.
    """
    config, world, known = setup.config, setup.world, setup.known
    channels_last = config.trainer.channels_last
    timer = OpTimer(setup.graph, world.device, setup.precision, channels_last, world.size)
    step = IsolatedStep(setup)
    step.run()  # the first one is slower: it allocates
    setup.progress.expect(expected_s(setup.options.budget_s, setup.slowest(step.run())))
    speeds = measure_speeds(setup, step)
    if known is not None:
        changed = changed_speeds(known.speeds, speeds, world.size)
        setup.progress.note(changed) if changed else None
        speeds = known.speeds
    setup = dataclasses.replace(setup, speeds=speeds)
    table, step_s = measure_compute(setup, timer, step)
    compute = Measured(table)
    if known is None:
        links = measure_links(setup, timer, compute)
        core_contention = measure_core_contention(setup, step)
    else:
        links = Links(known.inside, known.between, known.overlap_slowdown, known.sources)
        core_contention = known.core_contention
    all_reduce = None if known is None else known.all_reduce
    all_reduce = all_reduce or measure_all_reduce(setup, timer)
    parts_s = sum_of_parts_s(setup.graph, setup.local_batch, compute, setup.precision)
    setup.progress.note(
        f"a step of one worker with {setup.local_batch} samples takes {step_s:.4f} s, "
        f"the sum of its parts {parts_s:.4f} s"
    )
    if doubt := doubt_of_stored_times(step_s, parts_s):
        setup.progress.note(doubt)
    setup.progress.phase("loading")
    loading = measure_loading(setup, step.train, step.batch, LOADING_SHARE * setup.options.budget_s)
    setup.progress.note(loading.sentence)
    return Cluster(
        name="local",
        nodes=setup.nodes,
        workers_per_node=setup.workers_per_node,
        node_workers=world.node_workers if len(set(world.node_workers)) > 1 else (),
        speeds=speeds,
        inside=links.inside,
        between=links.between,
        memory_bytes=_memory_bytes(setup),
        compute=compute,
        step_overhead_s=rounded(max(0.0, step_s - parts_s)),
        overlap_slowdown=links.overlap_slowdown,
        core_contention=core_contention,
        shared_memory=any(world.gather(bool(world.neighbours))),
        all_reduce=all_reduce,
        data_s_per_image=rounded(loading.s_per_image),
        data_shared=False,
        data_overlaps=loading.overlaps,
        machine=machine_of(config.cluster, world.node_workers, memory_format(channels_last)),
        sources={**links.sources, **_sources(setup, bool(core_contention), all_reduce is not None)},
    )


def doubt_of_stored_times(step_s: float, parts_s: float) -> str:
    """Return a sentence if ops took much longer when they were measured than in a step now, or "".

    A step may take longer than its parts, which is its overhead, but hardly less.
    """
    if parts_s <= SLOWER * step_s:
        return ""
    return (
        f"warning: the parts of a step add up to {parts_s / step_s:.2f} × the step: the machine was busy or slower "
        "when their times were measured, perhaps by an earlier calibration; calibrate.fresh=true measures them anew"
    )


def _sources(setup: Setup, contention: bool, sums: bool) -> dict[str, str]:
    """Return the sources of all numbers except those of the links, by name."""
    model = setup.config.model
    sources = {
        "memory": "free memory, divided by the workers of a node",
        "step_overhead": f"measured: a step of {model.name} with {setup.local_batch} samples on every "
        "worker, less the sum of its parts",
        "data.per_image": f"measured: {setup.data.name} at {model.image_size} px, all workers at once",
    }
    if setup.speeds:
        sources["speeds"] = "measured: steps of the model on all workers at once; 5 % are even"
    if contention:
        sources["core_contention"] = "measured: steps of the model on 1, 2, … workers of a node at once"
    if sums:
        backend = setup.world.backend
        sources |= {
            "all_reduce.latency": f"measured: small all-reduces of {backend} among all workers",
            "all_reduce.bandwidth": f"measured: all-reduces of {backend} among all workers",
            "all_reduce.overlap_slowdown": "measured: a convolution during all-reduces",
        }
    return sources


def _memory_bytes(setup: Setup) -> int:
    """Return the smallest memory of a worker. Raises `ValueError` where it cannot be determined."""
    total = memory_bytes()
    own = available_memory(setup.world.device) or (total // len(setup.world.host.workers) if total else None)
    every = setup.world.gather(own)
    require(all(every), "memory", None, "of this machine can't be determined")
    return min(nbytes for nbytes in every if nbytes)
