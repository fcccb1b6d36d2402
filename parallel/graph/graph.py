"""The graph of a model: its ops in topological order, with the loss at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from parallel.graph.box import Box
from parallel.graph.ops import Op, Part, Shape

INPUT = "images"
"""Name of the batch of images among the inputs of ops."""
LOSS = "loss"
"""Name of the op that computes the loss."""


@dataclass(frozen=True)
class Edge:
    """Input `which` of op `consumer`, computed by op `producer`."""

    producer: str
    consumer: str
    which: int

    def __str__(self) -> str:
        return f"{self.producer}>{self.consumer}"


@dataclass(frozen=True)
class Graph:
    """Ops in topological order; the last one is the loss."""

    ops: tuple[Op, ...]
    input_shape: Shape
    """Shape of one image: (3, s, s)."""

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    def __getitem__(self, name: str) -> Op:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @cached_property
    def _by_name(self) -> dict[str, Op]:
        return {op.name: op for op in self.ops}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the ops."""
        return tuple(op.name for op in self.ops)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges between ops, in the order of their consumers."""
        return tuple(
            Edge(producer, op.name, which)
            for op in self.ops
            for which, producer in enumerate(op.inputs)
            if producer != INPUT
        )

    def followed(self, op: Op) -> str:
        """Return the name of the op whose layout `op` takes unless it has one of its own.

        It is the producer of its first input other than the images; without one, the graph's first op.
        """
        return next((name for name in op.inputs if name != INPUT), self.ops[0].name)

    @cached_property
    def trained_ops(self) -> frozenset[str]:
        """Names of the ops with a backward pass: those with parameters, and all that depend on
        one."""
        trained = set[str]()
        for op in self.ops:
            if op.parameters or trained.intersection(op.inputs):
                trained.add(op.name)
        return frozenset(trained)

    @property
    def parameter_count(self) -> int:
        """Parameters of the model."""
        return sum(op.parameter_count for op in self.ops)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the forward pass of one image, which the literature calls FLOPs
        (AlexNet: 0.7 G)."""
        return sum(op.multiply_adds(whole_part(op, 1)) for op in self.ops)


def whole_part(op: Op, samples: int) -> Part:
    """Return the part that covers all of an op for `samples` samples."""
    return Part(Box.whole((samples, *op.domain)))
