"""The runtime: one worker's interpreter of a program.

It runs any plan with the five kinds of instruction of `parallel.program`. Each forward of a segment
is a separate autograd region: tensors from other segments enter as leaves, and the backward
leaves the leaves' gradients for the transposed exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from parallel.checkpoints.piece import Piece, ReadTensor
from parallel.graph.ops.dropout import step_key
from parallel.program import Backward, Forward, Program, Start, Step, Update, Wait
from parallel.program.listing import marked_schedule
from parallel.program.precision import DTYPES
from parallel.runtime.communication.chaos_transport import open_transport
from parallel.runtime.communication.exchange import Format
from parallel.runtime.communication.world import World
from parallel.runtime.execution.buffers import Buffers
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.parameters import ParameterName, Parameters
from parallel.runtime.execution.prepared import Prepared
from parallel.runtime.execution.step import StepRun, WorkerState
from parallel.runtime.failure.errors import InstructionFailed, RunEnded
from parallel.runtime.instrumentation.clock import Clock
from parallel.runtime.instrumentation.observe import Observer, observe_parameters
from parallel.runtime.instrumentation.trace import TimedInstruction, named
from parallel.runtime.torch_private import profiler_is_active

SCHEDULE_AROUND = 9
"""Instructions that an error shows before and after the one that failed."""


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
    ) -> None:
        """`model` has the initial weights, the same on every worker.

        `keep_gradients` keeps a step's summed gradients until the next step, for `gathered`. The
        `observer` receives every op's results in training; it cannot see into compiled segments.
        """
        if observer is not None and options.compile:
            raise ValueError("compile=True leaves an observer nothing to see: choose one of them")
        if program.plan.workers != world.size:
            raise ValueError(
                f"workers={world.size} does not fit the plan, which is for {program.plan.workers}"
            )
        self.program, self.world = program, world
        self.clock = Clock(world.device)
        autocast = options.precision == "bf16"
        dtype = DTYPES[options.precision]
        self._weights = Format(dtype, options.channels_last, world.device)
        activations = Format(torch.bfloat16 if autocast else dtype, options.channels_last, world.device)
        self.transport = open_transport(world, self.clock)
        self.parameters = Parameters(
            program,
            named_weights(model),
            world,
            self.transport,
            self._weights,
            options,
            keep_gradients=keep_gradients,
        )
        self.buffers = Buffers(program, model, world.rank, self._weights)
        self.trace: list[TimedInstruction] | None = None
        """If it is a list, steps append their instructions to it, with the times of begin and
        end."""
        self._seed = options.seed
        self._steps = program.steps[world.rank]
        self._prepared = Prepared(program, world.rank, world.device, options.compile, observer)
        self._state = WorkerState(
            self._prepared, self.parameters, self.buffers.held, self.transport, activations, autocast
        )
        if observer is not None:
            observe_parameters(self.parameters, observer)
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
        key = step_key(self._seed, step, self.world.device)
        run = StepRun(self._state, images, labels, training=True, key=key)
        self._interpret(partial(self._train, run, lr))
        run.close()
        return run.loss

    @torch.no_grad()
    def evaluate_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return this worker's [loss, top-1 hits, top-5 hits, samples] of a validation batch."""
        key = step_key(0, 0, self.world.device)  # unused: dropout is off
        run = StepRun(self._state, images, labels, training=False, key=key)
        self._interpret(partial(self._evaluate, run))
        run.close()
        return run.metrics

    def _interpret(self, execute: Callable[[Step], None]) -> None:
        """Execute this worker's instructions in order."""
        position = 0
        if self.trace is not None or profiler_is_active():
            execute = partial(self._observed, execute)
        try:
            for position, instruction in enumerate(self._steps):  # noqa: B007 (read when one raises)
                execute(instruction)
        except RunEnded:  # another worker's failure: it names that worker
            raise
        except Exception as error:
            kind, name = named(self.program, self._steps[position])
            sentence = f"{self._steps[position]} ({kind} {name}): {type(error).__name__}: {error}"
            schedule = marked_schedule(self.program, self.world.rank, position, SCHEDULE_AROUND)
            raise InstructionFailed(sentence, schedule) from error

    def _train(self, run: StepRun, lr: float, instruction: Step) -> None:
        match instruction:
            case Forward(segment, m):
                run.forward(self._prepared.work[segment, m])
            case Backward(segment, m, sync):
                self.parameters.expect(sync)
                run.backward(self._prepared.work[segment, m])
            case Start(exchange, m, backward):
                run.start(exchange, m, backward)
            case Wait(exchange, m, backward):
                run.wait(exchange, m, backward)
            case Update(bucket):
                self.parameters.update(bucket, lr)

    def _evaluate(self, run: StepRun, instruction: Step) -> None:
        match instruction:
            case Forward(segment, m):
                run.forward(self._prepared.work[segment, m])
            case Start(exchange, m, backward=False):
                run.start(exchange, m, False)
            case Wait(exchange, m, backward=False):
                run.wait(exchange, m, False)

    def _observed(self, execute: Callable[[Step], None], instruction: Step) -> None:
        """Execute an instruction, time it for `trace`, and name it to torch's profiler."""
        begin = self.clock.now()
        with record_function(f"{instruction} {' '.join(named(self.program, instruction))}"):
            execute(instruction)
        if self.trace is not None:
            self.trace.append((instruction, begin, self.clock.now()))

    def close(self) -> None:
        """Release memory shared with other workers. Call it between two steps on all workers."""
        self.parameters.wait_for_weights()
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
