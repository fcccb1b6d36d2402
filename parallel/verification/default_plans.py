"""The default plans of `python -m parallel.verify`: every strategy, split, scheme and kind of op.

The models have fewer channels and features than the real ones, and take images that are not square.
Checking all plans takes less than a minute. Most degrees do not divide the size of their dim.
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
"""Factors by which AlexNet's channels and features are reduced."""


@dataclass(frozen=True)
class DefaultPlan:
    """A default plan and its model."""

    label: str
    model: str
    """A key of `MODELS`."""
    workers: int
    batch_size: int
    plan: StrategyConfig | str
    """Options of a named strategy, or the text of a plan."""
    shared_memory: bool = True
    """Whether workers pass messages in shared memory; False: through the process group, as between
    hosts."""


def thin_alexnet(variant: str) -> nn.Sequential:
    """Return AlexNet with fewer channels and features: the same layers, kernels, groups and
    dropout."""
    with torch.device("meta"):
        full: AlexNet = build(AlexNetConfig(variant=variant), CLASSES)
    layers = OrderedDict[str, nn.Module]()
    width = 3
    for name, layer in full.named_children():
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels // THINNER[nn.Conv2d]
            layers[name] = nn.Conv2d(
                width,
                channels,
                layer.kernel_size[0],
                layer.stride[0],
                int(layer.padding[0]),
                groups=layer.groups,
            )
            width = channels
        elif isinstance(layer, nn.Linear):
            features = CLASSES if name == "fc8" else layer.out_features // THINNER[nn.Linear]
            layers[name] = nn.Linear(width * 36 if name == "fc6" else width, features)
            width = features
        else:
            layers[name] = layer
    return nn.Sequential(layers)


