"""Preparation of a worker's program: everything that does not change from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.graph import INPUT, LOSS
from parallel.graph.box import Box, Span
from parallel.graph.ops import Context, Part
from parallel.program import Exchange, Program, Segment
from parallel.runtime.communication.exchange import Move, move
from parallel.runtime.instrumentation.observe import Observer, observed

Compute = Callable[
    [
        Mapping[str, Part],
        Mapping[tuple[str, str], Tensor],
        Tensor,
        Mapping[str, Mapping[str, Tensor]],
        Context,
    ],
    dict[str, Tensor],
]
"""(parts, leaves by producer and consumer, labels, parameters, context) → outputs by op."""


@dataclass(frozen=True)
class SegmentWork:
    """A segment for a micro-batch on this worker."""

    segment: Segment
    micro_batch: int | None
    parts: Mapping[str, Part]
    samples: Tensor
    images: Mapping[str, tuple[slice, Box]]
    """Rows of the loaded batch and their box, for each op that reads the images."""
    labels: slice
    """Rows of the loaded labels, if the segment has the loss."""
    constants: Mapping[str, Mapping[str, Tensor]]
    """By op: what its forward reads and only depends on its part (`Op.constants`)."""


class Prepared:
    """One worker's segments, exchanges and segment functions."""

    def __init__(
        self,
        program: Program,
        rank: int,
        device: torch.device,
        compile: bool,
        observer: Observer | None = None,
    ) -> None:
        self.program = program
        self._rank, self._device = rank, device
        self.image_positions: list[int] = []
        """Positions in the global batch of the images that this worker needs, in the order of its
        loaded rows."""
        self.label_positions: list[int] = []
        """Positions of the labels that this worker needs."""
        self._image_rows: dict[tuple[int, ...], slice] = {}
        """Rows of the loaded batch by position; ops that read the same images share them."""
        self._constants: dict[tuple[str, tuple[Span, ...]], Mapping[str, Tensor]] = {}
        """By op and box without n, which micro-batches have in common."""
        self.work: dict[tuple[int, int | None], SegmentWork] = {}
        for segment in program.segments:
            if rank in segment.workers:
                for m in [None] if segment.merged else range(program.plan.micro_batches):
                    self.work[segment.index, m] = self._prepare(segment, m)
        self.rows = {
            name: self._merged_rows(name) for name in program.merged if rank in program.plan[name].on
        }
        self.moves = {
            key: self._both_ways(exchange)
            for key, exchange in program.exchanges.items()
            if rank in exchange.workers
        }
        self.incoming = {(e.consumer, e.value) for e in program.exchanges.values()}
        """Pairs (consumer, producer) of the edges with an exchange."""
        self.entering: list[list[tuple[str, str]]] = []
        """Edges (producer, consumer) that enter each segment from others."""
        self.leaving: list[list[str]] = []
        """Ops of each segment that others read, and the loss."""
        self.compute: list[Compute] = []
        for segment in program.segments:
            ops = set(segment.ops)
            self.entering.append(
                [
                    (producer, name)
                    for name in segment.ops
                    for producer in program.graph[name].inputs
                    if producer != INPUT and producer not in ops
                ]
            )
            read = {producer for op in program.graph for producer in op.inputs if op.name not in ops} | {LOSS}
            self.leaving.append([name for name in segment.ops if name in read])
            self.compute.append(self._segment_function(segment, compile, observer))

    def _prepare(self, segment: Segment, m: int | None) -> SegmentWork:
        rank, program = self._rank, self.program
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
                op = program.graph[name]
                box = op.needs(of_batches[0])[op.inputs.index(INPUT)]
                images[name] = self._load(tuple(rows)), box
        labels = slice(0, 0)
        if LOSS in segment.ops:
            labels = slice(len(self.label_positions), len(self.label_positions) + len(samples))
            self.label_positions += samples
        positions = torch.tensor(samples, dtype=torch.int64, device=self._device)
        constants = {name: self._constants_of(name, part) for name, part in parts.items()}
        return SegmentWork(segment, m, parts, positions, images, labels, constants)

    def _constants_of(self, name: str, part: Part) -> Mapping[str, Tensor]:
        key = name, part.box.spans[1:]
        if key not in self._constants:
            self._constants[key] = self.program.graph[name].constants(part, self._device)
        return self._constants[key]

    def _load(self, positions: tuple[int, ...]) -> slice:
        """Return the rows of the loaded batch with the images at these positions."""
        if positions not in self._image_rows:
            first = len(self.image_positions)
            self.image_positions += positions
            self._image_rows[positions] = slice(first, len(self.image_positions))
        return self._image_rows[positions]

    def _merged_rows(self, name: str) -> list[slice]:
        """Return the rows of each micro-batch in the output of a merged op on this worker."""
        rows, first = [], 0
        for m in range(self.program.plan.micro_batches):
            box = self.program.output(name, self._rank, m)
            count = 0 if box is None else box.shape[0]
            rows.append(slice(first, first + count))
            first += count
        return rows

    def _both_ways(self, exchange: Exchange) -> tuple[Move, Move]:
        def one_way(transposed: bool) -> Move:
            key = exchange.index, exchange.micro_batch, "<" if transposed else ">"
            return move(
                key,
                self._rank,
                exchange.transfers,
                exchange.holds,
                exchange.needs,
                transposed=transposed,
                adds=exchange.adds,
            )

        return one_way(False), one_way(True)

    def _segment_function(self, segment: Segment, compile: bool, observer: Observer | None) -> Compute:
        """Return the function that computes what leaves a segment, and the logits."""
        fused = self.program.fused
        ops = [self.program.graph[name] for name in segment.ops if name not in fused]
        forwards = [(op, op.forward if observer is None else observed(op, observer)) for op in ops]
        logits = self.program.graph[LOSS].inputs if LOSS in segment.ops else ()
        results = {*self.leaving[segment.index], *logits}

        def compute(
            parts: Mapping[str, Part],
            leaves: Mapping[tuple[str, str], Tensor],
            labels: Tensor,
            parameters: Mapping[str, Mapping[str, Tensor]],
            context: Context,
        ) -> dict[str, Tensor]:
            values: dict[str, Tensor] = {}
            for op, forward in forwards:
                xs = [
                    leaves[producer, op.name] if (producer, op.name) in leaves else values[producer]
                    for producer in op.inputs
                    if producer not in fused
                ]
                if op.name == LOSS:
                    xs.append(labels)
                values[op.name] = forward(parts[op.name], xs, parameters[op.name], context)
            return {name: tensor for name, tensor in values.items() if name in results}

        if not compile:
            return compute
        # Dynamo counts recompilations per code object, which all segments would share: beyond its
        # limit of eight, the remaining segments would silently run uncompiled.
        compute.__code__ = compute.__code__.replace(co_name=f"segment_{segment.index}")
        compiled = torch.compile(compute, dynamic=False)

        def compute_compiled(
            parts: Mapping[str, Part],
            leaves: Mapping[tuple[str, str], Tensor],
            labels: Tensor,
            parameters: Mapping[str, Mapping[str, Tensor]],
            context: Context,
        ) -> dict[str, Tensor]:
            # Waiting for parameters is not a tensor operation: do it before the compiled region.
            updated = {op.name: dict(parameters[op.name]) for op in ops}
            return compiled(parts, leaves, labels, updated, context)

        return compute_compiled
