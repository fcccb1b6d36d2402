"""The variables of a rank from those that srun sets."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from parallel.cli import slurm_ranks
from parallel.cli.ranks import Ranks
from parallel.cli.slurm_ranks import (
    FIRST_PORT,
    PORTS,
    is_step,
    node_names,
    port_of_step,
    slurm_environment,
    tasks_per_node,
)

STEP = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURMD_NODENAME": "node2",
}
BATCH = {"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_NTASKS": "3", "SLURM_LOCALID": "0"}


def ranked(environment: Mapping[str, str]) -> dict[str, str]:
    return slurm_environment(environment, lambda node: f"{node}.cluster")


def test_a_task_of_a_step_is_a_rank() -> None:
    assert ranked(STEP) == {
        "RANK": "2",
        "WORLD_SIZE": "3",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "node1.cluster",
        "MASTER_PORT": str(port_of_step(17, 0, 0)),
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    ranks = Ranks.from_environment({**STEP, **ranked(STEP)})
    assert (ranks.rank, ranks.world, ranks.launched, ranks.attempt) == (2, 3, True, 0)


def test_a_requeued_job_is_another_attempt_on_another_port() -> None:
    again = ranked({**STEP, "SLURM_RESTART_COUNT": "1"})
    assert again["TORCHELASTIC_RESTART_COUNT"] == "1"
    assert again["MASTER_PORT"] != ranked(STEP)["MASTER_PORT"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH,
        {**STEP, "SLURM_STEP_ID": str(0xFFFFFFFA)},  # the shell of salloc
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {**STEP, "TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2"},
        {**STEP, "TORCHELASTIC_RUN_ID": "none"},
        {**STEP, "RANK": "5"},
        {**STEP, "WORLD_SIZE": "9"},
    ],
)
def test_other_processes_keep_their_variables(environment: dict[str, str]) -> None:
    assert ranked(environment) == {}


def test_tasks_of_one_node_meet_at_the_loopback() -> None:
    one_node = {"SLURM_STEP_TASKS_PER_NODE": "3", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "node2"}
    assert ranked({**STEP, **one_node})["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    "resolved, shown, address",
    [
        ({"10.0.0.7"}, "", "node1"),
        ({"127.0.1.1"}, "NodeAddr=10.0.0.7 NodeHostName=node1", "10.0.0.7"),
        (set(), "NodeAddr=10.0.0.7 NodeHostName=node1", "10.0.0.7"),
        ({"127.0.1.1"}, "", "node1"),
    ],
)
def test_address_of_a_node(
    resolved: set[str], shown: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_ranks, "_resolved", lambda name: resolved)
    answer = subprocess.CompletedProcess([], 0, shown, "")
    monkeypatch.setattr(slurm_ranks.subprocess, "run", lambda *_, **__: answer)
    assert slurm_ranks.node_address("node1") == address


def test_a_node_without_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without scontrol
    with pytest.raises(ValueError, match="the address of node no-such-node.invalid is not known"):
        slurm_ranks.node_address("no-such-node.invalid")


def test_is_step() -> None:
    assert is_step(STEP) and not is_step(BATCH)


def test_an_address_that_the_user_sets_counts() -> None:
    chosen = ranked({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert "MASTER_ADDR" not in chosen and "MASTER_PORT" not in chosen


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"SLURM_PROCID": "first"}, "SLURM_PROCID=first"),
        ({"SLURM_LOCALID": ""}, "SLURM_LOCALID= in the environment must be a whole number"),
        ({"SLURM_STEP_TASKS_PER_NODE": "3"}, "SLURM_NODEID=1"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(y3)"}, "must be a list such as 2(x3),1"),
        ({"SLURM_STEP_NODELIST": ""}, "must be a list of nodes such as node[01-03,07]"),
        ({"SLURM_STEP_NODELIST": "node[1-2"}, "SLURM_STEP_NODELIST=node[1-2 must"),
        ({"SLURM_STEP_NODELIST": "node[3-2]"}, "3-2 must be a range"),
        ({"SLURM_PROCID": "0"}, "task 0 runs on node2 and must run on the first node of the step, node1"),
    ],
)
def test_variables_that_contradict_each_other(changed: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        ranked({**STEP, **changed})


@pytest.mark.parametrize(
    "text, names",
    [
        ("login", ["login"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[01-03,07],login-2", ["node01", "node02", "node03", "node07", "login-2"]),
        ("a[9-11]", ["a9", "a10", "a11"]),
        ("rack[1-2]n[0-1].x,b", ["rack1n0.x", "rack1n1.x", "rack2n0.x", "rack2n1.x", "b"]),
    ],
)
def test_node_names(text: str, names: list[str]) -> None:
    assert node_names(text) == names


def test_tasks_per_node() -> None:
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]


def test_ports_of_steps_restarts_and_jobs_differ() -> None:
    ports = [
        port_of_step(job, step, restart) for job in range(20) for step in range(5) for restart in range(3)
    ]
    assert len(set(ports)) == len(ports)
    assert all(FIRST_PORT <= port < FIRST_PORT + PORTS <= 32768 for port in ports)
    assert 0 < port_of_step(4_000_000_000, 5, 100) < 32768
