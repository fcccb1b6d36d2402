"""The network interface on which a worker listens: the one that leads to the launcher's store.

gloo listens on the address that the host name has, and NCCL on an interface that it chooses. On one
host this may be an address that others reach, although the store listens on the loopback alone; on
several it may be the loopback, or a network that does not connect them.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import defaultdict
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import psutil

from parallel.config import require
from parallel.runtime.failure.host_names import describe_host, kernel_namespace

LOOPBACK = "127.0.0.1"
GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_ANY_PORT = 9
"""Connecting a datagram socket sends nothing."""


@dataclass(frozen=True)
class Endpoint:
    """Where a worker listens for the messages of others."""

    variable: str
    """Environment variable that selects the interface."""
    network: str
    """Boot id and network namespace: workers with the same reach each other over the loopback."""
    interface: str
    """Empty: not known."""
    addresses: tuple[str, ...]
    """Address of each interface, of which gloo takes several."""


def find_endpoint(backend: str, store_host: str, environment: Mapping[str, str]) -> Endpoint:
    """Return where this worker will listen, after `choose_interface`.

    Raises `ValueError` as that.
    """
    variables = dict(environment)
    choose_interface(backend, store_host, variables)
    interface = chosen_interface(backend, variables) or ""
    every = _addresses()
    return Endpoint(
        NCCL if backend == "nccl" else GLOO,
        kernel_namespace("net"),
        interface,
        tuple(every[name][0] for name in interface.split(",") if name in every),
    )


def refuse_endpoints(endpoints: Sequence[tuple[str, Endpoint]]) -> None:
    """Raise `ValueError` if workers cannot reach each other at their addresses.

    That is a loopback address where workers of another host need it, or one address on two hosts.
    `endpoints` has each worker's host and endpoint, by rank.
    """
    workers: dict[tuple[str, Endpoint], list[int]] = defaultdict(list)
    for rank, one in enumerate(endpoints):
        workers[one].append(rank)
    for (host, own), ranks in workers.items():
        for (other_host, other), others in workers.items():
            if own.network == other.network:
                continue
            here, there = describe_host(host, ranks), describe_host(other_host, others)
            instead = f"{own.variable} must name an interface of the network between them"
            for address in own.addresses:
                if ipaddress.ip_address(address).is_loopback:
                    raise ValueError(
                        f"{here} listens on {own.interface}, address {address}, where {there} can't reach it: {instead}"
                    )
                if address in other.addresses:
                    raise ValueError(
                        f"{here} and {there} have the same address, {address} on {own.interface} and "
                        f"{other.interface}: {instead}"
                    )


def choose_interface(backend: str, store_host: str, environment: MutableMapping[str, str]) -> None:
    """Set the variable from which the backend takes its interface, unless it is set.

    NCCL is told only the loopback: between hosts it prefers InfiniBand. Raises `ValueError` if
    `GLOO_SOCKET_IFNAME` names no interface with an address.
    """
    if backend == "gloo" and environment.get(GLOO):
        check_interface(environment)
        return
    name = interface_towards(store_host)
    if name is not None and backend == "gloo":
        environment[GLOO] = name
    if name is not None and backend == "nccl" and _is_loopback(name):
        environment.setdefault(NCCL, f"={name}")  # =: not a prefix of the name


def chosen_interface(backend: str, environment: Mapping[str, str]) -> str | None:
    """Return the interface of messages between hosts, after `choose_interface`; None: not known.

    Without NCCL_SOCKET_IFNAME, NCCL makes a choice that it does not tell.
    """
    return environment.get(NCCL if backend == "nccl" else GLOO, "").removeprefix("=") or None


def check_interface(environment: Mapping[str, str]) -> None:
    """Raise `ValueError` if `GLOO_SOCKET_IFNAME` is set and names no interface with an address."""
    addresses = _addresses()
    known = ", ".join(sorted(addresses))
    for name in filter(None, environment.get(GLOO, "").split(",")):  # gloo takes several
        require(name in addresses, GLOO, name, f"must be an interface of this host, which has {known}")


def interface_towards(host: str) -> str | None:
    """Return the interface through which this host reaches `host`; None if that is not known."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            own = probe.getsockname()[0]
    except OSError:
        return None
    return next((name for name, addresses in _addresses().items() if own in addresses), None)


def _addresses() -> dict[str, list[str]]:
    """Return the IP addresses of each interface that has any."""
    found = {
        name: [
            one.address.partition("%")[0] for one in every if one.family in (socket.AF_INET, socket.AF_INET6)
        ]
        for name, every in psutil.net_if_addrs().items()
    }
    return {name: addresses for name, addresses in found.items() if addresses}


def _is_loopback(name: str) -> bool:
    return any(ipaddress.ip_address(address).is_loopback for address in _addresses()[name])
