"""Small convnets with every kind of op of the three AlexNets, and plans for them drawn at random.

Their sizes are odd on purpose: splits come out uneven, maps are not square, channels are few.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import nn

from parallel.graph import Graph, trace
from parallel.ops import Op, Shape
from parallel.plan import Layout, Plan, make_plan

CLASSES = 5


def tower() -> nn.Sequential:
    """Like the 2014 AlexNet: one tower, an average pool that changes nothing, dropout before the linear layers."""
    return nn.Sequential(OrderedDict(
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
    ))


def towers() -> nn.Sequential:
    """Like the 2012 AlexNet: groups, local response normalisation, dropout after the linear layers; maps not square."""
    return nn.Sequential(OrderedDict(
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
    ))


def odd() -> nn.Sequential:
    """What AlexNet has not: dropout on maps, a padded pool, an even normalisation, strides past the kernel."""
    return nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(2, 8, (3, 2), stride=(1, 3), padding=(2, 1), groups=2),  # 8×13 → 10×5
        drop1=nn.Dropout(0.25),
        pool1=nn.MaxPool2d(3, (2, 1), padding=1),  # 10×5 → 5×5
        norm1=nn.LocalResponseNorm(4, alpha=0.5),
        conv2=nn.Conv2d(8, 4, 4, padding=1),  # 5×5 → 4×4
        relu2=nn.ReLU(),
        avgpool=nn.AdaptiveAvgPool2d(5),  # repeats positions
        flatten=nn.Flatten(),
        fc3=nn.Linear(100, CLASSES),
    ))


def weightless() -> nn.Sequential:
    """The images pass through ops without weights first; later a convolution follows another at once."""
    return nn.Sequential(OrderedDict(
        pool1=nn.MaxPool2d(3, 2),  # 9×7 → 4×3
        drop1=nn.Dropout(0.2),
        conv2=nn.Conv2d(3, 4, 2, bias=False),  # 4×3 → 3×2
        conv3=nn.Conv2d(4, 4, 1),
        flatten=nn.Flatten(),
        fc4=nn.Linear(24, CLASSES),
    ))


MODELS: dict[str, tuple[Callable[[], nn.Sequential], Shape]] = {
    "tower": (tower, (3, 17, 17)),
    "towers": (towers, (3, 13, 11)),
    "odd": (odd, (2, 8, 13)),
    "weightless": (weightless, (3, 9, 7)),
}
"""By name: the model and the shape of its images."""


def build(name: str) -> tuple[nn.Sequential, Shape]:
    """A small model with weights that are the same wherever it is built, and the shape of its images."""
    model, shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return model(), shape


def graph_of(name: str) -> Graph:
    """The graph of a small model."""
    return trace(*build(name))


def _factors(size: int) -> list[int]:
    return {1: [], 2: [2], 3: [3], 4: [2, 2]}[size]


@st.composite
def layouts(draw: st.DrawFn, op: Op, workers: int, samples: int) -> Layout:
    """A legal layout of `op` on some of the workers, in any order."""
    size = draw(st.integers(1, workers))
    degrees = {"n": 1}
    for factor in _factors(size):
        dims = [dim for dim in op.dims
                if degrees.get(dim, 1) * factor <= (samples if dim == "n" else op.extent(dim))]
        dim = draw(st.sampled_from(dims))
        degrees[dim] = degrees.get(dim, 1) * factor
    on = draw(st.permutations(range(workers)))[:size]
    return Layout(on=tuple(on), **degrees)


@st.composite
def plans(draw: st.DrawFn, graph: Graph, max_workers: int = 4, min_workers: int = 1) -> tuple[Plan, int]:
    """A legal plan with any splits, placements and micro-batches, and a global batch that it can cut."""
    workers = draw(st.integers(min_workers, max_workers))
    samples = draw(st.integers(4, 6))
    scheme = draw(st.sampled_from("aaabc"))
    first, *others = graph.ops
    update = "step"
    if scheme == "a":
        chosen = {first.name: draw(layouts(first, workers, samples))}
        micro_batches = draw(st.integers(1, 3))
    else:
        on = draw(st.permutations(range(workers)))[: draw(st.integers(1, workers))]
        chosen = {first.name: Layout(on=tuple(on), n=len(on))}
        micro_batches, update = len(on), draw(st.sampled_from(("step", "pass")))
        others = others[draw(st.integers(0, len(others) - 1)):]
    for op in others:
        if draw(st.booleans()):
            chosen[op.name] = draw(layouts(op, workers, samples))
    pipeline = draw(st.sampled_from(("fill_drain", "1f1b")))
    plan = make_plan(graph, workers, chosen, micro_batches=micro_batches, scheme=scheme, pipeline=pipeline,
                     update=update)
    return plan, samples * micro_batches
