"""One multi-node torchrun in a cluster: an agent of torchrun (`agent.py`) on every host."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from parallel.config.signals import handled, ignored
from parallel.config.stderr import print_to_stderr
from parallel.emulation.cluster import Cluster
from parallel.emulation.description import address
from parallel.emulation.holders import inside
from parallel.results.environment import EMULATED

PORT = 29500
"""Port of host 0 where the agents meet. Each cluster has its own network, so it is always free."""
NAMESPACES = ("mount", "uts", "ipc", "net", "pid")
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that are handed on to every host."""
GRACE_S = 60.0
"""Time that the agents have to end after the first of them failed, or after a signal. Then what is
left in the hosts is killed."""
LOOK_S = 0.05
# Enters the host's control group, the folder that namespaces forget, and then the command.
_ENTER = 'test -z "$1" || echo 0 >"$1/cgroup.procs"; shift; exec "$@"'
_IN_FOLDER = 'cd "$1" && shift && exec "$@"'


def agent_command(host: int, workers: Sequence[int], arguments: Sequence[str]) -> list[str]:
    """Return the command of torchrun on a host; `workers`: the number on each host."""
    return [
        sys.executable,
        "-m",
        "parallel.emulation.agent",
        f"--nnodes={len(workers)}",
        f"--node-rank={host}",
        f"--nproc-per-node={workers[host]}",
        f"--master-addr={address(0)}",
        f"--master-port={PORT}",
        *arguments,
    ]


def command(cluster: Cluster, host: int, agent: Sequence[str], folder: str) -> list[str]:
    """Return the command line that runs an agent in a host, in `folder`."""
    group = "" if cluster.processors is None else str(cluster.processors.group(host))
    entered = inside(cluster.hosts[host], NAMESPACES, ["sh", "-c", _IN_FOLDER, "host", folder, *agent])
    return ["sh", "-c", _ENTER, "host", group, *entered]


def variables(cluster: Cluster, host: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that a cluster changes for a run on a host."""
    changed = {**dict.fromkeys(INTERFACES, "eth0"), EMULATED: cluster.description.summary()}
    if host > 0 and ERROR_FILE in environment:  # each agent writes one
        changed[ERROR_FILE] = f"{environment[ERROR_FILE]}.host{host}"
    return changed


def run(
    cluster: Cluster, arguments: Sequence[str], workers: Sequence[int], environment: Mapping[str, str]
) -> int:
    """Run torchrun with `arguments` on the hosts; `workers`: the number on each of the first hosts.

    Host 0 uses this process's standard output and error; lines of the others begin with their name.
    Returns the exit code of the first host whose agent failed, 0 if none did. A signal of `HEARD` is
    handed on, and the code is 128 + its number then. Raises `ValueError` if the cluster is in use.
    """
    heard: list[int] = []
    taken = [sign for sign in HEARD if not ignored(sign)]
    with cluster.running(), handled(taken, lambda number, frame: heard.append(number)):
        agents = []
        try:
            for host in range(len(workers)):
                agent = command(cluster, host, agent_command(host, workers, arguments), os.getcwd())
                agents.append(_Agent(host, agent, {**environment, **variables(cluster, host, environment)}))
            return _wait(agents, heard)
        finally:
            for started in agents:
                started.hang_up()
            cluster.end_run()
            for started in agents:
                started.finish()


class _Agent:
    """torchrun on one host."""

    def __init__(self, host: int, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.host = host
        pipe = None if host == 0 else subprocess.PIPE
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,  # a Ctrl-C on the terminal reaches only this process
        )
        copies = ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr))
        self._copying = [
            threading.Thread(target=_copy, args=(source, target, f"host{host}: "), daemon=True)
            for source, target in copies
            if source is not None
        ]
        for thread in self._copying:
            thread.start()

    def send(self, number: int) -> None:
        """Hand on a signal."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self.process.stdin.write(bytes([number]))
            self.process.stdin.flush()

    def hang_up(self) -> None:
        """Close the pipe, on which the agent ends."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, with a signal unread
            self.process.stdin.close()

    def finish(self) -> None:
        """Wait for a process that is gone from its host, and for its output."""
        self.process.kill()
        self.process.wait()
        for thread in self._copying:
            thread.join()


def _wait(agents: Sequence[_Agent], heard: list[int]) -> int:
    """Wait for all agents and hand on signals; return the exit code."""
    code, handed_on = 0, 0
    deadline: float | None = None
    while True:
        while handed_on < len(heard):
            for agent in agents:
                agent.send(heard[handed_on])
            code = 128 + heard[handed_on]
            handed_on += 1
        running = [agent for agent in agents if agent.process.poll() is None]
        failed = [agent.process.returncode for agent in agents if agent.process.poll() not in (None, 0)]
        if failed and code == 0:
            code = failed[0] if failed[0] > 0 else 128 - failed[0]
        if not running:
            return code
        if code and deadline is None:
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            for agent in running:
                print_to_stderr(
                    f"error: host{agent.host} has not ended {GRACE_S:g} s after the others: it is killed"
                )
            return code
        time.sleep(LOOK_S)


def _copy(source: IO[bytes], target: IO[str], prefix: str) -> None:
    for line in source:  # the last one of a killed process may lack its end
        text = line.decode(errors="replace").removesuffix("\n")
        target.write(f"{prefix}{text}\n")
        target.flush()
