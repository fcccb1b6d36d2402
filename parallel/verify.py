"""Hold a plan's training against plain single-process PyTorch, in float64, with dropout on.

    python -m parallel.verify strategy=one_weird_trick strategy.scheme=c workers=4 steps=3

trains both side by side on random images and prints the largest relative difference of losses, gradients and
weights. Exit code 1 when one is above 1e-10.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.config import ClusterConfig, Config, require
from parallel.graph import trace
from parallel.launch.compose import compose_config
from parallel.lower import lower
from parallel.models import build_model
from parallel.plan import Plan
from parallel.reference import Reference
from parallel.runtime.ddp import DataDistributed, check_ddp_batch
from parallel.runtime.runtime import Runtime
from parallel.runtime.spawn import spawn_workers
from parallel.runtime.world import open_world
from parallel.strategies import build_plan

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
        """False, too, where a difference is not a number."""
        return all(difference <= TOLERANCE for difference in (self.losses, self.gradients, self.weights))


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of two tensors relative to the second's largest magnitude."""
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300)).item()


def batch(step: int, size: int, shape: tuple[int, ...], classes: int) -> tuple[Tensor, Tensor]:
    """A random global batch, a function of the step."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(size, *shape, dtype=torch.float64, generator=generator)
    return images, torch.randint(classes, (size,), generator=generator)


def compare_worker(model: nn.Module, plan: Plan | None, shape: tuple[int, ...], batch_size: int, steps: int,
                   seed: int = 0) -> Difference:
    """One worker's side: trains `plan` with its peers and, on worker 0, the reference. The result is worker 0's.

    Without a plan it is torch's DDP that is held against the reference.
    """
    graph = trace(model, shape)
    classes = graph.ops[-1].input_shapes[0][0]
    with open_world(ClusterConfig(device="cpu")) as world:
        engine: DataDistributed | Runtime
        passes, split = 1, None
        if plan is None:
            engine = DataDistributed(copy.deepcopy(model), world, batch_size=batch_size, seed=seed, precision="fp64",
                                     channels_last=True, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, bucket_mb=25.0)
        else:
            engine = Runtime(lower(graph, plan, batch_size), model, world, seed=seed, precision="fp64",
                             momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, keep_gradients=True)
            if plan.update == "pass":
                passes = plan.micro_batches
                split = next((op.name for op in graph if op.parameters and op.name not in engine.program.merged), None)
        reference = Reference(model, seed=seed, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY,
                              passes=passes, split=split) if world.rank == 0 else None
        losses, gradients = 0.0, (0.0, "")
        for step in range(steps):
            images, labels = batch(step, batch_size, shape, classes)
            loss = world.sum(engine.train_step(images[engine.image_positions], labels[engine.label_positions],
                                               step=step, lr=LR))
            ours = engine.gathered("gradients")
            if reference is not None:
                theirs = reference.train_step(images, labels, step)
                losses = _worse(losses, abs(loss.item() - theirs) / abs(theirs))
                gradients = max(gradients, largest(ours, reference.gradients), key=_nan_last)
        ours = engine.gathered("weights")
        weights = (0.0, "")
        if reference is not None:
            weights = largest(ours, {name: p.detach() for name, p in reference.model.named_parameters()})
        return Difference(losses, gradients[0], weights[0], max(gradients, weights, key=_nan_last)[1])


def largest(ours: Mapping[tuple[str, str], Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest relative difference of two sets of parameters, and the parameter where it is.

    Raises `RuntimeError` if the sets are not of the same parameters.
    """
    named = {f"{op}.{name}": tensor for (op, name), tensor in ours.items()}
    if named.keys() != theirs.keys():
        raise RuntimeError(f"parameters differ: {sorted(named.keys() ^ theirs.keys())}")
    return max(((relative(tensor, theirs[name]), name) for name, tensor in named.items()), key=_nan_last)


def _nan_last(entry: tuple[float, str]) -> float:
    """Order by difference, one that is not a number being the worst."""
    return math.inf if math.isnan(entry[0]) else entry[0]


def _worse(a: float, b: float) -> float:
    return max((a, ""), (b, ""), key=_nan_last)[0]


def verify(config: Config, steps: int, batch_size: int | None = None) -> Difference:
    """Hold the configured strategy against the reference, on worker processes of this machine.

    Without a `batch_size` it is the smallest from 8 that gives every part of every pass as many samples, and two.
    Raises `ValueError` for a strategy that does not fit.
    """
    require(steps >= 1, "steps", steps, "must be at least 1")
    workers = 1 if config.strategy.name == "single" else config.workers or 1
    model = build_model(config.model, config.model.num_classes or 10, config.trainer.seed)
    shape = (3, config.model.image_size, config.model.image_size)
    plan = None if config.strategy.name == "ddp" else build_plan(trace(model, shape), workers, config.strategy)
    if batch_size is None:
        unit = 2 * workers * (1 if plan is None else plan.micro_batches)
        batch_size = unit * math.ceil(8 / unit)
    if plan is None:
        check_ddp_batch(batch_size, workers)
    else:
        lower(trace(model, shape), plan, batch_size)  # refuse what cannot be cut before any process starts
    model.share_memory()
    return spawn_workers(compare_worker, workers, model, plan, shape, batch_size, steps)[0]


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 0 equal, 1 different, 2 bad input."""
    overrides = [a for a in arguments if not a.startswith("steps=")]
    stated = [a.partition("=")[2] for a in arguments if a.startswith("steps=")]
    try:
        require(all(text.isdecimal() for text in stated), "steps", ",".join(stated), "must be a whole number")
        config = compose_config(overrides)
        own_batch = any(o.startswith("trainer.batch_size=") for o in overrides)
        found = verify(config, int(stated[-1]) if stated else 3, config.trainer.batch_size if own_batch else None)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    label = " ".join(filter(None, (config.strategy.name, config.strategy.scheme)))
    print(f"{label}: largest relative difference from plain PyTorch in float64")
    for name in ("losses", "gradients", "weights"):
        print(f"  {name:10}{getattr(found, name):.2e}")
    print(f"  worst at  {found.worst}")
    print(f"  {'equal' if found.ok else 'DIFFERENT'}: the bound is {TOLERANCE:.0e}")
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
