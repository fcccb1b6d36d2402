"""Processes that hold the namespaces of a cluster, and the processes that run in its hosts.

A host is a process namespace, too: when its holder, which is process 1 there, is killed, the kernel
kills every process of the host. Until a holder is told to stay, it ends with the process that
started it, because its standard input closes then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from parallel.config.process import Process

READY = "ready"
STAY = "stay"
HOLDER = "PARALLEL_EMULATION_HOLDER"
"""Environment variable of what a holder itself starts."""
ENDS_S = 10.0
"""Time in which a process that was killed must have ended."""

SWITCH_NAMESPACES = ("--net",)
HOST_NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--mount-proc")

# `wait` collects the processes whose parents have ended, as process 1 must.
_HOLD = f"""
echo {READY}
read word || exit 0
exec </dev/null >/dev/null 2>&1
while :; do {HOLDER}=1 sleep infinity & wait; done
"""
SWITCH_SCRIPT = "set -e\n" + _HOLD
HOST_SCRIPT = (
    """
set -e
echo "$1" >/proc/sys/kernel/hostname
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
mount --bind "$2" /etc/hosts
echo 1 2>/dev/null >/proc/sys/net/ipv6/conf/all/disable_ipv6 || true
"""
    + _HOLD
)


class Holder:
    """A holder that was started by this process and ends with it until `stay` is called."""

    def __init__(self, namespaces: Sequence[str], script: str, *arguments: str) -> None:
        self._unshare = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", *namespaces]
            + ["--", "sh", "-c", script, "holder", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ready(self) -> Process:
        """Wait until the namespaces are set up. Return process 1 of them.

        Raises `ValueError` with what the system said if that is not possible.
        """
        assert self._unshare.stdout is not None and self._unshare.stderr is not None
        if self._unshare.stdout.readline().strip() != READY:
            said = " ".join(self._unshare.stderr.read().split())
            self._unshare.wait()
            raise ValueError(f"the namespaces of a host cannot be made: {said}")
        pid = self._unshare.pid
        return Process.of(int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]))

    def stay(self) -> None:
        """Let the holder outlive this process."""
        process = self._unshare
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(f"{STAY}\n")
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()
        process.returncode = 0  # nobody waits for it: Python would warn that it still runs

    def end(self) -> None:
        """End the holder, and with it all processes of its namespaces."""
        assert self._unshare.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._unshare.stdin.close()
        self._unshare.kill()
        self._unshare.wait()


def inside(holder: Process, namespaces: Sequence[str], command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` in namespaces (`net`, `pid`, …) of a holder."""
    return ["nsenter", f"--target={holder.pid}", *(f"--{name}" for name in namespaces), "--", *command]


def batch(holder: Process, program: str, commands: Sequence[str]) -> None:
    """Run commands of ip or tc in the network namespace of a holder.

    Raises `ValueError` with the first error.
    """
    if not commands:
        return
    done = subprocess.run(
        inside(holder, ["net"], [program, "-batch", "-"]),
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        said = " ".join(done.stderr.split())
        raise ValueError(f"{program} cannot set up the network of the cluster: {said}")


def processes_of(holder: Process) -> list[Process]:
    """Return the processes of a host without its holder and what the holder starts; none if the
    holder has ended."""
    found = [process for process in _of_namespace(holder, "pid") if process != holder]
    return [process for process in found if HOLDER not in environment(process.pid)]


def entrances(holder: Process) -> list[Process]:
    """Return the nsenter processes outside of a host that wait for what they started in it.

    nsenter stops itself when the process that it waits for is stopped, and while it is stopped, a
    process that was killed stays a zombie, without which process 1 of the host cannot end.
    """
    inside = set(_of_namespace(holder, "pid"))
    found = [process for process in _of_namespace(holder, "pid_for_children") if process not in inside]
    return [process for process in found if _name(process.pid) == "nsenter"]


def started_with(processes: Sequence[Process], variable: str) -> list[Process]:
    """Return the processes that have an environment variable."""
    return [process for process in processes if variable in environment(process.pid)]


def environment(pid: int) -> Mapping[str, str]:
    """Return the environment with which a process was started; empty if it has ended."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def signal_all(processes: Sequence[Process], number: int) -> None:
    """Send a signal to processes."""
    for process in processes:
        process.send(number)


def kill_until_gone(processes: Sequence[Process], entrances: Sequence[Process] = ()) -> None:
    """Kill processes of hosts, and wait until they and the `entrances` of the hosts have ended.

    Raises `ValueError` if one does not.
    """
    signal_all(processes, signal.SIGKILL)
    deadline = time.monotonic() + ENDS_S
    while left := [process.pid for process in (*processes, *entrances) if process.lives]:
        if time.monotonic() > deadline:
            raise ValueError(f"processes {left} have not ended {ENDS_S:g} s after they were killed")
        # An entrance that is continued collects what was killed; if it were killed, process 1 of the
        # system would have to, which in a container may not. It may stop itself after the first time.
        signal_all(entrances, signal.SIGCONT)
        time.sleep(0.01)


def _of_namespace(holder: Process, link: str) -> list[Process]:
    """Return the processes whose /proc/PID/ns/`link` is the process namespace of a holder.

    None if the holder has ended, or is in the namespace of this process: that is no host, and its
    processes must not be taken for those of one.
    """
    if not holder.lives:
        return []
    try:
        namespace = os.readlink(f"/proc/{holder.pid}/ns/pid")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    # The number may be of another process since the first look.
    if not holder.lives or namespace == os.readlink("/proc/self/ns/pid"):
        return []
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        # It may end at any moment, and its number be given to another process: the start is read first.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            process = Process.of(int(entry))
            if os.readlink(f"/proc/{entry}/ns/{link}") == namespace:
                found.append(process)
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
