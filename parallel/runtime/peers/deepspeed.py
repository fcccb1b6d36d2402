"""DeepSpeed with ZeRO, as its "Getting Started" has it (https://www.deepspeed.ai/getting-started/).

Its gradient clipping, 1.0 by default, is off, because no other strategy clips. On CPUs it compiles an
extension when it is first used: this takes a C++ compiler, ninja and about a minute.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from parallel.config import require
from parallel.config.peer import PeerConfig
from parallel.runtime.peers.peer import Prepared, Setting

MOMENTUM = "momentum_buffer"
"""Name of the momentum in the state of torch's SGD."""


@dataclass(frozen=True)
class DeepSpeed(PeerConfig):
    """Options of DeepSpeed."""

    name: str = "deepspeed"
    stage: int = 1
    """Stage of ZeRO: 1 shards the momentum, 2 also the gradients."""

    tool: ClassVar[str] = "DeepSpeed"
    packages: ClassVar[Mapping[str, str]] = {"deepspeed": "deepspeed"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.stage in (1, 2),
            "strategy.stage",
            self.stage,
            "must be 1 or 2; strategy=fsdp2 also shards the weights, as stage 3 does",
        )

    def check_precision(self, precision: str) -> None:
        require(
            precision != "fp64",
            "trainer.precision",
            precision,
            "must be fp32 or bf16 for strategy=deepspeed, which updates its weights in fp32",
        )


class ShardedMomentum:
    """Momentum that DeepSpeed keeps in flat shards, one on each worker."""

    def __init__(self, sgd: torch.optim.SGD) -> None:
        self._state = sgd.state

    def of(self, parameter: nn.Parameter) -> Tensor | None:
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self._state:
            return None
        found: Tensor = safe_get_full_optimizer_state(parameter, MOMENTUM)
        return found

    def replace(self, parameter: nn.Parameter, momentum: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        if self._state:
            safe_set_full_optimizer_state(parameter, momentum, MOMENTUM)
        elif momentum.any():
            raise ValueError(
                "trainer.warmup_steps=0 must be at least 1 to continue with strategy=deepspeed, which has "
                "no momentum before its first step"
            )

    def reset(self) -> None:
        for state in self._state.values():
            state[MOMENTUM].zero_()  # DeepSpeed refers to these tensors


def deepspeed(setting: Setting, options: DeepSpeed) -> Prepared:
    """Wrap the model and the optimizer in a DeepSpeed engine, which finds the open process group."""
    os.environ["DS_ACCELERATOR"] = setting.world.device.type  # read at the import
    import deepspeed as tool

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    sgd = setting.sgd(setting.model.parameters())
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": setting.samples,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": options.stage},
        "zero_allow_untested_optimizer": True,  # it names Adam alone as tested
        "torch_autocast": {"enabled": setting.precision == "bf16", "dtype": "bfloat16"},
    }
    engine, *_ = tool.initialize(model=setting.model, optimizer=sgd, config=config)

    def step() -> None:
        with setting.waits.updating():  # each worker updates its shard, then all gather the weights
            engine.step()

    return Prepared(
        train=engine,
        backward=engine.backward,
        step=step,
        sgd=sgd,
        momentum=ShardedMomentum(sgd),
        loaded=_set_masters,
    )


def _set_masters(parameters: Sequence[nn.Parameter]) -> None:
    """Give DeepSpeed the weights that have replaced the model's: it updates its own copy."""
    from deepspeed.utils import safe_set_full_fp32_param

    for parameter in parameters:
        safe_set_full_fp32_param(parameter, parameter.detach())
