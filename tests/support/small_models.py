"""Small convnets with every kind of op, as chains and with branches, and random plans for them.

Their sizes are odd on purpose, so that splits are uneven. Maps are not square, and channels are
few.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

from parallel.graph import Graph, trace
from parallel.graph.box import Cut, leaves_none_empty
from parallel.graph.ops import Op, Shape
from parallel.plans import Layout, Plan, make_plan

CLASSES = 5


def tower() -> nn.Sequential:
    """Return a net like the 2014 AlexNet: one tower, an identity average pool, dropout before
    linear layers."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 7, 5, stride=2, padding=2),  # 17 → 9
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(3, 2),  # 9 → 4
            conv2=nn.Conv2d(7, 10, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2, 1),  # 4 → 3
            avgpool=nn.AdaptiveAvgPool2d(3),
            flatten=nn.Flatten(),
            drop3=nn.Dropout(0.5),
            fc3=nn.Linear(90, 11),
            relu3=nn.ReLU(),
            drop4=nn.Dropout(0.3),
            fc4=nn.Linear(11, 9),
            relu4=nn.ReLU(),
            fc5=nn.Linear(9, CLASSES),
        )
    )


def towers() -> nn.Sequential:
    """Return a net like the 2012 AlexNet: groups, local response normalisation, dropout after
    linear layers."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 6, 3, stride=2, padding=1),  # 13×11 → 7×6
            relu1=nn.ReLU(),
            norm1=nn.LocalResponseNorm(5, alpha=0.1, beta=0.75, k=2.0),
            pool1=nn.MaxPool2d(3, 2),  # 7×6 → 3×2
            conv2=nn.Conv2d(6, 9, 3, padding=1, groups=3),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(9, 6, (1, 2), padding=(0, 1), groups=3, bias=False),  # 3×2 → 3×3
            avgpool=nn.AdaptiveAvgPool2d((2, 2)),
            flatten=nn.Flatten(),
            fc4=nn.Linear(24, 10),
            relu4=nn.ReLU(),
            drop4=nn.Dropout(0.5),
            fc5=nn.Linear(10, CLASSES, bias=False),
        )
    )


def odd() -> nn.Sequential:
    """Return a net with ops that AlexNet lacks: dropout on maps, a padded pool, a normalisation
    over an even number of channels, strides larger than the kernel."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(2, 8, (3, 2), stride=(1, 3), padding=(2, 1), groups=2),  # 8×13 → 10×5
            drop1=nn.Dropout(0.25),
            pool1=nn.MaxPool2d(3, (2, 1), padding=1),  # 10×5 → 5×5
            norm1=nn.LocalResponseNorm(4, alpha=0.5),
            conv2=nn.Conv2d(8, 4, 4, padding=1),  # 5×5 → 4×4
            relu2=nn.ReLU(),
            avgpool=nn.AdaptiveAvgPool2d(5),  # repeats positions
            flatten=nn.Flatten(),
            fc3=nn.Linear(100, CLASSES),
        )
    )


def weightless() -> nn.Sequential:
    """Return a net whose first ops have no weights, and with two convolutions in succession."""
    return nn.Sequential(
        OrderedDict(
            pool1=nn.MaxPool2d(3, 2),  # 9×7 → 4×3
            drop1=nn.Dropout(0.2),
            conv2=nn.Conv2d(3, 4, 2, bias=False),  # 4×3 → 3×2
            conv3=nn.Conv2d(4, 4, 1),
            flatten=nn.Flatten(),
            fc4=nn.Linear(24, CLASSES),
        )
    )


