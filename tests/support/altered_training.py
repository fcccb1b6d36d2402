"""parallel.train that knows `model=small`, with one change, which ALTER selects; none without it.

fail       rank 1 raises in the second step: the others wait for it in a gradient sync
die        every rank is killed when a checkpoint is whole and the step after it begins (DIE_AFTER: its steps)
memory     rank 1 raises torch's error of a GPU without free memory in the second step
kernel     a kernel of rank 1 hangs in the second step, on a GPU
device     the device of rank 1 hangs in the second step, and that of rank 0 waits for it: both are imitated
absent     rank 1 never joins the others
early      rank 1 is killed while it opens the data, before any step
probe      rank 1 cannot write to shared memory
hang       rank 1 hangs while it reads the images of the second step
slow       backward of the second step takes eight seconds, on all ranks alike
storm      rank VICTIM sends itself SIGNAL after DELAY seconds of training or, if SAVING, in the next checkpoint
fullgraph  torch.compile raises at graph breaks, and needs no C++ compiler
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

import tests.support.small_network  # noqa: F401  before parallel.cli lists the models
from parallel.checkpoints.checkpoint import folder_name
from parallel.checkpoints.saver import PARTIAL
from parallel.cli import application
from parallel.config import Config
from parallel.data.loader import Batch, Loader
from parallel.runtime.communication import hosts, opening
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.failure import blame
from parallel.training import engines, evaluation, same_data, trainer
from parallel.training.job import Job
from tests.support.imitated_device import HANGS, Event, ImitatedDevice
from tests.support.waiting import wait_for

cross_entropy = F.cross_entropy
losses: list[torch.Tensor] = []


class Failing(Runtime):
    def train_step(self, *args: Any, step: int, lr: float) -> Any:
        if step == 1 and os.environ["RANK"] == "1":
            raise RuntimeError("boom in step 1")
        return super().train_step(*args, step=step, lr=lr)


class OutOfMemory(Runtime):
    def train_step(self, *args: Any, step: int, lr: float) -> Any:
        if step == 1 and os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which "
                "1.55 GiB is free. Including non-PyTorch memory, this process has 77.59 GiB memory in use."
            )
        return super().train_step(*args, step=step, lr=lr)


class HangingKernel(Runtime):
    def train_step(self, *args: Any, step: int, lr: float) -> Any:
        if step == 1 and os.environ["RANK"] == "1":
            torch.cuda._sleep(10**15)  # cycles: a week
        return super().train_step(*args, step=step, lr=lr)


class LiveDevice(ImitatedDevice):
    """An imitated device that works whenever it is asked."""

    def reached(self, event: Event) -> bool:
        self.now_stream.run(time.monotonic())
        return super().reached(event)


DEVICE = LiveDevice(time.monotonic())


class OnDevice(Runtime):
    """In the second step the host waits for the device, as in a barrier, and returns when it has nothing to do."""

    def train_step(self, *args: Any, step: int, lr: float) -> Any:
        loss = super().train_step(*args, step=step, lr=lr)
        if step == 1:
            rank, stream = int(os.environ["RANK"]), DEVICE.now_stream
            if rank == 1:
                stream.works(HANGS)
            self.world.watch.waits(("sum", 0), 1 - rank)
            stream.waits(lambda: DEVICE.aborted)
            self.world.watch.goes_on()
            while len(stream):
                time.sleep(0.01)
        return loss


class Dying(Loader):
    checkpoints = Path()

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        die_after = int(os.environ["DIE_AFTER"])
        for step, batch in enumerate(super().epoch(epoch, first), start=epoch * len(self) + first):
            if self._train and step == die_after:
                wait_for((self.checkpoints / folder_name(step)).exists, 60.0)
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


class Hanging(Loader):
    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(super().epoch(epoch, first)):
            while self._train and step == 1 and os.environ["RANK"] == "1":
                pass
            yield batch


def _slow_backward(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    loss = cross_entropy(logits, labels, **options)
    if loss.requires_grad:  # not in an evaluation
        losses.append(loss.detach())
    if loss.requires_grad and len(losses) == 3:  # the first is that of the warm-up
        loss.register_hook(lambda gradient: time.sleep(8.0))
    return loss


def _killed(config: Config, verbose: bool) -> Job:
    time.sleep(1)  # until it has published what it is doing
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _slow(config: Config, verbose: bool) -> Job:
    time.sleep(600)
    raise AssertionError("unreachable")


def _storm(checkpoints: Path) -> None:
    """Signal this process from a thread, as somebody else might."""
    saving = "SAVING" in os.environ

    def work() -> None:
        wait_for(checkpoints.exists, 60.0)  # the training begins
        if saving:  # there is a whole checkpoint to go on from
            wait_for(lambda: any(PARTIAL not in path.name for path in checkpoints.iterdir()), 60.0)
        time.sleep(float(os.environ["DELAY"]))
        if saving:
            while not any(checkpoints.glob(f"*{PARTIAL}*")):
                time.sleep(0.0005)
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))

    threading.Thread(target=work, daemon=True).start()


def _replace(owner: object, name: str, value: object) -> None:
    """Replace what `owner` calls `name`, until the process ends. Raises `AttributeError` if it has no such name."""
    mock.patch.object(owner, name, value).start()


def train(config: Config, run_dir: Path) -> None:
    alteration = os.environ.get("ALTER")
    if alteration == "fail":
        _replace(engines, "Runtime", Failing)
    elif alteration == "memory":
        _replace(engines, "Runtime", OutOfMemory)
    elif alteration == "kernel":
        _replace(engines, "Runtime", HangingKernel)
    elif alteration == "device":
        _replace(engines, "Runtime", OnDevice)
        _replace(opening, "watched_device", lambda device, backend: DEVICE)
    elif alteration == "die":
        Dying.checkpoints = run_dir / "checkpoints"
        _replace(evaluation, "Loader", Dying)
    elif alteration == "slow":
        _replace(F, "cross_entropy", _slow_backward)
    elif alteration == "storm":
        _replace(blame, "ABSENT_S", 10.0)  # a signal may come before its victim has joined the others
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first and os.environ.get("RANK", "0") == os.environ["VICTIM"]:
            _storm(run_dir / "checkpoints")
    elif alteration == "absent":
        _replace(blame, "ABSENT_S", 3.0)
        if os.environ["RANK"] == "1":
            time.sleep(600)
    elif alteration == "early":
        _replace(same_data, "prepare", _killed if os.environ["RANK"] == "1" else _slow)
    elif alteration == "probe" and os.environ["RANK"] == "1":
        _replace(hosts, "SHARED_MEMORY", Path("/sys/kernel"))  # nobody can create a file there
    elif alteration == "hang":
        _replace(evaluation, "Loader", Hanging)
    elif alteration == "fullgraph":
        _replace(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    try:
        trainer.train(config, run_dir)
    finally:
        if alteration in ("device", "kernel"):
            (run_dir / f"closed-{os.environ['RANK']}").touch()


if __name__ == "__main__":
    application.main(train)
