"""The plans that `python -m parallel.verify` checks by itself: every strategy, split, scheme and kind of op.

The models are the real ones with fewer channels and features, on images that are not square, so that all plans are
checked within a minute. Degrees mostly do not divide what they split.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from parallel.config import Ddp, StrategyConfig
from parallel.graph import Graph, trace
from parallel.models.alexnet import AlexNet, AlexNetConfig, build
from parallel.models.resnet import Block
from parallel.plans import Plan, read_plan
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, Single, build_plan
from parallel.verification.parity import Case

CLASSES = 10
THINNER = {nn.Conv2d: 16, nn.Linear: 64}
"""How many times fewer channels and features than AlexNet has."""


@dataclass(frozen=True)
class DefaultPlan:
    """A plan to check by default."""

    label: str
    model: str
    """A key of `MODELS`."""
    workers: int
    batch_size: int
    plan: StrategyConfig | str
    """A named strategy, or a plan's text."""
    shared_memory: bool = True
    """False: messages go through the process group, as between hosts."""


def thin_alexnet(variant: str) -> nn.Sequential:
    """Return AlexNet's layers, in order and with their kernels, groups and dropout, but thinner."""
    with torch.device("meta"):
        full: AlexNet = build(AlexNetConfig(variant=variant), CLASSES)
    layers = OrderedDict[str, nn.Module]()
    width = 3
    for name, layer in full.named_children():
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels // THINNER[nn.Conv2d]
            layers[name] = nn.Conv2d(width, channels, layer.kernel_size[0], layer.stride[0],
                                     int(layer.padding[0]), groups=layer.groups)
            width = channels
        elif isinstance(layer, nn.Linear):
            features = CLASSES if name == "fc8" else layer.out_features // THINNER[nn.Linear]
            layers[name] = nn.Linear(width * 36 if name == "fc6" else width, features)
            width = features
        else:
            layers[name] = layer
    return nn.Sequential(layers)


def thin_resnet() -> nn.Sequential:
    """Return layers of ResNet-18: a padded pooling, a block as it is, and one that projects.

    The pooling reads negative numbers, as it does not in ResNet-18: after a ReLU, zeros would do for padding.
    """
    return nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(3, 6, 7, stride=2, padding=3, bias=False), bn1=nn.BatchNorm2d(6),
        maxpool=nn.MaxPool2d(3, 2, padding=1), layer1=Block(6, 6, 1), layer2=Block(6, 9, 2),
        avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), drop=nn.Dropout(0.3), fc=nn.Linear(9, CLASSES)))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "alexnet owt": (lambda: thin_alexnet("owt"), (3, 96, 80)),
    "alexnet original": (lambda: thin_alexnet("original"), (3, 96, 80)),
    "resnet": (thin_resnet, (3, 29, 33)),
}
"""By name: the model and the shape of its images."""


