"""The command line of `parallel.emulate`: a command, and its options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from parallel.emulation.cluster import SIGNALS
from parallel.emulation.description import Description


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, as those of all commands."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}: see `{self.prog} --help`")


def parse(help: str | None, arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line. Raises `ValueError` for an invalid one."""
    parser = Parser(
        "python -m parallel.emulate", description=help, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.add_argument("--name", default=Description.name, help="the cluster (default: %(default)s)")
        return added

    made = command("up", "make a cluster")
    made.add_argument("--hosts", type=int, required=True)
    _link_options(made)
    ran = command("run", "run `torchrun ARGUMENTS` on all hosts")
    ran.add_argument("--workers-per-host", default="1", help="one number, or one for each host: 2,1")
    new = ran.add_argument_group("a new cluster, which ends with the run")
    new.add_argument("--hosts", type=int)
    _link_options(new)
    ran.add_argument("torchrun", nargs="+", metavar="ARGUMENTS", help="after --: -m parallel.train …")
    link = command("link", "change the link of a host")
    link.add_argument("host", type=int)
    link.add_argument("--rate")
    cable = link.add_mutually_exclusive_group()
    cable.add_argument("--down", dest="up", action="store_false", default=None, help="cut it")
    cable.add_argument("--up", dest="up", action="store_true", default=None)
    host = command("host", "change a host")
    host.add_argument("host", type=int)
    change = host.add_mutually_exclusive_group(required=True)
    change.add_argument("--slow", metavar="PERCENT", help="processor time, of its cores; 100%%: no limit")
    for name in SIGNALS:
        change.add_argument(
            f"--{name}", dest="signal", action="store_const", const=name, help="all processes"
        )
    command("down", "remove a cluster and all that runs in it")
    commands.add_parser("status", help="list the clusters")
    return parser.parse_args(arguments)


def _link_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--rate", help="of each link, in each direction: 1gbit (default: not limited)")
    parser.add_argument("--delay", help="from host to host, added to the machine's own: 50us")
    parser.add_argument("--cores", type=int, help="of a host, the unit of --slow (default: 1)")
