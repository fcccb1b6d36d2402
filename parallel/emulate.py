"""A cluster on this machine: hosts are namespaces, joined by shaped links (docs/emulation.md).

    python -m parallel.emulate up --hosts 4 --rate 1gbit
    python -m parallel.emulate run -- -m parallel.train strategy=data_parallel workers=4
    python -m parallel.emulate link 2 --down            # or --up, or --rate 100mbit
    python -m parallel.emulate host 3 --slow 50%        # of its cores; or --kill, --stop, --continue
    python -m parallel.emulate status
    python -m parallel.emulate down

Needs root, and iproute2. `COMMAND --help` lists the options of a command.
Exit codes: 0 success; 2 invalid input; those of torchrun for `run`, or 128 + the signal that ended it.
"""

from __future__ import annotations

import argparse
import os
import sys

from parallel.cli.command import exit_code, open_console
from parallel.cli.emulation_arguments import parse
from parallel.cli.process_tree import PARENT, end_with_parent
from parallel.cli.tables import plain_table, print_lines
from parallel.config import require
from parallel.emulation import torchrun
from parallel.emulation.cluster import Cluster, find, require_system, sweep, temporary, up
from parallel.emulation.description import Description, parse_workers, uniform
from parallel.emulation.holders import processes_of
from parallel.results.command_line import COMMAND, typed_command


def execute() -> int:
    """Execute a command and return its exit code."""
    given = parse(__doc__, sys.argv[1:])
    match given.command:
        case "up":
            up(described(given, given.name))
        case "run" if given.hosts is None:
            for name in ("rate", "delay", "cores"):
                value = getattr(given, name)
                require(value is None, f"--{name}", value, "needs --hosts: it describes a new cluster")
            return run(find(given.name), given)
        case "run":
            if PARENT in os.environ:
                end_with_parent()
            name = f"run-{os.getpid()}" if given.name == Description.name else given.name
            with temporary(described(given, name)) as cluster:
                return run(cluster, given)
        case "link":
            ok = given.rate is not None or given.up is not None
            require(ok, "link", given.host, "needs --rate, --down or --up")
            find(given.name).link(given.host, rate=given.rate, up=given.up)
        case "host" if given.slow is not None:
            find(given.name).slow(given.host, given.slow)
        case "host":
            find(given.name).signal(given.host, given.signal)
        case "down":
            find(given.name).remove()
        case "status":
            require_system()
            show(sweep())
    return 0


def described(given: argparse.Namespace, name: str) -> Description:
    """Return the description of a new cluster."""
    cores = 1 if given.cores is None else given.cores
    return uniform("--", given.hosts, given.rate, given.delay, cores, name)


def run(cluster: Cluster, given: argparse.Namespace) -> int:
    """Run torchrun in a cluster and return its exit code."""
    workers = parse_workers("--workers-per-host", given.workers_per_host, len(cluster.hosts))
    environment = {COMMAND: typed_command(sys.orig_argv), **os.environ}
    return torchrun.run(cluster, given.torchrun, workers, environment)


def show(clusters: list[Cluster]) -> None:
    """Print the hosts of all clusters."""
    columns = ("cluster", "host", "link", "rate", "delay", "speed", "processes")
    table = plain_table(columns, words=columns[:1])
    for cluster in clusters:
        description = cluster.description
        for number, host in enumerate(description.hosts):
            link = "up" if host.up else "down", host.rate or "-", description.delay or "-"
            running = str(len(processes_of(cluster.hosts[number])))
            table.add_row(description.name, str(number), *link, host.speed, running)
    console = open_console(100)
    if clusters:
        console.print(table)
    else:
        print_lines(console, "no cluster is up")


if __name__ == "__main__":
    sys.exit(exit_code(execute))
