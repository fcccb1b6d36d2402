"""Batch normalisation (Ioffe and Szegedy 2015, algorithm 1) with statistics of the whole batch for
any split.

A layer becomes two ops. The exchange between them adds the workers' partial sums, as for a k split:

    bn.sums    S = Σ (1, x, x²) over the part's samples and positions, per channel         [1, c, 3], float64
    bn         mean = S₁ / S₀;  var = S₂ / S₀ − mean²;  y = (x − mean) / √(var + eps) · weight + bias

Each worker computes its sums from the mean and variance of its own part. In float64, S₂ / S₀ −
mean² then has the accuracy of a float32 variance. In backward, every part of `bn` computes its
share of ∂L/∂S, the transposed exchange adds the shares, and `bn.sums` returns ∂L/∂x = ∂L/∂S₁ + 2x ·
∂L/∂S₂. Evaluation uses the running statistics; the sums are then unused zeros. What is computed of
three numbers per channel is one kernel on a GPU (`one_kernel`).

Where all samples and positions of a channel lie on one worker, nothing is to be added. Lowering then
fuses the two ops (`Program.fused`): `bn` computes both with torch's own kernels, forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from parallel.graph.box import Box
from parallel.graph.ops.one_kernel import one_kernel
from parallel.graph.ops.op import Context, Op, Part, Shape, no_rule

SUMS = 3
"""Count, sum, sum of squares."""


@dataclass(frozen=True, kw_only=True)
class BatchSums(Op):
    """Count, sum and sum of squares per channel, shape (c, 3); a split in n, h or w gives partial
    sums."""

    @property
    def dims(self) -> str:
        return "nchw"

    @property
    def domain(self) -> Shape:
        return self.input_shapes[0]

    @property
    def sums_over(self) -> str:
        return "nhw"

    @property
    def whole_batch(self) -> bool:
        return True

    @property
    def least_samples(self) -> int:
        return 2 if math.prod(self.domain[1:]) == 1 else 1  # a single value has no variance

    def output_box(self, part: Part) -> Box:
        return Box(((0, 1), part.box.spans[1], (0, SUMS)))

    @property
    def wide(self) -> bool:
        return True

    def kept_bytes(self, part: Part, itemsize: int) -> int:
        return 8 * self.output_box(part).volume

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        x = xs[0]
        if not context.training:
            return torch.zeros(self.output_box(part).shape, dtype=torch.float64, device=x.device)
        sums: Tensor = _Sums.apply(x)
        return sums


@dataclass(frozen=True, kw_only=True)
class BatchNorm2d(Op):
    """Normalise the first input, x, with the second, the sums over all parts."""

    eps: float
    momentum: float
    """Weight of the batch's statistics in the new running statistics."""
    affine: bool

    @classmethod
    def from_layer(cls, layer: nn.BatchNorm2d, name: str, **common: Any) -> tuple[Op, ...]:
        """Build the two ops of an `nn.BatchNorm2d`."""
        if layer.momentum is None or layer.running_mean is None:
            raise no_rule(
                name, "a batch normalisation without running statistics or with their plain average"
            )
        sums, sums_shape = f"{name}.sums", (common["shape"][0], SUMS)
        return (
            BatchSums(name=sums, **{**common, "shape": sums_shape}),
            cls(
                name=name,
                inputs=(*common["inputs"], sums),
                shape=common["shape"],
                input_shapes=(*common["input_shapes"], sums_shape),
                eps=layer.eps,
                momentum=layer.momentum,
                affine=layer.affine,
            ),
        )

    @property
    def dims(self) -> str:
        return "nchw"

    @property
    def fuses(self) -> str:
        return self.inputs[1]

    @property
    def parameters(self) -> dict[str, Shape]:
        return {"weight": self.shape[:1], "bias": self.shape[:1]} if self.affine else {}

    @property
    def buffers(self) -> dict[str, Shape]:
        return {"running_mean": self.shape[:1], "running_var": self.shape[:1]}

    def needs(self, part: Part) -> tuple[Box, ...]:
        return part.box, Box(((0, 1), part.box.spans[1], (0, SUMS)))

    def parameter_boxes(self, part: Part) -> dict[str, Box]:
        return dict.fromkeys(self.parameters, Box(part.box.spans[1:2]))

    def buffer_boxes(self, part: Part) -> dict[str, Box]:
        return dict.fromkeys(self.buffers, Box(part.box.spans[1:2]))

    def forward(
        self, part: Part, xs: Sequence[Tensor], parameters: Mapping[str, Tensor], context: Context
    ) -> Tensor:
        x, *sums = xs
        weight, bias, buffers = parameters.get("weight"), parameters.get("bias"), context.buffers[self.name]
        running = buffers["running_mean"], buffers["running_var"]
        if not sums or not context.training:
            return F.batch_norm(x, *running, weight, bias, context.training, self.momentum, self.eps)
        mean, var = _statistics(sums[0].detach(), *running, self.momentum)
        y: Tensor = _Normalise.apply(x, sums[0], mean, var, weight, bias, self.eps)
        return y


