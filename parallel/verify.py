"""Hold a plan's training against plain single-process PyTorch, in float64, with dropout on.

    python -m parallel.verify strategy=one_weird_trick strategy.scheme=c workers=4 steps=3

trains both side by side on random images and prints the largest relative difference of losses, gradients and
weights. Exit code 1 when one is above 1e-10; then both are run again, and the first op whose forward or backward
differs is printed.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from parallel.cli.compose import compose_config
from parallel.config import ClusterConfig, Config, require
from parallel.graph import Graph, trace
from parallel.graph.box import Span, cut
from parallel.models import build_model
from parallel.plans import Plan
from parallel.program import Program
from parallel.program.lowering import lower
from parallel.runtime.communication.spawn import spawn_workers
from parallel.runtime.communication.world import World, open_world
from parallel.runtime.execution.ddp import DDPEngine, check_ddp_batch
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.instrumentation.observe import Observer, observe_modules
from parallel.strategies import build_plan
from parallel.strategies.strategy import Setting
from parallel.verification.first_difference import Place, Recorder, compare_step, compare_weights, magnitude, relative
from parallel.verification.reference import Reference

TOLERANCE = 1e-10
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 0.0005


@dataclass(frozen=True)
class Difference:
    """Largest relative differences over all steps, and the parameter or step where each was found."""

    losses: float
    gradients: float
    weights: float
    worst: str
    first: str = ""
    """Where it begins, if there is one."""

    @property
    def ok(self) -> bool:
        """False, too, where a difference is not a number."""
        return all(difference <= TOLERANCE for difference in (self.losses, self.gradients, self.weights))


def batch(step: int, size: int, shape: tuple[int, ...], classes: int) -> tuple[Tensor, Tensor]:
    """A random global batch, a function of the step."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(size, *shape, dtype=torch.float64, generator=generator)
    return images, torch.randint(classes, (size,), generator=generator)


@dataclass(frozen=True)
class _Comparison:
    """What one worker trains, twice if the first time shows a difference: to find where it begins."""

    model: nn.Module
    plan: Plan | None
    """None: torch's DDP."""
    shape: tuple[int, ...]
    batch_size: int
    seed: int
    world: World

    def engine(self, observer: Observer | None = None) -> DDPEngine | Runtime:
        options = EngineOptions(self.seed, "fp64", momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        if self.plan is None:
            return DDPEngine(copy.deepcopy(self.model), self.world, options, batch_size=self.batch_size,
                                   bucket_mb=25.0, observer=observer)
        return Runtime(self._program(self.plan), self.model, self.world, options, keep_gradients=True,
                       observer=observer)

    def _program(self, plan: Plan) -> Program:
        return lower(self.graph, plan, self.batch_size)

    @cached_property
    def graph(self) -> Graph:
        return trace(self.model, self.shape)

    @property
    def _passes(self) -> list[Span]:
        """Spans of samples that are trained on one after the other, each with updated weights."""
        passes = self.plan.micro_batches if self.plan is not None and self.plan.update == "pass" else 1
        return [cut(self.batch_size, passes, i) for i in range(passes)]

    def reference(self) -> Reference | None:
        """On worker 0."""
        passes, split = 1, None
        if self.plan is not None and self.plan.update == "pass":
            passes, merged = self.plan.micro_batches, self._program(self.plan).merged
            split = next((op.name for op in self.graph if op.parameters and op.name not in merged), None)
        return None if self.world.rank > 0 else Reference(
            self.model, seed=self.seed, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, passes=passes, split=split)

    def step(self, step: int, engine: DDPEngine | Runtime, reference: Reference | None) -> tuple[float, float]:
        """Train both by one step; their losses."""
        self.world.watch.at(f"step {step}")
        images, labels = batch(step, self.batch_size, self.shape, self.graph.ops[-1].input_shapes[0][0])
        loss = self.world.sum(engine.train_step(images[engine.image_positions], labels[engine.label_positions],
                                                step=step, lr=LR))
        return loss.item(), math.nan if reference is None else reference.train_step(images, labels, step)

    def differences(self, steps: int) -> Difference:
        """The largest; on worker 0."""
        engine, reference = self.engine(), self.reference()
        losses, gradients, weights = 0.0, (0.0, ""), (0.0, "")
        for step in range(steps):
            loss, right = self.step(step, engine, reference)
            ours = engine.gathered("gradients")
            if reference is not None:
                losses = _worse(losses, abs(loss - right) / abs(right))
                gradients = max(gradients, largest(ours, reference.gradients), key=_nan_last)
        ours = engine.gathered("weights")
        if reference is not None:
            weights = largest(ours, _weights(reference))
        return Difference(losses, gradients[0], weights[0], max(gradients, weights, key=_nan_last)[1])

    def first(self, steps: int) -> str:
        """Where the first difference is, after the same steps again; on every worker."""
        own, right = Recorder(), Recorder()
        engine, reference = self.engine(own), self.reference()
        if reference is not None:
            observe_modules(reference.model, right, reference.rows)
        for step in range(steps):
            own.clear()
            right.clear()
            self.step(step, engine, reference)
            # DDP's workers each have the mean over their own samples: their gradients are not comparable.
            ours = self.world.gather_to_first((own.outputs, {} if self.plan is None else own.gradients))
            gradients, weights = engine.gathered("gradients"), engine.gathered("weights")
            found: Place | None = None
            if reference is not None:
                found = compare_step(self.graph, self._passes, ours, (right.outputs, right.gradients),
                                     _pairs(gradients, reference.gradients), TOLERANCE) or compare_weights(
                                         _pairs(weights, _weights(reference)), TOLERANCE)
            found = self.world.gather(found)[0]
            if found is not None:
                return f"step {step}, {found}"
        return "none, when the same steps are run again"


def compare_worker(model: nn.Module, plan: Plan | None, shape: tuple[int, ...], batch_size: int, steps: int,
                   seed: int = 0) -> Difference:
    """One worker's side: trains `plan` with its peers and, on worker 0, the reference. The result is worker 0's.

    Without a plan it is torch's DDP that is held against the reference.
    """
    with open_world(ClusterConfig(device="cpu")) as world:
        comparison = _Comparison(model, plan, shape, batch_size, seed, world)
        found = comparison.differences(steps)
        if world.gather(found.ok)[0]:
            return found
        return replace(found, first=comparison.first(steps))


def _weights(reference: Reference) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in reference.model.named_parameters()}


def _pairs(ours: Mapping[tuple[str, str], Tensor], theirs: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    named = {f"{op}.{name}": tensor for (op, name), tensor in ours.items()}
    return {name: (named[name], tensor) for name, tensor in theirs.items()}


def largest(ours: Mapping[tuple[str, str], Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest relative difference of two sets of parameters, and the parameter where it is.

    Raises `RuntimeError` if the sets are not of the same parameters.
    """
    named = {f"{op}.{name}": tensor for (op, name), tensor in ours.items()}
    if named.keys() != theirs.keys():
        raise RuntimeError(f"parameters differ: {sorted(named.keys() ^ theirs.keys())}")
    scale = magnitude(theirs.values())
    return max(((relative(tensor, theirs[name], scale), name) for name, tensor in named.items()), key=_nan_last)


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
    setting = Setting(config.trainer.batch_size, config.trainer.precision, config.cluster)
    plan = None if config.strategy.name == "ddp" else build_plan(trace(model, shape), workers, config.strategy, setting)
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
    if found.first:
        print(f"  first difference: {found.first}")
    print(f"  {'equal' if found.ok else 'DIFFERENT'}: the bound is {TOLERANCE:.0e}")
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