def thin_resnet() -> nn.Sequential:
    """Return a small ResNet: a padded pooling, an identity block, and a block with a projection.

    Unlike in ResNet-18, the pooling reads negative numbers. After a ReLU, padding with zeros would
    go unnoticed.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 6, 7, stride=2, padding=3, bias=False),
            bn1=nn.BatchNorm2d(6),
            maxpool=nn.MaxPool2d(3, 2, padding=1),
            layer1=Block(6, 6, 1),
            layer2=Block(6, 9, 2),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            drop=nn.Dropout(0.3),
            fc=nn.Linear(9, CLASSES),
        )
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "alexnet owt": (lambda: thin_alexnet("owt"), (3, 96, 80)),
    "alexnet original": (lambda: thin_alexnet("original"), (3, 96, 80)),
    "resnet": (thin_resnet, (3, 29, 33)),
}
"""Constructor of each model, and the shape of its images, by name."""


DEFAULT_PLANS = (
    DefaultPlan("single", "alexnet original", 1, 8, Single()),
    DefaultPlan("data_parallel", "alexnet owt", 3, 8, DataParallel()),
    DefaultPlan("data_parallel, network", "alexnet owt", 2, 7, DataParallel(), shared_memory=False),
    DefaultPlan("ddp", "alexnet owt", 2, 8, Ddp()),
    DefaultPlan("model_parallel tensor", "alexnet owt", 3, 6, ModelParallel(scheme="tensor")),
    DefaultPlan("model_parallel layers, 1F1B", "alexnet owt", 3, 8, ModelParallel(micro_batches=4)),
    DefaultPlan(
        "model_parallel layers, fill-drain",
        "alexnet original",
        2,
        9,
        ModelParallel(micro_batches=3, pipeline="fill_drain"),
        shared_memory=False,
    ),
    DefaultPlan("one_weird_trick a", "alexnet owt", 3, 8, OneWeirdTrick(scheme="a")),
    DefaultPlan("one_weird_trick b", "alexnet owt", 2, 8, OneWeirdTrick(scheme="b")),
    DefaultPlan(
        "one_weird_trick b, pass",
        "alexnet owt",
        2,
        8,
        OneWeirdTrick(scheme="b", update="pass"),
        shared_memory=False,
    ),
    DefaultPlan("one_weird_trick c", "alexnet owt", 2, 8, OneWeirdTrick(scheme="c")),
    DefaultPlan(
        "one_weird_trick c, pass", "alexnet original", 3, 9, OneWeirdTrick(scheme="c", update="pass")
    ),
    DefaultPlan(
        "height and width",
        "alexnet original",
        4,
        5,
        """
        {workers: 4, ops: {conv1: {h: 2, w: 2, on: [0, 2, 1, 3]}, pool2: {h: 4, on: [3, 1, 0, 2]},
         conv3: {w: 3, on: [1, 0, 2]}, pool5: {h: 2, on: [2, 3]}, fc6: {n: 2, on: [0, 1]}}}""",
    ),
    DefaultPlan(
        "normalisation over channels",
        "alexnet original",
        3,
        5,
        """
        {workers: 3, ops: {conv1: {c: 3, on: [2, 0, 1]}, norm1: {c: 3, on: [0, 1, 2]}, pool1: {w: 3, on: [1, 2, 0]},
         conv2: {c: 3, on: [0, 1, 2]}, norm2: {w: 3, on: [0, 1, 2]}, conv4: {c: 3, on: [0, 1, 2]},
         fc6: {c: 3, on: [0, 1, 2]}}}""",
    ),
    DefaultPlan(
        "partial sums",
        "alexnet original",
        4,
        5,
        """
        {workers: 4, ops: {conv1: {k: 3, on: [3, 1, 0]}, conv2: {k: 2, h: 2, on: [1, 0, 2, 3]},
         conv3: {c: 2, k: 2, on: [0, 1, 2, 3]}, fc6: {k: 4, on: [3, 2, 1, 0]}, fc7: {c: 2, k: 2, on: [1, 3, 0, 2]},
         fc8: {k: 3, on: [0, 1, 2]}}}""",
    ),
    DefaultPlan(
        "pipeline of two by two",
        "alexnet owt",
        4,
        12,
        """
        {workers: 4, micro_batches: 3, ops: {conv1: {n: 2, on: [0, 1]}, conv4: {h: 2, on: [3, 2]},
         fc6: {c: 2, on: [1, 0]}, fc8: {on: [3]}}}""",
        shared_memory=False,
    ),
    DefaultPlan(
        "uneven parts",
        "alexnet owt",
        3,
        9,
        """
        {workers: 3, ops: {conv1: {n: [4, 2, 1], on: [0, 1, 2]}, conv2: {h: [3, 1], on: [2, 0]},
         fc6: {c: [5, 2, 1], on: [0, 1, 2]}, fc7: {k: [3, 1], on: [1, 2]}}}""",
    ),
    DefaultPlan(
        "batch norm over samples", "resnet", 3, 7, "{workers: 3, ops: {conv1: {n: 3, on: [0, 1, 2]}}}"
    ),
    DefaultPlan(
        "batch norm of whole channels", "resnet", 2, 5, "{workers: 2, ops: {conv1: {c: 2, on: [1, 0]}}}"
    ),
    DefaultPlan(
        "batch norm in space and channels",
        "resnet",
        4,
        4,
        """
        {workers: 4, ops: {conv1: {h: 2, w: 2, on: [0, 1, 2, 3]}, maxpool: {h: 4, on: [0, 2, 1, 3]},
         layer1.conv1: {c: 2, h: 2, on: [3, 1, 0, 2]}, layer2.bn1: {c: 4, on: [1, 0, 2, 3]},
         layer2.conv2: {n: 2, c: 2, on: [2, 3, 1, 0]}, fc: {on: [2]}}}""",
    ),
)


def default_cases(steps: int) -> list[tuple[DefaultPlan, Case]]:
    """Return the default plans with their cases. Cases of one model share its initial weights."""
    models: dict[str, nn.Module] = {}
    graphs: dict[str, Graph] = {}
    with torch.random.fork_rng(devices=[]):
        for name, (make, shape) in MODELS.items():
            torch.manual_seed(1)
            models[name] = make().share_memory()
            graphs[name] = trace(models[name], shape)
    return [
        (
            default,
            Case(
                models[default.model],
                _plan(default, graphs[default.model]),
                MODELS[default.model][1],
                default.batch_size,
                steps,
            ),
        )
        for default in DEFAULT_PLANS
    ]


def _plan(default: DefaultPlan, graph: Graph) -> Plan | None:
    if isinstance(default.plan, str):
        return read_plan(default.plan, graph)
    return build_plan(graph, default.workers, default.plan) if default.plan.makes_plan else None