class Block(nn.Module):
    """Residual block (He et al. 2016): two convs with batch norm, and a projection if the shape
    changes."""

    def __init__(self, channels: tuple[int, int], stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(*channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[1])
        self.relu = nn.ReLU(inplace=True)  # used twice
        self.conv2 = nn.Conv2d(channels[1], channels[1], 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels[1], momentum=0.3)
        self.downsample = (
            nn.Sequential()
            if stride == 1
            else nn.Sequential(
                nn.Conv2d(*channels, 1, stride, bias=False), nn.BatchNorm2d(channels[1], eps=0.01)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.downsample(x)
        return self.relu(y)


class Residual(nn.Module):
    """A residual network with a concatenation: batch norm before and after it, with and without
    weights."""

    def __init__(self) -> None:
        super().__init__()
        # No bias before a batch norm, which would remove it: its gradient would be rounding errors.
        self.conv1 = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False)  # 11×9 → 6×5
        self.bn1 = nn.BatchNorm2d(5)
        self.layer1 = Block((5, 5), 1)
        self.layer2 = Block((5, 7), 2)  # 6×5 → 3×3
        self.side = nn.Conv2d(5, 4, 2, stride=2, padding=(0, 1), bias=False)  # 6×5 → 3×3
        self.bn3 = nn.BatchNorm2d(11, affine=False)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(44, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        x = self.bn3(torch.cat([self.side(x), self.layer2(x)], dim=1))
        return self.fc(self.drop(torch.flatten(self.avgpool(x), 1)))


class Branches(nn.Module):
    """Branches without batch norm, so that micro-batches are possible: one from the images, two
    that merge."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2)  # 9×11 → 4×5
        self.conv1 = nn.Conv2d(2, 4, 3, stride=2)  # 9×11 → 4×5
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.flatten = nn.Flatten()
        self.fc4, self.fc5 = nn.Linear(240, 7), nn.Linear(240, 7)
        self.drop5 = nn.Dropout(0.4)
        self.fc6, self.short = nn.Linear(14, CLASSES), nn.Linear(240, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        one = self.conv1(x).relu()
        two = self.conv2(one)
        three = torch.add(self.conv3(two), two)
        y = self.flatten(torch.cat((one, three, self.pool(x)), 1))
        return self.fc6(torch.cat((self.fc4(y), self.drop5(self.fc5(y))), dim=-1)) + self.short(y)


MODELS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "tower": (tower, (3, 17, 17)),
    "towers": (towers, (3, 13, 11)),
    "odd": (odd, (2, 8, 13)),
    "weightless": (weightless, (3, 9, 7)),
    "residual": (Residual, (3, 11, 9)),
    "branches": (Branches, (2, 9, 11)),
}
"""Constructor of each model and the shape of its images, by name."""


def build(name: str) -> tuple[nn.Module, Shape]:
    """Return a small model with the same weights in every process, and the shape of its images."""
    model, shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return model(), shape


def graph_of(name: str) -> Graph:
    """Return the graph of a small model."""
    return trace(*build(name))


def _factors(size: int) -> list[int]:
    return {1: [], 2: [2], 3: [3], 4: [2, 2]}[size]


@st.composite
def layouts(draw: st.DrawFn, op: Op, workers: int, samples: int) -> Layout:
    """Draw a valid layout of `op` on some of the workers, in any order, some with weights."""
    size = draw(st.integers(1, workers))
    degrees = {"n": 1}
    for factor in _factors(size):
        dims = [
            dim
            for dim in op.dims
            if degrees.get(dim, 1) * factor <= (samples if dim == "n" else op.extent(dim))
        ]
        dim = draw(st.sampled_from(dims))
        degrees[dim] = degrees.get(dim, 1) * factor
    on = draw(st.permutations(range(workers)))[:size]
    cuts: dict[str, Cut] = {}
    for dim, parts in degrees.items():
        weights = tuple(draw(st.lists(st.integers(1, 3), min_size=parts, max_size=parts)))
        fits = leaves_none_empty(samples if dim == "n" else op.extent(dim), weights)
        cuts[dim] = weights if fits and draw(st.booleans()) else parts
    return Layout(on=tuple(on), **cuts)


@st.composite
def plans(draw: st.DrawFn, graph: Graph, max_workers: int = 4, min_workers: int = 1) -> tuple[Plan, int]:
    """Draw a valid plan with any splits, placements and micro-batches, and a global batch that fits
    it."""
    workers = draw(st.integers(min_workers, max_workers))
    samples = draw(st.integers(4, 6))
    scheme = draw(st.sampled_from("aaabc"))
    first, *others = graph.ops
    whole = any(op.whole_batch for op in graph)
    chain = all(op.inputs == (before.name,) for before, op in pairwise(graph))
    update = "step"
    if scheme == "a":
        chosen = {first.name: draw(layouts(first, workers, samples))}
        micro_batches = 1 if whole else draw(st.integers(1, 3))
    else:
        on = draw(st.permutations(range(workers)))[: 1 if whole else draw(st.integers(1, workers))]
        chosen = {first.name: Layout(on=tuple(on), n=len(on))}
        micro_batches = len(on)
        if chain:  # the reference cannot run parts of other models
            update = draw(st.sampled_from(("step", "pass")))
        others = others[draw(st.integers(0, len(others) - 1)) :]
    for op in others:
        if draw(st.booleans()):
            chosen[op.name] = draw(layouts(op, workers, samples))
    pipeline = draw(st.sampled_from(("fill_drain", "1f1b")))
    plan = make_plan(
        graph, workers, chosen, micro_batches=micro_batches, scheme=scheme, pipeline=pipeline, update=update
    )
    # Weights that meet in n, as those of the loss may, can be too far apart for so few samples.
    assume(all(leaves_none_empty(samples, layout.n) for layout in plan.layouts.values()))
    return plan, samples * micro_batches
