"""The tables of ops: one line per kind of layer in `RULES`, per function or tensor method in
`FUNCTIONS`.

A new op is a file in this folder and one line in a table. Graph, plan, program, runtime, simulator
and search know ops only through `op.Op`. A rule builds one op, or several that belong together; the
last one gets the layer's name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from parallel.graph.ops.batch_norm import BatchNorm2d
from parallel.graph.ops.conv import Conv2d
from parallel.graph.ops.elementwise import Add, Dropout, ReLU
from parallel.graph.ops.linear import Linear
from parallel.graph.ops.loss import CrossEntropy
from parallel.graph.ops.norm import LocalResponseNorm
from parallel.graph.ops.op import DIMS, Context, Op, Part, Shape
from parallel.graph.ops.pool import AdaptiveAvgPool2d, MaxPool2d
from parallel.graph.ops.shape import Concat, Flatten

__all__ = ["DIMS", "FUNCTIONS", "IN_PLACE", "RULES", "Context", "CrossEntropy", "Op", "Part", "Shape"]

RULES: dict[type[nn.Module], Callable[..., Op | tuple[Op, ...]]] = {
    nn.AdaptiveAvgPool2d: AdaptiveAvgPool2d.from_layer,
    nn.BatchNorm2d: BatchNorm2d.from_layer,
    nn.Conv2d: Conv2d.from_layer,
    nn.Dropout: Dropout.from_layer,
    nn.Flatten: Flatten.from_layer,
    nn.Linear: Linear.from_layer,
    nn.LocalResponseNorm: LocalResponseNorm.from_layer,
    nn.MaxPool2d: MaxPool2d.from_layer,
    nn.ReLU: ReLU.from_layer,
}
"""By layer type: (layer, name, inputs, input_shapes, shape) → op or ops."""

FUNCTIONS: dict[Callable[..., Any] | str, tuple[str, Callable[..., Op]]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), ("add", Add.from_call)),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), ("concat", Concat.from_call)),
    **dict.fromkeys((torch.flatten, "flatten"), ("flatten", Flatten.from_call)),
    **dict.fromkeys((torch.relu, F.relu, F.relu_, "relu", "relu_"), ("relu", ReLU.from_call)),
}
"""By function, or by name for a tensor method: name of the op, and (arguments and options that are
not tensors, name, inputs, input_shapes, shape) → op."""

IN_PLACE: tuple[Callable[..., Any] | str, ...] = (operator.iadd, F.relu_, "add_", "relu_")
"""Functions and methods that change their first argument."""
