"""Make, change, list and remove clusters.

The state of a cluster is a folder with its name in `state_folder()`: `state.json`, the hosts file
that its hosts see, and a lock. It is made under another name and renamed when it is complete, so no
other process sees a part of it. A cluster belongs to its owner, the process that makes it or a
sweep, until it is told to stay; `sweep` removes those whose owner or holders have ended.

Commands run at the same time. Whatever reads states to change or remove them has the lock of the
state folder meanwhile. The lock of a cluster is held by its run, and for a moment by a sweep, which
has the other lock, too; so a run that takes it under that lock finds it taken only by another run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parallel.config import one_line, printable, require
from parallel.config.process import Process
from parallel.config.stderr import print_to_stderr
from parallel.config.typed import structure
from parallel.emulation import devices
from parallel.emulation.description import Description, names, parse_percent
from parallel.emulation.holders import (
    HOST_NAMESPACES,
    HOST_SCRIPT,
    SWITCH_NAMESPACES,
    SWITCH_SCRIPT,
    Holder,
    batch,
    entrances,
    kill_until_gone,
    processes_of,
    signal_all,
    started_with,
)
from parallel.emulation.lock import locked, try_lock
from parallel.emulation.processors import Processors
from parallel.results.environment import EMULATED
from parallel.results.json_files import write_atomically

FOLDER = "PARALLEL_EMULATION_DIR"
"""Environment variable with the folder of the states."""
DEFAULT_FOLDER = "/run/parallel-emulation"
STATE, HOSTS, LOCK = "state.json", "hosts", "lock"
NEW = ".new-"
"""Prefix of a state folder that is not complete; the process that makes or removes it follows."""
PROGRAMS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2", "tc": "iproute2"}
"""Programs that a cluster needs, and the package of each."""
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "continue": signal.SIGCONT}
"""What can be done to all processes of a host."""


def state_folder() -> Path:
    """Return the folder of all clusters' states."""
    return Path(os.environ.get(FOLDER, DEFAULT_FOLDER))


def require_system() -> None:
    """Raise `ValueError` unless this process may make namespaces and has the programs to do so."""
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise ValueError(f"an emulated cluster needs {program}, of the package {package}, on Linux")
    if os.geteuid() != 0:
        raise ValueError("an emulated cluster needs root, which makes its namespaces: use sudo")


