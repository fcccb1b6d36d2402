"""The variables of a rank from those of Slurm, for `srun python -m parallel.train` without torchrun.

torch and this project read RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK, MASTER_ADDR
and MASTER_PORT. srun sets others:

    rank            SLURM_PROCID
    world size      SLURM_STEP_NUM_TASKS (SLURM_NTASKS is that of the job until srun sets it)
    local rank      SLURM_LOCALID
    local size      SLURM_STEP_TASKS_PER_NODE, entry SLURM_NODEID: `2(x3),1`
    host            SLURM_NODEID (GROUP_RANK, as torchrun says)
    address         the first node of SLURM_STEP_NODELIST, on which srun starts task 0: `node[01-03,07]`;
                    the loopback if all tasks are on one node
    port            from SLURM_JOB_ID, SLURM_STEP_ID and SLURM_RESTART_COUNT

A batch script is no step, and neither is the shell of `salloc`: they stay one process. Where torchrun
or the user has set RANK or WORLD_SIZE, those count. A step with one task is an ordinary process.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import subprocess
from collections.abc import Callable, Mapping

from parallel.runtime.communication.interface import LOOPBACK

FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Step ids from here on are batch scripts, interactive shells and the like (slurm.h)."""
FIRST_PORT, PORTS = 12000, 15991
"""Below the ports that Linux gives to clients (from 32768 on), and above Slurm's own (6817 to 6819).
The number is prime, so that the strides below visit every port."""
JOB_STRIDE, RESTART_STRIDE = 101, 4001
"""Ports of two jobs differ unless their numbers differ by a multiple of `PORTS`, or one has more
than 100 steps."""
MOST_NODES = 100_000
SCONTROL_S = 30.0
ERROR_FOLDER = "PARALLEL_ERROR_FOLDER"
"""Environment variable with the folder for the errors of a job's tasks, one file each."""

ITEM = re.compile(r"([^\[\],\s]+(?:\[[\d,-]+\][^\[\],\s]*)*)(?:,|$)")
"""One entry of a node list: names without brackets, or with ranges in brackets."""
BRACKETS = re.compile(r"\[([\d,-]+)\]")
TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def is_step(environment: Mapping[str, str]) -> bool:
    """Return whether srun started this process as one of several tasks, without torchrun between."""
    step = environment.get("SLURM_STEP_ID", "")
    return (
        step.isdecimal()
        and int(step) < FIRST_SPECIAL_STEP
        and environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"
        and "TORCHELASTIC_RUN_ID" not in environment
    )


def in_slurm(environment: Mapping[str, str]) -> bool:
    """Return whether this process runs in a job of Slurm, and torchrun did not start it."""
    return "SLURM_JOB_ID" in environment and "TORCHELASTIC_RUN_ID" not in environment


def slurm_environment(
    environment: Mapping[str, str], address_of: Callable[[str], str] | None = None
) -> dict[str, str]:
    """Return the variables that this process lacks as a rank; none outside of a step of srun.

    `address_of` returns the address of a node from its name; None: `node_address`. Raises
    `ValueError` if Slurm's variables contradict each other or the address is not known.
    """
    errors = _error_file(environment)
    if not is_step(environment) or "RANK" in environment or "WORLD_SIZE" in environment:
        return errors
    rank = _number(environment, "SLURM_PROCID")
    node = _number(environment, "SLURM_NODEID")
    restarts = _number(environment, "SLURM_RESTART_COUNT", "0")
    tasks = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if node >= len(tasks):
        raise ValueError(
            f"SLURM_STEP_TASKS_PER_NODE={environment.get('SLURM_STEP_TASKS_PER_NODE', '')} must have an "
            f"entry for SLURM_NODEID={node}"
        )
    variables = {
        **errors,
        "RANK": str(rank),
        "WORLD_SIZE": str(_number(environment, "SLURM_STEP_NUM_TASKS")),
        "LOCAL_RANK": str(_number(environment, "SLURM_LOCALID")),
        "LOCAL_WORLD_SIZE": str(tasks[node]),
        "GROUP_RANK": str(node),
        # A requeued job must not read what its last start left in a store.
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
    }
    if "MASTER_ADDR" not in environment and len(tasks) == 1:
        variables["MASTER_ADDR"] = LOOPBACK
    elif "MASTER_ADDR" not in environment:
        first = node_names(environment.get("SLURM_STEP_NODELIST", ""))[0]
        here = environment.get("SLURMD_NODENAME", first)
        if rank == 0 and here != first:
            raise ValueError(
                f"task 0 runs on {here} and must run on the first node of the step, {first}: do not use "
                "--distribution=arbitrary, or set MASTER_ADDR"
            )
        variables["MASTER_ADDR"] = (address_of or node_address)(first)
    if "MASTER_PORT" not in environment:
        job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID")
        variables["MASTER_PORT"] = str(port_of_step(job, step, restarts))
    return variables


