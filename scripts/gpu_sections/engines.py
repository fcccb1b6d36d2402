"""Training steps of one worker that the sections time and profile: ours, and plain PyTorch's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.data.random_batch import random_batch
from parallel.graph import Graph, trace
from parallel.models import build_model
from parallel.models.alexnet import AlexNetConfig
from parallel.program.lowering import lower
from parallel.runtime.communication.world import World
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.strategies import Single, build_plan

Step = Callable[[], object]
CLASSES = 1000
LR, MOMENTUM, WEIGHT_DECAY = 1e-5, 0.9, 5e-4
"""A learning rate that changes weights, but does not memorise the one batch."""


def precisions(device: torch.device) -> tuple[str, ...]:
    """Return the precisions to measure, that of fp32 tensors first. CPUs without bf16 instructions take
    seconds for a step in bf16."""
    if device.type == "cpu":
        return ("fp32",)
    return ("tf32" if torch.cuda.is_tf32_supported() else "fp32", "bf16")


def device_batch(batch: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random images and labels on the device, the images in channels_last."""
    images, labels = random_batch(batch, (3, side, side), CLASSES, seed=0)
    return images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device)


def graph_of(side: int) -> Graph:
    """Return AlexNet's graph, traced without weights."""
    with torch.device("meta"):
        return trace(build_model(AlexNetConfig(image_size=side), CLASSES, seed=0), (3, side, side))


def single(world: World, side: int, images: Tensor, labels: Tensor, precision: str, **options: Any) -> Step:
    """Return a step of this project's `single`."""
    model = build_model(AlexNetConfig(image_size=side), CLASSES, seed=0)
    program = lower(graph_of(side), build_plan(graph_of(side), 1, Single()), len(images), world.host_of)
    settings = EngineOptions(0, precision, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, **options)
    engine, count = Runtime(program, model, world, settings), itertools.count()

    def step() -> None:
        engine.train_step(images, labels, step=next(count), lr=LR)
        engine.clock.reset()  # its marks are not used

    return step


def torchvision_alexnet(side: int) -> tuple[nn.Module, str]:
    """Return torchvision's AlexNet and its name, or the same layers written here if it is missing."""
    try:
        from torchvision.models import alexnet
    except (ImportError, RuntimeError):  # missing, or built for another torch
        plain = build_model(AlexNetConfig(image_size=side, init="torch"), CLASSES, seed=0)
        return plain, "plain PyTorch (the layers of torchvision's AlexNet: torchvision is missing)"
    return alexnet(num_classes=CLASSES), "torchvision's AlexNet"


def eager(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Step:
    """Return a step as PyTorch's tutorials write it: contiguous tensors, SGD with its defaults."""
    model = model.to(images.device).train()
    images = images.contiguous()
    sgd = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def step() -> None:
        sgd.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        sgd.step()

    return step