def require_delay(name: str, delay: str | None) -> None:
    """Raise `ValueError` if there is a delay and the kernel cannot delay packets."""
    if delay is not None:
        tried = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1us"]
        done = subprocess.run(tried, capture_output=True)
        require(done.returncode == 0, name, delay, "needs netem, which this kernel does not have")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster that exists."""

    description: Description
    switch: Process
    hosts: tuple[Process, ...]
    """The holder of each host."""
    owner: Process | None
    """Process without which the cluster must not exist; None: it stays until it is removed."""
    processors: Processors | None
    """None: the system cannot limit processor time."""

    @property
    def folder(self) -> Path:
        """Folder of the state."""
        return state_folder() / self.description.name

    @property
    def lives(self) -> bool:
        """Whether it is complete and its owner, if it has one, runs."""
        needed = (self.switch, *self.hosts, *([] if self.owner is None else [self.owner]))
        return all(process.lives for process in needed)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Hold the right to run something in the hosts.

        Raises `ValueError` if another run has it, or if the cluster has been removed.
        """
        with contextlib.ExitStack() as stack:
            with locked(state_folder()):
                self._now()
                file = stack.enter_context((self.folder / LOCK).open("w"))
                if not try_lock(file.fileno()):
                    raise ValueError(f"cluster {self.description.name} is in use by another run")
            yield

    def link(self, host: int, *, rate: str | None = None, up: bool | None = None) -> Cluster:
        """Change the rate of a host's link, or plug its cable in or out.

        Raises `ValueError` if the cluster has been removed.
        """
        with locked(state_folder()):
            now = self._now()
            changed = now.description
            if rate is not None:
                changed = changed.changed(host, rate=rate)
            if up is not None:
                changed = changed.changed(host, up=up)
                batch(self.switch, "ip", devices.cable_commands(host, up))
            cluster = dataclasses.replace(now, description=changed)
            if rate is not None:
                cluster._shape(host)
            cluster._save()
        return cluster

    def slow(self, host: int, speed: str) -> Cluster:
        """Limit the processor time of a host.

        Raises `ValueError` where the system cannot, or if the cluster has been removed.
        """
        with locked(state_folder()):
            now = self._now()
            changed = now.description.changed(host, speed=speed)
            if self.processors is None:
                raise ValueError("--slow needs the control group cpu, which is not mounted on this system")
            part = parse_percent("--slow", speed)
            self.processors.limit(host, None if part == 1 else part * changed.cores)
            cluster = dataclasses.replace(now, description=changed)
            cluster._save()
        return cluster

    def signal(self, host: int, what: str) -> int:
        """Kill, stop or continue all processes of a host; return how many there were."""
        self.description.host(host)
        holder = self.hosts[host]
        found = processes_of(holder)
        signal_all([*found, *(entrances(holder) if what == "continue" else [])], SIGNALS[what])
        return len(found)

    def end_run(self) -> None:
        """Kill what is left of a run in the hosts. Raises `ValueError` if it does not end."""
        waiting = [process for host in self.hosts for process in entrances(host)]
        inside = [process for host in self.hosts for process in processes_of(host)]
        kill_until_gone(started_with(inside, EMULATED), started_with(waiting, EMULATED))

    def remove(self) -> None:
        """Remove the cluster and everything that runs in it. Raises `ValueError` if it does not end."""
        with locked(state_folder()):
            self._remove()

    def _remove(self) -> None:
        waiting = [process for host in self.hosts for process in entrances(host)]
        inside = [process for host in self.hosts for process in processes_of(host)]
        kill_until_gone([*self.hosts, self.switch, *inside], waiting)
        if self.processors is not None:
            self.processors.remove()
        if self._saved() is not None:
            shutil.rmtree(self.folder.rename(_incomplete()))

    def _saved(self) -> Cluster | None:
        """Return the cluster as it was saved last; None if it has been removed."""
        try:
            saved = _read(self.folder)
        except FileNotFoundError:
            return None
        return saved if saved.switch == self.switch else None  # not a later one with its name

    def _now(self) -> Cluster:
        """Return the cluster as it is after the changes of other commands.

        Raises `ValueError` if it has been removed.
        """
        saved = self._saved()
        if saved is None or not saved.lives:
            raise ValueError(f"cluster {self.description.name} has been removed")
        return saved

    def _shape(self, host: int) -> None:
        own, delay = self.description.hosts[host], self.description.delay
        batch(self.hosts[host], "tc", devices.shaping_commands("eth0", own, delay))
        batch(self.switch, "tc", devices.shaping_commands(f"port{host}", own, None))

    def _save(self) -> None:
        _write(self, self.folder)


def up(description: Description) -> Cluster:
    """Make a cluster that stays until it is removed.

    Raises `ValueError` if there is one with this name, or if the system does not allow it.
    """
    with _making(description):
        cluster, holders = _make(description)
        for holder in holders:
            holder.stay()
        cluster = dataclasses.replace(cluster, owner=None)
        cluster._save()
    return cluster


@contextlib.contextmanager
def temporary(description: Description) -> Iterator[Cluster]:
    """Make a cluster that ends with the context, or with this process. Raises as `up` does."""
    with _making(description):
        cluster, holders = _make(description)
    try:
        yield cluster
    finally:
        cluster.remove()
        for holder in holders:
            holder.end()


@contextlib.contextmanager
def _making(description: Description) -> Iterator[None]:
    """Hold the lock of the state folder, which is made if there is none.

    Raises `ValueError` if the system does not allow clusters.
    """
    require_system()
    require_delay("--delay", description.delay)
    state_folder().mkdir(parents=True, exist_ok=True)
    with locked(state_folder()):
        yield


