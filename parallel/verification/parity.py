"""Parity: compare training and evaluation of a plan with plain single-process PyTorch.

Both run in float64 with dropout on. Compared are

    after each step       loss; summed gradients; evaluation of a batch: loss, top-1 and top-5 hits,
                          number of samples
    after the last step   weights; running statistics of batch normalisations

Every relative difference must be at most `TOLERANCE`. If one is larger, both sides run again to
find the first difference (`first_difference`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from parallel.config import ClusterConfig, Ddp, PeerConfig
from parallel.config.peer import OURS
from parallel.data.random_batch import random_batch
from parallel.graph import LOSS, Graph, trace
from parallel.graph.box import Span, cut
from parallel.plans import Plan
from parallel.program import Program
from parallel.program.dry_run import dry_run
from parallel.program.lowering import lower
from parallel.runtime.communication.chaos import Chaos
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World
from parallel.runtime.execution.gathered import gathered
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.instrumentation.observe import Observer, observe_modules
from parallel.runtime.peers import PEERS
from parallel.runtime.peers.engine import PeerEngine
from parallel.verification.first_difference import (
    Place,
    Recorder,
    compare_named,
    compare_step,
    from_plain,
    magnitude,
    relative,
    to_plain,
)
from parallel.verification.reference import Optimizer, Passes, Reference, evaluate

TOLERANCE = 1e-10
OPTIMIZER = Optimizer(lr=0.01, momentum=0.9, weight_decay=0.0005)
LABEL_RANKS = (0, 4, 5, 1)
"""Ranks of the labels of evaluated samples among their logits, on both sides of the limits of top-1
and top-5."""
EVALUATED = ("loss", "top-1 hits", "top-5 hits", "samples")


@dataclass(frozen=True)
class Case:
    """A plan, and everything that its comparison depends on."""

    model: nn.Module
    plan: Plan | None
    """None: `peer` is compared."""
    shape: tuple[int, ...]
    """Shape of an image: (c, h, w)."""
    batch_size: int
    steps: int = 3
    seed: int = 0
    hosts: tuple[int, ...] = ()
    """Host of every worker; without it, all are on one."""
    collectives: bool = False
    """Whether gradients are summed by the backend's collectives, as they always are over NCCL."""
    peer: PeerConfig = field(default_factory=Ddp)
    """Outside reference that is compared if there is no plan, with our dropout masks."""

    @cached_property
    def graph(self) -> Graph:
        return trace(self.model, self.shape)

    @cached_property
    def program(self) -> Program | None:
        """The lowered plan, after its dry run. Raises `ValueError` if the batch does not fit the
        plan."""
        if self.plan is None:
            return None
        program = lower(self.graph, self.plan, self.batch_size, self.hosts, collectives=self.collectives)
        dry_run(program)
        return program

    @property
    def passes(self) -> int:
        """Number of updates per step of the layers that every pass updates."""
        return self.plan.micro_batches if self.plan is not None and self.plan.update == "pass" else 1


@dataclass(frozen=True)
class Difference:
    """The largest relative differences of a case, over all steps."""

    losses: float = 0.0
    gradients: float = 0.0
    weights: float = 0.0
    statistics: float = 0.0
    """Running means and variances of batch normalisations."""
    evaluation: float = 0.0
    """Loss, top-1 and top-5 hits, and number of samples in evaluation."""
    worst: str = ""
    """Name of the quantity with the largest difference."""
    first: str = ""
    """Location of the first difference; empty if there is none."""

    @property
    def by_quantity(self) -> dict[str, float]:
        """All five differences by name."""
        return {
            name: getattr(self, name)
            for name in ("losses", "gradients", "weights", "statistics", "evaluation")
        }

    @property
    def largest(self) -> float:
        """Largest of the five differences; NaN if one of them is NaN."""
        return max(self.by_quantity.values(), key=_nan_last)

    @property
    def ok(self) -> bool:
        """Whether all differences are within the tolerance. NaN is not."""
        return self.largest <= TOLERANCE


