"""Section `speed`: `single` against torchvision's AlexNet in eager PyTorch, and against the roofline.

All engines of a workload live in one process and take turns in blocks of random order, so that changes
of clocks affect them alike. A block lasts until the device has finished. Ratios are of median step times
over the blocks, with 95 % bootstrap intervals. The batch lies on the device: loading is not part of it.
"""

from __future__ import annotations

import gc
import random
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gpu_sections import engines
from gpu_sections.machine import clocks_text
from gpu_sections.roofline import bound_s
from gpu_sections.section import Ending, Setting, markdown_row, table_head
from parallel.config import ClusterConfig
from parallel.results.statistics import Speedup, speedup, summarise
from parallel.runtime.communication.device_flags import DeviceFlags
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World

TARGET = 2.0
"""`single` in TF32, at its best, over eager PyTorch in TF32."""
MODES: Mapping[str, Mapping[str, Any]] = {
    "eager": {},
    "compiled": {"compile": True},
    "graphs": {"graphs": True},
}
"""Options of `single` by name. CPUs have no graphs."""
REFERENCE = "reference"
COLUMNS = ("engine", "ms a step [quartiles]", "images/s", "over eager", "of the roofline")


@dataclass(frozen=True)
class Workload:
    """Image side and batch size."""

    side: int
    batch: int


WORKLOADS = tuple(Workload(side, batch) for batch in (512, 128, 2048) for side in (224, 64))
TINY = (Workload(64, 4),)


@dataclass(frozen=True)
class Engine:
    """One engine of a workload."""

    name: str
    precision: str
    step: engines.Step


@dataclass(frozen=True)
class Blocks:
    """How long to measure."""

    count: int
    seconds: float
    """Of a block, approximately."""


def run(setting: Setting) -> Ending:
    """Measure all workloads for which there is time, the most telling first."""
    best, failed, took_s = dict[Workload, float](), list[str](), 0.0
    reference = engines.torchvision_alexnet(64)[1]
    setting.write(
        f"Reference: {reference}, eager, contiguous, SGD with PyTorch's defaults. Target: at its best, `single` "
        f"in TF32 is at least {TARGET:g} times as fast as the reference in TF32. The roofline is that of the "
        "GPU's data sheet with direct convolutions, every op by itself.",
        "",
    )
    with open_world(ClusterConfig(device=setting.device)) as world:
        for workload in TINY if setting.tiny else WORKLOADS:
            if setting.left_s < 1.5 * took_s:
                setting.write("No time is left for more workloads.")
                break
            begin = time.monotonic()
            ratio = _measure(setting, world, workload, failed)
            if ratio is not None:
                best[workload] = ratio
            if world.device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
            took_s = time.monotonic() - begin
    if failed:
        return Ending.FAILED
    if setting.tiny:
        return Ending.PASSED
    slower = [workload for workload in WORKLOADS if best.get(workload, 0.0) < TARGET]
    if slower:
        named = ", ".join(f"{workload.side} px batch {workload.batch}" for workload in slower)
        setting.write(f"The target was missed, or not measured, at {named}.", "")
    return Ending.MISSED if slower else Ending.PASSED


