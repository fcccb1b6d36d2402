"""Training steps of other tools for `bench_strategies.py`, on the same model, with their documented
set-up.

The optional extra `peers` installs them (`pip install -e '.[peers]'`). Every worker takes an equal
part of the batch, and all use the fused optimizer, channels_last images and the open process group.
Weights are channels_last if the tool supports it; FSDP2 and DeepSpeed do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[], None]


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _sgd(model: nn.Module, *, fused: bool = True, **settings: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), fused=fused, **settings)


def fabric(model: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> Step:
    """Lightning Fabric with strategy="ddp" (its documentation, "Convert PyTorch code to
    Fabric")."""
    from lightning_fabric import Fabric

    tool = Fabric(accelerator=images.device.type, devices=dist.get_world_size(), strategy="ddp")
    tool.launch()
    model = _channels_last(model)
    wrapped, sgd = tool.setup(model, _sgd(model, **settings))

    def step() -> None:
        sgd.zero_grad()
        tool.backward(F.cross_entropy(wrapped(images), labels))
        sgd.step()

    return step


def accelerate(model: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> Step:
    """Hugging Face Accelerate (its "Quicktour")."""
    from accelerate import Accelerator

    tool, model = Accelerator(cpu=images.device.type == "cpu"), _channels_last(model)
    wrapped, sgd = tool.prepare(model, _sgd(model, **settings))

    def step() -> None:
        sgd.zero_grad()
        tool.backward(F.cross_entropy(wrapped(images), labels))
        sgd.step()

    return step


def fsdp2(model: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> Step:
    """torch's fully_shard, per layer with weights and then the root (its documentation and
    torchtitan's use)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(images.device.type, (dist.get_world_size(),))
    for layer in list(model.children()):
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sgd = _sgd(model, fused=False, **settings)  # sharded tensors have no fused SGD; torch uses foreach

    def step() -> None:
        sgd.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        sgd.step()

    return step


def deepspeed(model: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> Step:
    """DeepSpeed, ZeRO stage 1 (its "Getting Started")."""
    import deepspeed as tool

    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": len(labels),
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = tool.initialize(model=model, optimizer=_sgd(model, **settings), config=config)

    def step() -> None:
        engine.backward(F.cross_entropy(engine(images), labels))
        engine.step()

    return step


PEERS: dict[str, Callable[..., Step]] = {
    "fabric": fabric,
    "accelerate": accelerate,
    "fsdp2": fsdp2,
    "deepspeed": deepspeed,
}
"""Tools by their name in `bench_strategies.py --only`."""