def compare_cases(
    cases: Sequence[Case], cluster: ClusterConfig, chaos: Chaos | None = None, *, strict: bool = False
) -> list[Difference]:
    """Compare cases with the same number of workers in order; stop after the first difference.

    Every worker calls this. Only the results of worker 0 are meaningful.
    """
    found: list[Difference] = []
    with open_world(cluster, chaos, strict=strict) as world:
        world.started()
        for case in cases:
            case = replace(
                case, hosts=case.hosts or world.host_of, collectives=case.collectives or world.collectives
            )
            comparison = _Comparison(case, world)
            difference = comparison.differences()
            ok = world.gather(difference.ok)[0]
            found.append(difference if ok else replace(difference, first=comparison.first()))
            if not ok:
                break
    return found


def largest_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, str]:
    """Return the largest relative difference between two sets of tensors, and the tensor's name.

    Raises `RuntimeError` if the sets have different names.
    """
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"different tensors: {sorted(ours.keys() ^ theirs.keys())}")
    scale = magnitude(theirs.values())
    return max(
        ((relative(ours[name], tensor, scale), name) for name, tensor in theirs.items()),
        key=_entry_nan_last,
        default=(0.0, ""),
    )


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _entry_nan_last(entry: tuple[float, str]) -> float:
    return _nan_last(entry[0])


Engine = PeerEngine | Runtime


