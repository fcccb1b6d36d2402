"""Collecting on worker 0 what the steps of all workers consist of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parallel.results.stragglers import Straggler
from parallel.runtime.communication.world import World
from parallel.runtime.execution.engine import Engine
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.instrumentation.clock import MessageKey
from parallel.training.stragglers import EpochTimes, Part, blocks, find_stragglers, part_of


class StepTimes:
    """Times of the steps of the epochs that this start of a run trains."""

    def __init__(self, world: World, engine: Engine, itemsize: int) -> None:
        """Call it on all workers at once. `itemsize` is that of activations, in bytes."""
        self._world, self._clock = world, engine.clock
        program = engine.program if isinstance(engine, Runtime) else None
        host = world.host.name if len(world.hosts) > 1 else None
        own = part_of(program, world.rank, itemsize, len(engine.image_positions), host)
        ops, *numbers = dataclasses.astuple(own)
        sent: list[tuple[Any, ...]] = world.gather_to_first((sorted(ops), *numbers))
        self._parts = [Part(frozenset(of_part), *values) for of_part, *values in sent]
        self._epochs: list[EpochTimes] = []
        """On worker 0 only."""

    def note(self, epoch: int, step_s: float, starts: Sequence[Mapping[MessageKey, np.ndarray]]) -> None:
        """Collect an epoch, from 1, that has just ended on all workers.

        `starts` are the times at which each worker started its messages, by rank.
        """
        if self._world.size == 1:
            return
        own = self._world.gather_to_first(blocks(self._clock.phases.seconds()))
        transit = self._world.gather_to_first(blocks(self._clock.transit(starts)))
        if self._world.rank == 0:
            self._epochs.append(EpochTimes(epoch, step_s, np.stack(own), np.stack(transit)))

    def stragglers(self) -> tuple[Straggler, ...] | None:
        """Return the stragglers so far, on worker 0. None: there was nothing to compare, as among workers
        that share a GPU and wait for each other's kernels."""
        if self._world.staging is not None:
            return None
        return find_stragglers(self._parts, self._epochs)
