"""Bytes per element and torch dtypes of each `trainer.precision`; the only place that knows
them."""

from __future__ import annotations

import torch

WEIGHT_BYTES = {"fp32": 4, "tf32": 4, "bf16": 4, "fp64": 8}
"""Bytes per element of weights, gradients and momentum, by precision."""
ACTIVATION_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp64": 8}
"""Bytes per element of activations and their gradients, by precision."""
SYNC_BYTES = 4
"""Bytes per element of gradients, and of weights that are not rounded, in messages: at least those of fp32."""
WIDE_BYTES = 8
"""Bytes per element of values that are sent in float64 with any precision (`Op.wide`)."""
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""Dtype of the weights by precision; bf16 computes under autocast, tf32 with other switches of the GPU
(`parallel.runtime.communication.device_flags`)."""
ACTIVATION_DTYPES = {**DTYPES, "bf16": torch.bfloat16}
"""Dtype of activations, and of the weights that autocast rounds (`Op.rounds_parameters`), by precision."""
