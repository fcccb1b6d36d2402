"""The runtime: one worker's interpreter of a program.

It runs any plan with the five kinds of step of `parallel.program`. Each forward of a segment is an autograd region of
its own: what comes from outside enters as a leaf, and its backward leaves the leaf's gradient for the exchange's
transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.box import Box
from parallel.graph import INPUT, LOSS
from parallel.ops import Context, Part
from parallel.ops.dropout import step_key
from parallel.program import Backward, Exchange, Forward, Program, Segment, Start, Update, Wait
from parallel.runtime.clock import Clock
from parallel.runtime.exchange import Format, Move, Moving, finish, move, start
from parallel.runtime.hits import hits
from parallel.runtime.parameters import ParameterName, Parameters, assemble
from parallel.runtime.transport import Transport
from parallel.runtime.world import World

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""Of weights, by precision; bf16 computes under autocast."""

Value = tuple[str, int | None]
"""An op's output for a micro-batch; None: for all of them, by a merged segment."""
Edge = tuple[str, str, int | None]
"""Producer, consumer, micro-batch."""


def named_weights(model: nn.Module) -> dict[ParameterName, Tensor]:
    """A model's parameters by op and name."""
    names = (name.rpartition(".") for name, _ in model.named_parameters())
    return {(op, name): p.detach() for (op, _, name), p in zip(names, model.parameters(), strict=True)}


@dataclass(frozen=True)
class Work:
    """A segment for a micro-batch on this worker, with everything that does not change from step to step."""

    segment: Segment
    micro_batch: int | None
    parts: Mapping[str, Part]
    samples: Tensor
    images: Mapping[str, tuple[slice, Box]]
    """Per op that reads the images: rows of the loaded batch, and the box of them."""
    labels: slice
    """Rows of the loaded labels, if the loss is here."""