DEFAULT_PLANS = (
    DefaultPlan("single", "alexnet original", 1, 8, Single()),
    DefaultPlan("data_parallel", "alexnet owt", 3, 8, DataParallel()),
    DefaultPlan("data_parallel, network", "alexnet owt", 2, 7, DataParallel(), shared_memory=False),
    DefaultPlan("ddp", "alexnet owt", 2, 8, Ddp()),
    DefaultPlan("model_parallel tensor", "alexnet owt", 3, 6, ModelParallel(scheme="tensor")),
    DefaultPlan("model_parallel layers, 1F1B", "alexnet owt", 3, 8, ModelParallel(micro_batches=4)),
    DefaultPlan("model_parallel layers, fill-drain", "alexnet original", 2, 9,
                ModelParallel(micro_batches=3, pipeline="fill_drain"), shared_memory=False),
    DefaultPlan("one_weird_trick a", "alexnet owt", 3, 8, OneWeirdTrick(scheme="a")),
    DefaultPlan("one_weird_trick b", "alexnet owt", 2, 8, OneWeirdTrick(scheme="b")),
    DefaultPlan("one_weird_trick b, pass", "alexnet owt", 2, 8, OneWeirdTrick(scheme="b", update="pass"),
                shared_memory=False),
    DefaultPlan("one_weird_trick c", "alexnet owt", 2, 8, OneWeirdTrick(scheme="c")),
    DefaultPlan("one_weird_trick c, pass", "alexnet original", 3, 9,
                OneWeirdTrick(scheme="c", update="pass")),
    DefaultPlan("height and width", "alexnet original", 4, 5, """
        {workers: 4, ops: {conv1: {h: 2, w: 2, on: [0, 2, 1, 3]}, pool2: {h: 4, on: [3, 1, 0, 2]},
         conv3: {w: 3, on: [1, 0, 2]}, pool5: {h: 2, on: [2, 3]}, fc6: {n: 2, on: [0, 1]}}}"""),
    DefaultPlan("normalisation over channels", "alexnet original", 3, 5, """
        {workers: 3, ops: {conv1: {c: 3, on: [2, 0, 1]}, norm1: {c: 3, on: [0, 1, 2]}, pool1: {w: 3, on: [1, 2, 0]},
         conv2: {c: 3, on: [0, 1, 2]}, norm2: {w: 3, on: [0, 1, 2]}, conv4: {c: 3, on: [0, 1, 2]},
         fc6: {c: 3, on: [0, 1, 2]}}}"""),
    DefaultPlan("partial sums", "alexnet original", 4, 5, """
        {workers: 4, ops: {conv1: {k: 3, on: [3, 1, 0]}, conv2: {k: 2, h: 2, on: [1, 0, 2, 3]},
         conv3: {c: 2, k: 2, on: [0, 1, 2, 3]}, fc6: {k: 4, on: [3, 2, 1, 0]}, fc7: {c: 2, k: 2, on: [1, 3, 0, 2]},
         fc8: {k: 3, on: [0, 1, 2]}}}"""),
    DefaultPlan("pipeline of two by two", "alexnet owt", 4, 12, """
        {workers: 4, micro_batches: 3, ops: {conv1: {n: 2, on: [0, 1]}, conv4: {h: 2, on: [3, 2]},
         fc6: {c: 2, on: [1, 0]}, fc8: {on: [3]}}}""", shared_memory=False),
    DefaultPlan("batch norm over samples", "resnet", 3, 7, "{workers: 3, ops: {conv1: {n: 3, on: [0, 1, 2]}}}"),
    DefaultPlan("batch norm in space and channels", "resnet", 4, 4, """
        {workers: 4, ops: {conv1: {h: 2, w: 2, on: [0, 1, 2, 3]}, maxpool: {h: 4, on: [0, 2, 1, 3]},
         layer1.conv1: {c: 2, h: 2, on: [3, 1, 0, 2]}, layer2.bn1: {c: 4, on: [1, 0, 2, 3]},
         layer2.conv2: {n: 2, c: 2, on: [2, 3, 1, 0]}, fc: {on: [2]}}}"""),
)


def default_cases(steps: int) -> list[tuple[DefaultPlan, Case]]:
    """Build the models and plans. Plans for the same model share its initial weights."""
    models: dict[str, nn.Module] = {}
    graphs: dict[str, Graph] = {}
    with torch.random.fork_rng(devices=[]):
        for name, (make, shape) in MODELS.items():
            torch.manual_seed(1)
            models[name] = make().share_memory()
            graphs[name] = trace(models[name], shape)
    return [(default, Case(models[default.model], _plan(default, graphs[default.model]), MODELS[default.model][1],
                           default.batch_size, steps)) for default in DEFAULT_PLANS]


def _plan(default: DefaultPlan, graph: Graph) -> Plan | None:
    if isinstance(default.plan, str):
        return read_plan(default.plan, graph)
    return build_plan(graph, default.workers, default.plan) if default.plan.makes_plan else None
