"""The local rank of a worker whose launcher does not say it: which GPU is its own depends on it.

torchrun sets LOCAL_RANK, and `slurm_ranks` does for srun. Others set variables of their own:

    RANK and WORLD_SIZE by hand, under srun         SLURM_LOCALID
    Open MPI                                        OMPI_COMM_WORLD_RANK, …_SIZE, …_LOCAL_RANK, …_LOCAL_SIZE
    MPICH, Intel MPI                                PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS

mpirun starts its daemons with srun in a job of Slurm, so that its variables come before Slurm's.

Where none of them does, the ranks of each host are counted, through the store (`hosts.locate`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping
from itertools import count
from typing import Any

from parallel.cli.ranks import Ranks
from parallel.cli.slurm_ranks import FIRST_PORT, PORTS, is_step
from parallel.runtime.communication.interface import LOOPBACK

OPEN_MPI = ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
MPICH = ("MPI_LOCALRANKID", "MPI_LOCALNRANKS")
SLURM = "SLURM_LOCALID"
RANKS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", *OPEN_MPI),
    ("PMI_RANK", "PMI_SIZE", *MPICH),  # the first two alone may be srun's
)
"""Variables of rank, size, local rank and local size."""
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


def mpi_environment(environment: Mapping[str, str], parent: int) -> dict[str, str]:
    """Return the variables that a rank of mpirun lacks; none if another launcher has set them.

    `parent` is the process that started this one. The ranks of one host have the same, from which their
    port follows. Raises `ValueError` if the ranks are on several hosts, and no address is set.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return {}
    found = next((names for names in RANKS if all(_is_number(environment, name) for name in names)), None)
    if found is None or environment[found[1]] == "1":
        return {}
    variables = {
        own: environment[theirs]
        for own, theirs in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), found, strict=True)
    }
    if all(name in environment for name in ADDRESS):
        return variables
    if variables["LOCAL_WORLD_SIZE"] != variables["WORLD_SIZE"]:
        raise ValueError(
            f"mpirun started {variables['WORLD_SIZE']} ranks, not all on this host, and MASTER_ADDR and MASTER_PORT "
            "must be the address and a free port of the host of rank 0: use `mpirun -x MASTER_ADDR=… -x MASTER_PORT=…`"
        )
    return {**variables, "MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(FIRST_PORT + parent % PORTS)}


def local_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return LOCAL_RANK and LOCAL_WORLD_SIZE from the launcher's variables; none if it has none."""
    for rank, size in (OPEN_MPI, MPICH):
        if _is_number(environment, rank) and _is_number(environment, size):
            return {"LOCAL_RANK": environment[rank], "LOCAL_WORLD_SIZE": environment[size]}
    return (
        {"LOCAL_RANK": environment[SLURM]} if is_step(environment) and _is_number(environment, SLURM) else {}
    )


def find_local_rank(ranks: Ranks, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set LOCAL_RANK where it is missing. Every rank calls it.

    Raises `ValueError` if some ranks have one and others have none, or if the ranks of a host are not
    consecutive.
    """
    if ranks.world == 1 or "LOCAL_RANK" in environment:
        return
    environment.update(local_variables(environment) or _counted(ranks))


def _counted(ranks: Ranks) -> dict[str, str]:
    from parallel.runtime.communication.hosts import locate  # imports torch

    rounds = count()

    def gather(value: Any) -> list[Any]:
        texts = ranks.exchange(f"local rank {next(rounds)}", json.dumps(value))
        return [json.loads(text) for text in texts]

    local, size, host = locate(ranks.rank, ranks.world, gather)
    return {"LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": str(size), "GROUP_RANK": str(host)}


def _is_number(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").isdecimal()
