"""Every worker opens the data by itself, and all must have the same: compared before the first step.

Compared are the name, the classes, the numbers of images, their size and a hash of the labels. The
pixels are not read: this takes milliseconds with a million images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from parallel.config import Config
from parallel.data import DataSet
from parallel.runtime.communication.world import World
from parallel.runtime.failure.host_names import describe_host, host_name, refuse_problems
from parallel.training.job import Job, prepare


def prepare_together(config: Config, world: World) -> Job:
    """Prepare the run on all workers.

    Raises `ValueError` on all of them, with the same sentence, if one cannot open its data or has
    other data than worker 0.
    """
    job: Job | None = None
    problem, found = "", {}
    try:
        job = prepare(config, verbose=world.rank == 0)
        found = fingerprint(job.data)
    except ValueError as error:
        if world.size == 1:
            raise
        problem = str(error)
    answers = world.gather((host_name(), problem, found))
    refuse_other_data(answers)
    if job is None:
        raise RuntimeError("a worker's problem was not reported to it")
    return job


def fingerprint(data: DataSet) -> dict[str, Any]:
    """Return what must be equal on all workers, by name."""
    found: dict[str, Any] = {"name": data.name, "classes": _hash("\n".join(data.class_names).encode())}
    for split, images in (("training", data.train), ("validation", data.val)):
        found[f"{split} images"] = f"{len(images):,}"
        found[f"side of {split} images"] = f"{images.size} px"
        found[f"{split} labels"] = _hash(images.labels.tobytes())
    return found


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def refuse_other_data(answers: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """Raise `ValueError` for the first worker with a problem or other data than worker 0.

    `answers` holds the host, the problem and the fingerprint of each worker, by rank.
    """
    refuse_problems([(host, problem) for host, problem, _ in answers])
    first_host, _, ours = answers[0]
    for host, _, theirs in answers:
        differ = [name for name in ours if theirs.get(name) != ours[name]]
        if differ:
            alike = [rank for rank, other in enumerate(answers) if other[0] == host and other[2] == theirs]
            said = [f"{name} {theirs.get(name)} there, {ours[name]} here" for name in differ]
            raise ValueError(
                f"{describe_host(host, alike)} has other data than {describe_host(first_host, [0])}: "
                f"{'; '.join(said)}"
            )