def _make(description: Description) -> tuple[Cluster, list[Holder]]:
    """Make a cluster, under the lock of the state folder."""
    _sweep()
    folder = state_folder() / description.name
    require(not folder.exists(), "--name", description.name, "is the name of another cluster, which is up")
    me = Process.of(os.getpid())
    new = _incomplete()
    new.mkdir()
    holders: list[Holder] = []
    cluster: Cluster | None = None
    try:
        (new / HOSTS).write_text(names(len(description.hosts)))
        holders.append(Holder(SWITCH_NAMESPACES, SWITCH_SCRIPT))
        for host in range(len(description.hosts)):
            holders.append(Holder(HOST_NAMESPACES, HOST_SCRIPT, f"host{host}", str(new / HOSTS)))
        switch, *hosts = [holder.ready() for holder in holders]
        made = Cluster(
            description=description,
            switch=switch,
            hosts=tuple(hosts),
            owner=me,
            processors=Processors.find(f"{description.name}-{me.pid}"),
        )
        _write(made, new)
        new.rename(folder)
        cluster = made
        _connect(cluster)
        if cluster.processors is not None:
            cluster.processors.make(len(hosts))
    except BaseException:
        for holder in holders:
            holder.end()
        if cluster is None:
            shutil.rmtree(new)
        else:
            cluster._remove()
        raise
    return cluster, holders


def _connect(cluster: Cluster) -> None:
    """Join the hosts to the switch, and shape their links."""
    batch(cluster.switch, "ip", devices.switch_commands([host.pid for host in cluster.hosts]))
    for number, host in enumerate(cluster.hosts):
        batch(host, "ip", devices.host_commands(number))
        cluster._shape(number)


def find(name: str) -> Cluster:
    """Return the cluster with this name, after a sweep. Raises `ValueError` if there is none."""
    require_system()
    clusters = {cluster.description.name: cluster for cluster in sweep()}
    there = f"there are {', '.join(sorted(clusters))}" if clusters else "there is none"
    require(
        name in clusters, "--name", name, f"is no cluster that is up; {there}: `… up --hosts 2` makes one"
    )
    return clusters[name]


def sweep() -> list[Cluster]:
    """Remove what killed commands have left behind; return the clusters that are up.

    What cannot be removed is named on standard error, and does not concern the other clusters.
    """
    if not state_folder().is_dir():
        return []
    with locked(state_folder()):
        return _sweep()


def _sweep() -> list[Cluster]:
    found: list[Cluster] = []
    for entry in sorted(state_folder().iterdir()):
        try:
            if entry.name.startswith(NEW):
                pid, started = map(int, entry.name.removeprefix(NEW).split("-"))
                if not Process(pid, started).lives:  # its holders ended with it
                    shutil.rmtree(entry)
                continue
            cluster = _read(entry)
            if not cluster.lives:
                cluster._remove()
                continue
            found.append(cluster)
            with (entry / LOCK).open("w") as file:
                if try_lock(file.fileno()):
                    cluster.end_run()
        except FileNotFoundError:  # somebody has removed it by hand
            continue
        except (OSError, ValueError) as error:
            left = f"what is left of {entry.name} cannot be removed: {one_line(error)}"
            print_to_stderr(printable(f"warning: {left}"))
    return found


def _incomplete() -> Path:
    """Return the folder of a state that this process makes or removes."""
    me = Process.of(os.getpid())
    return state_folder() / f"{NEW}{me.pid}-{me.started}"


def _write(cluster: Cluster, folder: Path) -> None:
    write_atomically(folder / STATE, json.dumps(dataclasses.asdict(cluster), indent=1).encode())


def _read(folder: Path) -> Cluster:
    return structure(Cluster, json.loads((folder / STATE).read_text()), str(folder / STATE))
