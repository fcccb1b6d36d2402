"""The runtime: one worker's interpreter of a program.

It runs any plan with the five kinds of instruction of `parallel.program`. Each forward of a segment
is a separate autograd region: tensors from other segments enter as leaves, and the backward
leaves the leaves' gradients for the transposed exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from parallel.checkpoints.piece import Piece, ReadTensor
from parallel.graph.ops.dropout import step_key
from parallel.program import Backward, Forward, Program, Start, Step, Update, Wait
from parallel.program.listing import marked_schedule
from parallel.program.precision import ACTIVATION_DTYPES, DTYPES
from parallel.runtime.communication.exchange import Format
from parallel.runtime.communication.open_transport import open_transport
from parallel.runtime.communication.world import World
from parallel.runtime.execution.buffers import Buffers
from parallel.runtime.execution.held_bucket import ParameterName
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.parameters import Parameters
from parallel.runtime.execution.prepared import Prepared
from parallel.runtime.execution.step import StepRun, WorkerState
from parallel.runtime.execution.step_graph import GraphedStep, Recording, open_graph
from parallel.runtime.failure.errors import InstructionFailed, RunEnded
from parallel.runtime.instrumentation.clock import Clock
from parallel.runtime.instrumentation.observe import Observer, observe_parameters
from parallel.runtime.instrumentation.phases import Phase
from parallel.runtime.instrumentation.trace import TimedInstruction, named
from parallel.runtime.torch_private import profiler_is_active

SCHEDULE_AROUND = 9
"""Instructions that an error shows before and after the one that failed."""
PHASES: Mapping[type[Step], Phase] = {
    Forward: Phase.FORWARD,
    Backward: Phase.BACKWARD,
    Start: Phase.MESSAGES,
    Wait: Phase.MESSAGES,
    Update: Phase.OTHER,
}
"""Phase of each instruction, without the messages of gradients and the waits inside it."""


def named_weights(model: nn.Module) -> dict[ParameterName, Tensor]:
    """Return a model's parameters by op and name."""
    names = (name.rpartition(".") for name, _ in model.named_parameters())
    return {(op, name): p.detach() for (op, _, name), p in zip(names, model.parameters(), strict=True)}


