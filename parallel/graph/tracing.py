"""Tracing: convert a plain PyTorch model to a `Graph` with torch.fx."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, count
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from parallel.graph.graph import INPUT, LOSS, Graph
from parallel.graph.ops import FUNCTIONS, IN_PLACE, RULES, CrossEntropy, Op, Shape


def trace(model: nn.Module, input_shape: Shape) -> Graph:
    """Return the graph of `model` for images of `input_shape` (c, h, w), with a cross-entropy loss
    after the last op.

    The op of a layer has the layer's name; the op of a function call is named after the module that
    makes the call: `layer1.0.add`. If a name is taken, a number is appended: `add_1`. The model may
    be on the meta device, because only shapes are computed. Raises `ValueError` for a layer or
    function without a rule.
    """
    try:
        traced = fx.symbolic_trace(model)
    except fx.proxy.TraceError as error:
        raise ValueError(
            f"the model cannot be traced, because what it computes depends on values: {error}"
        ) from error
    ops = _Ops(traced, _shapes(traced, input_shape), input_shape)
    for node in traced.graph.nodes:
        ops.add(node)
    return Graph(ops.with_loss(), input_shape)


class _Ops:
    """Collects the ops of a traced model, node by node."""

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
                raise ValueError(
                    f"the model takes a second input, {node.target}; it must take the images alone"
                )
            self._names[node] = INPUT
        elif node.op == "output":
            self._result = node.args[0]
        elif node.op == "call_module":
            self._add_layer(node)
        elif node.target in FUNCTIONS and node.op in ("call_function", "call_method"):
            self._add_call(node)
        else:
            raise ValueError(
                f"node {node.name}: {node.op} {node.target} has no rule in parallel/graph/ops; add one there"
            )

    def _add_layer(self, node: fx.Node) -> None:
        name, layer = str(node.target), self._traced.get_submodule(str(node.target))
        build, kind = RULES.get(type(layer)), type(layer).__name__
        if build is None:
            raise ValueError(f"layer {name}: {kind} has no rule in parallel/graph/ops; add one there")
        if name in self._used and (isinstance(layer, nn.Dropout) or [*layer.parameters(), *layer.buffers()]):
            raise ValueError(
                f"layer {name}: {kind} is used twice; only a layer without weights, statistics or random "
                "numbers may be: make one layer for each use"
            )
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
        """Return the arguments that every rule takes; raise `ValueError` where an op would compute
        something else."""
        producers = _nodes((node.args, node.kwargs))
        if len(set(producers)) < len(producers):
            raise ValueError(
                f"node {node.name}: reads {self._names[producers[0]]} twice, which no op supports"
            )
        if in_place and len(producers[0].users) > 1:
            raise ValueError(
                f"node {node.name}: changes {self._names[producers[0]]} in place, "
                "but other nodes read it, too"
            )
        return {
            "inputs": tuple(self._names[producer] for producer in producers),
            "input_shapes": tuple(self._shape(producer) for producer in producers),
            "shape": self._shape(node),
        }

    def _shape(self, node: fx.Node) -> Shape:
        return self._input_shape if node.op == "placeholder" else self._shapes[node]

    def _free(self, name: str) -> str:
        """Return the name; if an op or a layer has it, append the first free number."""
        numbered = (f"{name}_{i}" for i in count(1))
        return next(n for n in chain([name], numbered) if n not in self._used and n not in self._layers)

    def _enter(self, node: fx.Node, name: str, built: Op | tuple[Op, ...]) -> None:
        self._ops += built if isinstance(built, tuple) else [built]
        self._names[node] = name
        self._used.add(name)

    def with_loss(self) -> tuple[Op, ...]:
        """Return all ops, followed by the loss of the op that the model returns."""
        if not isinstance(self._result, fx.Node) or self._names[self._result] == INPUT:
            raise ValueError(f"the model returns {self._result}; it must return one tensor, the logits")
        last, shape = self._names[self._result], self._shape(self._result)
        if len(shape) != 1:
            raise ValueError(
                f"the model's output has shape {shape} a sample; the loss needs one row of logits"
            )
        ops = (*self._ops, CrossEntropy(name=LOSS, inputs=(last,), input_shapes=(shape,), shape=()))
        read = {name for op in ops for name in op.inputs}
        for op in ops[:-1]:
            if op.name not in read:
                raise ValueError(f"op {op.name}: nothing reads its output")
        return ops


def _nodes(value: Any) -> list[fx.Node]:
    """Return the nodes in an argument, with repetitions."""
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


def _shapes(traced: fx.GraphModule, input_shape: Shape) -> dict[fx.Node, Shape]:
    """Return the shape of every node's tensor without the sample dim, from one forward pass.

    It runs in evaluation mode: one image has no batch statistics, and the running statistics must
    not change.
    """
    first = next(traced.parameters())
    training = [module for module in traced.modules() if module.training]
    traced.eval()
    try:
        with torch.no_grad():
            ShapeProp(traced).propagate(torch.zeros(1, *input_shape, dtype=first.dtype, device=first.device))
    finally:
        for module in training:
            module.training = True
    return {
        node: tuple(node.meta["tensor_meta"].shape[1:])
        for node in traced.graph.nodes
        if isinstance(node.meta.get("tensor_meta"), TensorMetadata)
    }
