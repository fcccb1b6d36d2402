"""How the workers of a test pass messages and sum gradients."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from unittest.mock import patch

from parallel.config import ClusterConfig
from parallel.graph import Graph
from parallel.plans import Plan
from parallel.program import Program
from parallel.program.lowering import BUCKET_BYTES, COLLECTIVE_BYTES, lower
from parallel.runtime.communication.chaos import Chaos

MISSING_S = 0.5
"""Seconds after which a broken worker is blamed, where a wait is missing on purpose."""


def nothing(*_: object) -> None:
    """Wait for nothing."""


@contextlib.contextmanager
def on_host(hosts: tuple[int, ...]) -> Iterator[None]:
    """Make workers of different pretended hosts share no memory."""
    with patch(
        "parallel.runtime.communication.hosts.kernel_namespace",
        lambda kind: str(hosts[int(os.environ["RANK"])]),
    ):
        yield


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a program is lowered for, and what carries its messages."""

    hosts: tuple[int, ...] = ()
    """Host of every worker. Empty: all on one."""
    apart: bool = False
    """Whether workers of different hosts share no memory."""
    shared_memory: bool = True
    collectives: bool = False
    """Whether the backend's collectives sum gradients, as over NCCL."""
    bucket_bytes: int = BUCKET_BYTES
    """Bytes of a full bucket whose sums are messages."""
    collective_bytes: int = COLLECTIVE_BYTES
    """Bytes of a full bucket that collectives sum."""
    device: str = "cpu"
    chaos: Chaos | None = None
    strict: bool = False
    """Whether NCCL's rules hold for messages."""
    missing: tuple[type, str] | None = None
    """Class and method of a wait that is left out."""

    @property
    def cluster(self) -> ClusterConfig:
        """The configuration of the cluster."""
        return ClusterConfig(device=self.device, shared_memory=self.shared_memory)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Lower and run programs in this setup."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(patch("parallel.program.lowering.BUCKET_BYTES", self.bucket_bytes))
            stack.enter_context(patch("parallel.program.lowering.COLLECTIVE_BYTES", self.collective_bytes))
            if self.apart:
                stack.enter_context(on_host(self.hosts))
            if self.missing is not None:
                stack.enter_context(patch.object(*self.missing, nothing))
                stack.enter_context(patch("parallel.runtime.failure.blame.BROKEN_S", MISSING_S))
            yield

    def lower(self, graph: Graph, plan: Plan, batch_size: int) -> Program:
        """Return the program of a plan, within `applied`."""
        return lower(graph, plan, batch_size, self.hosts, collectives=self.collectives)