class Runtime:
    """Engine that runs one worker's instructions of a program."""

    splits_time = True

    def __init__(
        self,
        program: Program,
        model: nn.Module,
        world: World,
        options: EngineOptions,
        *,
        keep_gradients: bool = False,
        observer: Observer | None = None,
        recording: Recording | None = None,
    ) -> None:
        """`model` has the initial weights, the same on every worker.

        `keep_gradients` keeps a step's summed gradients until the next step, for `gathered`. The
        `observer` receives every op's results in training; it cannot see into compiled segments or
        graphs. `recording` captures the steps with `options.graphs`; None: a CUDA graph.
        """
        if observer is not None and options.compile:
            raise ValueError("compile=True leaves an observer nothing to see: choose one of them")
        if observer is not None and options.graphs:
            raise ValueError("graphs=True leaves an observer nothing to see: choose one of them")
        if program.plan.workers != world.size:
            raise ValueError(
                f"workers={world.size} does not fit the plan, which is for {program.plan.workers}"
            )
        self.program, self.world = program, world
        self.clock = Clock(world.device, phases=world.size > 1)
        autocast = options.precision == "bf16"
        self._weights = Format(DTYPES[options.precision], options.channels_last, world.device)
        activations = replace(self._weights, dtype=ACTIVATION_DTYPES[options.precision])
        world.open_groups(bucket.workers for bucket in program.buckets if bucket.collective)
        self.transport = open_transport(world, self.clock)
        self.parameters = Parameters(
            program,
            named_weights(model),
            world,
            self.transport,
            self._weights,
            activations.dtype,
            options,
            keep_gradients=keep_gradients,
        )
        self.buffers = Buffers(program, model, world.rank, self._weights)
        self.trace: list[TimedInstruction] | None = None
        """If it is a list, steps append their instructions to it, with the times of begin and
        end."""
        self._seed = options.seed
        self._key = torch.zeros((), dtype=torch.int64, device=world.device)
        """Chooses the dropout masks of a step. Filling it copies nothing from the host's memory, which
        would wait for the device."""
        self._groups = self.parameters.together(program.steps[world.rank])
        """This worker's instructions in order; those of a group run as one."""
        self._prepared = Prepared(program, world.rank, world.device, options.compile, observer)
        self._state = WorkerState(
            self._prepared, self.parameters, self.buffers.held, self.transport, activations, autocast
        )
        if observer is not None:
            observe_parameters(self.parameters, observer)
        self._graphed: GraphedStep | None = None
        if options.graphs:
            recording = recording or open_graph(program, world.device)
            self._graphed = GraphedStep(recording, self._step, world.device)
        self.image_positions = self._prepared.image_positions
        self.label_positions = self._prepared.label_positions

    @property
    def bytes_sent(self) -> int:
        """Bytes that this worker has sent so far, counted where messages start."""
        return self.transport.bytes_sent

    def train_step(self, images: Tensor, labels: Tensor, *, step: int, lr: float) -> Tensor:
        """Run one optimizer step on this worker's rows of a global batch.

        `step` counts optimizer steps and chooses the dropout masks. Returns this worker's part of
        the mean loss, in float64. Raises `InstructionFailed` when an instruction raises.
        """
        self._key.fill_(step_key(self._seed, step))
        return (
            self._step(images, labels, lr) if self._graphed is None else self._graphed.run(images, labels, lr)
        )

    def _step(self, images: Tensor, labels: Tensor, lr: float | Tensor) -> Tensor:
        run = StepRun(self._state, images, labels, training=True, key=self._key)
        self._interpret(partial(self._train, run, lr))
        with self.clock.messaging():
            run.close()
        return run.loss

    def complete(self) -> None:
        """Wait until this worker's updated weights are gathered, which a step leaves to the next forward."""
        self.parameters.wait_for_weights()

    @torch.no_grad()
    def evaluate_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return this worker's [loss, top-1 hits, top-5 hits, samples] of a validation batch."""
        run = StepRun(self._state, images, labels, training=False, key=self._key)
        self._interpret(partial(self._evaluate, run))
        run.close()
        return run.metrics

    def _interpret(self, execute: Callable[[Sequence[Step]], None]) -> None:
        """Execute this worker's instructions in order."""
        position = 0
        if self.trace is not None or profiler_is_active():
            execute = partial(self._observed, execute)
        try:
            for group in self._groups:
                self.clock.phases.enter(PHASES[type(group[0])])
                execute(group)
                position += len(group)
            self.clock.phases.enter(Phase.OTHER)
        except RunEnded:  # another worker's failure: it names that worker
            raise
        except Exception as error:
            instruction = self.program.steps[self.world.rank][position]
            kind, name = named(self.program, instruction)
            sentence = f"{instruction} ({kind} {name}): {type(error).__name__}: {error}"
            schedule = marked_schedule(self.program, self.world.rank, position, SCHEDULE_AROUND)
            raise InstructionFailed(sentence, schedule) from error

    def _train(self, run: StepRun, lr: float | Tensor, group: Sequence[Step]) -> None:
        match group:
            case [Forward(segment, m)]:
                run.forward(self._prepared.work[segment, m])
            case [Backward(segment, m, sync)]:
                self.parameters.expect(sync, lr)
                run.backward(self._prepared.work[segment, m])
                self.parameters.complete_sums()
            case [Start(exchange, m, backward)]:
                run.start(exchange, m, backward)
            case [Wait(exchange, m, backward)]:
                run.wait(exchange, m, backward)
            case [Update(), *_]:
                self.parameters.update([step.bucket for step in group if isinstance(step, Update)], lr)

    def _evaluate(self, run: StepRun, group: Sequence[Step]) -> None:
        match group:
            case [Forward(segment, m)]:
                run.forward(self._prepared.work[segment, m])
            case [Start(exchange, m, backward=False)]:
                run.start(exchange, m, False)
            case [Wait(exchange, m, backward=False)]:
                run.wait(exchange, m, False)

    def _observed(self, execute: Callable[[Sequence[Step]], None], group: Sequence[Step]) -> None:
        """Execute instructions, time them for `trace`, and name them to torch's profiler.

        The first of a group has the time of all.
        """
        begin = self.clock.now()
        with record_function("; ".join(f"{step} {' '.join(named(self.program, step))}" for step in group)):
            execute(group)
        if self.trace is not None:
            end = self.clock.now()
            self.trace += [(step, end if i else begin, end) for i, step in enumerate(group)]

    def close(self) -> None:
        """Release memory shared with other workers. Call it between two steps on all workers, and not
        after an exception, when it would wait for messages that no worker sends."""
        self.complete()
        self.transport.close()

    def forget_momentum(self) -> None:
        """Reset the optimizer and the running statistics, after warm-up."""
        self.parameters.forget_momentum()
        self.buffers.reset()

    def pieces(self, kind: str) -> list[Piece]:
        """Return this worker's parts of the tensors of a kind, the last step's gradients with
        `keep_gradients`."""
        return self.buffers.pieces() if kind == "buffers" else self.parameters.pieces(kind)

    def load(self, read: ReadTensor) -> None:
        """Replace the training state by what `read` returns. Call it between two steps on all
        workers, then a barrier."""
        self.parameters.load(read)
        self.buffers.load(read)
