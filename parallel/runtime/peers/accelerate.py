"""Hugging Face Accelerate, as its quicktour has it
(https://huggingface.co/docs/accelerate/quicktour)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from parallel.config.ddp import WrappedDdp
from parallel.runtime.peers.momentum import SGDMomentum
from parallel.runtime.peers.peer import Prepared, Setting


@dataclass(frozen=True)
class Accelerate(WrappedDdp):
    """Options of Accelerate: those of all peers."""

    name: str = "accelerate"

    tool: ClassVar[str] = "Accelerate"
    packages: ClassVar[Mapping[str, str]] = {"accelerate": "accelerate"}


def accelerate(setting: Setting, options: Accelerate) -> Prepared:
    """Prepare the model and the optimizer with an Accelerator, which finds the open process group."""
    from accelerate import Accelerator

    tool = Accelerator(cpu=setting.world.device.type == "cpu", mixed_precision="no")
    sgd = setting.sgd(setting.model.parameters())
    model, optimizer = tool.prepare(setting.model, sgd)

    def backward(loss: Tensor) -> None:
        optimizer.zero_grad()
        tool.backward(loss)

    return Prepared(train=model, backward=backward, step=optimizer.step, sgd=sgd, momentum=SGDMomentum(sgd))
