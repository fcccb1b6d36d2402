"""The graph of a model: its ops in an order in which they can be computed, and the loss at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, fx, nn

from parallel.graph.box import Box
from parallel.graph.ops import FUNCTIONS, IN_PLACE, RULES, CrossEntropy, Op, Part, Shape

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
    """The part that is all of an op for `samples` samples."""
    return Part(Box.whole((samples, *op.domain)))


def trace(model: nn.Module, input_shape: Shape) -> Graph:
    """The graph of `model` for images of `input_shape` (c, h, w), with a cross-entropy loss after the last op.

    An op is named after its layer, that of a function after the module that calls it: `layer1.0.add`. A name that is
    taken gets a number: `add_1`. The model may be on the meta device: only shapes are computed. Raises `ValueError`
    for what has no rule.
    """
    try:
        traced = fx.symbolic_trace(model)
    except fx.proxy.TraceError as error:
        raise ValueError(f"the model cannot be traced, for what it computes depends on values: {error}") from error
    ops = _Ops(traced, _shapes(traced, input_shape), input_shape)
    for node in traced.graph.nodes:
        ops.add(node)
    return Graph(ops.with_loss(), input_shape)


class _Ops:
    """The ops of a traced model, node by node."""

    def __init__(self, traced: fx.GraphModule, shapes: Mapping[fx.Node, Shape], input_shape: Shape) -> None:
        self._traced, self._shapes, self._input_shape = traced, shapes, input_shape
        self._ops: list[Op] = []
        self._names: dict[fx.Node, str] = {}
        self._layers = {name for name, _ in traced.named_modules()}
        self._used: set[str] = set()
        self._result: object = None

    def add(self, node: fx.Node) -> None:
        """Add the ops of one node."""
        if node.op == "placeholder":
            if INPUT in self._names.values():
                raise ValueError(f"the model's input {node.target} is one too many: it must take the images alone")
            self._names[node] = INPUT
        elif node.op == "output":
            self._result = node.args[0]
        elif node.op == "call_module":
            self._add_layer(node)
        elif node.target in FUNCTIONS and node.op in ("call_function", "call_method"):
            self._add_call(node)
        else:
            raise ValueError(f"node {node.name}: {node.op} {node.target} has no rule in parallel/ops; add one there")

    def _add_layer(self, node: fx.Node) -> None:
        name, layer = str(node.target), self._traced.get_submodule(str(node.target))
        build, kind = RULES.get(type(layer)), type(layer).__name__
        if build is None:
            raise ValueError(f"layer {name}: {kind} has no rule in parallel/ops; add one there")
        if name in self._used and (isinstance(layer, nn.Dropout) or [*layer.parameters(), *layer.buffers()]):
            raise ValueError(f"layer {name}: {kind} is used twice; only a layer without weights, statistics or random "
                             "numbers can be: make one layer for each use")
        common = self._common(node, bool(getattr(layer, "inplace", False)))
        name = self._free(name) if name in self._used else name
        self._enter(node, name, build(layer, name, **common))

    def _add_call(self, node: fx.Node) -> None:
        kind, build = FUNCTIONS[node.target]
        scopes = list(node.meta.get("nn_module_stack", {}).values())
        scope = scopes[-1][0] if scopes else ""
        name = self._free(f"{scope}.{kind}" if scope else kind)
        arguments = [value for value in node.args if not _nodes(value)]
        options = {key: value for key, value in node.kwargs.items() if not _nodes(value)}
        in_place = node.target in IN_PLACE or options.pop("inplace", False) is True
        self._enter(node, name, build(arguments, options, name, **self._common(node, in_place)))

    def _common(self, node: fx.Node, in_place: bool) -> dict[str, tuple[Any, ...]]:
        """What the rules of all ops take. Refuses what would not be computed as the model computes it."""
        producers = _nodes((node.args, node.kwargs))
        if len(set(producers)) < len(producers):
            raise ValueError(f"node {node.name}: reads {self._names[producers[0]]} twice, which no rule allows")
        if in_place and len(producers[0].users) > 1:
            raise ValueError(f"node {node.name}: changes {self._names[producers[0]]} in place, which others read, too")
        return {
            "inputs": tuple(self._names[producer] for producer in producers),
            "input_shapes": tuple(self._shape(producer) for producer in producers),
            "shape": self._shape(node),
        }

    def _shape(self, node: fx.Node) -> Shape:
        return self._input_shape if node.op == "placeholder" else self._shapes[node]

    def _free(self, name: str) -> str:
        """The name, or where it is taken by an op or a layer, the name with the first number that is free."""
        numbered = (f"{name}_{i}" for i in count(1))
        return next(n for n in chain([name], numbered) if n not in self._used and n not in self._layers)

    def _enter(self, node: fx.Node, name: str, built: Op | tuple[Op, ...]) -> None:
        self._ops += built if isinstance(built, tuple) else [built]
        self._names[node] = name
        self._used.add(name)

    def with_loss(self) -> tuple[Op, ...]:
        """All ops, and the loss of the one that the model returns."""
        if not isinstance(self._result, fx.Node) or self._names[self._result] == INPUT:
            raise ValueError(f"the model returns {self._result}; it must return one tensor, the logits")
        last, shape = self._names[self._result], self._shape(self._result)
        if len(shape) != 1:
            raise ValueError(f"the model's output has shape {shape} a sample; the loss needs one row of logits")
        ops = (*self._ops, CrossEntropy(name=LOSS, inputs=(last,), input_shapes=(shape,), shape=()))
        read = {name for op in ops for name in op.inputs}
        for op in ops[:-1]:
            if op.name not in read:
                raise ValueError(f"op {op.name}: nothing reads its output")
        return ops


def _nodes(value: Any) -> list[fx.Node]:
    """The nodes in an argument, each as often as it occurs."""
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


def _shapes(traced: fx.GraphModule, input_shape: Shape) -> dict[fx.Node, Shape]:
    """The shape of every node's tensor without the sample dim, from one run of the model, which leaves it as it was."""
    first = next(traced.parameters())
    training = [module for module in traced.modules() if module.training]
    interpreter = _Shapes(traced)
    traced.eval()  # one image has no batch statistics, and the running ones are not to change
    try:
        with torch.no_grad():
            interpreter.run(torch.zeros(1, *input_shape, dtype=first.dtype, device=first.device))
    finally:
        for module in training:
            module.training = True
    return interpreter.of


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