def _measure(setting: Setting, world: World, workload: Workload, failed: list[str]) -> float | None:
    """Measure a workload and write its table; return the best ratio over the reference in TF32.

    An engine that raises is named on the page, and the others are measured. `failed` gets its name,
    unless the GPU's memory does not suffice for it.
    """
    first, *_ = precisions = engines.precisions(world.device)
    batch = engines.device_batch(workload.batch, workload.side, world.device)
    setting.write(f"### {workload.side} px, batch {workload.batch}", "")
    made = list[Engine]()
    for precision in precisions:
        for name, make in _makers(world, workload, batch, precision).items():
            try:
                made.append(_started(name, precision, make))
            except Exception as error:
                traceback.print_exc()
                setting.write(
                    f"Not measured: {name} {precision}: {type(error).__name__}: {first_line(error)}", ""
                )
                if not is_out_of_memory(error):
                    failed.append(name)
    plan = Blocks(2, 0.0) if setting.tiny else Blocks(12, 0.2)
    seconds = _blocks(made, world.device, plan)
    clocks = clocks_text(world.device)
    gpu = torch.cuda.get_device_name() if world.device.type == "cuda" else ""
    graph = engines.graph_of(workload.side)
    bounds = {precision: bound_s(gpu, graph, workload.batch, precision) for precision in precisions}
    setting.write(*table_head(COLUMNS))
    ratios = list[float]()
    for engine in made:
        times, base = seconds[engine.name, engine.precision], seconds.get((REFERENCE, engine.precision))
        ratio = None if base is None else speedup(base, times)
        setting.write(_row(engine, workload.batch, times, ratio, bounds[engine.precision]))
        if ratio is not None and engine.precision == first and engine.name != REFERENCE:
            ratios.append(ratio.ratio)
    setting.write("", *clocks)
    return max(ratios, default=None)


def _row(engine: Engine, batch: int, times: list[float], ratio: Speedup | None, bound: float | None) -> str:
    """Return a row of the table."""
    summary = summarise(times)
    quartiles = f"[{1000 * summary.first_quartile:.3g}, {1000 * summary.third_quartile:.3g}]"
    return markdown_row(
        (
            f"{engine.name} {engine.precision}",
            f"{1000 * summary.median:.3g} {quartiles}",
            f"{batch / summary.median:,.0f}",
            "-" if ratio is None else str(ratio),
            "-" if bound is None else f"{bound / summary.median:.0%}",
        )
    )


def _makers(
    world: World, workload: Workload, batch: tuple[torch.Tensor, torch.Tensor], precision: str
) -> dict[str, Callable[[], engines.Step]]:
    """Return what makes each engine, by name."""

    def reference() -> engines.Step:
        model, _ = engines.torchvision_alexnet(workload.side)
        return engines.eager(model, *batch, precision)

    def ours(options: Mapping[str, Any]) -> Callable[[], engines.Step]:
        return lambda: engines.single(world, workload.side, *batch, precision, **options)

    modes = {
        f"single {mode}": ours(options)
        for mode, options in MODES.items()
        if mode != "graphs" or world.device.type == "cuda"
    }
    return {REFERENCE: reference, **modes}


def flags_of(name: str, precision: str) -> DeviceFlags:
    """Return torch's switches for an engine: for the reference PyTorch's default, by which cuDNN times no
    algorithms."""
    return DeviceFlags(DeviceFlags.of(precision).tf32, benchmark=name != REFERENCE)


def _started(name: str, precision: str, make: Callable[[], engines.Step]) -> Engine:
    """Return an engine after its first steps."""
    flags_of(name, precision).set()
    step = make()
    for _ in range(3):
        step()
    return Engine(name, precision, step)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, says that the GPU's memory does not suffice."""
    while error is not None:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return True
        error = error.__cause__
    return False


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return next(iter(str(error).splitlines()), "")


def _blocks(made: list[Engine], device: torch.device, plan: Blocks) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of a step in each block, by engine. The first block of each sets the number of steps."""
    order, found = random.Random(0), dict[tuple[str, str], list[float]]()
    steps = {id(engine): max(1, round(plan.seconds / _timed(engine, 2, device))) for engine in made}
    for _ in range(plan.count):
        for engine in order.sample(made, len(made)):
            seconds = _timed(engine, steps[id(engine)], device)
            found.setdefault((engine.name, engine.precision), []).append(seconds)
    return found


def _timed(engine: Engine, steps: int, device: torch.device) -> float:
    """Return the seconds of a step, with the device idle before and after the block."""
    flags_of(engine.name, engine.precision).set()
    _synchronise(device)
    begin = time.perf_counter()
    for _ in range(steps):
        engine.step()
    _synchronise(device)
    return (time.perf_counter() - begin) / steps


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