class _Comparison:
    """The comparison of a case on one worker. Worker 0 also runs the reference."""

    def __init__(self, case: Case, world: World) -> None:
        self._case, self._world = case, world

    def _engine(self, observer: Observer | None = None) -> Engine:
        case = self._case
        options = EngineOptions(
            case.seed, "fp64", momentum=OPTIMIZER.momentum, weight_decay=OPTIMIZER.weight_decay
        )
        if case.program is None:
            return PeerEngine(
                PEERS[case.peer.name],
                replace(case.peer, dropout=OURS),
                copy.deepcopy(case.model),
                self._world,
                options,
                batch_size=case.batch_size,
                observer=observer,
            )
        return Runtime(case.program, case.model, self._world, options, keep_gradients=True, observer=observer)

    def _reference(self) -> Reference | None:
        """Return the reference on worker 0, None on the others."""
        if self._world.rank > 0:
            return None
        passes, program = None, self._case.program
        if program is not None and self._case.passes > 1:
            first = next(
                (op.name for op in program.graph if op.parameters and op.name not in program.merged), None
            )
            passes = None if first is None else Passes(self._case.passes, first)
        return Reference(self._case.model, OPTIMIZER, seed=self._case.seed, passes=passes)

    def _tensors(self, engine: Engine, kind: str) -> dict[str, Tensor]:
        """Gather gradients, weights or buffers, by the reference's names. Peers gather no
        buffers."""
        if kind == "buffers" and isinstance(engine, PeerEngine):
            return {}
        return gathered(engine, kind, self._world)

    def _train(self, step: int, engine: Engine, reference: Reference | None) -> tuple[float, float]:
        """Train both sides for one step and return their losses."""
        self._world.watch.at(f"step {step}")
        images, labels = self._batch(step)
        loss = self._world.sum(
            engine.train_step(*self._rows(engine, images, labels), step=step, lr=OPTIMIZER.lr)
        )
        return loss.item(), math.nan if reference is None else reference.train_step(images, labels, step)

    def _evaluate(
        self, step: int, engine: Engine, reference: Reference | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Evaluate a batch on both sides and return pairs of sums by name, ours first.

        The labels are chosen from the reference's logits by rank (`LABEL_RANKS`). The last row is
        padding. The result is empty on all workers but 0.
        """
        images, _ = self._batch(1000 + step)
        labels = logits = None
        if reference is not None:
            logits = reference.logits(images)
            ranks = torch.tensor(
                [
                    min(LABEL_RANKS[(i + step) % len(LABEL_RANKS)], self._classes - 1)
                    for i in range(len(images))
                ]
            )
            labels = logits.argsort(dim=1, descending=True).gather(1, ranks[:, None])[:, 0]
            labels[-1] = -1
        labels = self._world.gather(labels)[0]
        if labels is None:
            raise RuntimeError("worker 0 chose no labels")
        ours = self._world.sum(engine.evaluate_step(*self._rows(engine, images, labels))).cpu()
        if logits is None:
            return {}
        theirs = evaluate(logits, labels)
        return {
            name: (ours[i], torch.tensor(theirs[i], dtype=torch.float64)) for i, name in enumerate(EVALUATED)
        }

    def _batch(self, seed: int) -> tuple[Tensor, Tensor]:
        case = self._case
        return random_batch(case.batch_size, case.shape, self._classes, seed=seed, dtype=torch.float64)

    def _rows(self, engine: Engine, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return this worker's rows of a batch, on its device."""
        device = self._world.device
        return images[engine.image_positions].to(device), labels[engine.label_positions].to(device)

    @property
    def _classes(self) -> int:
        return self._case.graph[LOSS].input_shapes[0][0]

    def differences(self) -> Difference:
        """Return the largest differences. Only those of worker 0 are meaningful."""
        engine, reference = self._engine(), self._reference()
        found: dict[str, list[tuple[float, str]]] = {name: [(0.0, "")] for name in Difference().by_quantity}
        for step in range(self._case.steps):
            loss, expected = self._train(step, engine, reference)
            # Evaluate first: gathering weights would wait for them, and hide a missing wait in
            # evaluation.
            evaluated = self._evaluate(step, engine, reference)
            gradients = self._tensors(engine, "gradients")
            if reference is not None:
                found["losses"].append((abs(loss - expected) / abs(expected), f"loss of step {step}"))
                found["gradients"].append(largest_difference(gradients, reference.gradients))
                found["evaluation"] += [
                    (_apart(*pair), f"evaluation's {name}") for name, pair in evaluated.items()
                ]
        weights, statistics = self._tensors(engine, "weights"), self._tensors(engine, "buffers")
        if reference is not None:
            found["weights"].append(largest_difference(weights, reference.weights))
            if isinstance(engine, Runtime):
                found["statistics"].append(largest_difference(statistics, reference.statistics))
        if isinstance(engine, Runtime):
            engine.close()
        worst = {name: max(entries, key=_entry_nan_last) for name, entries in found.items()}
        largest = {name: entry[0] for name, entry in worst.items()}
        return Difference(
            largest["losses"],
            largest["gradients"],
            largest["weights"],
            largest["statistics"],
            largest["evaluation"],
            worst=max(worst.values(), key=_entry_nan_last)[1],
        )

    def first(self) -> str:
        """Run the same steps again and return the location of the first difference, on every
        worker."""
        own, plain = Recorder(), Recorder()
        engine, reference = self._engine(own), self._reference()
        if reference is not None:
            observe_modules(reference.model, plain, reference.rows)
        for step in range(self._case.steps):
            own.clear()
            plain.clear()
            self._train(step, engine, reference)
            evaluated = self._evaluate(step, engine, reference)
            # Each worker of a peer has the mean over its own samples, so its gradients are not
            # comparable.
            sent = own.outputs, own.gradients if isinstance(engine, Runtime) else {}
            ours = [
                (from_plain(outputs), from_plain(gradients))
                for outputs, gradients in self._world.gather_to_first(tuple(map(to_plain, sent)))
            ]
            gathered = {kind: self._tensors(engine, kind) for kind in ("gradients", "weights", "buffers")}
            place: Place | None = None
            if reference is not None:
                place = (
                    compare_step(
                        self._case.graph,
                        self._spans,
                        ours,
                        (plain.outputs, plain.gradients),
                        _pairs(gathered["gradients"], reference.gradients),
                        TOLERANCE,
                    )
                    or compare_named("update of", _pairs(gathered["weights"], reference.weights), TOLERANCE)
                    or compare_named(
                        "running statistics", _pairs(gathered["buffers"], reference.statistics), TOLERANCE
                    )
                    or next(
                        (
                            Place(f"evaluation's {name}", "", _apart(*pair))
                            for name, pair in evaluated.items()
                            if not _apart(*pair) <= TOLERANCE
                        ),
                        None,
                    )
                )
            found = self._world.gather(None if place is None else str(place))[0]
            if found is not None:
                return f"step {step}, {found}"
        return "none, when the same steps are run again"

    @property
    def _spans(self) -> list[Span]:
        """Spans of samples between updates of the weights."""
        return [cut(self._case.batch_size, self._case.passes, i) for i in range(self._case.passes)]


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """Return the relative difference of two numbers; the absolute one if `theirs` is 0, as hits may
    be."""
    return relative(ours, theirs, 0.0) if theirs.item() else abs(ours.item())


def _pairs(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (ours[name], tensor) for name, tensor in theirs.items() if name in ours}
