"""Local ranks where the launcher does not set LOCAL_RANK: of mpirun, of srun, and counted through the store."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from unittest.mock import patch

import pytest
from torch.distributed import TCPStore

from parallel.cli.local_ranks import find_local_rank, mpi_environment
from parallel.cli.ranks import Ranks
from parallel.cli.slurm_ranks import FIRST_PORT, PORTS

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "3",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "3", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "3"}
RANK_1 = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3"}
HERE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(FIRST_PORT + 7)}
THERE = {"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("environment", [OPEN_MPI, MPICH, {**OPEN_MPI, "SLURM_STEP_ID": "0"}])
def test_a_process_of_mpirun_is_a_rank(environment: dict[str, str]) -> None:
    assert mpi_environment(environment, PORTS + 7) == {**RANK_1, **HERE}
    elsewhere = {
        name: "1" if name.endswith(("LOCAL_SIZE", "NRANKS")) else value for name, value in environment.items()
    }
    assert mpi_environment({**elsewhere, **THERE}, 7) == {**RANK_1, "LOCAL_WORLD_SIZE": "1"}
    with pytest.raises(
        ValueError, match=re.escape("mpirun started 3 ranks, not all on this host, and MASTER_ADDR")
    ):
        mpi_environment(elsewhere, 7)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"},
        {**OPEN_MPI, "RANK": "0"},  # torchrun under mpirun
        {"PMI_RANK": "1", "PMI_SIZE": "3"},  # srun --mpi=pmi2
        {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "x"},
    ],
)
def test_other_processes_are_none(environment: dict[str, str]) -> None:
    assert mpi_environment(environment, 7) == {}


STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_LOCALID": "2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"LOCAL_RANK": "5", **STEP}, "5"), (STEP, "2"), (MPICH, "1"), (OPEN_MPI, "1")],
)
def test_the_launcher_s_variables_count(environment: dict[str, str], expected: str) -> None:
    found = dict(environment)
    find_local_rank(Ranks(1, 3, True), found)
    assert found["LOCAL_RANK"] == expected


def test_one_process_has_no_local_rank() -> None:
    found: dict[str, str] = {}
    find_local_rank(Ranks(), found)
    assert found == {}


def started_by_hand(environments: list[dict[str, str]], kernels: Mapping[int, str]) -> list[str]:
    """Run `find_local_rank` on all ranks at once, in threads; return the errors. `kernels` are the hosts'."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    address = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    of_thread = threading.local()
    errors: list[str] = []

    def one(rank: int) -> None:
        of_thread.rank = rank
        try:
            find_local_rank(Ranks(rank, len(environments), True, address), environments[rank])
        except ValueError as error:
            errors.append(str(error))

    with patch("parallel.runtime.communication.hosts.kernel_namespace", lambda kind: kernels[of_thread.rank]):
        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(environments))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    return errors


def test_ranks_started_by_hand_are_counted() -> None:
    environments: list[dict[str, str]] = [{} for _ in range(5)]
    assert started_by_hand(environments, {0: "a", 1: "a", 2: "a", 3: "b", 4: "b"}) == []
    assert [own["LOCAL_RANK"] for own in environments] == ["0", "1", "2", "0", "1"]
    assert [own["LOCAL_WORLD_SIZE"] for own in environments] == ["3", "3", "3", "2", "2"]
    assert [own["GROUP_RANK"] for own in environments] == ["0", "0", "0", "1", "1"]


def test_ranks_that_alternate_between_hosts_are_refused() -> None:
    errors = started_by_hand([{}, {}, {}], {0: "a", 1: "b", 2: "a"})
    assert len(errors) == 3 and set(errors) == {errors[0]}
    assert errors[0].startswith("workers 0, 2 share a host, but their ranks are not consecutive: ")