class Runtime:
    """One worker of a program, an `Engine`: trains and evaluates on the images and labels that it asks for."""

    splits_time = True

    def __init__(
        self, program: Program, model: nn.Module, world: World, *, seed: int, precision: str = "fp32",
        channels_last: bool = True, momentum: float = 0.0, weight_decay: float = 0.0, compile: bool = False,
        keep_gradients: bool = False,
    ) -> None:
        """`model` gives the initial weights, the same on every worker.

        `keep_gradients` keeps a step's summed gradients until the next, for `gathered`.
        """
        if program.plan.workers != world.size:
            raise ValueError(f"workers={world.size} does not fit the plan, which is for {program.plan.workers}")
        self.program, self.world = program, world
        self.clock = Clock(world.device)
        self.autocast = precision == "bf16"
        dtype = DTYPES[precision]
        self._weights = Format(dtype, channels_last, world.device)
        self.activations = Format(torch.bfloat16 if self.autocast else dtype, channels_last, world.device)
        self.transport = Transport(world, self.clock)
        self.parameters = Parameters(program, named_weights(model), world, self.transport, self._weights,
                                     momentum=momentum, weight_decay=weight_decay, keep_gradients=keep_gradients)
        self._seed = seed
        self._steps = program.steps[world.rank]
        self.image_positions: list[int] = []
        """Positions in the global batch of the images that this worker needs, in the order of its loaded rows."""
        self.label_positions: list[int] = []
        """Likewise of the labels."""
        self._work: dict[tuple[int, int | None], Work] = {}
        for segment in program.segments:
            if world.rank in segment.workers:
                for m in [None] if segment.merged else range(program.plan.micro_batches):
                    self._work[segment.index, m] = self._prepare(segment, m)
        self.rows = {name: self._merged_rows(name) for name in program.merged if world.rank in program.plan[name].on}
        self.moves = {key: self._both_ways(exchange) for key, exchange in program.exchanges.items()
                      if world.rank in exchange.workers}
        self.incoming = {(e.consumer, e.value) for e in program.exchanges.values()}
        self.entering: list[list[tuple[str, str]]] = []
        """Per segment, the edges (producer, consumer) that enter it from others."""
        self.leaving: list[list[str]] = []
        """Per segment, its ops that others read; and the loss."""
        self.compute: list[Callable[..., dict[str, Tensor]]] = []
        for segment in program.segments:
            ops = set(segment.ops)
            self.entering.append([(producer, name) for name in segment.ops for producer in program.graph[name].inputs
                                  if producer != INPUT and producer not in ops])
            read = {producer for op in program.graph for producer in op.inputs if op.name not in ops} | {LOSS}
            self.leaving.append([name for name in segment.ops if name in read])
            self.compute.append(self._segment_function(segment, compile))

    # What does not change from step to step.

    def _prepare(self, segment: Segment, m: int | None) -> Work:
        rank, program = self.world.rank, self.program
        batches = range(program.plan.micro_batches) if m is None else [m]
        parts: dict[str, Part] = {}
        images: dict[str, tuple[slice, Box]] = {}
        samples: list[int] = []
        for name in segment.ops:
            of_batches = [p for b in batches if (p := program.part(name, rank, b)) is not None]
            parts[name] = of_batches[0]
            rows = [i for p in of_batches for i in range(*p.box.spans[0])]
            samples = rows
            if INPUT in program.graph[name].inputs:
                first = len(self.image_positions)
                self.image_positions += rows
                images[name] = slice(first, first + len(rows)), program.graph[name].needs(of_batches[0])[0]
        labels = slice(0, 0)
        if LOSS in segment.ops:
            labels = slice(len(self.label_positions), len(self.label_positions) + len(samples))
            self.label_positions += samples
        positions = torch.tensor(samples, dtype=torch.int64, device=self.world.device)
        return Work(segment, m, parts, positions, images, labels)

    def _merged_rows(self, name: str) -> list[slice]:
        """Where each micro-batch lies in the output of a merged op on this worker."""
        rows, first = [], 0
        for m in range(self.program.plan.micro_batches):
            part = self.program.part(name, self.world.rank, m)
            count = 0 if part is None else part.box.shape[0]
            rows.append(slice(first, first + count))
            first += count
        return rows

    def _both_ways(self, exchange: Exchange) -> tuple[Move, Move]:
        def one_way(transposed: bool) -> Move:
            key = exchange.index, exchange.micro_batch, "<" if transposed else ">"
            return move(key, self.world.rank, exchange.transfers, exchange.holds, exchange.needs,
                        transposed=transposed, adds=exchange.adds)

        return one_way(False), one_way(True)

    def _segment_function(self, segment: Segment, compile: bool) -> Callable[..., dict[str, Tensor]]:
        """Computes a segment's ops from its leaves; returns what leaves it, and the logits if they are here."""
        ops = [self.program.graph[name] for name in segment.ops]
        results = {*self.leaving[segment.index], *(self.program.graph[LOSS].inputs if LOSS in segment.ops else ())}

        def compute(
            parts: Mapping[str, Part], leaves: Mapping[tuple[str, str], Tensor], labels: Tensor,
            parameters: Mapping[str, Mapping[str, Tensor]], context: Context,
        ) -> dict[str, Tensor]:
            values: dict[str, Tensor] = {}
            for op in ops:
                xs = [leaves[producer, op.name] if (producer, op.name) in leaves else values[producer]
                      for producer in op.inputs]
                if op.name == LOSS:
                    xs.append(labels)
                values[op.name] = op.forward(parts[op.name], xs, parameters[op.name], context)
            return {name: tensor for name, tensor in values.items() if name in results}

        if not compile:
            return compute
        compiled = torch.compile(compute, dynamic=False)

        def compute_compiled(
            parts: Mapping[str, Part], leaves: Mapping[tuple[str, str], Tensor], labels: Tensor,
            parameters: Mapping[str, Mapping[str, Tensor]], context: Context,
        ) -> dict[str, Tensor]:
            # Waiting for parameters is no tensor operation: do it before the compiled region.
            return compiled(parts, leaves, labels, {op.name: dict(parameters[op.name]) for op in ops}, context)

        return compute_compiled

    # One step.

    @property
    def bytes_sent(self) -> int:
        """Counted where messages start."""
        return self.transport.bytes_sent

    def train_step(self, images: Tensor, labels: Tensor, *, step: int, lr: float) -> Tensor:
        """One optimizer step on this worker's rows of a global batch; returns its part of the mean loss (float64).

        `step` counts optimizer steps and chooses the dropout masks.
        """
        run = _StepRun(self, images, labels, training=True, key=step_key(self._seed, step, self.world.device))
        for instruction in self._steps:
            match instruction:
                case Forward(segment, m):
                    run.forward(self._work[segment, m])
                case Backward(segment, m, sync):
                    self.parameters.expect(sync)
                    run.backward(self._work[segment, m])
                case Start(exchange, m, backward):
                    run.start(exchange, m, backward)
                case Wait(exchange, m, backward):
                    run.wait(exchange, m, backward)
                case Update(bucket):
                    self.parameters.update(bucket, lr)
        run.close()
        return run.loss

    @torch.no_grad()
    def evaluate_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """This worker's sums over a validation batch: [loss, top-1 hits, top-5 hits, samples], float64."""
        run = _StepRun(self, images, labels, training=False, key=step_key(0, 0, self.world.device))
        for instruction in self._steps:
            match instruction:
                case Forward(segment, m):
                    run.forward(self._work[segment, m])
                case Start(exchange, m, backward=False):
                    run.start(exchange, m, False)
                case Wait(exchange, m, backward=False):
                    run.wait(exchange, m, False)
        run.close()
        return run.hits

    def forget_momentum(self) -> None:
        """Make the optimizer as new, after warm-up."""
        self.parameters.forget_momentum()

    def gathered(self, kind: str = "weights") -> dict[ParameterName, Tensor]:
        """Whole weights or, with `keep_gradients`, the last step's gradients: on worker 0, on the CPU; else empty."""
        self.parameters.settle()
        own = self.parameters.shards() if kind == "weights" else self.parameters.gradients()
        shards = self.world.gather_to_first({index: tensor.cpu() for index, tensor in own.items()})
        return assemble(self.program, shards, self._weights) if shards else {}


