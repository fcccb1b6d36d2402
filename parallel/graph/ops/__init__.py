"""The tables of rules: an entry per kind of layer in `RULES`, per function or method of tensors in `FUNCTIONS`.

A new op is a file here and an entry in one of them. Graph, plan, program, runtime, simulator and search know ops
through `op.Op` alone. An entry makes the op, or several that belong together, the last of which has the layer's name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from parallel.graph.ops.batch_norm import SUMS, BatchNorm2d, BatchSums
from parallel.graph.ops.conv import Conv2d
from parallel.graph.ops.elementwise import Add, Dropout, ReLU
from parallel.graph.ops.linear import Linear
from parallel.graph.ops.loss import CrossEntropy
from parallel.graph.ops.norm import LocalResponseNorm
from parallel.graph.ops.op import DIMS, Context, Op, Part, Shape
from parallel.graph.ops.pool import AdaptiveAvgPool2d, MaxPool2d
from parallel.graph.ops.shape import Concat, Flatten

__all__ = ["DIMS", "FUNCTIONS", "IN_PLACE", "RULES", "Context", "CrossEntropy", "Op", "Part", "Shape"]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _refuse(name: str, what: str) -> ValueError:
    return ValueError(f"layer {name}: {what} has no rule in parallel/ops; add one there")


def _conv(layer: Any, name: str, **common: Any) -> Op:
    if _pair(layer.dilation) != (1, 1) or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise _refuse(name, "a convolution with dilation, non-zero or named padding")
    return Conv2d(name=name, **common, kernel=_pair(layer.kernel_size), stride=_pair(layer.stride),
                  padding=_pair(layer.padding), groups=layer.groups, bias=layer.bias is not None)


def _linear(layer: Any, name: str, **common: Any) -> Op:
    return Linear(name=name, **common, bias=layer.bias is not None)


def _max_pool(layer: Any, name: str, **common: Any) -> Op:
    if _pair(layer.dilation) != (1, 1) or layer.ceil_mode or layer.return_indices:
        raise _refuse(name, "a pooling with dilation, ceil_mode or return_indices")
    return MaxPool2d(name=name, **common, kernel=_pair(layer.kernel_size), stride=_pair(layer.stride),
                     padding=_pair(layer.padding))


def _flatten(layer: Any, name: str, **common: Any) -> Op:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise _refuse(name, "a flatten of other dims than 1 to -1")
    return Flatten(name=name, **common)


def _batch_norm(layer: Any, name: str, **common: Any) -> tuple[Op, ...]:
    if layer.momentum is None or layer.running_mean is None:
        raise _refuse(name, "a batch normalisation without running statistics or with their plain average")
    channels, sums = common["shape"][0], f"{name}.sums"
    return (
        BatchSums(name=sums, **{**common, "shape": (channels, SUMS)}),
        BatchNorm2d(name=name, inputs=(*common["inputs"], sums), shape=common["shape"],
                    input_shapes=(*common["input_shapes"], (channels, SUMS)), eps=layer.eps, momentum=layer.momentum,
                    affine=layer.affine),
    )


RULES: dict[type[nn.Module], Callable[..., Op | tuple[Op, ...]]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: lambda layer, name, **common: AdaptiveAvgPool2d(name=name, **common),
    nn.ReLU: lambda layer, name, **common: ReLU(name=name, **common),
    nn.Dropout: lambda layer, name, **common: Dropout(name=name, **common, p=layer.p),
    nn.LocalResponseNorm: lambda layer, name, **common: LocalResponseNorm(
        name=name, **common, size=layer.size, alpha=layer.alpha, beta=layer.beta, k=layer.k
    ),
    nn.Flatten: _flatten,
    nn.BatchNorm2d: _batch_norm,
}
"""(layer, name, inputs, input_shapes, shape) → op or ops."""


def _add(arguments: Sequence[object], options: Mapping[str, object], name: str, **common: Any) -> Op:
    if arguments or options or len(common["inputs"]) != 2 or len(set(common["input_shapes"])) != 1:
        raise _refuse(name, "an addition of anything but two tensors of the same shape")
    return Add(name=name, **common)


def _concat(arguments: Sequence[object], options: Mapping[str, object], name: str, **common: Any) -> Op:
    given = {"dim": 0, **dict(zip(("dim",), arguments, strict=False)), **options}
    if given.get("axis", given["dim"]) not in (1, -len(common["shape"])):
        raise _refuse(name, "a concatenation along another dim than 1, the channels,")
    return Concat(name=name, **common)


def _flatten_call(arguments: Sequence[object], options: Mapping[str, object], name: str, **common: Any) -> Op:
    given = {"start_dim": 0, "end_dim": -1, **dict(zip(("start_dim", "end_dim"), arguments, strict=False)), **options}
    if given["start_dim"] != 1 or given["end_dim"] not in (-1, len(common["input_shapes"][0])):
        raise _refuse(name, "a flatten of other dims than 1 to -1")
    return Flatten(name=name, **common)


def _relu_call(arguments: Sequence[object], options: Mapping[str, object], name: str, **common: Any) -> Op:
    return ReLU(name=name, **common)


FUNCTIONS: dict[Callable[..., Any] | str, tuple[str, Callable[..., Op]]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), ("add", _add)),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), ("concat", _concat)),
    **dict.fromkeys((torch.flatten, "flatten"), ("flatten", _flatten_call)),
    **dict.fromkeys((torch.relu, F.relu, F.relu_, "relu", "relu_"), ("relu", _relu_call)),
}
"""By function, or by a method's name: what the op is called, and (arguments and options other than tensors, name,
inputs, input_shapes, shape) → op."""
IN_PLACE: tuple[Callable[..., Any] | str, ...] = (operator.iadd, F.relu_, "add_", "relu_")
