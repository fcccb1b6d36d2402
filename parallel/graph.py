"""The graph of a model: its ops in an order in which they can be computed, and the loss at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from parallel.box import Box
from parallel.ops import RULES, CrossEntropy, Op, Part, Shape

INPUT = "images"
LABELS = "labels"
LOSS = "loss"


@dataclass(frozen=True)
class Graph:
    """Ops in topological order; the last one is the loss."""

    ops: tuple[Op, ...]
    input_shape: Shape
    """Of one image: (3, s, s)."""

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
        return tuple(op.name for op in self.ops)

    @property
    def parameter_count(self) -> int:
        """Parameters of the model."""
        return sum(op.parameter_count for op in self.ops)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the forward pass of one image: what the literature calls AlexNet's 0.7 GFLOPs."""
        return sum(op.multiply_adds(whole_part(op, 1)) for op in self.ops)


def whole_part(op: Op, samples: int) -> Part:
    """The part that is all of an op's output for `samples` samples."""
    return Part(Box.whole((samples, *op.shape)))


def trace(model: nn.Module, input_shape: Shape) -> Graph:
    """The graph of `model` for images of `input_shape` (c, h, w), with a cross-entropy loss after the last op.

    The model may be on the meta device: only shapes are computed. Raises `ValueError` for a layer without a rule.
    """
    traced = fx.symbolic_trace(model)
    first = next(model.parameters())
    shapes = _Shapes(traced)
    with torch.no_grad():
        shapes.run(torch.zeros(1, *input_shape, dtype=first.dtype, device=first.device))
    ops: list[Op] = []
    names: dict[fx.Node, str] = {}
    shape_of: dict[fx.Node, Shape] = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            names[node], shape_of[node] = INPUT, input_shape
        elif node.op == "call_module":
            layer = traced.get_submodule(node.target)
            build = RULES.get(type(layer))
            if build is None:
                kind = type(layer).__name__
                raise ValueError(f"layer {node.target}: {kind} has no rule in parallel/ops; add one there")
            producers = node.all_input_nodes
            names[node], shape_of[node] = node.target, shapes.of[node]
            ops.append(
                build(
                    layer,
                    node.target,
                    inputs=tuple(names[p] for p in producers),
                    input_shapes=tuple(shape_of[p] for p in producers),
                    shape=shapes.of[node],
                )
            )
        elif node.op != "output":
            raise ValueError(f"node {node.name}: {node.op} {node.target} has no rule in parallel/ops; add one there")
    last = ops[-1]
    if len(last.shape) != 1:
        raise ValueError(f"the model's output has shape {last.shape} a sample; the loss needs one row of logits")
    ops.append(CrossEntropy(name=LOSS, inputs=(last.name,), input_shapes=(last.shape,), shape=()))
    return Graph(tuple(ops), input_shape)


class _Shapes(fx.Interpreter):
    """Runs the traced model once and notes the shape of every node, without the sample dim."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.of: dict[fx.Node, Shape] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.of[n] = tuple(result.shape[1:])
        return result