class _StepRun:
    """The values and gradients of one step on one worker."""

    def __init__(self, runtime: Runtime, images: Tensor, labels: Tensor, *, training: bool, key: Tensor) -> None:
        self._r = runtime
        self._images, self._labels = images, labels
        self._training, self._key = training, key
        self._values: dict[Value, Tensor] = {}
        self._gradients: dict[Value, Tensor] = {}
        self._leaves: dict[Edge, Tensor] = {}
        self._moving: dict[tuple[int, int, bool], Moving] = {}
        self.loss = torch.zeros((), dtype=torch.float64, device=runtime.world.device)
        self.hits = torch.zeros(4, dtype=torch.float64, device=runtime.world.device)

    def forward(self, work: Work) -> None:
        r, segment, m = self._r, work.segment, work.micro_batch
        leaves: dict[tuple[str, str], Tensor] = {}
        for op, (rows, box) in work.images.items():
            leaves[INPUT, op] = self._images[(rows, *(slice(*span) for span in box.spans[1:]))]
        for producer, op in r.entering[segment.index]:
            if (producer, op, m) not in self._leaves:  # no exchange brought it: it was computed here
                self._leaves[producer, op, m] = self._values[producer, m].detach().requires_grad_(self._training)
            leaves[producer, op] = self._leaves[producer, op, m]
        context = Context(self._training, self._key, work.samples)
        with (
            torch.autocast(r.world.device.type, torch.bfloat16, enabled=r.autocast),
            torch.set_grad_enabled(self._training),
        ):
            outputs = r.compute[segment.index](work.parts, leaves, self._labels[work.labels], r.parameters, context)
        for name, tensor in outputs.items():
            self._values[name, m] = tensor
        if LOSS in outputs:
            self.loss += outputs[LOSS].detach().sum() / r.program.batch_size
            if not self._training:
                (logits,) = r.program.graph[LOSS].inputs
                scores = leaves[logits, LOSS] if (logits, LOSS) in leaves else outputs[logits]
                self.hits += hits(scores, self._labels[work.labels], outputs[LOSS])

    def backward(self, work: Work) -> None:
        r, segment, m = self._r, work.segment, work.micro_batch
        tensors, gradients = [], []
        for name in r.leaving[segment.index]:
            tensor = self._values.pop((name, m))
            if name == LOSS:
                tensors.append(tensor)
                gradients.append(torch.full_like(tensor, r.program.loss_scale))
            elif (name, m) in self._gradients:
                returned = self._gradients.pop((name, m))
                if tensor.requires_grad:  # not where the images have met no weights yet
                    tensors.append(tensor)
                    gradients.append(returned.to(tensor.dtype))
        torch.autograd.backward(tensors, gradients)
        for producer, op in r.entering[segment.index]:
            gradient = self._leaves[producer, op, m].grad
            if (op, producer) not in r.incoming and gradient is not None:
                self._add_gradient(producer, m, gradient)

    def start(self, index: int, m: int, backward: bool) -> None:
        r, exchange = self._r, self._r.program.exchanges[index, m]
        held = None
        if not backward and r.world.rank in exchange.holds:
            merged = exchange.value in r.rows
            held = self._values[exchange.value, None if merged else m]
            held = held[r.rows[exchange.value][m]] if merged else held
        if backward and r.world.rank in exchange.needs:
            held = self._leaves.pop((exchange.value, exchange.consumer, m)).grad
        self._moving[index, m, backward] = start(r.moves[index, m][backward], held, r.transport, r.activations)

    def wait(self, index: int, m: int, backward: bool) -> None:
        r, exchange = self._r, self._r.program.exchanges[index, m]
        tensor = finish(self._moving.pop((index, m, backward)), r.transport, r.activations)
        if tensor is None:
            return
        if backward:
            self._add_gradient(exchange.value, m, tensor)
        else:
            leaf = tensor.detach().requires_grad_(self._training)
            self._leaves[exchange.value, exchange.consumer, m] = leaf

    def _add_gradient(self, value: str, m: int | None, gradient: Tensor) -> None:
        r = self._r
        if value in r.rows and m is not None:
            whole = self._values[value, None]
            total = self._gradients.setdefault((value, None), torch.zeros_like(whole, dtype=gradient.dtype))
            if r.program.plan.update == "pass":  # the passes' losses are means over a pass, this op's is over the batch
                gradient = gradient / r.program.plan.micro_batches
            total[r.rows[value][m]] += gradient
        elif (value, m) in self._gradients:
            self._gradients[value, m] = self._gradients[value, m] + gradient
        else:
            self._gradients[value, m] = gradient

    def close(self) -> None:
        """Wait for what was only sent."""
        for moving in self._moving.values():
            finish(moving, self._r.transport, self._r.activations)
