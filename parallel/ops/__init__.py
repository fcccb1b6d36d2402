"""The table of rules: an entry per kind of layer. A new op is a file here and an entry in `RULES`.

Graph, plan, program, runtime, simulator and search know ops through `op.Op` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from parallel.ops.conv import Conv2d
from parallel.ops.elementwise import Dropout, ReLU
from parallel.ops.linear import Linear
from parallel.ops.loss import CrossEntropy
from parallel.ops.norm import LocalResponseNorm
from parallel.ops.op import DIMS, Context, Op, Part, Shape
from parallel.ops.pool import AdaptiveAvgPool2d, MaxPool2d
from parallel.ops.shape import Flatten

__all__ = ["DIMS", "RULES", "Context", "CrossEntropy", "Op", "Part", "Shape"]


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


RULES: dict[type[nn.Module], Callable[..., Op]] = {
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
}
