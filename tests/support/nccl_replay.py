"""Replay of a plan as on NCCL, without GPUs: every rank in turn, in one process, its messages recorded.

The runtime, the transport and everything else are the real ones, with the backend "nccl". Below them, a
recorder takes the place of `dist.batch_isend_irecv` and of the collectives. It notes what the rank would
enqueue, hands it to torch's `fake` backend for the checks of arguments, and delivers nothing: received
tensors are zero. On the meta device, for large networks, there is no data at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from parallel.program import Program
from parallel.program.precision import DTYPES
from parallel.runtime.communication import transport
from parallel.runtime.communication.groups import Groups
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.instrumentation.clock import Clock, MessageKey
from tests.support.nccl_rules import RECEIVE, SEND, Begun, Event, Group, Key, Operation, Run, Waited

CPU, META = torch.device("cpu"), torch.device("meta")
COLLECTIVES = (
    *((dist, name) for name in ("all_reduce", "all_gather", "broadcast", "gather", "barrier")),
    *((transport, name) for name in ("_reduce_scatter", "_all_gather")),
)
"""Functions of torch, and where the code looks them up."""
STEPS = (*("training",) * 3, *("evaluation", "training") * 2, *("pieces", "training", "pieces"))
"""Every kind of step comes twice after every kind that it follows, so that the rule "repeated" sees it."""
FEW_STEPS = ("training", "training", "evaluation", "pieces")


class RecordedWork:
    """The work of a group: a handle to wait for, as NCCL's."""

    def __init__(self, recorder: Recorder, number: int) -> None:
        self._recorder, self._number = recorder, number

    def wait(self, *_: object) -> bool:
        self._recorder.events.append(Waited(self._number))
        return True

    def is_completed(self) -> bool:
        return False