class _Sums(torch.autograd.Function):
    """Map x [n, c, h, w] to its sums [1, c, 3]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        wide = x if x.dtype.itemsize >= 4 else x.float()
        # Fused; the biased variance.
        mean, var = torch.ops.aten.batch_norm_update_stats(wide, None, None, 0.0)
        return _sums(mean, var, x.numel() // x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        per_channel = gradient.to(x.dtype if x.dtype.itemsize >= 4 else torch.float32)
        _, of_sum, of_squares = per_channel.view(-1, SUMS, 1, 1).unbind(1)  # each [c, 1, 1]
        return torch.addcmul(of_sum, x, of_squares, value=2).to(x.dtype)


class _Normalise(torch.autograd.Function):
    """Compute (x − mean) / √(var + eps) · weight + bias with evaluation's fused kernel, which takes
    mean and var. The gradient of these two is returned as that of the sums."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        sums: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, sums, mean, var, weight)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, sums, mean, var, weight = ctx.saved_tensors
        # The kernel needs a weight to compute its gradient.
        scale = torch.ones_like(mean) if weight is None else weight
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, scale, mean, var, None, None, False, ctx.eps, [ctx.needs_input_grad[0], True, True]
        )
        of_sums = _gradient_of_sums(sums, mean, var, scale, of_weight, of_bias, ctx.eps)
        own = (None, None) if weight is None else (of_weight, of_bias)
        return of_x, of_sums, None, None, *own, None


@one_kernel("batch_norm_sums(Tensor mean, Tensor var, int count) -> Tensor")
def _sums(mean: Tensor, var: Tensor, count: int) -> Tensor:
    """Return the sums [1, c, 3] of `count` values per channel with this mean and biased variance."""
    mean, var = mean.double(), var.double()
    return count * torch.stack([torch.ones_like(mean), mean, var + mean * mean], dim=1)[None]


@one_kernel(
    "batch_norm_statistics(Tensor sums, Tensor(a!) running_mean, Tensor(b!) running_var, float momentum) "
    "-> (Tensor, Tensor)"
)
def _statistics(
    sums: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float
) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance [c] of all parts, and update the running ones.

    They have the dtype of the running ones, that of the weights: at least fp32.
    """
    count, total, squares = sums[0].unbind(dim=1)  # each [c]
    mean = total / count
    var = (squares / count - mean * mean).clamp_min(0.0)  # rounding may make it negative
    unbiased = var * (count / (count - 1))
    for running, now in ((running_mean, mean), (running_var, unbiased)):
        running.lerp_(now.to(running.dtype), momentum)
    return mean.to(running_mean.dtype), var.to(running_var.dtype)


@one_kernel(
    "batch_norm_gradient_of_sums(Tensor sums, Tensor mean, Tensor var, Tensor weight, Tensor of_weight, "
    "Tensor of_bias, float eps) -> Tensor"
)
def _gradient_of_sums(
    sums: Tensor, mean: Tensor, var: Tensor, weight: Tensor, of_weight: Tensor, of_bias: Tensor, eps: float
) -> Tensor:
    """Return a part's share of ∂L/∂S [1, c, 3], from its gradients of weight and bias. The count has
    none."""
    count, scale = sums[0, :, 0], (var + eps).rsqrt()
    of_mean, of_var = -weight * scale * of_bias, -0.5 * weight * scale * scale * of_weight
    gradient = torch.zeros_like(sums)
    gradient[0, :, 1] = (of_mean - 2 * mean * of_var) / count
    gradient[0, :, 2] = of_var / count
    return gradient
