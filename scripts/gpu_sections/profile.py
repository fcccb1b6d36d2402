"""Section `profile`: what the device and the host do in a step, from torch's profiler.

busy   union of the kernels' and copies' times
gaps   time from the first to the last of them, less busy: the device waits for the host
syncs  calls in which the host waits for the device
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu_sections import engines
from gpu_sections.machine import clocks_text
from gpu_sections.section import Ending, Setting, code_block, markdown_row, table_head
from parallel.config import ClusterConfig
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World

DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of the trace that occupy the device. `gpu_user_annotation` only names them."""
HOST = ("cuda_runtime", "cuda_driver")
"""Categories of the host's calls."""
LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
SYNCS = ("StreamSynchronize", "DeviceSynchronize", "EventSynchronize", "cudaMemcpy")
TOP = 15


@dataclass(frozen=True)
class Profile:
    """A step, as the mean over some."""

    device_ops: float
    """Kernels and copies."""
    launches: float
    """Calls that start them; a graph is one."""
    syncs: float
    busy_ms: float
    gap_ms: float
    top: tuple[tuple[str, float, float], ...]
    """Name, ms and calls of what takes the device longest."""


def run(setting: Setting) -> Ending:
    """Profile `single` in TF32 and bf16."""
    syncs = 0
    for precision in engines.precisions(torch.device(setting.device)):
        with open_world(ClusterConfig(device=setting.device), precision=precision) as world:
            syncs += _profile(setting, world, precision)
            if world.device.type == "cuda":
                syncs += _profile(setting, world, precision, graphs=True)
    return Ending.MISSED if syncs else Ending.PASSED


def _profile(setting: Setting, world: World, precision: str, **options: bool) -> int:
    """Write the profile of a precision; return the number of synchronisations that torch warns about."""
    name = " ".join([precision, *options])
    side, batch, steps = (64, 4, 2) if setting.tiny else (224, 512, 10)
    images, labels = engines.device_batch(batch, side, world.device)
    step = engines.single(world, side, images, labels, precision, **options)
    for _ in range(5):
        step()
    warned = _warned(step, world.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if world.device.type == "cuda" else [])]
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    with profile(activities=activities) as recorded:
        for _ in range(steps):
            step()
        if world.device.type == "cuda":
            torch.cuda.synchronize()
    clocks = clocks_text(world.device)
    path = setting.folder / f"{name}.json"
    recorded.export_chrome_trace(str(path))
    found = read_profile(path, steps, DEVICE if world.device.type == "cuda" else ("cpu_op",))
    setting.write(f"### {name}, {side} px, batch {batch}", "", *lines_of(found), "", *clocks)
    setting.write(f"`torch.cuda.set_sync_debug_mode`: {len(warned)} synchronisations in a step.", "")
    if warned:
        setting.write(*code_block("\n".join(warned)))
    return len(warned)


def _warned(step: engines.Step, device: torch.device) -> list[str]:
    """Return where a step makes the host wait for the device, as torch warns of it."""
    if device.type != "cuda":
        return []
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return [
        f"{warning.filename}:{warning.lineno}"
        for warning in caught
        if "synchronizing CUDA operation" in str(warning.message)
    ]


def read_profile(path: Path, steps: int, device: Iterable[str] = DEVICE) -> Profile:
    """Return the profile in a trace of `steps` steps."""
    events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return profile_of([event for event in events if event.get("ph") == "X"], steps, set(device))


def profile_of(events: list[dict[str, Any]], steps: int, device: set[str]) -> Profile:
    """Return the profile in complete events: `cat`, `name`, and `ts` and `dur` in microseconds."""
    on_device = [event for event in events if event.get("cat") in device]
    calls = [str(event["name"]) for event in events if event.get("cat") in HOST]
    spans = [(float(event["ts"]), float(event["ts"]) + float(event["dur"])) for event in on_device]
    busy = covered(spans)
    span = max(end for _, end in spans) - min(begin for begin, _ in spans) if spans else 0.0
    per_step = 1 / (1000 * steps)
    return Profile(
        device_ops=len(on_device) / steps,
        launches=_count(calls, LAUNCHES) / steps,
        syncs=sum(_is_sync(call) for call in calls) / steps,
        busy_ms=busy * per_step,
        gap_ms=(span - busy) * per_step,
        top=_top(on_device, steps),
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of spans."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _count(calls: Iterable[str], words: Iterable[str]) -> int:
    return sum(any(word in call for word in words) for call in calls)


def _is_sync(call: str) -> bool:
    """Whether the host waits in a call: one of the synchronisations, or a copy that is not asynchronous."""
    return any(word in call for word in SYNCS) and "Async" not in call


def _top(events: Iterable[Mapping[str, Any]], steps: int) -> tuple[tuple[str, float, float], ...]:
    found: dict[str, list[float]] = {}
    for event in events:
        found.setdefault(str(event["name"]), []).append(float(event["dur"]))
    longest = sorted(found.items(), key=lambda item: -sum(item[1]))[:TOP]
    return tuple((name, sum(us) / 1000 / steps, len(us) / steps) for name, us in longest)


def lines_of(found: Profile) -> list[str]:
    """Return the profile as Markdown."""
    whole = found.busy_ms + found.gap_ms
    share = found.gap_ms / whole if whole else 0.0
    return [
        f"A step: {found.device_ops:.0f} kernels and copies, started by {found.launches:.0f} calls; "
        f"{found.syncs:.1f} synchronising calls (those at both ends are the profiler's); the device is busy for "
        f"{found.busy_ms:.3g} ms and waits for {found.gap_ms:.3g} ms ({share:.0%}).",
        "",
        *table_head(("kernel", "ms a step", "calls a step", "of busy")),
        *(
            markdown_row(
                (
                    f"`{name[:90]}`",
                    f"{ms:.3g}",
                    f"{calls:.3g}",
                    f"{ms / found.busy_ms:.0%}" if found.busy_ms else "-",
                )
            )
            for name, ms, calls in found.top
        ),
    ]