@dataclass
class Recorder:
    """Notes what one rank enqueues."""

    rank: int
    size: int
    fake: bool
    """Whether torch's `fake` backend checks the arguments."""
    events: list[Event] = field(default_factory=list)
    key: Key = ()
    """Key of the message that the transport is starting."""
    _groups: int = 0

    def enqueue(self, operations: Sequence[Operation], key: Key | None = None) -> RecordedWork:
        self.events.append(Group(self._groups, self.key if key is None else key, tuple(operations)))
        self._groups += 1
        return RecordedWork(self, self._groups - 1)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Take the place of torch's functions and of the clock's, which knows the keys."""
        with contextlib.ExitStack() as patches:
            if not self.fake:
                patches.enter_context(patch.object(dist, "P2POp", _Unchecked))
            send_and_receive = self._send_and_receive(dist.batch_isend_irecv if self.fake else None)
            patches.enter_context(patch.object(dist, "batch_isend_irecv", send_and_receive))
            for where, name in COLLECTIVES:
                recorded = self._collective(name.lstrip("_"), getattr(where, name))
                patches.enter_context(patch.object(where, name, recorded))
            patches.enter_context(patch.object(Clock, "started", self._started(Clock.started)))
            yield

    def _started(self, started: Callable[[Clock, MessageKey], None]) -> Callable[[Clock, MessageKey], None]:
        def note(clock: Clock, key: MessageKey) -> None:
            self.key = key
            started(clock, key)

        return note

    def _send_and_receive(
        self, checked: Callable[..., Any] | None
    ) -> Callable[[list[Any]], list[RecordedWork]]:
        def record(together: list[Any]) -> list[RecordedWork]:
            operations = []
            for one in together:
                receives = one.op is dist.irecv
                if receives and one.tensor.device.type != "meta":
                    one.tensor.detach().zero_()
                operations.append(_operation(RECEIVE if receives else SEND, (one.peer,), one.tensor))
            if checked is not None:
                checked(together)
            return [self.enqueue(operations)]  # NCCL gives one work to all

        return record

    def _collective(self, name: str, checked: Callable[..., Any]) -> Callable[..., Any]:
        def record(*arguments: Any, **options: Any) -> RecordedWork | None:
            group = options.get("group")
            if group is None:
                ranks = tuple(range(self.size))
            else:  # on the meta device the workers themselves
                ranks = group if isinstance(group, tuple) else tuple(dist.get_process_group_ranks(group))
            tensors = [
                argument for argument in (*arguments, *options.values()) if isinstance(argument, Tensor)
            ]
            smallest = min(tensors, key=torch.numel, default=torch.empty(1))
            contiguous = all(tensor.is_contiguous() for tensor in tensors)
            operation = Operation(name, ranks, smallest.numel(), str(smallest.dtype), contiguous)
            work = self.enqueue([operation], None if options.get("async_op") else (name,))
            if self.fake:
                checked(*arguments, **options)
                for parts in arguments:
                    if isinstance(parts, list):  # of a gather, which not every version of the backend fills
                        for part in parts:
                            part.copy_(smallest)
            if options.get("async_op"):
                return work
            work.wait()
            return None

        return record


@dataclass(frozen=True)
class _Unchecked:
    """Takes the place of `dist.P2POp` without a process group."""

    op: Callable[..., Any]
    tensor: Tensor
    peer: int


def _operation(kind: str, ranks: tuple[int, ...], tensor: Tensor) -> Operation:
    return Operation(kind, ranks, tensor.numel(), str(tensor.dtype), tensor.is_contiguous())


@contextlib.contextmanager
def fake_group(rank: int, size: int) -> Iterator[None]:
    """Make this process rank `rank` of torch's `fake` backend."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def replay(
    program: Program,
    model: nn.Module,
    shape: Sequence[int],
    *,
    steps: Sequence[str] = STEPS,
    device: torch.device = CPU,
    options: EngineOptions | None = None,
) -> Run:
    """Return what every rank enqueues in these steps, then on closing. `shape` is that of an image."""
    options = EngineOptions(seed=0, precision="fp32", momentum=0.9) if options is None else options
    ranks = []
    for rank in range(program.plan.workers):
        recorder = Recorder(rank, program.plan.workers, fake=device == CPU)
        with contextlib.ExitStack() as setting:
            if recorder.fake:
                setting.enter_context(fake_group(rank, program.plan.workers))
            else:  # there is no fused kernel for the meta device, and nothing to update
                setting.enter_context(patch("parallel.runtime.execution.parameters.sgd", _nothing))
                setting.enter_context(patch.object(torch, "autocast", _no_autocast))
                setting.enter_context(patch.object(Groups, "make", _nothing))
                setting.enter_context(patch.object(Groups, "__getitem__", _workers))
            setting.enter_context(recorder.recording())
            world = World(rank, program.plan.workers, device, "nccl")
            runtime = Runtime(program, model, world, options)
            images = torch.zeros(
                len(runtime.image_positions), *shape, dtype=DTYPES[options.precision], device=device
            )
            _run(runtime, recorder, images, steps)
        ranks.append(tuple(recorder.events))
    return Run(tuple(ranks))


def _nothing(*_: object, **__: object) -> None:
    """Update nothing."""


def _workers(_: Groups, workers: tuple[int, ...]) -> tuple[int, ...]:
    """Take the place of a group, which needs a backend."""
    return workers


def _no_autocast(*_: object, **__: object) -> contextlib.AbstractContextManager[None]:
    """Convert nothing: autocast does not know the meta device."""
    return contextlib.nullcontext()


def _run(runtime: Runtime, recorder: Recorder, images: Tensor, steps: Sequence[str]) -> None:
    labels = torch.zeros(len(runtime.label_positions), dtype=torch.int64, device=images.device)
    for number, kind in enumerate(steps):
        recorder.events.append(Begun(kind))
        match kind:
            case "training":
                runtime.train_step(images, labels, step=number, lr=0.0)
            case "evaluation":
                runtime.evaluate_step(images, labels)
            case "pieces":
                runtime.pieces("weights")
    recorder.events.append(Begun("the end"))
    runtime.close()