def _error_file(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable with the file for this task's error, for a sweep that wants to read it."""
    folder = environment.get(ERROR_FOLDER)
    if not folder or "SLURM_STEP_ID" not in environment or "TORCHELASTIC_RUN_ID" in environment:
        return {}
    return {"TORCHELASTIC_ERROR_FILE": f"{folder}/error-{_number(environment, 'SLURM_PROCID')}.json"}


def port_of_step(job: int, step: int, restarts: int) -> int:
    """Return the port of a step's store."""
    return FIRST_PORT + (job * JOB_STRIDE + step + restarts * RESTART_STRIDE) % PORTS


def node_names(node_list: str) -> list[str]:
    """Return the names in Slurm's short form: `node[01-03,07],login` has five.

    Raises `ValueError` for a text that is not such a list.
    """
    names: list[str] = []
    position = 0
    while position < len(node_list):
        item = ITEM.match(node_list, position)
        if item is None:
            break
        names += _expanded(item[1])
        position = item.end()
    if not names or position < len(node_list):
        raise ValueError(f"SLURM_STEP_NODELIST={node_list} must be a list of nodes such as node[01-03,07]")
    return names


def _expanded(item: str) -> list[str]:
    """Return the names of one entry, of which several brackets count the last one fastest."""
    brackets = BRACKETS.search(item)
    if brackets is None:
        return [item]
    numbers: list[str] = []
    for part in brackets[1].split(","):
        first, _, last = part.partition("-")
        last = last or first
        if not first.isdecimal() or not last.isdecimal() or not 0 <= int(last) - int(first) < MOST_NODES:
            raise ValueError(
                f"SLURM_STEP_NODELIST has the entry {item}, and {part} must be a range such as 01-03"
            )
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    rest = _expanded(item[brackets.end() :])
    return [item[: brackets.start()] + number + after for number in numbers for after in rest]


def tasks_per_node(text: str) -> list[int]:
    """Return the tasks of each node: `2(x3),1` is [2, 2, 2, 1]. Raises `ValueError` for other texts."""
    tasks: list[int] = []
    for part in text.split(","):
        match = TASKS.fullmatch(part)
        if match is None or int(match[2] or 1) > MOST_NODES:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={text} must be a list such as 2(x3),1")
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks


def node_address(name: str) -> str:
    """Return a name or an address at which a node is reached.

    It is the node's name if that resolves to an address that other nodes reach (on Debian a host's own
    name is 127.0.1.1), and otherwise what Slurm's configuration has. Raises `ValueError` if neither is
    known.
    """
    addresses = _resolved(name)
    if addresses and not any(ipaddress.ip_address(one).is_loopback for one in addresses):
        return name
    command = ["scontrol", "show", "node", name]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        shown = ""
    address = re.search(r"\bNodeAddr=(\S+)", shown)
    if address is None and addresses:
        return name
    if address is None:
        raise ValueError(
            f"the address of node {name} is not known: its name does not resolve, and `{' '.join(command)}` "
            "states none; set MASTER_ADDR to an address of it"
        )
    return address[1]


def _resolved(name: str) -> set[str]:
    """Return the addresses of a name; none if it is not known."""
    try:
        return {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(name, None)}
    except OSError:
        return set()


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    if not text.isdecimal():
        raise ValueError(f"{name}={text} in the environment must be a whole number, as srun sets it")
    return int(text)
