"""The commands of ip and tc that make and shape the network of a cluster.

    host 0: eth0 ──veth── port0 ┐
    host 1: eth0 ──veth── port1 ┼ bridge `switch`, in a network namespace of its own
    …                           ┘

Both ends of a link are shaped alike, each for the packets that it sends: eth0 limits what the host
sends, its port what it receives. The delay is added once on the way from host to host, by the
sender's eth0.
"""

from __future__ import annotations

from parallel.config.quantities import parse_delay, parse_rate
from parallel.emulation.description import Host, address

PREFIX = 16
"""Length of the subnet's prefix."""
BURST = 70_000
"""Bytes that a link may send at once: the largest packet that the kernel hands to a device (64 KiB
and headers). A smaller value would cost a copy of every packet, a larger one lets short messages
pass faster than the rate."""
QUEUE_S = 0.02
"""Time for which a packet may wait for a link, as in the buffer of a switch, before it is dropped."""
SHORTEST_QUEUE = 200_000
"""Bytes; a slow link holds some large packets, too."""
SEGMENTS = 1_000_000
"""Packets that may be under way in a delay."""


def switch_commands(pids: list[int]) -> list[str]:
    """Return the `ip` commands of the switch's namespace; `pids`: a process in each host."""
    commands = [
        "link set lo up",
        "link add switch type bridge stp_state 0 mcast_snooping 0",
        "link set switch up",
    ]
    for host, pid in enumerate(pids):
        commands += [
            f"link add port{host} type veth peer name eth0 netns {pid}",
            f"link set port{host} master switch up",
        ]
    return commands


def host_commands(host: int) -> list[str]:
    """Return the `ip` commands of a host's namespace, after those of the switch."""
    return ["link set lo up", f"address add {address(host)}/{PREFIX} dev eth0", "link set eth0 up"]


def cable_commands(host: int, up: bool) -> list[str]:
    """Return the `ip` commands of the switch that plug a host's cable in or out."""
    return [f"link set port{host} {'up' if up else 'down'}"]


def shaping_commands(device: str, host: Host, delay: str | None) -> list[str]:
    """Return the `tc` commands that shape what `device` sends; `delay` None: without a delay."""
    commands = []
    parent = "root"
    if host.rate is not None:
        rate = parse_rate("rate", host.rate)
        limit = max(SHORTEST_QUEUE, round(rate / 8 * QUEUE_S))
        commands.append(
            f"qdisc replace dev {device} root handle 1: tbf rate {rate:.0f}bit burst {BURST} limit {limit}"
        )
        parent = "parent 1:1"
    if delay is not None:
        microseconds = round(parse_delay("delay", delay) * 1e6)
        commands.append(
            f"qdisc replace dev {device} {parent} handle 2: netem delay {microseconds}us limit {SEGMENTS}"
        )
    return commands
