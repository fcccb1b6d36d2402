"""The runtime: one worker's interpreter of a program.

It runs any plan with the five kinds of step of `parallel.program`. Each forward of a segment is an autograd region of
its own: what comes from outside enters as a leaf, and its backward leaves the leaf's gradient for the exchange's
transpose.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.graph.ops.dropout import step_key
from parallel.program import Backward, Forward, Program, Start, Update, Wait
from parallel.program.precision import DTYPES
from parallel.runtime.communication.chaos_transport import open_transport
from parallel.runtime.communication.exchange import Format
from parallel.runtime.communication.world import World
from parallel.runtime.execution.buffers import Buffers
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.parameters import ParameterName, Parameters, assemble
from parallel.runtime.execution.prepared import Prepared
from parallel.runtime.execution.step import StepRun, WorkerState
from parallel.runtime.instrumentation.clock import Clock
from parallel.runtime.instrumentation.observe import Observer, observe_parameters
from parallel.runtime.instrumentation.trace import TimedInstruction


def named_weights(model: nn.Module) -> dict[ParameterName, Tensor]:
    """A model's parameters by op and name."""
    names = (name.rpartition(".") for name, _ in model.named_parameters())
    return {(op, name): p.detach() for (op, _, name), p in zip(names, model.parameters(), strict=True)}


class Runtime:
    """One worker of a program, an `Engine`: trains and evaluates on the images and labels that it asks for."""

    splits_time = True

    def __init__(
        self, program: Program, model: nn.Module, world: World, options: EngineOptions, *,
        keep_gradients: bool = False, observer: Observer | None = None,
    ) -> None:
        """`model` gives the initial weights, the same on every worker.

        `keep_gradients` keeps a step's summed gradients until the next, for `gathered`. An `observer` sees every op's
        results in training; it cannot look into what is compiled.
        """
        if observer is not None and options.compile:
            raise ValueError("compile=True leaves an observer nothing to see: choose one of them")
        if program.plan.workers != world.size:
            raise ValueError(f"workers={world.size} does not fit the plan, which is for {program.plan.workers}")
        self.program, self.world = program, world
        self.clock = Clock(world.device)
        autocast = options.precision == "bf16"
        dtype = DTYPES[options.precision]
        self._weights = Format(dtype, options.channels_last, world.device)
        activations = Format(torch.bfloat16 if autocast else dtype, options.channels_last, world.device)
        self.transport = open_transport(world, self.clock)
        self.parameters = Parameters(program, named_weights(model), world, self.transport, self._weights, options,
                                     keep_gradients=keep_gradients)
        self.buffers = Buffers(program, model, world.rank, self._weights)
        self.trace: list[TimedInstruction] | None = None
        """Given a list, steps put into it what this worker does, and marks of the clock from when to when."""
        self._seed = options.seed
        self._steps = program.steps[world.rank]
        self._prepared = Prepared(program, world.rank, world.device, options.compile, observer)
        self._shared = WorkerState(self._prepared, self.parameters, self.buffers.held, self.transport, activations,
                                   autocast)
        if observer is not None:
            observe_parameters(self.parameters, observer)
        self.image_positions, self.label_positions = self._prepared.image_positions, self._prepared.label_positions

    @property
    def bytes_sent(self) -> int:
        """Counted where messages start."""
        return self.transport.bytes_sent

    def train_step(self, images: Tensor, labels: Tensor, *, step: int, lr: float) -> Tensor:
        """One optimizer step on this worker's rows of a global batch; returns its part of the mean loss (float64).

        `step` counts optimizer steps and chooses the dropout masks.
        """
        run = self._begin(images, labels, True, step_key(self._seed, step, self.world.device))
        for instruction in self._steps:
            begin = None if self.trace is None else self.clock.now()
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
            if self.trace is not None:
                self.trace.append((instruction, begin, self.clock.now()))
        run.close()
        return run.loss

    @torch.no_grad()
    def evaluate_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """This worker's sums over a validation batch: [loss, top-1 hits, top-5 hits, samples], float64."""
        run = self._begin(images, labels, False, step_key(0, 0, self.world.device))
        for instruction in self._steps:
            match instruction:
                case Forward(segment, m):
                    run.forward(self._prepared.work[segment, m])
                case Start(exchange, m, backward=False):
                    run.start(exchange, m, False)
                case Wait(exchange, m, backward=False):
                    run.wait(exchange, m, False)
        run.close()
        return run.metrics

    def _begin(self, images: Tensor, labels: Tensor, training: bool, key: Tensor) -> StepRun:
        return StepRun(self._shared, images, labels, training=training, key=key)

    def close(self) -> None:
        """End between two steps, on all workers, what a process that goes on with another runtime must not keep."""
        self.parameters.wait_for_weights()
        self.transport.close()

    def forget_momentum(self) -> None:
        """Make the optimizer and the running statistics as new, after warm-up."""
        self.parameters.forget_momentum()
        self.buffers.reset()

    def gathered(self, kind: str = "weights") -> dict[ParameterName, Tensor]:
        """Whole weights, buffers or, with `keep_gradients`, the last step's gradients: on worker 0, on the CPU; else
        empty. `kind` is weights, buffers or gradients."""
        if kind == "buffers":
            return self.buffers.gathered(self.world)
        self.parameters.wait_for_weights()
        own = self.parameters.shards() if kind == "weights" else self.parameters.gradients()
        shards = self.world.gather_to_first({index: tensor.cpu() for index, tensor in own.items()})
        return assemble(self.program, shards, self._weights) if shards else {}
