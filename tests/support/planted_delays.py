"""Trainings one after the other in the same workers, each with a delay planted in one of them.

    torchrun … -m tests.support.planted_delays CASES.json

The file holds a list of `Case`. A delay is a sleep of `delay_s` seconds in every `every`th step:

loading    before the worker gets a batch
forward    before the forward of its first segment
backward   before the backward of its last segment
messages   every message that the worker sends is late by as much
sending    the worker is slower by as much each time that it starts to send
module_forward, module_backward   of the plain model, which DDP runs
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tests.support.small_network  # noqa: F401  before parallel.cli lists the models
from parallel.cli.compose import compose_config
from parallel.config.typed import structure
from parallel.data.loader import Batch, Loader
from parallel.models import build_model
from parallel.runtime.communication.chaos import Chaos, Postponed
from parallel.runtime.communication.chaos_transport import ChaosTransport
from parallel.runtime.communication.transport import Transport
from parallel.runtime.communication.world import World
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.execution.step import StepRun
from parallel.runtime.instrumentation.clock import Clock
from parallel.training import engines, evaluation, trainer


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training with a delay in one worker."""

    directory: str
    overrides: tuple[str, ...]
    cause: str | None = None
    worker: int = 0
    delay_s: float = 0.0
    every: int = 1


class Delay:
    """A delay in some steps of this worker."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._step = -1
        self._slept = False

    def new_step(self, step: int) -> None:
        self._step, self._slept = step, False

    @property
    def seconds(self) -> float:
        return self._case.delay_s if self._step % self._case.every == 0 else 0.0

    def sleep(self) -> None:
        time.sleep(self.seconds)

    def sleep_once(self) -> None:
        """Sleep at the first call in a step."""
        if not self._slept:
            self.sleep()
        self._slept = True


class Late(Postponed):
    """Actions that run after the same delay each."""

    def __init__(self, delay: Delay) -> None:
        super().__init__(Chaos(), 0, 0)
        self._delay = delay

    def add(self, action: Callable[[], None]) -> None:
        self._actions.append((time.monotonic() + self._delay.seconds, action))


@contextlib.contextmanager
def planted(case: Case) -> Iterator[None]:
    """Train with the delay inside the block, if this is its worker."""
    if case.cause is None or int(os.environ["RANK"]) != case.worker:
        yield
        return
    delay = Delay(case)
    train_step, epoch, forward, backward, start = (
        Runtime.train_step,
        Loader.epoch,
        StepRun.forward,
        StepRun.backward,
        Transport._start,
    )

    def stepping(self: Runtime, *args: Any, step: int, lr: float) -> Any:
        delay.new_step(step)
        return train_step(self, *args, step=step, lr=lr)

    def slow_loading(self: Loader, number: int, first: int = 0) -> Iterator[Batch]:
        for i, batch in enumerate(epoch(self, number, first), start=first):
            delay.new_step(number * len(self) + i)
            if self._train:
                delay.sleep()
            yield batch

    def slow_forward(self: StepRun, *args: Any) -> None:
        if self._training:
            delay.sleep_once()
        forward(self, *args)

    def slow_backward(self: StepRun, *args: Any) -> None:
        delay.sleep_once()
        backward(self, *args)

    def slow_start(self: Transport, message: Any, sends: Sequence[Any], receives: Any) -> None:
        if sends:
            delay.sleep()
        start(self, message, sends, receives)

    def slow_model(*args: Any) -> Any:
        model = build_model(*args)
        if case.cause == "module_backward":
            model.register_full_backward_pre_hook(lambda *_: delay.sleep())
        else:
            model.register_forward_pre_hook(lambda module, _: delay.sleep() if module.training else None)
        return model

    def late(world: World, clock: Clock) -> Transport:
        transport = ChaosTransport(world, clock, Chaos())
        transport._postponed = Late(delay)
        return transport

    changes: dict[str, tuple[object, str, object]] = {
        "loading": (evaluation.Loader, "epoch", slow_loading),
        "forward": (StepRun, "forward", slow_forward),
        "backward": (StepRun, "backward", slow_backward),
        "messages": (sys.modules[Runtime.__module__], "open_transport", late),
        "module_forward": (engines, "build_model", slow_model),
        "module_backward": (engines, "build_model", slow_model),
        "sending": (Transport, "_start", slow_start),
    }
    with patch.object(*changes[case.cause]), patch.object(Runtime, "train_step", stepping):
        yield


def main() -> None:
    cases = structure(list[Case], json.loads(Path(sys.argv[1]).read_text()), "cases")
    for number, case in enumerate(cases):
        # So each process group has keys of its own in torchrun's store.
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
        directory = Path(case.directory)
        directory.mkdir(parents=True, exist_ok=True)
        with planted(case):
            trainer.train(compose_config(case.overrides), directory)


if __name__ == "__main__":
    main()
