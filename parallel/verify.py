"""Hold a plan's training against plain single-process PyTorch, in float64, with dropout on.

    python -m parallel.verify strategy=one_weird_trick strategy.scheme=c workers=4 steps=3

trains both side by side on random images and prints the largest relative difference of losses, gradients and
weights. Exit code 1 when one is above 1e-10.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.config import ClusterConfig
from parallel.graph import trace
from parallel.lower import lower
from parallel.plan import Plan
from parallel.reference import Reference
from parallel.runtime.runtime import Runtime
from parallel.runtime.world import open_world

TOLERANCE = 1e-10
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 0.0005


@dataclass(frozen=True)
class Difference:
    """Largest relative differences over all steps, and the parameter or step where each was found."""

    losses: float
    gradients: float
    weights: float
    worst: str

    @property
    def ok(self) -> bool:
        return max(self.losses, self.gradients, self.weights) <= TOLERANCE


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of two tensors relative to the second's largest magnitude."""
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300)).item()


def batch(step: int, size: int, shape: tuple[int, ...], classes: int) -> tuple[Tensor, Tensor]:
    """A random global batch, a function of the step."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(size, *shape, dtype=torch.float64, generator=generator)
    return images, torch.randint(classes, (size,), generator=generator)


def compare_worker(model: nn.Module, plan: Plan, shape: tuple[int, ...], batch_size: int, steps: int,
                   seed: int = 0) -> Difference:
    """One worker's side: trains `plan` with its peers and, on worker 0, the reference. The result is worker 0's."""
    graph = trace(model, shape)
    classes = graph.ops[-1].input_shapes[0][0]
    with open_world(ClusterConfig(device="cpu")) as world:
        runtime = Runtime(lower(graph, plan, batch_size), model, world, seed=seed, precision="fp64",
                          momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, keep_gradients=True)
        split = None
        if plan.update == "pass":
            # None when every weight is in the merged front: passes then change nothing.
            split = next((op.name for op in graph if op.parameters and op.name not in runtime.program.merged), None)
        reference = Reference(model, seed=seed, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY,
                              passes=plan.micro_batches, split=split) if world.rank == 0 else None
        losses, gradients, worst = 0.0, (0.0, ""), (0.0, "")
        for step in range(steps):
            images, labels = batch(step, batch_size, shape, classes)
            loss = world.sum(runtime.train_step(images[runtime.image_positions], labels[runtime.label_positions],
                                                step=step, lr=LR))
            ours = runtime.gathered("gradients")
            if reference is None:
                continue
            theirs = reference.train_step(images, labels, step)
            losses = max(losses, abs(loss.item() - theirs) / abs(theirs))
            gradients = max(gradients, max((relative(tensor, reference.gradients[f"{op}.{name}"]), f"{op}.{name}")
                                           for (op, name), tensor in ours.items()))
        ours = runtime.gathered("weights")
        if reference is not None:
            truth = dict(reference.model.named_parameters())
            worst = max((relative(tensor, truth[f"{op}.{name}"].detach()), f"{op}.{name}")
                        for (op, name), tensor in ours.items())
        return Difference(losses, gradients[0], worst[0], max(gradients, worst)[1])
