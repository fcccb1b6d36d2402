"""Measure all parameters of this machine's cluster description.

The time budget goes to messages (a fifth), loading (3 %) and ops (the rest); core contention comes
on top.
"""

from __future__ import annotations

from parallel.calibration.compute_table import LOADING_SHARE, measure_compute, memory_format
from parallel.calibration.contention import measure_core_contention
from parallel.calibration.links import Links, measure_links
from parallel.calibration.op_times import OpTimer
from parallel.calibration.samples import rounded
from parallel.calibration.setup import Setup
from parallel.calibration.step_overhead import IsolatedStep, loading_s_per_image, sum_of_parts_s
from parallel.cluster import Cluster, Measured
from parallel.cluster.machine import machine_of
from parallel.config import require
from parallel.results.environment import memory_bytes
from parallel.runtime.execution.available_memory import available_memory


def measure_cluster(setup: Setup) -> Cluster:
    """Measure what the earlier calibration lacks, and return the cluster.

    Every worker calls this at the same time.
    """
    config, world, known = setup.config, setup.world, setup.known
    channels_last = config.trainer.channels_last
    timer = OpTimer(setup.graph, world.device, setup.precision, channels_last, world.size)
    step = IsolatedStep(setup)
    table, step_s = measure_compute(setup, timer, step)
    compute = Measured(table)
    if known is None:
        links = measure_links(setup, timer, compute)
        core_contention = measure_core_contention(setup, step)
    else:
        links = Links(known.inside, known.between, known.overlap_slowdown, known.sources)
        core_contention = known.core_contention
    parts_s = sum_of_parts_s(setup.graph, setup.local_batch, compute, setup.precision)
    setup.progress.note(
        f"a step of one worker with {setup.local_batch} samples takes {step_s:.4f} s, "
        f"the sum of its parts {parts_s:.4f} s"
    )
    setup.progress.phase("loading")
    loading_s = loading_s_per_image(setup, LOADING_SHARE * setup.options.budget_s)
    return Cluster(
        name="local",
        nodes=setup.nodes,
        workers_per_node=setup.workers_per_node,
        inside=links.inside,
        between=links.between,
        memory_bytes=_memory_bytes(setup),
        compute=compute,
        step_overhead_s=rounded(max(0.0, step_s - parts_s)),
        overlap_slowdown=links.overlap_slowdown,
        core_contention=core_contention,
        shared_memory=bool(world.neighbours),
        data_s_per_image=rounded(loading_s),
        data_shared=False,
        data_overlaps=world.device.type == "cuda",
        machine=machine_of(config.cluster, world.size, setup.nodes, memory_format(channels_last)),
        sources={**links.sources, **_sources(setup, bool(core_contention))},
    )


def _sources(setup: Setup, contention: bool) -> dict[str, str]:
    """Return the sources of all numbers except those of the links, by name."""
    model = setup.config.model
    sources = {
        "memory": "free memory, divided by the workers of a node",
        "step_overhead": f"measured: a step of {model.name} with {setup.local_batch} samples on every "
        "worker, less the sum of its parts",
        "data.per_image": f"measured: {setup.data.name} at {model.image_size} px, all workers at once",
    }
    if contention:
        sources["core_contention"] = "measured: steps of the model on 1, 2, … workers of a node at once"
    return sources


def _memory_bytes(setup: Setup) -> int:
    """Return the smallest memory of a worker. Raises `ValueError` where it cannot be determined."""
    total = memory_bytes()
    own = available_memory(setup.world.device) or (total // setup.workers_per_node if total else None)
    every = setup.world.gather(own)
    require(all(every), "memory", None, "of this machine can't be determined")
    return min(nbytes for nbytes in every if nbytes)
