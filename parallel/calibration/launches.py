"""The cost of an op on a device that runs behind the host.

    device(p)   the device's time of pass p, with its queue filled
    launch(p)   the host's time to launch p · scale
    scale       the host's time to launch a whole step ÷ the sum over its passes
    cost(p)     max(device(p), launch(p))

A step takes about max(Σ device, Σ launch), since the host runs ahead. But the search and the simulator add
the costs of ops one by one, so the maximum is taken for each pass. The sum of the costs is never less
than the time of the step, and equal to it if the host is the slower one in all passes, as with small
batches, or the device is. In between it is too high by the launches that a longer op hides.

The scale takes account of what a pass costs by itself and not in a step: alone, every backward starts
the autograd engine. It also spreads the host's other work of a step over the passes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from parallel.calibration.samples import timing, trimmed_mean
from parallel.cluster.op_key import OpKey
from parallel.cluster.table import Timing

Pass = tuple[OpKey, str]
"""A shape, and the name of its pass."""


def launch_scale(step_s: float, passes: Iterable[Pass], launches: Mapping[Pass, Sequence[float]]) -> float:
    """Return the scale, for the host's seconds to launch a step with these passes.

    Passes that were not measured count as the mean of the others; 1 if none was.
    """
    wanted = list(passes)
    known = [trimmed_mean(launches[key]) for key in wanted if key in launches]
    return step_s / (len(wanted) * statistics.fmean(known)) if known else 1.0


def cost(device_s: Sequence[float], launches_s: Sequence[float], scale: float) -> Timing:
    """Return the statistics of the larger of both times of a pass."""
    scaled_s = [scale * seconds for seconds in launches_s]
    return timing(max(device_s, scaled_s, key=trimmed_mean))
