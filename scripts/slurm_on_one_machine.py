"""Set up a real Slurm on this machine, with several nodes that are all this machine, to try things.

    python scripts/slurm_on_one_machine.py install      apt packages: slurmctld slurmd slurm-client munge
    python scripts/slurm_on_one_machine.py up --nodes 2 --cpus 2
    export SLURM_CONF=/tmp/slurm_on_one_machine/slurm.conf
    srun --nodes 2 hostname
    python scripts/slurm_on_one_machine.py down

`up` needs no root. It starts munged, slurmctld and one slurmd per node (`slurmd -N node1`, each with a
port of its own), all with files in one folder only (`--folder`), and listening on the loopback only.
`down` cancels the jobs, ends these processes and removes the folder. Nothing else is changed.

There are two partitions with the same nodes: `main` is the default, and a job in `urgent` preempts
jobs in `main`, which are requeued. A requeued job starts again after five seconds (Slurm's default is
two minutes). Jobs are not confined to their cores, as there is no cgroup for them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "scancel")
FOLDER = Path(tempfile.gettempdir()) / "slurm_on_one_machine"
STARTING_S = 30.0
ENDING_S = 10.0

CONFIGURATION = """\
ClusterName=one_machine
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
# A requeued job waits until the credential of its last start has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# As many CPUs as are stated, however many this machine has.
SlurmdParameters=config_overrides
# A requeued job is not left for the next half minute.
SchedulerParameters=bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
NODE = "NodeName=node{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus}"


def install() -> None:
    """Install Debian's packages. Needs root."""
    subprocess.run(["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES], check=True)


def up(folder: Path, nodes: int, cpus: int) -> None:
    """Start the daemons and wait until all nodes are idle. Raises `ValueError` if that fails."""
    missing = [name for name in PROGRAMS if program(name) is None]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} not found: `python {sys.argv[0]} install` installs {' '.join(PACKAGES)}"
        )
    if folder.exists():
        raise ValueError(f"--folder={folder} exists: `python {sys.argv[0]} down` ends what runs there")
    folder.mkdir(parents=True)
    try:
        configuration = configure(folder, nodes, cpus)
        start(folder, "munged", "--force", *munge_files(folder))
        start(folder, "slurmctld", "-c", "-f", str(configuration))
        for number in range(1, nodes + 1):
            start(folder, "slurmd", "-c", "-N", f"node{number}", "-f", str(configuration))
        wait_for_nodes(folder, nodes)
    except BaseException:
        down(folder)
        raise
    print(
        f"{nodes} nodes with {cpus} CPUs each. To use them in this shell:\nexport SLURM_CONF={configuration}"
    )


def configure(folder: Path, nodes: int, cpus: int) -> Path:
    """Write the keys and Slurm's configuration; return its file."""
    folder.chmod(0o755)  # munged refuses a folder that others may write to
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    host = socket.gethostname().partition(".")[0]
    ports = free_ports(nodes + 1)
    configuration = folder / "slurm.conf"
    lines = [
        NODE.format(number=number, host=host, port=port, cpus=cpus)
        for number, port in enumerate(ports[1:], start=1)
    ]
    configuration.write_text(
        CONFIGURATION.format(
            host=host, user=psutil.Process().username(), folder=folder, ports=ports, nodes="\n".join(lines)
        )
    )
    return configuration


def munge_files(folder: Path) -> list[str]:
    """Return the options that keep munged's files in the folder."""
    names = {
        "key-file": "munge.key",
        "socket": "munge.socket",
        "pid-file": "munged.pid",
        "log-file": "munged.log",
        "seed-file": "munge.seed",
    }
    return [f"--{option}={folder / name}" for option, name in names.items()]


def start(folder: Path, name: str, *arguments: str) -> None:
    """Start a daemon, which goes to the background by itself. Raises `ValueError` if it does not."""
    path = program(name)
    done = subprocess.run([str(path), *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"{name} did not start: {done.stderr.strip() or done.stdout.strip()}")


def wait_for_nodes(folder: Path, nodes: int) -> None:
    """Wait until all nodes are idle. Raises `ValueError` with the end of the log if they are not."""
    deadline = time.monotonic() + STARTING_S
    states: list[str] = []
    while states != ["idle"] * nodes:
        if time.monotonic() > deadline:
            log = (folder / "slurmctld.log").read_text().splitlines()[-3:]
            raise ValueError(f"the nodes are not idle after {STARTING_S:g} s, but {states}: {log}")
        time.sleep(0.2)
        asked = slurm(folder, "sinfo", "--noheader", "--Node", "--partition=main", "--format=%T")
        states = asked.stdout.split()


def down(folder: Path) -> None:
    """Cancel all jobs, end the daemons and remove the folder. Without a folder there is nothing to do."""
    if not folder.exists():
        print(f"nothing runs in {folder}")
        return
    if not (folder / "slurm.conf").exists():
        raise ValueError(f"--folder={folder} is not a folder of this script: it has no slurm.conf")
    if (folder / "slurmctld.pid").exists():
        slurm(folder, "scancel", "--user", psutil.Process().username())
        wait_for_jobs(folder)
    daemons = running(folder)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in daemons:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(sign)
        _, daemons = psutil.wait_procs(daemons, ENDING_S)
    shutil.rmtree(folder)


def wait_for_jobs(folder: Path) -> None:
    """Wait until no job is left, at most `ENDING_S`, and longer than slurmctld's KillWait."""
    deadline = time.monotonic() + 2 * ENDING_S
    while time.monotonic() < deadline:
        if not slurm(folder, "squeue", "--noheader").stdout.strip():
            return
        time.sleep(0.2)


def running(folder: Path) -> list[psutil.Process]:
    """Return the daemons of this folder, and what is left of their jobs.

    They are processes of Slurm and munge with the folder in an argument, in the environment or as
    working directory, and the children of those (a step's processes survive slurmd).
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter(["name", "cmdline", "environ", "cwd"]):
        known = process.info
        if (known["name"] or "").startswith(("slurm", "munged")):
            words = [*(known["cmdline"] or []), *(known["environ"] or {}).values(), known["cwd"] or ""]
            if any(f"{folder}/" in f"{word}/" for word in words):
                found.add(process)
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.update(process.children(recursive=True))
    return list(found)


def slurm(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands."""
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def program(name: str) -> str | None:
    """Return the path of a program, also of one in /usr/sbin, which is not in every user's PATH."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def free_ports(number: int) -> list[int]:
    """Return ports that are free now."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def main(arguments: Sequence[str]) -> int:
    """Run one of the three commands; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("install", "up", "down"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=2, help="CPUs of each node")
    given = parser.parse_args(arguments)
    folder = given.folder.absolute()
    try:
        if min(given.nodes, given.cpus) < 1:
            raise ValueError(f"--nodes={given.nodes} and --cpus={given.cpus} must be at least 1")
        if given.command == "install":
            install()
        elif given.command == "up":
            up(folder, given.nodes, given.cpus)
        else:
            down(folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
